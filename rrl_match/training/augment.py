"""Photometric augmentation: a few batched tensor operations on the training device.

Every operation has one parameter per patch, which may be neutral and leave that patch alone. Geometry is varied
where patches are cut, see :class:`~rrl_match.training.sampling.PatchSampler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rrl_match.patches import BT601
from rrl_match.training.device import to_device
from rrl_match.training.recipe import Photometry

_BLUR_RADIUS = 4
# Luminance table of the JPEG standard (ITU-T T.81, table K.1), at quality 50.
_JPEG_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def to_grey(colour: Tensor, weights: Tensor | None = None) -> Tensor:
    """(N, 3, S, S) to (N, 1, S, S), by BT.601 or by weights (N, 3) that sum to one."""
    if weights is None:
        weights = to_device(torch.tensor(BT601), colour.device).expand(len(colour), 3)
    return torch.einsum("nchw,nc->nhw", colour, weights.to(colour)).unsqueeze(1)


def blur(patches: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of patches (N, 1, S, S) with sigma (N,) in pixels; sigma 0 changes nothing."""
    at = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=patches.device)
    kernel = torch.exp(-0.5 * (at / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    n = len(patches)
    padded = F.pad(patches.transpose(0, 1), [_BLUR_RADIUS] * 4, mode="replicate")  # (1, N, S + 2r, S + 2r)
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=n)
    return F.conv2d(rows, kernel[:, None, None, :], groups=n).transpose(0, 1)


def jpeg(patches: Tensor, scale: Tensor) -> Tensor:
    """JPEG's quantisation of grey patches (N, 1, S, S) in [0, 1], by the standard table times scale (N,).

    Scale 1 is quality 50, 0.4 is quality 80, 0 changes nothing. The first block begins at the corner of a patch.
    """
    n, _, size, _ = patches.shape
    k = torch.arange(8, device=patches.device)
    dct = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) * 0.5
    dct[0] /= math.sqrt(2)
    basis = torch.kron(dct, dct)  # (64, 64), of a block in two dimensions
    step = to_device(torch.tensor(_JPEG_TABLE), patches.device).flatten() * scale.clamp(min=1e-4)[:, None, None] / 255
    blocks = patches.reshape(n, size // 8, 8, size // 8, 8).transpose(2, 3).reshape(n, -1, 64)
    blocks = (torch.round(blocks @ basis.T / step) * step) @ basis
    return blocks.reshape(n, size // 8, size // 8, 8, 8).transpose(2, 3).reshape(patches.shape)


def augment(patches: Tensor, photometry: Photometry, generator: torch.Generator) -> Tensor:
    """Random photometric changes of grey patches.

    Args:
        patches: float (N, 1, S, S) in [0, 1].
        photometry: strength and probability of each change.
        generator: a CPU generator.

    Returns:
        the changed patches, in [0, 1].
    """
    n, device = len(patches), patches.device

    def draw(low: float, high: float, neutral: float, probability: float = photometry.probability) -> Tensor:
        """Uniform in low..high with a probability, else neutral: (N,)."""
        value = low + (high - low) * torch.rand(n, generator=generator)
        return to_device(torch.where(torch.rand(n, generator=generator) < probability, value, neutral), device)

    p = photometry
    if p.inversion:
        inverted = per_pixel(draw(1.0, 1.0, 0.0, p.inversion))
        patches = patches + inverted * (1 - 2 * patches)
    if p.gamma > 1:
        reach = math.log(p.gamma)
        patches = patches.clamp(min=1e-4) ** per_pixel(torch.exp(draw(-reach, reach, 0.0)))
    if p.contrast or p.brightness:
        mean = patches.mean((1, 2, 3), keepdim=True)
        factor = per_pixel(draw(1 - p.contrast, 1 + p.contrast, 1.0))
        patches = mean + (patches - mean) * factor + per_pixel(draw(-p.brightness, p.brightness, 0.0))
    if p.tone:
        # pseudo-spectral: a curve under which the order of some grey values is reversed
        rate, phase = per_pixel(draw(3.0, 9.0, 6.0, 1.0)), per_pixel(draw(0.0, 2 * math.pi, 0.0, 1.0))
        patches = patches + per_pixel(draw(0.0, p.tone, 0.0)) * torch.sin(rate * patches + phase)
    if p.shading:
        ramp = torch.linspace(-1, 1, patches.shape[-1], device=device)
        across, down = per_pixel(draw(-p.shading, p.shading, 0.0)), per_pixel(draw(-p.shading, p.shading, 0.0))
        patches = patches * (1 + (across * ramp + down * ramp[:, None]) / 2)
    if p.blur:
        patches = blur(patches, draw(0.0, p.blur, 0.0))
    if p.noise or p.speckle or p.stripes:
        patches = _with_noise(patches, p, draw, generator)
    if p.jpeg:
        patches = jpeg(patches, draw(0.2, 1.5, 0.0))
    if p.quantisation:
        step = per_pixel(draw(1 / 255, p.quantisation, 1 / 255))
        patches = torch.round(patches / step) * step
    return patches.clamp(0, 1)


def _with_noise(
    patches: Tensor, p: Photometry, draw: Callable[[float, float, float, float], Tensor], generator: torch.Generator
) -> Tensor:
    # One value per pixel: drawn on the device itself, which would otherwise wait for the CPU.
    seed = int(torch.randint(2**62, (), generator=generator))
    on_device = torch.Generator(patches.device).manual_seed(seed)
    noise = torch.randn(patches.shape, device=patches.device, generator=on_device)
    of_all, of_bright = (per_pixel(draw(0.0, most, 0.0, p.probability)) for most in (p.noise, p.speckle))
    patches = patches + noise * (of_all + of_bright * patches)
    if p.stripes:
        along_rows = per_pixel(draw(1.0, 1.0, 0.0, 0.5)) > 0
        stripes = torch.where(along_rows, noise[:, :, :, :1], noise[:, :, :1])
        patches = patches + stripes * per_pixel(draw(0.0, p.stripes, 0.0, p.probability))
    return patches


def per_pixel(parameter: Tensor) -> Tensor:
    """A value for each patch (N,) as (N, 1, 1, 1)."""
    return parameter[:, None, None, None]


def mixed_grey(colour: Tensor, photometry: Photometry, generator: torch.Generator) -> Tensor:
    """Band A's colour patches (N, 3, S, S) to grey (N, 1, S, S): BT.601, or now and then random weights."""
    if not photometry.channel_mix:
        return to_grey(colour)
    n = len(colour)
    weights = -torch.log(torch.rand(n, 3, generator=generator).clamp(min=1e-6))  # Dirichlet(1, 1, 1)
    weights = weights / weights.sum(1, keepdim=True)
    mixed = torch.rand(n, 1, generator=generator) < photometry.probability
    return to_grey(colour, to_device(torch.where(mixed, weights, torch.tensor(BT601)), colour.device))
