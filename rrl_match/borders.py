"""Borders without data, as rotated and warped images have."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_PIXELS = 2_000_000  # borders are looked for in images of this size
_LEAST = 0.002  # of the image: less is no border
_NOISE = 0.04  # of the range of values: what JPEG adds along the edge of a footprint
_EXACT = 0.7  # part of a border that has exactly its value


def border_without_data(
    grey: NDArray[Any], known: NDArray[np.bool_] | None = None, value: float | None = None
) -> NDArray[np.bool_]:
    """Where an image (H, W) has a border without data: (H, W) bool.

    A footprint is convex, and around it there is exactly one value, up to the noise of JPEG. Only what lies outside the
    convex hull of everything else counts, so that dark ground, clipped sky and classes of a map are kept where anything
    else lies farther out.

    Args:
        grey: uint8, uint16 or floating point, finite.
        known: where the image is known otherwise; all if not given.
        value: of the border; if not given, those that are common at the image's edge are tried.
    """
    step = max(1, int(np.sqrt(grey.size / _PIXELS)))
    small = grey[::step, ::step].astype(np.float32)
    hidden = np.zeros(small.shape, bool) if known is None else ~known[::step, ::step]
    found = np.zeros(small.shape, bool)
    for candidate in _common_at_edge(small) if value is None else [value]:
        found |= _outside(small, candidate, hidden)
    if not found.any():
        return np.zeros(grey.shape, bool)
    wider = cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8))  # pixels that blend with it
    whole: NDArray[np.bool_] = cv2.resize(wider, grey.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return whole


def _common_at_edge(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    values, counts = np.unique(edge, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:8]
    return values[commonest[counts[commonest] >= 0.01 * len(edge)]]


def _outside(grey: NDArray[np.float32], value: float, hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What lies outside the convex hull of everything but the area of one value at the image's border."""
    nothing, kernel = np.zeros(grey.shape, bool), np.ones((3, 3), np.uint8)
    noise = _NOISE * float(grey.max() - grey.min())
    alike = ((np.abs(grey - value) <= noise) | hidden).astype(np.uint8)
    _, labels = cv2.connectedComponents(alike, connectivity=4)
    at_border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    area = np.isin(labels, at_border[at_border > 0])
    shown = cv2.morphologyEx((~area).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    contours, _ = cv2.findContours(shown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return nothing
    inside = cv2.fillConvexPoly(np.zeros(grey.shape, np.uint8), cv2.convexHull(np.concatenate(contours)), 1)
    outside = (inside == 0) & ~hidden
    if outside.mean() < _LEAST or (grey[outside] == value).mean() < _EXACT:
        return nothing
    return np.asarray(outside)
