"""Dense block matching around a hypothesis, on ever finer levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.registration.coarse import Hypothesis, distinct, fast_length
from rrl_match.registration.fields import Fields, energy, eroded, fields_of
from rrl_match.registration.geometry import (
    Matrix,
    Model,
    Points,
    apply,
    corner_distance,
    fit,
    fit_simplest,
    inverse,
    scale_of,
)
from rrl_match.registration.images import Frame, Grey, Mask
from rrl_match.registration.settings import Settings
from rrl_match.registration.surfaces import Surfaces, adjust, lowest, standing_out

_AT_ONCE = 8  # blocks, so that their spectra stay in the processor's cache


class Blocks(NamedTuple):
    """Blocks of one frame.

    Attributes:
        points: (N, 2) xy, their centres in A.
        matched: (N, 2) xy, where they are found in B.
        found: (N,), whether that lies within what was searched.
        centres: (N, 2) xy, where they were looked for, in pixels of the level.
        surfaces: (N, S, S), how much they differ from B around these.
        to_level: (3, 3), from pixels of B to those of the level.
    """

    points: Points
    matched: Points
    found: NDArray[np.bool_]
    centres: Points
    surfaces: Surfaces
    to_level: Matrix


class Refined(NamedTuple):
    """A transform (3, 3).

    Attributes:
        matrix: the transform.
        agreeing: part of all blocks that agree with it.
        moved: how far the last fit moved A's corners on average, in parts of B's longer side. A transform that is
            right stays where it is.
        blocks: those of each frame.
        factor: how many pixels of B one of the finest level is.
    """

    matrix: Matrix
    agreeing: float
    moved: float
    blocks: list[Blocks]
    factor: float


class _Overlay(NamedTuple):
    """Fields of A, warped, and of B, both (H, W, 3), where both are shown, corner strengths, and B's full to level."""

    fields_a: Fields
    fields_b: Fields
    both: Mask
    corners: Grey
    to_level: Matrix


def align(frames: Sequence[Frame], hypotheses: Sequence[Hypothesis], settings: Settings) -> list[Hypothesis]:
    """Hypotheses aligned in small images, distinct ones, best first; in each round only the best go on."""
    a, b = frames[0]
    frames, factor = _small(frames, settings)
    found = list(hypotheses)
    for radius, cells, most in zip(settings.align_radii, settings.align_cells, settings.aligned, strict=True):
        aligned = []
        for _, matrix in found:
            blocks = match_blocks(frames, matrix, factor, radius, settings.align_half, cells, settings)
            fitted = fit(*_found(blocks), "similarity", settings.bound * factor)
            if fitted is not None:
                aligned.append(Hypothesis(agreement(frames, fitted, factor, settings), fitted))
        found = distinct(aligned, a.shape, settings.distance * max(b.shape), most)
    return found


def elsewhere(frames: Sequence[Frame], matrix: Matrix, other: Matrix, settings: Settings) -> bool:
    """Whether a transform (3, 3) takes image A to quite another location than another one does."""
    a, b = frames[0]
    return corner_distance(other, matrix, a.shape) > settings.elsewhere * max(b.shape)


def agreement_of(frames: Sequence[Frame], matrix: Matrix, settings: Settings) -> float:
    """How well the fields agree under a transform (3, 3), comparable with the scores of :func:`align`."""
    frames, factor = _small(frames, settings)
    return agreement(frames, matrix, factor, settings)


def _small(frames: Sequence[Frame], settings: Settings) -> tuple[Sequence[Frame], float]:
    """The frames on which hypotheses are aligned, and the factor by which B is shrunk for it."""
    a, b = frames[0]
    factor = max(1.0, max(*a.shape, *b.shape) / settings.align_side)
    return frames[:: max(1, math.ceil(len(frames) / settings.coarse_frames))], factor


