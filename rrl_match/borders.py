"""Borders without data, as rotated, warped and mosaicked images have."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_PIXELS = 2_000_000  # borders are looked for in images of this size
_LEAST = 0.002  # of the image: smaller areas are no border
_STRAIGHT = 0.006  # of the image's side: how far an outline may be from a polygon
_MOST_CORNERS = 24  # of that polygon, so that also a round field of view has few enough


def border_without_data(grey: NDArray[Any], known: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Where an image (H, W) has a border without data: (H, W) bool.

    A border without data has exactly one value, up to the noise of JPEG along its edge, and the outline of a footprint:
    a few straight lines. Dark ground, clipped sky and classes of a map have ragged outlines.

    Args:
        grey: uint8, uint16 or floating point, finite.
        known: where the image is known otherwise; all if not given.
    """
    step = max(1, int(np.sqrt(grey.size / _PIXELS)))
    small = grey[::step, ::step]
    hidden = np.zeros(small.shape, bool) if known is None else ~known[::step, ::step]
    found = np.zeros(small.shape, bool)
    values, counts = np.unique(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]), return_counts=True)
    for value in values[counts >= 0.01 * counts.sum()][:8]:
        area = _footprint_gap(small, small == value, hidden)
        if area is not None:
            found |= area
    if not found.any():
        return np.zeros(grey.shape, bool)
    found = cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # pixels that blend with it
    whole: NDArray[np.bool_] = cv2.resize(found.astype(np.uint8), grey.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return whole


def _footprint_gap(
    grey: NDArray[Any], constant: NDArray[np.bool_], hidden: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """The constant area at the image's border if it is outside a footprint, else None."""
    kernel = np.ones((5, 5), np.uint8)
    opened = cv2.morphologyEx(
        (constant | hidden).astype(np.uint8), cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_REPLICATE
    )
    _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    x, y, w, h, area = stats.T
    touches = (x == 0) | (y == 0) | (x + w == grey.shape[1]) | (y + h == grey.shape[0])
    outside = touches & (area > _LEAST * grey.size)
    outside[0] = False  # the rest of the image
    if not outside.any():
        return None
    gap = outside[labels]
    shown = (~gap).astype(np.uint8)
    contours, _ = cv2.findContours(shown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    large = [c for c in contours if cv2.contourArea(c) > _LEAST * grey.size]
    corners = sum(len(cv2.approxPolyDP(c, _STRAIGHT * max(grey.shape) + 1, True)) for c in large)
    if not large or corners > _MOST_CORNERS:
        return None
    near = cv2.dilate(gap.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0  # the noise of JPEG along the edge
    spread = 0.03 * (float(grey.max()) - float(grey.min()))
    return np.asarray(gap | (near & (np.abs(grey.astype(np.float32) - np.float32(grey[constant][0])) <= spread)))
