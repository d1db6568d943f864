"""Synthetic bands: sensors for which there is no data, made from the colours of any image.

All patches of a group get the same sensor, because a negative from another sensor would be recognised by its looks
alone. A sensor keeps the positions of edges and changes their appearance: the order of grey values, which edges are
visible, sharpness and noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rrl_match.training.augment import blur, to_grey
from rrl_match.training.device import to_device

_SPECKLE_HEADROOM = 1.1  # bright areas are not clipped as often


def synthetic_band(colour: Tensor, generator: torch.Generator) -> Tensor:
    """What a random sensor would see.

    Args:
        colour: float (N, 3, S, S) in [0, 1]; grey images have three equal channels.
        generator: a CPU generator.

    Returns:
        float (N, 1, S, S) in [0, 1].
    """
    sensor = SENSORS[_integer(len(SENSORS), generator)]
    band = _scaled(sensor(colour, generator))
    if _happens(0.3, generator):
        band = low_resolution(band, 2 + _integer(3, generator))
    if _happens(0.25, generator):
        band = speckled(band, looks=1 + _integer(8, generator), generator=generator)
    return band.clamp(0, 1)


def _visible(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A visible image; photometry changes it further, as another exposure or date would."""
    return to_grey(colour)


def _tone_curve(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A random mixture of the colours under a random tone curve that rises and falls."""
    return random_curve(_mixture(colour, generator), generator)


def _clusters(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A random grey value for each cluster of colours, flat as in a map, or with some of the texture left."""
    n, _, size, _ = colour.shape
    pixels = blur(colour.flatten(0, 1).unsqueeze(1), to_device(torch.full((3 * n,), 1.5), colour.device))
    pixels = pixels.reshape(n, 3, -1).mT
    count = 4 + _integer(9, generator)
    rows = to_device(torch.randint(n * size * size, (count,), generator=generator), colour.device)
    centres = pixels.reshape(-1, 3)[rows]
    softness = 10 ** (-3 + 1.5 * _uniform(generator))
    nearest = torch.softmax(-torch.cdist(pixels, centres).square() / softness, dim=2)
    values = to_device(torch.rand(count, generator=generator), colour.device)
    texture = 0.6 * _uniform(generator) if _happens(0.5, generator) else 0.0
    return (nearest @ values).reshape(n, 1, size, size) + texture * _high_pass(to_grey(colour), 3.0)


def gradients(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient magnitude: bright edges on dark ground, or the inverse."""
    grey = to_grey(colour)
    smooth = blur(grey, to_device(torch.full((len(grey),), 0.7 + 1.3 * _uniform(generator)), grey.device))
    dx = F.pad(smooth[..., 2:] - smooth[..., :-2], [1, 1, 0, 0], mode="replicate")
    dy = F.pad(smooth[..., 2:, :] - smooth[..., :-2, :], [0, 0, 1, 1], mode="replicate")
    edges = torch.sqrt(dx * dx + dy * dy + 1e-8)
    return -edges if _happens(0.3, generator) else edges


def _local_contrast(colour: Tensor, generator: torch.Generator) -> Tensor:
    """One tone curve for the smooth part of the image; another one, of either sign, for the gain of its detail."""
    grey = _mixture(colour, generator)
    detail = _high_pass(grey, 3.0)
    base = grey - detail
    gain = 4 * random_curve(base, generator) - 2
    return random_curve(base, generator) + gain * detail


SENSORS = (_visible, _tone_curve, _tone_curve, _clusters, _clusters, gradients, _local_contrast, _local_contrast)


def _mixture(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A random mixture of the channels, sometimes with negative weights, scaled to [0, 1]: (N, 1, S, S).

    Smoothed a little, because the curves that follow would amplify the noise of single pixels.
    """
    weights = torch.rand(3, generator=generator)
    if _happens(0.4, generator):
        weights = weights * (1 - 2 * torch.randint(2, (3,), generator=generator))
    mixed = torch.einsum("nchw,c->nhw", colour, to_device(weights, colour.device)).unsqueeze(1)
    return _scaled(blur(mixed, to_device(torch.full((len(mixed),), 0.9), mixed.device)))


def random_curve(x: Tensor, generator: torch.Generator) -> Tensor:
    """Values in [0, 1] under a piecewise linear curve through random points, which spans [0, 1]."""
    knots = 3 + _integer(4, generator)
    values = torch.rand(knots, generator=generator)
    values = to_device((values - values.min()) / (values.max() - values.min()).clamp(min=1e-3), x.device)
    at = x.clamp(0, 1) * (knots - 1)
    left = at.floor().long().clamp(max=knots - 2)
    return torch.lerp(values[left], values[left + 1], at - left)


def _high_pass(x: Tensor, sigma: float) -> Tensor:
    return x - blur(x, to_device(torch.full((len(x),), sigma), x.device))


def _scaled(x: Tensor) -> Tensor:
    """The values of all patches together, mapped to [0, 1] between their 1st and 99th percentile."""
    step = max(1, x.numel() // 65536)
    values = x.flatten()[::step].sort().values
    low, high = values[len(values) // 100], values[-1 - len(values) // 100]
    return ((x - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def low_resolution(x: Tensor, factor: int) -> Tensor:
    small = F.interpolate(x, scale_factor=1 / factor, mode="area")
    return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def speckled(x: Tensor, looks: int, generator: torch.Generator) -> Tensor:
    """Multiplied by the speckle of a radar's amplitude image: the root of a mean of exponential values."""
    seed = int(torch.randint(2**62, (), generator=generator))
    on_device = torch.Generator(x.device).manual_seed(seed)
    power = torch.stack(
        [-torch.log(torch.rand(x.shape, device=x.device, generator=on_device).clamp(min=1e-6)) for _ in range(looks)]
    ).mean(0)
    return x * torch.sqrt(power / _SPECKLE_HEADROOM)


def _integer(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _happens(probability: float, generator: torch.Generator) -> bool:
    return _uniform(generator) < probability
