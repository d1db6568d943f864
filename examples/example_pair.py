"""The image pairs that the examples read; images/README.md says where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.training.datasets import read_manifest

IMAGES = Path(__file__).resolve().parent / "images"


def read_image(path: Path) -> NDArray[Any]:
    """An image of any bit depth: (H, W), or (H, W, 3) in RGB order. OpenCV itself reads BGR."""
    image = cv2.imread(str(path), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise SystemExit(f"{path} cannot be read as an image")
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def read_pair(name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Image A, image B and the matrix (2, 3) from A to B of the pair "naip" or "sentinel"."""
    row = next(row for split in ("train", "test") for row in read_manifest(IMAGES, split) if row.name == name)
    return read_image(row.image_a), read_image(row.image_b), row.a_to_b
