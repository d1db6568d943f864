"""Synthetic bands: sensors for which there is no data, made from the colours of any image.

All patches of a group get the same sensor, because a negative from another sensor would be recognised by its looks
alone. A sensor keeps the positions of edges and changes their appearance: the order of grey values, which edges are
visible, sharpness and noise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rrl_match.training.augment import blur, to_grey
from rrl_match.training.device import to_device

_SPECKLE_HEADROOM = 1.1  # bright areas are not clipped as often
_CLOUD_CELLS = 4  # cells of the veil of a cloud along the side of a patch


def synthetic_band(colour: Tensor, generator: torch.Generator) -> Tensor:
    """What a random sensor would see, now and then at another date.

    Args:
        colour: float (N, 3, S, S) in [0, 1]; grey images have three equal channels.
        generator: a CPU generator.

    Returns:
        float (N, 1, S, S) in [0, 1].
    """
    if _happens(0.25, generator):
        colour = CONDITIONS[_integer(len(CONDITIONS), generator)](colour, generator)
    sensor = SENSORS[_integer(len(SENSORS), generator)]
    band = _scaled(sensor(colour, generator))
    if _happens(0.3, generator):
        band = low_resolution(band, 2 + _integer(3, generator))
    if _happens(0.1, generator):
        band = smeared(band, generator)
    if sensor is radar:
        band = speckled(band, looks=1 + _integer(4, generator), generator=generator)
    elif _happens(0.2, generator):
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
    pixels = _blurred(colour.flatten(0, 1).unsqueeze(1), 1.5)
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
    edges = gradient_magnitude(_blurred(to_grey(colour), 0.7 + 1.3 * _uniform(generator)))
    return -edges if _happens(0.3, generator) else edges


def _local_contrast(colour: Tensor, generator: torch.Generator) -> Tensor:
    """One tone curve for the smooth part of the image; another one, of either sign, for the gain of its detail."""
    grey = _mixture(colour, generator)
    detail = _high_pass(grey, 3.0)
    base = grey - detail
    gain = 4 * random_curve(base, generator) - 2
    return random_curve(base, generator) + gain * detail


def _pseudo_thermal(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A cosine of the grey values, as XoFTR makes thermal images of visible ones (Tuzcuoglu et al., CVPRW 2024)."""
    rate, phase = math.pi * (0.4 + _uniform(generator)), 2 * math.pi * _uniform(generator)
    return torch.cos(rate * _mixture(colour, generator) + phase)


