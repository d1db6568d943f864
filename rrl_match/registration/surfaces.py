"""Difference surfaces of blocks, over offsets: where each is lowest, and the transform under which all are low."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrl_match.registration.geometry import Matrix, Model, Points, apply, inverse
from rrl_match.registration.settings import Settings

Surfaces = NDArray[np.float64]
"""(N, S, S): the mean squared difference of each block at offsets y, x; offset 0 is in the middle."""

_ROUNDS = 20
_LONGEST_STEP = 0.3  # of a parameter; 1 moves a block by half the extent of all


class _Quadratics(NamedTuple):
    """Value (N,), gradient (N, 2) and Hessian (N, 2, 2) of surfaces at one offset each, from the 3 x 3 around it."""

    value: NDArray[np.float64]
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


def lowest(surfaces: Surfaces) -> tuple[Points, NDArray[np.bool_]]:
    """Minima (N, 2), xy from the middle, between pixels; and (N,) whether they lie inside."""
    n, size = surfaces.shape[:2]
    row, column = np.divmod(surfaces.reshape(n, -1).argmin(1), size)
    inside = (row > 0) & (row < size - 1) & (column > 0) & (column < size - 1)
    rows, y, x = np.arange(n), row.clip(1, size - 2), column.clip(1, size - 2)
    middle = surfaces[rows, y, x]

    def vertex(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
        bend = before + after - 2 * middle
        return np.where(bend > 1e-9, (before - after) / (2 * np.maximum(bend, 1e-9)), 0.0).clip(-0.5, 0.5)

    dx = vertex(surfaces[rows, y, x - 1], surfaces[rows, y, x + 1])
    dy = vertex(surfaces[rows, y - 1, x], surfaces[rows, y + 1, x])
    return np.stack([x + dx, y + dy], 1) - size // 2, inside


def adjust(matrix: Matrix, centres: Points, surfaces: Surfaces, model: Model, settings: Settings) -> Matrix:
    """The transform (3, 3) near another one that minimises the differences of all blocks together.

    A block along an edge, in a flat area or in repeated texture has no single offset to fit, but its surface says what
    it leaves open (Rosenholm, "Multi-point matching using the least-squares technique for evaluation of
    three-dimensional models", PE&RS 1987). As the noise of the blocks is unknown, the sum of the logarithms of their
    differences is minimised (Levenberg-Marquardt), each weighted by the square root of how sharp its minimum is.

    Args:
        matrix: (3, 3), from the centres of the blocks to where they are found, in pixels of the level.
        centres: (N, 2) xy, where the blocks were looked for; offset 0 of the surfaces.
        surfaces: (N, S, S), S odd.
        model: of the adjustment, which is composed with `matrix`.
        settings: how blocks are weighted.

    Returns:
        (3, 3); `matrix` itself where no adjustment makes the differences smaller.
    """
    reach = surfaces.shape[1] // 2 - 1
    (least, noise), most = _least(surfaces, settings), surfaces.max((1, 2))
    sharpness = np.trace(_quadratics(surfaces, lowest(surfaces)[0]).hessian, axis1=1, axis2=2) / (least + noise)
    weights = np.sqrt(np.maximum(sharpness, 0.0) / max(float(np.median(sharpness)), 1e-12)).clip(
        *settings.block_weights
    )
    middle = centres.mean(0)
    size = max(1.0, float(np.abs(centres - middle).max()))
    unit = np.array([[size, 0.0, middle[0]], [0.0, size, middle[1]], [0.0, 0.0, 1.0]])  # from about -1..1

    def evaluated(points: Points) -> tuple[float, NDArray[np.bool_], _Quadratics]:
        offsets = points - centres
        near = (np.abs(offsets) <= reach).all(1)
        found = _quadratics(surfaces, offsets.clip(-reach, reach))
        value = np.where(near, np.maximum(found.value, least / 2), most) + noise
        return float((weights * np.log(value)).sum()), near, found._replace(value=value)

    damping = 1e-3
    points = apply(matrix, centres)
    total, near, found = evaluated(points)
    for _ in range(_ROUNDS):
        jacobian = size * _derivatives((points - middle) / size, model)
        weight = weights * near / found.value
        gradient = np.einsum("n,nij,ni->j", weight, jacobian, found.gradient)
        hessian = np.einsum("n,nia,nij,njb->ab", weight, jacobian, found.hessian, jacobian, optimize=True)
        damped = hessian + np.diag(damping * np.diag(hessian) + 1e-9)
        step = np.linalg.solve(damped, -gradient)
        damping *= 5
        if np.abs(step).max() > _LONGEST_STEP:
            continue
        tried = unit @ _moved(step, model) @ inverse(unit) @ matrix
        moved = apply(tried, centres)
        outcome = evaluated(moved)
        if outcome[0] < total:
            matrix, points, (total, near, found), damping = tried, moved, outcome, damping / 25
    return np.asarray(matrix / matrix[2, 2], np.float64)


def standing_out(surfaces: Surfaces, settings: Settings) -> float:
    """By how many standard deviations all blocks together differ less at offset 0 than at offsets away from it.

    Blocks that were fitted to each other at random have one shallow minimum among many.
    """
    reach = surfaces.shape[1] // 2
    _, noise = _least(surfaces, settings)
    logarithms = np.log(np.maximum(surfaces, 0.0) + noise)
    together = (logarithms - logarithms.mean((1, 2), keepdims=True)).mean(0)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    far = together[np.hypot(x, y) > settings.prominence_beyond]
    return float((far.mean() - together[reach, reach]) / (far.std() + 1e-12))


def _least(surfaces: Surfaces, settings: Settings) -> tuple[NDArray[np.float64], float]:
    """Lowest difference of each block (N,), and what is added to all differences before their logarithm is taken."""
    least = np.maximum(surfaces.min((1, 2)), 0.0)
    return least, settings.block_noise * float(np.median(least)) + 1e-12


def _quadratics(surfaces: Surfaces, offsets: Points) -> _Quadratics:
    """Surfaces around offsets (N, 2), xy; Hessians are made positive semidefinite."""
    size = surfaces.shape[1]
    nearest = (offsets.round().astype(int) + size // 2).clip(1, size - 2)
    rows, (x, y) = np.arange(len(surfaces)), nearest.T
    at = {(i, j): surfaces[rows, y + i, x + j] for i in (-1, 0, 1) for j in (-1, 0, 1)}
    gradient = np.stack([at[0, 1] - at[0, -1], at[1, 0] - at[-1, 0]], 1) / 2
    xx, yy = at[0, 1] + at[0, -1] - 2 * at[0, 0], at[1, 0] + at[-1, 0] - 2 * at[0, 0]
    xy = (at[1, 1] + at[-1, -1] - at[1, -1] - at[-1, 1]) / 4
    hessian = np.stack([xx, xy, xy, yy], 1).reshape(-1, 2, 2)
    rest = offsets - (nearest - size // 2)
    bent = np.einsum("nij,nj->ni", hessian, rest)
    value = at[0, 0] + ((gradient + bent / 2) * rest).sum(1)
    bends, axes = np.linalg.eigh(hessian)
    positive = (axes * np.maximum(bends, 0.0)[:, None]) @ axes.transpose(0, 2, 1)
    return _Quadratics(value, gradient + bent, positive)


def _derivatives(points: Points, model: Model) -> NDArray[np.float64]:
    """Of where points (N, 2) are moved, by the parameters of :func:`_moved` at 0: (N, 2, K)."""
    (x, y), one, zero = points.T, np.ones(len(points)), np.zeros(len(points))
    if model == "similarity":
        rows = [x, -y, one, zero], [y, x, zero, one]
    else:
        rows = [x, y, one, zero, zero, zero], [zero, zero, zero, x, y, one]
        if model == "homography":
            rows = [*rows[0], -x * x, -x * y], [*rows[1], -x * y, -y * y]
    return np.stack([np.stack(row, 1) for row in rows], 1)


def _moved(parameters: NDArray[np.float64], model: Model) -> Matrix:
    """The transform (3, 3) of a model near the identity, which all parameters 0 give."""
    if model == "similarity":
        a, b, x, y = parameters
        return np.array([[1 + a, -b, x], [b, 1 + a, y], [0.0, 0.0, 1.0]])
    matrix: Matrix = np.eye(3)
    matrix.flat[: len(parameters)] += parameters
    return matrix