def refine(frames: Sequence[Frame], matrix: Matrix, model: Model, settings: Settings) -> Refined | None:
    """The transform under which most blocks coincide, near a hypothesis; None if there is none."""
    a, b = frames[0]
    finest = _finest(frames, settings)
    factor = max(finest, max(*a.shape, *b.shape) / settings.align_side / 2)
    rounds = list(zip(settings.fine_radii, settings.fine_cells, strict=True))
    while True:
        last = factor <= finest
        level_model: Model = model if last or model == "similarity" else "affine"
        for radius, cells in rounds if last else rounds[:1]:
            refined = _refitted(frames, matrix, level_model, factor, radius, cells, settings)
            if refined is None:
                return None
            matrix = refined.matrix
        if last:
            return refined
        factor = max(finest, factor / 2)


def examine(frames: Sequence[Frame], matrix: Matrix, model: Model, settings: Settings) -> Refined:
    """A transform as it is, with what one more fit on the finest level would make of it."""
    factor = _finest(frames, settings)
    refined = _refitted(frames, matrix, model, factor, settings.fine_radii[-1], settings.fine_cells[-1], settings)
    if refined is None:
        return Refined(matrix, 0.0, 1.0, [], factor)
    return refined._replace(matrix=matrix, agreeing=_agreeing(matrix, refined.blocks, settings.bound * factor))


def prominence(frames: Sequence[Frame], refined: Refined, settings: Settings) -> float:
    """How far the blocks on the finest level agree better under a transform than beside it, in standard deviations.

    Where the images overlap little, few blocks agree by chance: it falls with the square root of the covered part.
    """
    radius, half, cells = settings.prominence_radius, settings.fine_half, settings.prominence_cells
    blocks = match_blocks(frames, refined.matrix, refined.factor, radius, half, cells, settings)
    surfaces = np.concatenate([b.surfaces for b in blocks])
    covered = len(surfaces) / (len(frames) * _cells_of_each(frames, cells) ** 2)
    return math.sqrt(covered) * standing_out(surfaces, settings) if len(surfaces) else 0.0


def _finest(frames: Sequence[Frame], settings: Settings) -> float:
    """Factor by which B is shrunk on the finest level."""
    h, w = frames[0].b.shape
    return max(1.0, math.sqrt(h * w / settings.fine_pixels))


def _refitted(
    frames: Sequence[Frame],
    matrix: Matrix,
    model: Model,
    factor: float,
    radius: int,
    cells: int,
    settings: Settings,
) -> Refined | None:
    """The transform that fits where blocks are found within `radius` of where another one takes them."""
    blocks = match_blocks(frames, matrix, factor, radius, settings.fine_half, cells, settings)
    bound = settings.bound * factor
    fitted, simplest = fit_simplest(*_found(blocks), model, bound, settings.simpler)
    if fitted is None:
        return None
    fitted = _adjusted(fitted, matrix, blocks, simplest, settings)
    a, b = frames[0]
    moved = corner_distance(fitted, matrix, a.shape) / max(b.shape)
    return Refined(fitted, _agreeing(fitted, blocks, bound), moved, blocks, factor)


def _adjusted(fitted: Matrix, matrix: Matrix, blocks: Sequence[Blocks], model: Model, settings: Settings) -> Matrix:
    """A fitted transform, adjusted to the surfaces of all blocks; these were looked for under another one."""
    to_level = blocks[0].to_level
    step = to_level @ fitted @ inverse(matrix) @ inverse(to_level)
    centres, surfaces = (np.concatenate([getattr(b, k) for b in blocks]) for k in ("centres", "surfaces"))
    return inverse(to_level) @ adjust(step, centres, surfaces, model, settings) @ to_level @ matrix


def _agreeing(matrix: Matrix, blocks: Sequence[Blocks], bound: float) -> float:
    """Part of all blocks that were found within `bound` pixels of where a transform takes them."""
    points, matched = _found(blocks)
    near = np.linalg.norm(apply(matrix, points) - matched, axis=1) < bound
    return float(near.sum()) / sum(len(of_frame.points) for of_frame in blocks)


def _found(blocks: Sequence[Blocks]) -> tuple[Points, Points]:
    """Points of all frames and where they were found."""
    return np.concatenate([b.points[b.found] for b in blocks]), np.concatenate([b.matched[b.found] for b in blocks])


