"""The last pixel: where edges of two pictures that are registered nearly right coincide."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.patches import extract_patches

Points = NDArray[np.float64]

_ORIENTATIONS = 8
_HALF = 28  # of a template, which is 56 pixels wide
_MARGIN = 5  # around what is compared, for the filters


def edge_offsets(
    image_a: NDArray[np.float32],
    image_b: NDArray[np.float32],
    points: Points,
    predicted: Points,
    linear: NDArray[np.float64],
    radius: int,
) -> tuple[Points, NDArray[np.bool_]]:
    """Where the edges around points of A are found again in B, near where they are predicted.

    Each pixel's edges are described by channels of oriented gradients without their sign, which contrast that turns
    between bands does not change, and templates of them are moved over B (CFOG: Ye et al., "Fast and robust matching
    for multimodal remote sensing image registration", TGRS 2019).

    Args:
        image_a, image_b: (H, W) in [0, 1].
        points: (N, 2) xy in A.
        predicted: (N, 2) xy in B.
        linear: (N, 2, 2), how the surroundings of a point are turned and scaled from A to B.
        radius: to look within, in pixels of A.

    Returns:
        offsets (N, 2) from `predicted`, in pixels of A, to a fraction of a pixel; and (N,) which of them are
        maxima inside the radius, with all that was compared inside both pictures.
    """
    size = 2 * (_HALF + radius + _MARGIN)
    crops_a, inside_a = warped_patches(image_a, points, np.eye(2), size)
    crops_b, inside_b = warped_patches(image_b, predicted, linear, size)
    offsets, found = np.zeros((len(points), 2)), np.zeros(len(points), bool)
    for n in np.flatnonzero(inside_a & inside_b):
        inner, whole = slice(_MARGIN + radius, -_MARGIN - radius), slice(_MARGIN, -_MARGIN)
        difference = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
        for edges_a, edges_b in zip(_edges(crops_a[n]), _edges(crops_b[n]), strict=True):
            template = np.ascontiguousarray(edges_a[inner, inner])
            difference += cv2.matchTemplate(np.ascontiguousarray(edges_b[whole, whole]), template, cv2.TM_SQDIFF)
        row, column = np.unravel_index(difference.argmin(), difference.shape)
        if 0 < row < 2 * radius and 0 < column < 2 * radius:
            x = column + _between(*difference[row, column - 1 : column + 2])
            y = row + _between(*difference[row - 1 : row + 2, column])
            offsets[n], found[n] = (x - radius, y - radius), True
    return offsets, found


def warped_patches(
    image: NDArray[np.float32], centres: Points, linear: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Patches (N, size, size) whose pixels `linear`, (2, 2) or one each, takes to a picture; and which lie inside."""
    shape = np.broadcast_to(linear, (len(centres), 2, 2)) * (size / 2)
    return extract_patches(image, np.concatenate([shape, centres[:, :, None]], axis=2), size, upright=False)


def _edges(crop: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Smoothed channels of oriented gradients, of one length at every pixel where there are edges; four at a time."""
    smooth = cv2.GaussianBlur(crop, (0, 0), 1.0)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    angles = np.arange(_ORIENTATIONS, dtype=np.float32) * np.float32(np.pi / _ORIENTATIONS)
    channels = np.abs(dx[..., None] * np.cos(angles) + dy[..., None] * np.sin(angles))
    halves = [cv2.GaussianBlur(np.ascontiguousarray(half), (0, 0), 1.5) for half in np.split(channels, 2, axis=2)]
    channels = np.concatenate(halves, axis=2)
    channels = np.roll(channels, 1, axis=2) + 2 * channels + np.roll(channels, -1, axis=2)
    length = np.sqrt((channels * channels).sum(2, keepdims=True))
    return np.split(channels / (length + length.mean() + 1e-6), 2, axis=2)


def _between(before: float, middle: float, after: float) -> float:
    """Place of the minimum of a parabola through three values one step apart, from the middle one."""
    bend = before - 2 * middle + after
    return float((before - after) / (2 * bend)) if bend > 1e-9 else 0.0
