"""Cost surfaces of blocks over offsets: where each is lowest, and the transform under which all are low."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.registration.channels import Channels
from rrl_match.registration.config import BlockConfig
from rrl_match.registration.images import Grey
from rrl_match.transforms import MatrixTransform, Points, compose, similarity

Surfaces: TypeAlias = NDArray[np.float64]
"""(N, S, S): the mean squared difference of each block at offsets y, x; offset 0 is in the middle."""

_AT_ONCE = 8  # blocks, so that their spectra stay in the processor's cache
_ROUNDS = 20
_LONGEST_STEP = 0.3  # of a parameter; 1 moves a block by half the extent of all


class Quadratics(NamedTuple):
    """Value (N,), gradient (N, 2) and Hessian (N, 2, 2) of surfaces at one offset each, from the 3 x 3 around it."""

    value: NDArray[np.float64]
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]


def cost_surfaces(a: Channels, b: Channels, centres: NDArray[np.int64], half: int, radius: int) -> Surfaces:
    """How much blocks of A differ from B at offsets within the radius, but for holes.

    Args:
        a, b: channels of one shape.
        centres: (N, 2) xy of the blocks, at least half + radius from the border.
        half: half the width of a block; its middle pixel comes on top.
        radius: of the offsets.
    """
    side, outer = 2 * half + 1, 2 * (half + radius) + 1
    x, y = centres.T
    known_a = _box_sums(a.whole, side)[y - half, x - half] >= side**2
    known_b = _box_sums(b.whole, outer)[y - half - radius, x - half - radius] >= outer**2
    costs = np.empty((len(centres), 2 * radius + 1, 2 * radius + 1))
    whole = known_a & known_b
    for rows, differences in ((np.flatnonzero(whole), _whole_blocks), (np.flatnonzero(~whole), _partial_blocks)):
        for part in (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)):
            costs[part] = differences(a, b, centres[part], half, radius)
    return costs


def _whole_blocks(a: Channels, b: Channels, centres: NDArray[np.int64], half: int, radius: int) -> Surfaces:
    side, reach = 2 * half + 1, 2 * radius + 1
    (x, y), outer = centres.T, 2 * (half + radius) + 1
    correlation = _correlated([a.values], [b.values], centres, half, radius)
    energy_a = _cut(a.energy[None], x - half, y - half, side).sum((1, 2, 3)).double().numpy()
    around = _cut(b.energy[None], x - half - radius, y - half - radius, outer)[:, 0].numpy()
    energies = np.stack([_box_sums(one, side) for one in around])
    result: Surfaces = (energy_a[:, None, None] + energies - 2 * correlation[:, :reach, :reach]) / side**2
    return result


def _partial_blocks(a: Channels, b: Channels, centres: NDArray[np.int64], half: int, radius: int) -> Surfaces:
    """The same where there are holes: at each offset, the mean over the pixels at which neither image has one."""
    layers = -2 * a.values, a.energy[None], a.whole[None]
    others = b.values, b.whole[None], b.energy[None]
    total = _correlated(layers, others, centres, half, radius).astype(np.float64)
    count = _correlated([a.whole[None]], [b.whole[None]], centres, half, radius).astype(np.float64)
    least = 0.25 * count.max((1, 2), keepdims=True)
    costs = np.maximum(total, 0.0) / np.maximum(count, np.maximum(least, 1.0))
    result: Surfaces = np.where(count >= least, costs, costs.max((1, 2), keepdims=True))
    return result


def _correlated(
    layers_a: list[NDArray[np.float32]] | tuple[NDArray[np.float32], ...],
    layers_b: list[NDArray[np.float32]] | tuple[NDArray[np.float32], ...],
    centres: NDArray[np.int64],
    half: int,
    radius: int,
) -> NDArray[np.float32]:
    """Correlation (N, S, S) of blocks of A with B at offsets within the radius, summed over layers (C, H, W)."""
    side, reach, outer = 2 * half + 1, 2 * radius + 1, 2 * (half + radius) + 1
    (x, y), size = centres.T, (cv2.getOptimalDFTSize(outer),) * 2
    product: Tensor | None = None
    for a, b in zip(layers_a, layers_b, strict=True):
        spectra_a = torch.fft.rfft2(_cut(a, x - half, y - half, side), size)
        spectra_b = torch.fft.rfft2(_cut(b, x - half - radius, y - half - radius, outer), size)
        part = (spectra_b * spectra_a.conj()).sum(1)
        product = part if product is None else product + part
    correlation: Tensor = torch.fft.irfft2(product, size)
    return correlation[:, :reach, :reach].numpy()


def _box_sums(image: Grey, side: int) -> NDArray[np.float64]:
    """Sums of all squares of `side` pixels, by their upper left corners."""
    summed = cv2.integral(np.ascontiguousarray(image))
    sums = summed[side:, side:] - summed[:-side, side:] - summed[side:, :-side] + summed[:-side, :-side]
    return np.asarray(sums, np.float64)


def _cut(layers: NDArray[np.float32], left: NDArray[np.int64], top: NDArray[np.int64], side: int) -> Tensor:
    """Square windows (N, C, side, side) of layers (C, H, W)."""
    windows = torch.empty(len(left), len(layers), side, side, dtype=torch.float32, device="cpu")
    for window, x, y in zip(windows.numpy(), left.tolist(), top.tolist(), strict=True):
        window[:] = layers[:, y : y + side, x : x + side]
    return windows


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
