"""The examples run on the image pairs that come with them and find the true transform."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from example_pair import read_pair

from rrl_match import extract_patches

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGES = EXAMPLES / "images"


def true_matrix(name):
    return np.vstack([read_pair(name)[2], [0, 0, 1]])


def run(script, *arguments):
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def corner_error(output, name="naip"):
    """Mean distance in pixels, over the corners of A, between the matrix that an example printed and the true one."""
    printed = re.findall(r"-?\d+\.\d*(?:e[+-]\d+)?", output[output.rindex("[[") :])
    matrix = np.array(printed[:9] if len(printed) >= 9 else [*printed[:6], 0, 0, 1], float).reshape(3, 3)
    h, w = cv2.imread(str(next(IMAGES.glob(f"{name}_[vo]*.jpg")))).shape[:2]
    corners = np.array([[(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)]], float)
    there = [cv2.perspectiveTransform(corners, m) for m in (matrix, true_matrix(name))]
    return np.linalg.norm(there[0] - there[1], axis=2).mean()


@pytest.mark.slow
def test_register_pair(tmp_path):
    assert corner_error(run("register_pair.py", "--out", tmp_path)) < 2
    assert cv2.imread(str(tmp_path / "registered.jpg")).shape == (640, 1212, 3)


@pytest.mark.slow
def test_register_pair_of_radar(tmp_path):
    images = IMAGES / "sentinel_optical.jpg", IMAGES / "sentinel_radar.jpg"
    output = run("register_pair.py", *images, "--weights", "optical-sar", "--out", tmp_path)
    assert corner_error(output, "sentinel") < 10  # the bands are misaligned by a few pixels


@pytest.mark.slow
def test_opencv_pipeline():
    assert corner_error(run("opencv_pipeline.py")) < 8


@pytest.mark.slow
def test_kornia_pipeline():
    pytest.importorskip("kornia")
    assert corner_error(run("kornia_pipeline.py")) < 15


@pytest.mark.slow
def test_export_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    output = run("export_onnx.py", tmp_path)
    assert "16 of 16 true pairs" in output
    assert float(re.search(r"difference from the matcher: (\S+)", output)[1]) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.onnx"]


def test_kornia_pipeline_takes_lafs_and_returns_matches(small):
    """Tensors throughout, in kornia's shapes; the test does not need kornia."""
    image = torch.rand(120, 140, generator=torch.Generator().manual_seed(0))
    centres = torch.tensor([(30.0, 40.0), (70.0, 60.0), (100.0, 90.0)])
    half = small.patch_size / 2
    lafs = torch.cat([half * torch.eye(2).expand(3, 2, 2), centres[:, :, None]], 2)[None]
    patches, valid = extract_patches(image, lafs, small.patch_size, orientation=True, scale=True)
    assert valid.all()
    assert lafs[:, valid].shape == (1, 3, 2, 3)
    upright, _ = extract_patches(image, centres, small.patch_size)
    np.testing.assert_allclose(patches, upright, atol=1e-6)
    distances, indices = small.match(patches, patches, mutual=False, threshold=0).to_kornia()
    assert distances.shape == (3, 1)
    assert indices.shape == (3, 2)
    assert lafs[0, indices[:, 0], :, 2].tolist() == centres.tolist()


def test_images_are_small():
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) < 1_500_000


@pytest.mark.parametrize("name", ["naip", "sentinel"])
def test_images_are_of_known_origin(name):
    assert true_matrix(name).shape == (3, 3)
    about = (IMAGES / "README.md").read_text(encoding="utf-8")
    for path in IMAGES.glob(f"{name}_*.jpg"):
        assert path.name in about
    assert "Contains modified Copernicus Sentinel data" in about