def agreement(frames: Sequence[Frame], matrix: Matrix, factor: float, settings: Settings) -> float:
    """How well the fields of all frames agree under a transform; the higher, the better."""
    total, area = 0.0, 0
    for frame in frames:
        overlay = _overlay(frame, matrix, factor, settings)
        both, a, b = overlay.both, overlay.fields_a, overlay.fields_b
        count = int(both.sum())
        if count < 100:
            continue
        strength_a, strength_b = (float((fields[..., 0] * both).sum(dtype=np.float64)) for fields in (a, b))
        # the covariance of the strengths; outside `both`, one of the fields is zero
        total += float((a * b).sum(dtype=np.float64)) - strength_a * strength_b / count
        area += count
    return float(total / max(area, 1) ** 0.75)


def match_blocks(
    frames: Sequence[Frame], matrix: Matrix, factor: float, radius: int, half: int, cells: int, settings: Settings
) -> list[Blocks]:
    """Look for blocks of A in B, within `radius` of where a transform takes them.

    Args:
        frames: each has blocks of its own.
        matrix: (3, 3) from A to B.
        factor: B is shrunk by this, and A warped onto it; `radius` and `half` are pixels of this level.
        half: half the width of a block.
        cells: blocks in each direction.
    """
    cells = _cells_of_each(frames, cells)
    return [_match_frame(frame, matrix, factor, radius, half, cells, settings) for frame in frames]


def _cells_of_each(frames: Sequence[Frame], cells: int) -> int:
    """Cells in each direction of a frame, so that all frames together have as many blocks as one alone would."""
    return max(4, round(cells / math.sqrt(len(frames))))


