"""Cost surfaces of blocks over offsets, and where each is lowest."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.channels import Channels, Grey

Surfaces: TypeAlias = NDArray[np.float64]
"""(N, S, S): the mean squared difference of each block at offsets y, x; offset 0 is in the middle."""

_AT_ONCE = 8  # blocks, so that their spectra stay in the processor's cache


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


def lowest(surfaces: Surfaces) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
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
