"""Where an image has no data."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_BLACK = 2  # highest value of an area without data, for JPEG's noise
_SMALLEST = 64  # pixels of such an area
_RIM = 7  # pixels wide around it, 3 on each side, that JPEG or interpolation mixed


def footprint(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where an image (H, W) or (H, W, 3) has data: (H, W) of 1, but 0 in black areas at its border and 3 px around."""
    black = np.asarray(image.reshape(*image.shape[:2], -1).max(2) <= _BLACK, np.uint8)
    _, labels = cv2.connectedComponents(black, connectivity=4)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    areas = np.bincount(labels.ravel())
    outside = np.isin(labels, [k for k in border if k and areas[k] >= _SMALLEST])
    return np.asarray(1 - cv2.dilate(outside.astype(np.uint8), np.ones((_RIM, _RIM), np.uint8)), np.uint8)
