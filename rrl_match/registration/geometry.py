"""Transforms as 3 x 3 matrices: composing, applying, fitting and checking them."""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Points = NDArray[np.float64]
Model = Literal["similarity", "affine", "homography"]
MODELS: tuple[Model, ...] = ("similarity", "affine", "homography")


def as_3x3(matrix: Matrix) -> Matrix:
    """A (2, 3) matrix with its last row; a (3, 3) matrix as it is."""
    return matrix if matrix.shape == (3, 3) else np.vstack([matrix, [0.0, 0.0, 1.0]])


def apply(matrix: Matrix, points: Points) -> Points:
    """Points (N, 2) under a matrix (3, 3)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    result: Points = moved[:, :2] / moved[:, 2:]
    return result


def corner_distance(matrix: Matrix, other: Matrix, shape: tuple[int, ...]) -> float:
    """How far apart two transforms (3, 3) take the corners of an image A of this shape, in pixels of B on average."""
    h, w = shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]], float)
    return float(np.linalg.norm(apply(matrix, corners) - apply(other, corners), axis=1).mean())


def jacobian(matrix: Matrix, points: Points) -> NDArray[np.float64]:
    """Derivatives (N, 2, 2) of a matrix (3, 3) at points (N, 2)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    target = moved[:, :2] / moved[:, 2:]
    derivative: NDArray[np.float64] = (matrix[:2, :2] - target[:, :, None] * matrix[2, :2]) / moved[:, 2, None, None]
    return derivative


def similarity(rotation: float, scale: float) -> Matrix:
    """Rotation in degrees and scale about the origin, as a (3, 3) matrix."""
    angle = math.radians(rotation)
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def inverse(matrix: Matrix) -> Matrix:
    """Inverse of a matrix (3, 3)."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def translation(x: float, y: float) -> Matrix:
    """Shift, as a (3, 3) matrix."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def shrinking(factor: tuple[float, float] | float) -> Matrix:
    """Takes pixels to those of an image `factor` times smaller; an image's corner lies at (-1/2, -1/2) in both."""
    x, y = (factor, factor) if isinstance(factor, (int, float)) else factor
    return np.array([[1 / x, 0.0, (1 / x - 1) / 2], [0.0, 1 / y, (1 / y - 1) / 2], [0.0, 0.0, 1.0]])


def scale_of(matrix: Matrix, point: Points) -> float:
    """Scale of a matrix (3, 3) at a point (2,)."""
    return math.sqrt(abs(float(np.linalg.det(jacobian(matrix, point[None])[0]))))


def fit(points: Points, matched: Points, model: Model, bound: float) -> Matrix | None:
    """Robust transform (3, 3) from points to matched points that takes as many as it can within `bound` pixels.

    The random choices of the fit do not depend on OpenCV's global seed.
    """
    if len(points) < 6:
        return None
    magsac, rounds, confidence = cv2.USAC_MAGSAC, 5000, 0.9999
    matrix: NDArray[Any] | None
    if model == "similarity":
        matrix, _ = cv2.estimateAffinePartial2D(
            points, matched, None, cv2.RANSAC, ransacReprojThreshold=bound, maxIters=rounds, confidence=confidence
        )
    elif model == "affine":
        matrix, _ = cv2.estimateAffine2D(
            points, matched, None, magsac, ransacReprojThreshold=bound, maxIters=rounds, confidence=confidence
        )
    else:
        matrix, _ = cv2.findHomography(points, matched, magsac, bound, maxIters=rounds, confidence=confidence)
    if matrix is None or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:2, :2])) < 1e-6:
        return None
    return as_3x3(np.asarray(matrix, np.float64))


def fit_simplest(
    points: Points, matched: Points, model: Model, bound: float, tolerance: float
) -> tuple[Matrix | None, Model]:
    """Robust transform (3, 3) of a model, or of a simpler one where that fits nearly as well, and of which.

    Freedom that the points do not need follows their errors, and takes the corners of an image along.

    Args:
        points, matched, model, bound: as in :func:`fit`.
        tolerance: by what factor the mean squared error, cut off at `bound`, may exceed that of `model`.
    """
    matrix = fit(points, matched, model, bound)
    if matrix is None:
        return None, model
    most = tolerance * _cost(matrix, points, matched, bound) + 0.01 * bound**2
    for simpler in MODELS[: MODELS.index(model)]:
        found = fit(points, matched, simpler, bound)
        if found is not None and _cost(found, points, matched, bound) <= most:
            return found, simpler
    return matrix, model


def _cost(matrix: Matrix, points: Points, matched: Points, bound: float) -> float:
    squared = ((apply(matrix, points) - matched) ** 2).sum(1)
    return float(np.minimum(squared, bound**2).mean())


def implausible(matrix: Matrix, centre: Points) -> str:
    """What is wrong with a transform (3, 3) around a point (2,), or "": it mirrors, or scales too much or unevenly."""
    derivative = jacobian(matrix, centre[None])[0]
    if not np.isfinite(derivative).all():
        return "it is not finite"
    scales = np.linalg.svd(derivative, compute_uv=False)
    if np.linalg.det(derivative) <= 0:
        return "it mirrors"
    if scales[0] > 4 or scales[1] < 0.25 or scales[0] > 1.5 * scales[1]:
        return f"it scales by {scales[0]:.2f} and {scales[1]:.2f}"
    return ""
