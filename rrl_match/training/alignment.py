"""Registration of training pairs that are misaligned by a few pixels, by the edges that both bands show."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.refinement import edge_offsets
from rrl_match.training.datasets import ImagePair, Source, footprint

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float64]  # (2, 3), as ImagePair.a_to_b
Known = dict[str, Any]  # by source and pair, the matrix as lists, or None for a pair to drop

_LOCATIONS = 200  # in image A whose edges are searched for in B
_RADII = (10, 4)  # of the search, in pixels: first around the given transform, then around the one found
_FEWEST = 12  # locations to fit a transform to
_AGREE = 0.3  # fraction of the locations that must agree on one transform; by chance, 0.04 do
_SMALLEST_MOVE = 1.0  # pixels, the median over the locations: less is within the error of the edges
_LARGEST_MOVE = 12.0  # pixels: a pair that is farther off is dropped


def align(sources: Sequence[Source], cache: Path | None = None) -> list[Source]:
    """Register the image pairs of sources by their edges.

    A pair stays as it is if its edges do not agree on a transform, or if they are off by less than their own error. It
    is dropped if they are off by more than a training run should trust.

    Args:
        sources: of image pairs.
        cache: JSON file that keeps the matrices, because a run that resumes needs them again.
    """
    known: Known = {}
    if cache and cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    aligned = [_aligned(source, known) for source in sources]
    if cache:
        partial = cache.with_name(f"{cache.name}.{os.getpid()}")  # several processes may write at once
        partial.write_text(json.dumps(known) + "\n", encoding="utf-8")
        os.replace(partial, cache)
    return aligned


def _aligned(source: Source, known: Known) -> Source:
    """One source; what is found is added to `known`."""
    kept, moved = [], 0
    for pair in source.pairs:
        key = f"{source.name}/{pair.name}"
        if key not in known:
            matrix, distance = edge_move(pair)
            if distance <= _SMALLEST_MOVE:
                matrix = pair.a_to_b
            known[key] = matrix.tolist() if distance <= _LARGEST_MOVE else None
        if known[key] is not None:
            aligned = np.array(known[key])
            moved += not np.array_equal(aligned, pair.a_to_b)
            kept.append(dataclasses.replace(pair, a_to_b=aligned))
    dropped = len(source.pairs) - len(kept)
    logger.info("%s: of %d pairs, %d moved, %d dropped", source.name, len(source.pairs), moved, dropped)
    return dataclasses.replace(source, pairs=kept)


def edge_move(pair: ImagePair) -> tuple[Matrix, float]:
    """The ``a_to_b`` (2, 3) under which the edges of both bands coincide, and how far it moves image A.

    Returns:
        the matrix, and the median distance in pixels of B; the pair's own matrix and 0.0 if too few edges agree.
    """
    unchanged = pair.a_to_b, 0.0
    image_a = _as_float(cv2.cvtColor(pair.image_a, cv2.COLOR_RGB2GRAY))
    image_b = _as_float(pair.image_b)
    points = _corners(image_a, footprint(pair.image_a))
    shown_b = footprint(pair.image_b)
    matrix = pair.a_to_b
    for radius in _RADII:
        predicted = _transformed(points, matrix)
        inside = _inside(predicted, shown_b)
        points, predicted = points[inside], predicted[inside]
        if len(points) < _FEWEST:
            return unchanged
        linear = np.broadcast_to(matrix[:, :2], (len(points), 2, 2))
        offsets, found = edge_offsets(image_a, image_b, points, predicted, linear, radius)
        if found.sum() < _FEWEST:
            return unchanged
        matched = predicted + np.einsum("nij,nj->ni", linear, offsets)
        fitted, agree = cv2.estimateAffinePartial2D(
            points[found], matched[found], method=cv2.RANSAC, ransacReprojThreshold=2.0, maxIters=5000
        )
        if fitted is None or agree.sum() < max(_FEWEST, _AGREE * found.sum()):
            return unchanged
        matrix = np.asarray(fitted, np.float64)
    move = _transformed(points, matrix) - _transformed(points, pair.a_to_b)
    return matrix, float(np.median(np.hypot(*move.T)))


def _corners(image: NDArray[np.float32], mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Locations (N, 2) xy with structure, spread over the image."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
    spacing = 0.7 * (image.size / _LOCATIONS) ** 0.5
    corners = cv2.goodFeaturesToTrack(smooth, _LOCATIONS, 1e-4, spacing, mask=mask, blockSize=7)
    return np.zeros((0, 2)) if corners is None else np.asarray(corners, np.float64).reshape(-1, 2)


def _inside(points: NDArray[np.float64], shown: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,) whether points lie in the image and in its footprint (H, W)."""
    height, width = shown.shape
    x, y = points.round().astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    return np.asarray(inside & (shown[y.clip(0, height - 1), x.clip(0, width - 1)] > 0), np.bool_)


def _transformed(points: NDArray[np.float64], matrix: Matrix) -> NDArray[np.float64]:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float64)


def _as_float(image: Any) -> NDArray[np.float32]:
    return np.asarray(np.asarray(image, np.float32) / 255, np.float32)
