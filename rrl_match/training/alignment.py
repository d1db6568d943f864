"""Registering training pairs whose bands are off by a few pixels, by the edges that both show."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.refinement import edge_offsets
from rrl_match.training.datasets import ImagePair, Source, footprint

logger = logging.getLogger(__name__)

_LOCATIONS = 200  # of image A whose edges are looked for in B
_RADIUS = 10  # pixels
_AGREE = 0.3  # fraction of the locations that must agree on one transform; by chance, 0.04 do
_SMALLEST_MOVE = 1.0  # pixels in the median of the locations: less is within the error of the edges
_LARGEST_MOVE = 12.0  # a pair that is farther off is dropped


def align(sources: Sequence[Source], cache: Path | None = None) -> list[Source]:
    """The sources with pairs registered by their edges; pairs whose edges do not agree stay as they are.

    Args:
        sources: of image pairs.
        cache: JSON file that keeps the matrices, as a run that resumes needs them again.
    """
    known: dict[str, list[list[float]] | None] = {}
    if cache and cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    aligned = [_aligned(source, known) for source in sources]
    if cache:
        cache.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return aligned


def _aligned(source: Source, known: dict[str, list[list[float]] | None]) -> Source:
    kept = []
    for pair in source.pairs:
        key = f"{source.name}/{pair.name}"
        if key not in known:
            matrix, distance = edge_move(pair)
            matrix = pair.a_to_b if distance <= _SMALLEST_MOVE else matrix
            known[key] = matrix.tolist() if distance <= _LARGEST_MOVE else None
        if known[key] is not None:
            kept.append(dataclasses.replace(pair, a_to_b=np.array(known[key])))
    moved = sum(not np.array_equal(known[f"{source.name}/{p.name}"], p.a_to_b) for p in source.pairs)
    dropped = len(source.pairs) - len(kept)
    logger.info("%s: of %d pairs, %d moved, %d dropped", source.name, len(source.pairs), moved - dropped, dropped)
    return dataclasses.replace(source, pairs=kept)


def edge_move(pair: ImagePair) -> tuple[NDArray[np.float64], float]:
    """The ``a_to_b`` (2, 3) under which the edges of both bands coincide, and how far it moves image A.

    Returns:
        the matrix, and the median distance in pixels of B; the pair's own matrix and 0.0 if too few edges agree.
    """
    image_a = cv2.cvtColor(pair.image_a, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    image_b = pair.image_b.astype(np.float32) / 255
    smooth = cv2.GaussianBlur(image_a, (0, 0), 1.5)
    spacing = 0.7 * (image_a.size / _LOCATIONS) ** 0.5
    shown = footprint(pair.image_a)
    corners = cv2.goodFeaturesToTrack(smooth, _LOCATIONS, 1e-4, spacing, mask=shown, blockSize=7)
    if corners is None:
        return pair.a_to_b, 0.0
    points = corners.reshape(-1, 2).astype(np.float64)
    matrix = pair.a_to_b
    shown_b = footprint(pair.image_b)
    for radius in (_RADIUS, 4):
        predicted = points @ matrix[:, :2].T + matrix[:, 2]
        x, y = predicted.round().astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < image_b.shape[1]) & (y < image_b.shape[0])
        inside &= shown_b[y.clip(0, image_b.shape[0] - 1), x.clip(0, image_b.shape[1] - 1)] > 0
        points, predicted = points[inside], predicted[inside]
        if len(points) < 12:
            return pair.a_to_b, 0.0
        linear = np.broadcast_to(matrix[:, :2], (len(points), 2, 2))
        offsets, seen = edge_offsets(image_a, image_b, points, predicted, linear, radius)
        matched = predicted + np.einsum("nij,nj->ni", linear, offsets)
        fitted, agree = cv2.estimateAffinePartial2D(
            points[seen], matched[seen], method=cv2.RANSAC, ransacReprojThreshold=2.0, maxIters=5000
        )
        if fitted is None or agree.sum() < max(12, _AGREE * seen.sum()):
            return pair.a_to_b, 0.0
        matrix = np.asarray(fitted, np.float64)
    move = points @ (matrix - pair.a_to_b)[:, :2].T + (matrix - pair.a_to_b)[:, 2]
    return matrix, float(np.median(np.hypot(*move.T)))
