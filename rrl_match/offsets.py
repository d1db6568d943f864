"""Where the centre of one patch lies in another, by their orientation channels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.channels import ChannelConfig, Grey, block_channels
from rrl_match.cost_surfaces import Surfaces, lowest
from rrl_match.patches import Patches, ValueRanges, equal_sources

_AT_ONCE = 64  # pairs, to bound the memory

# Chosen on training images of seven sources.
_REACH = 16  # pixels of an offset in either direction, at most
_RADIUS = _REACH + 1  # pixels that are searched
_ROTATIONS = (-8.0, 0.0, 8.0)  # degrees, each is tried
_SPREAD = 22.0  # standard deviation in pixels of the weights around the centre of A
_APART = 4.0  # pixels from the lowest cost to what counts as another minimum
_RATIO = 1.07  # of the cost of the other minimum to the lowest, at least
_FLOOR = 1e-4  # added to both costs


def offsets_of_patches(
    patches_a: Patches, patches_b: Patches, size: int, value_range: ValueRanges | None
) -> NDArray[np.float32] | Tensor:
    """:func:`patch_offsets` of patches of any accepted kind; see :meth:`RRLMatcher.offsets`.

    Raises:
        TypeError, ValueError: naming `patches_a`, `patches_b` or `value_range`.
    """
    source_a, source_b = equal_sources(
        patches_a, patches_b, size, value_range, "pass them pair by pair, as match found them"
    )
    offsets = torch.from_numpy(patch_offsets(source_a.grey(), source_b.grey()))
    single = source_a.single and source_b.single
    result: NDArray[np.float32] | Tensor = source_a.like_input(offsets[0] if single else offsets)
    return result


def patch_offsets(a: Grey, b: Grey) -> NDArray[np.float32]:
    """Where the centre of patches of A lies in those of B.

    The offset is where the channels of A, weighted towards its centre, differ least from those of B; A is tried
    rotated as well. It counts only if the second-best offset is clearly worse, a ratio test (Lowe, "Distinctive image
    features from scale-invariant keypoints", IJCV 2004).

    Args:
        a, b: (N, S, S) in [0, 1], pair by pair.

    Returns:
        (N, 2) xy in pixels, relative to the centre of B; at most 16 each; NaN where nothing
        fits.
    """
    offsets = np.full((len(a), 2), np.nan, np.float32)
    for rows in (slice(start, start + _AT_ONCE) for start in range(0, len(a), _AT_ONCE)):
        offsets[rows] = _offsets(a[rows], b[rows])
    return offsets


def _offsets(a: Grey, b: Grey) -> NDArray[np.float64]:
    channels_b = _channels(b)
    every = [_weighted_costs(_channels(_rotated(a, degrees)), channels_b) for degrees in _ROTATIONS]
    best = np.argmin([costs.min((1, 2)) for costs in every], 0)
    costs = np.stack(every)[best, np.arange(len(a))]
    offsets, inside = lowest(costs)
    fits = inside & (np.abs(offsets).max(1, initial=0) <= _REACH) & (_ratio(costs, offsets) > _RATIO)
    return np.where(fits[:, None], offsets, np.nan)


def _rotated(patches: Grey, degrees: float) -> Grey:
    """Patches turned around their centres."""
    if degrees == 0:
        return patches
    h, w = patches.shape[1:]
    matrix = cv2.getRotationMatrix2D((w // 2, h // 2), degrees, 1.0)
    turned = [cv2.warpAffine(one, matrix, (w, h), borderMode=cv2.BORDER_REFLECT_101) for one in patches]
    return np.stack(turned).astype(np.float32)


def _channels(patches: Grey) -> Tensor:
    """Channels (N, C, S, S) of patches, each for itself."""
    config, known = ChannelConfig(), np.ones(patches.shape[1:], np.float32)
    stacked = np.stack([block_channels(one, known, np.zeros_like(known), config).values for one in patches])
    return torch.from_numpy(stacked)


def _weighted_costs(a: Tensor, b: Tensor) -> Surfaces:
    """Mean squared difference of channels (N, C, S, S) at offsets within the radius, weighted around A's centre."""
    side = a.shape[-1]
    size = (cv2.getOptimalDFTSize(side + _RADIUS),) * 2
    distance = torch.arange(side, device="cpu") - side // 2
    line = torch.exp(-0.5 * (distance / _SPREAD) ** 2)
    weights = torch.outer(line, line)

    def spectrum(layers: Tensor) -> Tensor:
        result: Tensor = torch.fft.rfft2(layers, size)
        return result

    of_weights, of_inside = spectrum(weights).conj(), spectrum(torch.ones_like(weights))
    products = spectrum(b) * spectrum(a * weights).conj()
    total = spectrum(b.square().sum(1)) * of_weights - 2 * products.sum(1)
    total = total + of_inside * spectrum(a.square().sum(1) * weights).conj()
    reach = 2 * _RADIUS + 1
    sums, counts = (
        torch.fft.irfft2(one, size).roll((_RADIUS, _RADIUS), (-2, -1))[..., :reach, :reach]
        for one in (total, of_inside * of_weights)
    )
    costs: Surfaces = (sums / counts).double().numpy().clip(0)
    return costs


def _ratio(costs: Surfaces, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cost (N,) of the second-best offset, which lies apart from the best one, relative to that of the best one."""
    y, x = np.mgrid[-_RADIUS : _RADIUS + 1, -_RADIUS : _RADIUS + 1]
    apart = np.hypot(x - offsets[:, :1, None], y - offsets[:, 1:, None]) > _APART
    second = np.where(apart, costs, np.inf).min((1, 2))
    ratio: NDArray[np.float64] = (second + _FLOOR) / (costs.min((1, 2)) + _FLOOR)
    return ratio
