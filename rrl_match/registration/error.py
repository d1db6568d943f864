"""How far a transform may be off, and where: what blocks say, each together with those around it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rrl_match.cost_surfaces import Surfaces, lowest
from rrl_match.registration.adjustment import peak_to_sidelobes
from rrl_match.registration.block_matching import Blocks
from rrl_match.registration.config import ErrorConfig
from rrl_match.transforms import Points, Transform


class Misfit(NamedTuple):
    """Where the surroundings of blocks are found, beside where a transform takes them.

    Attributes:
        points: (N, 2) xy, centres of the blocks in A.
        distances: (N,) pixels of B.
        telling: (N,) bool, whether the blocks around this one agree on one offset.
    """

    points: Points = np.empty((0, 2))
    distances: NDArray[np.float64] = np.empty(0)
    telling: NDArray[np.bool_] = np.empty(0, np.bool_)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which (N,) errors are taken from: those that tell, or all if none does."""
        return self.telling if self.telling.any() else np.ones_like(self.telling)

    def joined(self, other: Misfit) -> Misfit:
        """Both together."""
        return Misfit(
            np.concatenate([self.points, other.points]),
            np.concatenate([self.distances, other.distances]),
            np.concatenate([self.telling, other.telling]),
        )

    def beyond(self, distance: float) -> Misfit:
        """Those that are farther off, and tell."""
        far = self.telling & (self.distances > distance)
        return Misfit(self.points[far], self.distances[far], self.telling[far])

    def part_beyond(self, distance: float) -> float:
        """Part of what tells that is farther off."""
        return float((self.distances[self.telling] > distance).mean()) if self.telling.any() else 0.0


class ErrorMap(NamedTuple):
    """Expected error of a transform.

    Attributes:
        points: (N, 2) xy of A, locations at which it is known.
        errors: (N,) pixels of B, there.
        radius: pixels of B: 90 % of the overlap is expected to be closer to the truth.
        reach: pixels of A, up to which a location tells of others.
    """

    points: Points = np.empty((0, 2))
    errors: NDArray[np.float64] = np.empty(0)
    radius: float = math.inf
    reach: float = 1.0

    def at(self, points: ArrayLike) -> NDArray[np.float64]:
        """The expected error at locations (N, 2) of A: (N,) pixels of B, growing beyond the reach of what is known."""
        given = np.asarray(points, np.float64).reshape(-1, 2)
        if not len(self.points):
            return np.full(len(given), math.inf)
        squared = ((given[:, None] - self.points) ** 2).sum(2) / self.reach**2
        nearest = squared.min(1)
        weights = np.exp((nearest[:, None] - squared) / 2)
        around = np.sqrt((weights * self.errors**2).sum(1) / weights.sum(1))
        return np.asarray(around * np.maximum(1.0, np.sqrt(nearest) / 2), np.float64)

    def inverse(self, transform: Transform) -> ErrorMap:
        """That of the inverse of a transform from A to B."""
        if not len(self.points):
            return self
        scales = np.sqrt(np.abs(np.linalg.det(transform.jacobian(self.points))))
        scale = float(np.median(scales))
        return ErrorMap(transform(self.points), self.errors / scales, self.radius / scale, self.reach * scale)


def misfit_of(blocks: Blocks, costs: Surfaces, config: ErrorConfig, unit: float) -> Misfit:
    """What blocks say of the transform around which they were looked for.

    A block that cannot tell where it belongs follows those around it: their log costs are averaged, and the lowest mean
    is where they agree.

    Args:
        blocks: looked for in a wide radius.
        costs: (N, S, S), log costs of the blocks.
        config: how far blocks tell of others.
        unit: pixels of B.
    """
    if not len(costs):
        return Misfit()
    at = blocks.predicted
    width = config.width * math.sqrt(float(np.prod(np.ptp(at, axis=0)))) + 1e-9
    weights = np.exp(-((at[:, None] - at) ** 2).sum(2) / (2 * width**2))
    together = np.tensordot(weights / weights.sum(1, keepdims=True), costs, 1)
    found = np.array([_offset(one, config.near * unit / blocks.pixel, config) for one in together])
    return Misfit(blocks.points, found[:, 0] * blocks.pixel, found[:, 1] > config.telling)


def _offset(cost: NDArray[np.float64], near: float, config: ErrorConfig) -> tuple[float, float]:
    """How far from its middle a mean of log costs (S, S) is lowest, and its peak-to-sidelobe ratio there.

    A minimum far away counts only where it is clearly lower than those nearby, since texture repeats.
    """
    reach = len(cost) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside, best = np.maximum(abs(x), abs(y)) < reach, []
    for allowed in (inside, inside & (np.hypot(x, y) <= near)):
        k = np.where(allowed, cost, np.inf).argmin()
        at = int(x.flat[k]), int(y.flat[k])
        best.append((peak_to_sidelobes(cost, config.beyond, at), at))
    ratio, (dx, dy) = best[0] if best[0][0] > best[1][0] + config.clearer else best[1]
    around = cost[reach + dy - 1 : reach + dy + 2, reach + dx - 1 : reach + dx + 2]
    return float(np.hypot(*(lowest(around[None])[0][0] + (dx, dy)))), ratio


def expected_error(misfit: Misfit, residuals: NDArray[np.float64], unit: float, config: ErrorConfig) -> ErrorMap:
    """How far a transform is off, as pairs say whose truth is known, but not less than blocks say.

    Within the overlap, the radius is shared out as the surroundings of blocks are off.

    Args:
        misfit: of the transform.
        residuals: (N,) pixels of B between where blocks were found and where the transform takes them, all of them.
        unit: pixels of B.
        config: the fit.
    """
    telling = misfit.known
    if not len(telling) or not len(residuals):
        return ErrorMap()
    radius = unit * math.exp(config.bias + float(np.dot(config.weights, terms(misfit, residuals, unit, config))))
    local = np.hypot(misfit.distances[telling], config.floor * unit)
    most = float(np.quantile(local, 0.8))  # beyond, repeated texture may have been taken for what is far off
    radius = max(radius, most)
    reach = config.width * math.sqrt(float(np.prod(np.ptp(misfit.points, axis=0)))) + 1e-9
    return ErrorMap(misfit.points[telling], local * radius / most, radius, reach)


def terms(
    misfit: Misfit, residuals: NDArray[np.float64], unit: float, config: ErrorConfig
) -> tuple[float, float, float]:
    """What the logarithm of the radius in units adds up from.

    How far the surroundings of blocks, and the blocks by themselves, are off, and the part of these that disagrees.
    """
    surroundings = float(np.quantile(np.hypot(misfit.distances[misfit.known] / unit, config.floor), 0.7))
    alone = float(np.median(residuals)) / unit + config.floor
    return math.log(surroundings), math.log(alone), float((residuals >= config.agreeing * unit).mean())
