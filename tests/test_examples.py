"""The pipelines that the examples plug the matcher into."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rrl_match import extract_patches

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def corner_error(script):
    """What an example prints of the pair that it renders."""
    done = subprocess.run([sys.executable, EXAMPLES / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ matches", done.stdout)
    return float(re.search(r"four corners: (\S+) px", done.stdout)[1])


@pytest.mark.slow
def test_opencv_pipeline():
    assert corner_error("opencv_pipeline.py") < 4


@pytest.mark.slow
def test_kornia_pipeline():
    assert corner_error("kornia_pipeline.py") < 8


def test_lafs_in_and_what_kornia_matches_with_out(small):
    """Tensors all the way, of the shapes that kornia has, which is not needed for it."""
    image = torch.rand(120, 140, generator=torch.Generator().manual_seed(0))
    centres = torch.tensor([(30.0, 40.0), (70.0, 60.0), (100.0, 90.0)])
    half = small.patch_size / 2
    lafs = torch.cat([half * torch.eye(2).expand(3, 2, 2), centres[:, :, None]], 2)[None]
    patches, valid = extract_patches(image, lafs, small.patch_size, upright=False)
    assert valid.all()
    assert lafs[:, valid].shape == (1, 3, 2, 3)
    upright, _ = extract_patches(image, centres, small.patch_size)
    np.testing.assert_allclose(patches, upright, atol=1e-6)
    distances, indices = small.match(patches, patches, mutual=False, threshold=0).to_kornia()
    assert distances.shape == (3, 1)
    assert indices.shape == (3, 2)
    assert lafs[0, indices[:, 0], :, 2].tolist() == centres.tolist()
