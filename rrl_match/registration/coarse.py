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
from rrl_match.registration.geometry import Matrix, apply, similarity, translation
from rrl_match.registration.images import Frame, Mask
from rrl_match.registration.settings import Settings

_AT_ONCE = 10  # rotations, so that their spectra stay in the processor's cache


class Hypothesis(NamedTuple):
    """A transform (3, 3) from A to B, and how well the images agree under it; the higher, the better."""

    score: float
    matrix: Matrix


def propose(
    frames: Sequence[Frame], rotations: Sequence[float], scales: Sequence[float], settings: Settings
) -> list[Hypothesis]:
    """Distinct hypotheses, best first, of one similarity for all frames.

    Args:
        frames: images of equal shapes.
        rotations: degrees.
        scales: pixels of B per pixel of A.
    """
    step = max(1, math.ceil(len(frames) / settings.coarse_frames))
    found = [h for scale in scales for h in _at_scale(frames[::step], rotations, scale, settings)]
    a, b = frames[0]
    return distinct(found, a.shape, settings.distance * max(b.shape), settings.proposals)


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


def _at_scale(
    frames: Sequence[Frame], rotations: Sequence[float], scale: float, settings: Settings
) -> list[Hypothesis]:
    """The best shifts for each rotation at one scale."""
    a, b = frames[0]
    base = max(*a.shape, *b.shape) / settings.coarse_side
    factor_a, factor_b = (base / scale, base) if scale < 1 else (base, base * scale)
    pooled = [(pooled_fields(f.a, factor_a, settings), pooled_fields(f.b, factor_b, settings)) for f in frames]
    (_, mask_a, to_a), (_, mask_b, to_b) = pooled[0]
    side = min(math.ceil(math.hypot(*mask_a.shape)) + 1, round(1.42 * settings.coarse_side))
    side += side % 2
    size = h, w = (
        fast_length((mask_b.shape[0] + 3 * side // 4) // 2) * 2,
        fast_length((mask_b.shape[1] + 3 * side // 4) // 2) * 2,
    )
    spectra_b = [_spectra(_planar(fields), mask, size) for _, (fields, mask, _) in pooled]
    found, back = [], np.linalg.inv(to_b)
    for some in (rotations[k : k + _AT_ONCE] for k in range(0, len(rotations), _AT_ONCE)):
        product = shown = least = 0
        for ((fields, mask, _), (_, other, _)), spectrum_b in zip(pooled, spectra_b, strict=True):
            rotated, masks, matrices = _rotated(fields, mask, some, side)
            spectrum_a = _spectra(rotated, masks, size)
            product = product + (spectrum_b[0] * spectrum_a[0].conj()).sum(-3)
            shown = shown + spectrum_b[1] * spectrum_a[1].conj()
            least = least + masks.reshape(len(masks), -1).sum(1).clip(max=int(other.sum())).astype(np.float32)
        overlap = torch.fft.irfft2(shown, (h // 2, w // 2)).mul_(4).clamp_(min=1)
        root = overlap.sqrt()
        weight = (root * root.sqrt()).reciprocal_()
        weight[overlap < settings.min_overlap * torch.from_numpy(least)[:, None, None]] = 0
        surface = torch.fft.irfft2(product, size) * weight.repeat_interleave(2, 1).repeat_interleave(2, 2)
        for row, score, x, y in _peaks(surface, settings.peaks):
            shift = translation(x if x < mask_b.shape[1] else x - w, y if y < mask_b.shape[0] else y - h)
            found.append(Hypothesis(score, back @ shift @ matrices[row] @ to_a))
    return found


def _rotated(
    fields: Fields, mask: Mask, rotations: Sequence[float], side: int
) -> tuple[NDArray[np.float32], Mask, list[Matrix]]:
    """Fields (R, 3, side, side) and masks (R, side, side) under each rotation about the centre, and the matrices."""
    h, w = mask.shape
    rotated = np.empty((len(rotations), 3, side, side), np.float32)
    masks = np.empty((len(rotations), side, side), np.uint8)
    matrices = []
    for k, rotation in enumerate(rotations):
        centre = translation(-(w - 1) / 2, -(h - 1) / 2)
        matrix = translation((side - 1) / 2, (side - 1) / 2) @ similarity(rotation, 1) @ centre
        strength, x, y = cv2.split(cv2.warpAffine(fields, matrix[:2], (side, side), flags=cv2.INTER_LINEAR))
        c, s = math.cos(math.radians(2 * rotation)), math.sin(math.radians(2 * rotation))
        rotated[k, 0] = strength
        cv2.addWeighted(x, c, y, -s, 0, dst=rotated[k, 1])
        cv2.addWeighted(x, s, y, c, 0, dst=rotated[k, 2])
        cv2.warpAffine(mask, matrix[:2], (side, side), dst=masks[k], flags=cv2.INTER_NEAREST)
        matrices.append(matrix)
    return rotated, masks, matrices


def _planar(fields: Fields) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(fields, -1, 0))


def _spectra(fields: NDArray[np.float32], mask: Mask, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Spectra of fields (..., 3, H, W), and of their mask (..., H, W) at half the resolution."""
    shown = torch.from_numpy(mask.astype(np.float32))
    h, w = shown.shape[-2] // 2, shown.shape[-1] // 2
    half = shown[..., : 2 * h, : 2 * w].unflatten(-1, (w, 2)).mean(-1).unflatten(-2, (h, 2)).mean(-2)
    return torch.fft.rfft2(torch.from_numpy(fields), size), torch.fft.rfft2(half, (size[0] // 2, size[1] // 2))


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
