"""The transform under which the cost surfaces of all blocks are low, and how clearly they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrl_match.cost_surfaces import Surfaces, lowest
from rrl_match.registration.config import BlockConfig
from rrl_match.transforms import MatrixTransform, Points, compose, similarity

_ROUNDS = 20
_LONGEST_STEP = 0.3  # of a parameter; 1 moves a block by half the extent of all


class Quadratics(NamedTuple):
    """Value (N,), gradient (N, 2) and Hessian (N, 2, 2) of surfaces at one offset each, from the 3 x 3 around it."""

    value: NDArray[np.float64]
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


def adjust(
    step: MatrixTransform, kind: type[MatrixTransform], centres: Points, surfaces: Surfaces, config: BlockConfig
) -> MatrixTransform:
    """The transform near another one that minimises the costs of all blocks together.

    A block along an edge, in a flat area or in repeated texture has no single offset to fit, but its surface says what
    it leaves open (Rosenholm, "Multi-point matching using the least-squares technique for evaluation of
    three-dimensional models", PE&RS 1987). As the noise of the blocks is unknown, the sum of the logarithms of their
    costs is minimised (Levenberg-Marquardt), each weighted by the square root of how sharp its minimum is.

    Args:
        step: from the centres of the blocks to where they are found, in pixels of the level.
        kind: of the adjustment, which is composed with `step`.
        centres: (N, 2) xy, where the blocks were looked for; offset 0 of the surfaces.
        surfaces: (N, S, S), S odd.
        config: how blocks are weighted.

    Returns:
        `step` itself where no adjustment makes the costs smaller.
    """
    costs = LogCosts(surfaces, config)
    middle = centres.mean(0)
    size = max(1.0, float(np.abs(centres - middle).max()))
    unit = similarity(0, 1 / size, (-middle[0] / size, -middle[1] / size))  # to about -1..1

    damping = 1e-3
    points = step(centres)
    total, near, found = costs.at(points - centres)
    for _ in range(_ROUNDS):
        jacobian = size * kind.basis(unit(points))
        weight = costs.weights * near / found.value
        gradient = np.einsum("n,nij,ni->j", weight, jacobian, found.gradient)
        hessian = np.einsum("n,nia,nij,njb->ab", weight, jacobian, found.hessian, jacobian, optimize=True)
        damped = hessian + np.diag(damping * np.diag(hessian) + 1e-9)
        change = np.linalg.solve(damped, -gradient)
        damping *= 5
        if np.abs(change).max() > _LONGEST_STEP:
            continue
        tried = compose(step, compose(compose(unit, kind.near_identity(change)), unit.inverse()))
        moved = tried(centres)
        outcome = costs.at(moved - centres)
        if outcome[0] < total:
            step, points, (total, near, found), damping = tried, moved, outcome, damping / 25
    return step


class LogCosts:
    """Logarithms of the costs of blocks, each weighted by the square root of how sharp its minimum is.

    Args:
        surfaces: (N, S, S), S odd.
        config: how blocks are weighted.
    """

    def __init__(self, surfaces: Surfaces, config: BlockConfig) -> None:
        self._surfaces, self._reach = surfaces, surfaces.shape[1] // 2 - 1
        (self._least, self._noise), self._most = _least(surfaces, config), surfaces.max((1, 2))
        bends = _quadratics(surfaces, lowest(surfaces)[0]).hessian
        sharpness = np.trace(bends, axis1=1, axis2=2) / (self._least + self._noise)
        least, most = config.weights
        self.weights = np.sqrt(np.maximum(sharpness, 0.0) / max(float(np.median(sharpness)), 1e-12)).clip(least, most)

    def at(self, offsets: Points) -> tuple[float, NDArray[np.bool_], Quadratics]:
        """Their weighted sum at offsets (N, 2), which of these were searched (N,), and the costs around them."""
        near = (np.abs(offsets) <= self._reach).all(1)
        found = _quadratics(self._surfaces, offsets.clip(-self._reach, self._reach))
        value = np.where(near, np.maximum(found.value, self._least / 2), self._most) + self._noise
        return float((self.weights * np.log(value)).sum()), near, found._replace(value=value)


def log_costs(surfaces: Surfaces, config: BlockConfig) -> Surfaces:
    """Logarithms of the costs of blocks (N, S, S), less the mean of each."""
    _, noise = _least(surfaces, config)
    logarithms = np.log(np.maximum(surfaces, 0.0) + noise)
    result: Surfaces = logarithms - logarithms.mean((1, 2), keepdims=True)
    return result


def peak_to_sidelobes(together: NDArray[np.float64], beyond: float, at: tuple[int, int] = (0, 0)) -> float:
    """By how many standard deviations a mean of log costs (S, S) is lower at an offset xy than away from it."""
    reach = len(together) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    far = together[np.hypot(x - at[0], y - at[1]) > beyond]
    return float((far.mean() - together[reach + at[1], reach + at[0]]) / (far.std() + 1e-12))


def _least(surfaces: Surfaces, config: BlockConfig) -> tuple[NDArray[np.float64], float]:
    """Lowest cost of each block (N,), and what is added to all costs before their logarithm is taken."""
    least = np.maximum(surfaces.min((1, 2)), 0.0)
    return least, config.noise * float(np.median(least)) + 1e-12


def _quadratics(surfaces: Surfaces, offsets: Points) -> Quadratics:
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
    return Quadratics(value, gradient + bent, positive)