def _match_frame(
    frame: Frame, matrix: Matrix, factor: float, radius: int, half: int, cells: int, settings: Settings
) -> Blocks:
    overlay = _overlay(frame, matrix, factor, settings)
    smallest = min(overlay.both.shape)
    half = min(half, int(0.14 * smallest), (smallest - 1) // 2 - radius - 2)
    centres = _block_centres(overlay, half, radius, cells, settings.covered) if half >= 6 else np.empty((0, 2), int)
    if not len(centres):
        nothing, side = np.empty((0, 2)), 2 * radius + 1
        return Blocks(nothing, nothing, np.zeros(0, bool), nothing, np.empty((0, side, side)), overlay.to_level)
    surfaces = _surfaces(overlay, centres, half, radius)
    offsets, inside = lowest(surfaces)
    predicted = centres.astype(np.float64)
    points = apply(inverse(overlay.to_level @ matrix), predicted)
    matched = apply(inverse(overlay.to_level), predicted + offsets)
    return Blocks(points, matched, inside, predicted, surfaces, overlay.to_level)


def _overlay(frame: Frame, matrix: Matrix, factor: float, settings: Settings) -> _Overlay:
    """A warped onto B at one level."""
    image_b, mask_b, to_level = frame.b.level(factor)
    h, w = frame.a.shape
    scale = scale_of(to_level @ matrix, np.array([(w - 1) / 2, (h - 1) / 2]))
    shrink = 2.0 ** max(0, math.floor(math.log2(1 / scale) + 0.3)) if 0 < scale < 1 else 1.0
    image_a, mask_a, from_a = frame.a.level(shrink)
    whole = to_level @ matrix @ inverse(from_a)
    size = mask_b.shape[::-1]
    warped = np.asarray(cv2.warpPerspective(image_a, whole, size, flags=cv2.INTER_LINEAR), np.float32)
    inside = np.asarray(cv2.warpPerspective(mask_a, whole, size, flags=cv2.INTER_NEAREST), np.uint8)
    inside = np.asarray(cv2.erode(inside, np.ones((5, 5), np.uint8)), np.uint8)
    mask_b = eroded(mask_b, 5)
    key = "fields", factor, settings
    if key not in frame.b.kept:
        frame.b.kept[key] = fields_of(image_b, mask_b, settings)
    both: Mask = inside & mask_b
    corners = np.asarray(cv2.cornerMinEigenVal(warped, 5), np.float32) * both
    fields_b: Fields = frame.b.kept[key]
    return _Overlay(fields_of(warped, inside, settings), fields_b, both, corners, to_level)


def _block_centres(overlay: _Overlay, half: int, radius: int, cells: int, covered: float) -> NDArray[np.int64]:
    """The strongest corner (x, y) of each cell of a grid, if both images show most of the block around it."""
    h, w = overlay.both.shape
    area = cv2.integral(overlay.both)
    first, side = half + radius, 2 * half + 1
    lines = []
    for n in (h, w):
        count = max(1, min(cells, (n - 2 * first) // max(4, half // 4)))
        lines.append(np.linspace(first, n - first, count + 1).astype(int))
    centres = []
    for top, bottom in zip(lines[0][:-1], lines[0][1:], strict=True):
        for left, right in zip(lines[1][:-1], lines[1][1:], strict=True):
            cell = overlay.corners[top:bottom, left:right]
            dy, dx = divmod(int(cell.argmax()), cell.shape[1])
            y0, x0 = top + dy - half, left + dx - half
            shown = area[y0 + side, x0 + side] - area[y0, x0 + side] - area[y0 + side, x0] + area[y0, x0]
            if cell[dy, dx] > 0 and shown >= covered * side**2:
                centres.append((left + dx, top + dy))
    return np.array(centres, np.int64).reshape(-1, 2)


def _surfaces(overlay: _Overlay, centres: NDArray[np.int64], half: int, radius: int) -> Surfaces:
    """How much blocks of A differ from B at offsets within the radius."""
    side = 2 * half + 1
    parts = (centres[start : start + _AT_ONCE] for start in range(0, len(centres), _AT_ONCE))
    correlation = np.concatenate([_correlation(overlay, part, half, radius) for part in parts])
    x, y = centres.T
    summed_a, summed_b = _box_sums(energy(overlay.fields_a), side), _box_sums(energy(overlay.fields_b), side)
    around = np.arange(-half - radius, -half + radius + 1)
    energies = summed_b[(y[:, None] + around)[:, :, None], (x[:, None] + around)[:, None]]
    differences: Surfaces = (summed_a[y - half, x - half, None, None] + energies - 2 * correlation) / side**2
    return differences


def _correlation(overlay: _Overlay, centres: NDArray[np.int64], half: int, radius: int) -> NDArray[np.float32]:
    """Correlation (N, S, S) of blocks of A with B at offsets within the radius, summed over the fields."""
    side, reach, outer = 2 * half + 1, 2 * radius + 1, 2 * (half + radius) + 1
    (x, y), size = centres.T, (fast_length(outer),) * 2
    spectra_a = torch.fft.rfft2(_cut(overlay.fields_a, x - half, y - half, side), size)
    spectra_b = torch.fft.rfft2(_cut(overlay.fields_b, x - half - radius, y - half - radius, outer), size)
    correlation: Tensor = torch.fft.irfft2((spectra_b * spectra_a.conj()).sum(1), size)
    return correlation[:, :reach, :reach].numpy()


def _box_sums(image: Grey, side: int) -> NDArray[np.float64]:
    """Sums of all squares of `side` pixels, by their upper left corners."""
    summed = cv2.integral(image)
    sums = summed[side:, side:] - summed[:-side, side:] - summed[side:, :-side] + summed[:-side, :-side]
    return np.asarray(sums, np.float64)


def _cut(fields: Fields, left: NDArray[np.int64], top: NDArray[np.int64], side: int) -> Tensor:
    """Square windows (N, 3, side, side) of fields (H, W, 3)."""
    windows = torch.empty(len(left), 3, side, side, dtype=torch.float32, device="cpu")
    for window, x, y in zip(windows.numpy(), left.tolist(), top.tolist(), strict=True):
        window[:] = np.moveaxis(fields[y : y + side, x : x + side], -1, 0)
    return windows