def _shaded_relief(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness as a height, lit from one side: the shading of its normals (the guess is MINIMA's, CVPR 2025)."""
    height = _blurred(_mixture(colour, generator), 0.7 + 1.3 * _uniform(generator))
    down, across = _slopes(height, 4 + 12 * _uniform(generator))
    light = 2 * math.pi * _uniform(generator)
    elevation = 0.3 + _uniform(generator)
    lit = elevation - math.cos(light) * across - math.sin(light) * down
    return (lit / torch.sqrt(1 + down * down + across * across)).clamp(min=0)


def contour_map(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Flat fills between contour lines of brightness, with or without the lines."""
    smooth = _blurred(_mixture(colour, generator), 0.5 + 0.7 * _uniform(generator))
    count = 4 + _integer(7, generator)
    level = (smooth * count - 0.5 * _uniform(generator)).floor().long().clamp(0, count - 1)
    fills = to_device(torch.rand(count, generator=generator), colour.device)[level]
    if _happens(0.5, generator):
        return fills
    lines = (gradient_magnitude(level.float()) > 0.5).float()
    return torch.lerp(fills, torch.full_like(fills, float(_happens(0.5, generator))), lines)


def surface(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Distance to a camera, or height: brightness without its texture."""
    height = _mixture(colour, generator)
    for radius in (1, 2):  # an opening and a closing flatten what is smaller, and leave edges where they are
        height = _maximum(_minimum(height, radius), radius)
        height = _minimum(_maximum(height, radius), radius)
    return height


def radar(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Backscatter: weak tones, bright edges that face the sensor and lie over towards it, texture as brightness."""
    grey = _mixture(colour, generator)
    roughness = _blurred(_high_pass(grey, 2.0).abs(), 2.0)
    down, across = _slopes(_blurred(grey, 1.0), 1.0)
    direction = 2 * math.pi * _uniform(generator)
    facing = (math.cos(direction) * across + math.sin(direction) * down).clamp(min=0)
    lying = facing
    for k in range(1, 2 + _integer(4, generator)):
        moved = shifted(facing, round(-k * math.cos(direction)), round(-k * math.sin(direction)))
        lying = lying.maximum(moved * 0.8**k)
    return 0.4 * random_curve(grey, generator) + _uniform(generator) * _scaled(roughness) + 1.5 * _scaled(lying)


SENSORS = (
    _visible,
    _tone_curve,
    _tone_curve,
    _clusters,
    _clusters,
    gradients,
    _local_contrast,
    _local_contrast,
    _pseudo_thermal,
    _pseudo_thermal,
    _shaded_relief,
    contour_map,
    surface,
    radar,
)


def _season(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Snow, or trees and fields without leaves: some colours become one tone, with less or more texture than before."""
    index = torch.einsum("nchw,c->nhw", colour, to_device(torch.randn(3, generator=generator), colour.device))
    index = _scaled(_blurred(index[:, None], 1.0))
    covered = torch.sigmoid((index - 0.25 - 0.5 * _uniform(generator)) * 12)
    texture = _high_pass(to_grey(colour), 3.0)
    if _happens(0.5, generator):
        tone, gain = torch.full((3,), 0.92), 0.3 * _uniform(generator)
    else:
        tone, gain = torch.tensor([0.45, 0.4, 0.33]), 2 * _uniform(generator) - 0.5
    changed = to_device(tone, colour.device)[:, None, None] + gain * texture
    return torch.lerp(colour, changed.expand_as(colour), 0.9 * covered).clamp(0, 1)


def cast_shadows(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Shadows of another time of day: dark ones are lifted, what is bright casts new ones to another side."""
    grey = to_grey(colour)
    around = _blurred(grey, 4.0)
    lifted = colour + 0.7 * (around - grey).clamp(min=0)
    raised = torch.sigmoid((grey - around) * 30 - 1)
    direction, shadow = 2 * math.pi * _uniform(generator), torch.zeros_like(grey)
    for k in range(1, 3 + _integer(6, generator)):
        shadow = shadow.maximum(shifted(raised, round(k * math.cos(direction)), round(k * math.sin(direction))))
    dark = (0.4 + 0.4 * _uniform(generator)) * (shadow - raised).clamp(0, 1)
    return (lifted * (1 - dark)).clamp(0, 1)


def _cloud_veil(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Thin clouds, different in each patch, which take contrast away."""
    cells = torch.rand(len(colour), 1, _CLOUD_CELLS, _CLOUD_CELLS, generator=generator)
    opacity = F.interpolate(to_device(cells, colour.device), colour.shape[2:], mode="bicubic").clamp(0, 1)
    return torch.lerp(colour, torch.full_like(colour, 0.9), (0.3 + 0.5 * _uniform(generator)) * opacity)


CONDITIONS = (_season, _season, cast_shadows, _cloud_veil)


def _mixture(colour: Tensor, generator: torch.Generator) -> Tensor:
    """A random mixture of the channels, sometimes with negative weights, scaled to [0, 1]: (N, 1, S, S).

    Smoothed a little, because the curves that follow would amplify the noise of single pixels.
    """
    weights = torch.rand(3, generator=generator)
    if _happens(0.4, generator):
        weights = weights * (1 - 2 * torch.randint(2, (3,), generator=generator))
    mixed = torch.einsum("nchw,c->nhw", colour, to_device(weights, colour.device)).unsqueeze(1)
    return _scaled(_blurred(mixed, 0.9))


def random_curve(x: Tensor, generator: torch.Generator) -> Tensor:
    """Values in [0, 1] under a piecewise linear curve through random points, which spans [0, 1]."""
    knots = 3 + _integer(4, generator)
    values = torch.rand(knots, generator=generator)
    values = to_device((values - values.min()) / (values.max() - values.min()).clamp(min=1e-3), x.device)
    at = x.clamp(0, 1) * (knots - 1)
    left = at.floor().long().clamp(max=knots - 2)
    return torch.lerp(values[left], values[left + 1], at - left)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    return blur(x, to_device(torch.full((len(x),), sigma), x.device))


def _high_pass(x: Tensor, sigma: float) -> Tensor:
    return x - _blurred(x, sigma)


def _slopes(x: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """Central differences down and across, (N, 1, S, S) each, times a gain."""
    down = F.pad(x[..., 2:, :] - x[..., :-2, :], [0, 0, 1, 1], mode="replicate")
    across = F.pad(x[..., 2:] - x[..., :-2], [1, 1, 0, 0], mode="replicate")
    return gain * down, gain * across


def gradient_magnitude(x: Tensor) -> Tensor:
    down, across = _slopes(x, 1.0)
    return torch.sqrt(across * across + down * down + 1e-8)


def _maximum(x: Tensor, radius: int) -> Tensor:
    """Largest value within a square around each pixel."""
    return F.max_pool2d(x, 2 * radius + 1, stride=1, padding=radius)


def _minimum(x: Tensor, radius: int) -> Tensor:
    return -_maximum(-x, radius)


def shifted(x: Tensor, across: int, down: int) -> Tensor:
    """Moved by whole pixels; the border is repeated."""
    size, reach = x.shape[-1], max(abs(across), abs(down))
    padded = F.pad(x, [reach] * 4, mode="replicate")
    return padded[..., reach - down : reach - down + size, reach - across : reach - across + size]


def _scaled(x: Tensor) -> Tensor:
    """The values of all patches together, mapped to [0, 1] between their 1st and 99th percentile."""
    step = max(1, x.numel() // 65536)
    values = x.flatten()[::step].sort().values
    low, high = values[len(values) // 100], values[-1 - len(values) // 100]
    return ((x - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def low_resolution(x: Tensor, factor: int) -> Tensor:
    small = F.interpolate(x, scale_factor=1 / factor, mode="area")
    return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)


def smeared(x: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of 3 to 7 pixels along rows or columns: motion during the slow exposure of a thermal camera."""
    length = 3 + 2 * _integer(3, generator)
    kernel, half = ((1, length), (0, length // 2)) if _happens(0.5, generator) else ((length, 1), (length // 2, 0))
    return F.avg_pool2d(x, kernel, stride=1, padding=half, count_include_pad=False)


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
