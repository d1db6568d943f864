"""Dense search: hypotheses from correlation over shift, rotation and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.registration.fields import Fields, pooled_fields
from rrl_match.registration.geometry import Matrix, apply, inverse, similarity, translation
from rrl_match.registration.images import Frame, Mask
from rrl_match.registration.settings import Settings

_AT_ONCE = 10  # rotations, so that their spectra stay in the processor's cache


class Hypothesis(NamedTuple):
    """A transform (3, 3) from A to B, and how well the images agree under it; the higher, the better."""

    score: float
    matrix: Matrix


def propose(
    frames: Sequence[Frame], rotations: Sequence[float], scales: Sequence[float], most: int, settings: Settings
) -> list[Hypothesis]:
    """Distinct hypotheses, best first, of one similarity for all frames.

    Args:
        frames: images of equal shapes.
        rotations: degrees.
        scales: pixels of B per pixel of A.
        most: number of hypotheses.
    """
    step = max(1, math.ceil(len(frames) / settings.coarse_frames))
    found = [h for scale in scales for h in _at_scale(frames[::step], rotations, scale, settings)]
    a, b = frames[0]
    return distinct(found, a.shape, settings.distance * max(b.shape), most)


def distinct(found: Sequence[Hypothesis], shape: tuple[int, int], distance: float, most: int) -> list[Hypothesis]:
    """The best hypotheses that move the corners of A, of this shape, `distance` pixels apart on average."""
    h, w = shape
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h], [w / 2, h / 2]], float)
    kept: list[Hypothesis] = []
    moved = np.empty((0, 5, 2))
    for hypothesis in sorted(found, key=lambda h: -h.score):
        here = apply(hypothesis.matrix, corners)
        if (np.linalg.norm(moved - here, axis=2).mean(1) > distance).all():
            kept.append(hypothesis)
            moved = np.concatenate([moved, here[None]])
            if len(kept) == most:
                break
    return kept


class _Pooled(NamedTuple):
    """Fields (H, W, 3) of one image, their mask, and the matrix from the full image's pixels to theirs."""

    fields: Fields
    mask: Mask
    matrix: Matrix


def _at_scale(
    frames: Sequence[Frame], rotations: Sequence[float], scale: float, settings: Settings
) -> list[Hypothesis]:
    """The best shifts for each rotation at one scale."""
    a, b = frames[0]
    base = max(*a.shape, *b.shape) / settings.coarse_side
    factor_a, factor_b = (base / scale, base) if scale < 1 else (base, base * scale)
    pooled_a = [_Pooled(*pooled_fields(frame.a, factor_a, settings)) for frame in frames]
    pooled_b = [_Pooled(*pooled_fields(frame.b, factor_b, settings)) for frame in frames]
    height, width = pooled_b[0].mask.shape
    side = min(math.ceil(math.hypot(*pooled_a[0].mask.shape)) + 1, round(1.42 * settings.coarse_side))
    size = [2 * fast_length((n + 3 * side // 4) // 2 + 1) for n in (height, width)]
    spectra_b = [_spectra(np.ascontiguousarray(np.moveaxis(p.fields, -1, 0)), p.mask, size) for p in pooled_b]
    found, back = [], inverse(pooled_b[0].matrix)
    for start in range(0, len(rotations), _AT_ONCE):
        matrices = [_about_centre(r, pooled_a[0].mask.shape, side) for r in rotations[start : start + _AT_ONCE]]
        surface = _surface(pooled_a, pooled_b, spectra_b, matrices, side, size, settings.min_overlap)
        for row, score, x, y in _peaks(surface, settings.peaks):
            shift = translation(x if x < width else x - size[1], y if y < height else y - size[0])
            found.append(Hypothesis(score, back @ shift @ matrices[row] @ pooled_a[0].matrix))
    return found


def _surface(
    pooled_a: Sequence[_Pooled],
    pooled_b: Sequence[_Pooled],
    spectra_b: Sequence[tuple[Tensor, Tensor]],
    matrices: Sequence[Matrix],
    side: int,
    size: Sequence[int],
    min_overlap: float,
) -> Tensor:
    """Agreement (R, H, W) of all frames under each matrix and shift, 0 where they overlap too little.

    The sum over the overlap grows with it, the mean shrinks: the sum is divided by the overlap to the power of 3/4.
    """
    products, overlaps, least = [], [], np.zeros(len(matrices), np.float32)
    for a, b, (spectrum_b, shown_b) in zip(pooled_a, pooled_b, spectra_b, strict=True):
        rotated, masks = _warped(a.fields, a.mask, matrices, side)
        spectrum_a, shown_a = _spectra(rotated, masks, size)
        products.append((spectrum_b * spectrum_a.conj()).sum(-3))
        overlaps.append(shown_b * shown_a.conj())
        least += min_overlap * masks.sum((1, 2)).clip(max=int(b.mask.sum()))
    half = size[0] // 2, size[1] // 2
    overlap = torch.fft.irfft2(sum(overlaps[1:], overlaps[0]), half).mul_(4).clamp_(min=1)
    root = overlap.sqrt()
    weight = (root * root.sqrt()).reciprocal_()
    weight[overlap < torch.from_numpy(least)[:, None, None]] = 0
    weight = weight.repeat_interleave(2, 1).repeat_interleave(2, 2)
    surface: Tensor = torch.fft.irfft2(sum(products[1:], products[0]), tuple(size)).mul_(weight)
    return surface


def _about_centre(rotation: float, shape: tuple[int, ...], side: int) -> Matrix:
    """Rotation about the centre of an image of this shape, which goes to the centre of a square."""
    h, w = shape
    middle = (side - 1) / 2
    return translation(middle, middle) @ similarity(rotation, 1) @ translation(-(w - 1) / 2, -(h - 1) / 2)


def _warped(fields: Fields, mask: Mask, matrices: Sequence[Matrix], side: int) -> tuple[NDArray[np.float32], Mask]:
    """Fields (R, 3, side, side) and masks (R, side, side) under rotations, with which the orientations rotate."""
    warped = np.empty((len(matrices), 3, side, side), np.float32)
    masks = np.empty((len(matrices), side, side), np.uint8)
    for of_fields, of_mask, matrix in zip(warped, masks, matrices, strict=True):
        strength, x, y = cv2.split(cv2.warpAffine(fields, matrix[:2], (side, side), flags=cv2.INTER_LINEAR))
        cosine, sine = matrix[0, 0], matrix[1, 0]
        c, s = cosine * cosine - sine * sine, 2 * cosine * sine  # of the doubled angle
        of_fields[0] = strength
        cv2.addWeighted(x, c, y, -s, 0, dst=of_fields[1])
        cv2.addWeighted(x, s, y, c, 0, dst=of_fields[2])
        cv2.warpAffine(mask, matrix[:2], (side, side), dst=of_mask, flags=cv2.INTER_NEAREST)
    return warped, masks


def _spectra(fields: NDArray[np.float32], mask: Mask, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Spectra of fields (..., 3, H, W), and of their mask (..., H, W) at half the resolution."""
    shown = _aligned(mask.astype(np.float32))
    h, w = shown.shape[-2] // 2, shown.shape[-1] // 2
    half = shown[..., : 2 * h, : 2 * w].unflatten(-1, (w, 2)).mean(-1).unflatten(-2, (h, 2)).mean(-2)
    return torch.fft.rfft2(_aligned(fields), tuple(size)), torch.fft.rfft2(half, (size[0] // 2, size[1] // 2))


def _aligned(values: NDArray[np.float32]) -> Tensor:
    """A copy at an aligned address: how the Fourier transform rounds depends on it."""
    return torch.from_numpy(values).to("cpu", copy=True)


def _peaks(surface: Tensor, count: int) -> list[tuple[int, float, int, int]]:
    """(row, value, x, y) of the highest values of each surface (R, H, W), a few pixels apart; overwrites them."""
    found = []
    h, w = surface.shape[1:]
    around = torch.arange(-5, 6)
    for _ in range(count):
        values, positions = surface.flatten(1).max(1)
        for row, (value, position) in enumerate(zip(values.tolist(), positions.tolist(), strict=True)):
            y, x = divmod(position, w)
            if value > 0:
                found.append((row, value, x, y))
                surface[row, ((y + around) % h)[:, None], (x + around) % w] = -1
    return found


def fast_length(n: int) -> int:
    """The smallest length from `n` on that has no prime factor above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
