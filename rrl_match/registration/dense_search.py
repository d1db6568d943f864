"""Dense search: hypotheses from correlation over shift, rotation, scale, stretch and mirroring."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.channels import Channels, Grey
from rrl_match.registration.config import Config, DenseSearchConfig, Search
from rrl_match.registration.images import Frame
from rrl_match.registration.overlay import overlap_of
from rrl_match.registration.pooled_channels import pooled_channels
from rrl_match.transforms import Affine, Matrix, MatrixTransform, Similarity, compose, similarity

_AT_ONCE = 10  # rotations, so that their spectra stay in the processor's cache


class Hypothesis(NamedTuple):
    """A transform from A to B, and how well the channels of the images agree under it; the higher, the better."""

    score: float
    transform: MatrixTransform


@dataclass(frozen=True, eq=False)
class Scale:
    """Linear maps of one scale that are searched together: a rotation of `linear` each.

    Attributes:
        linear: (2, 2), from A to B but for the rotation.
        rotations: degrees.
        side: pixels of the level, see :class:`DenseSearchConfig`.
    """

    linear: Matrix
    rotations: tuple[float, ...]
    side: int


@dataclass(frozen=True)
class Region:
    """What a search is confined to.

    Attributes:
        around: the transform that is known beforehand, or the identity.
        known: whether there is one.
        shift: largest displacement of A's centre from where that takes it, in pixels of B.
    """

    around: MatrixTransform
    known: bool
    shift: float


def stages(frame: Frame, search: Search, region: Region, config: DenseSearchConfig) -> Iterator[list[Scale]]:
    """What to search first, what next, and what last.

    First what is near; then all scales, and what is near stretched; then all rotations; last all rotations stretched.

    Args:
        frame: images of the sizes that all have.
        search: how far to look.
        region: where to start.
        config: steps and bounds.
    """
    (h, w), (hb, wb) = frame.a.shape, frame.b.shape
    base = region.around.jacobian([[(w - 1) / 2, (h - 1) / 2]])[0]
    own = math.sqrt(abs(np.linalg.det(base)))
    equal_areas = math.sqrt(hb * wb / (h * w)) / own
    nominal = (1.0,) if region.known else (equal_areas, 1.0)
    scales = _scales(*_scale_range(equal_areas, search, region.known, config), equal_areas, config)
    near = [s for s in scales if any(1 / config.near_scale <= s.factor / n <= config.near_scale for n in nominal)]
    near = near or scales
    rest = [s for s in scales if s not in near]
    plain, stretched = [np.eye(2)], _stretches(search.aspect, config)
    first, others = (-1.0, config.near_rotation), (config.near_rotation, 180.0)

    def grid(
        scales: Sequence[_Factor], stretches: Sequence[Matrix], *parts: tuple[float, float], side: int = config.side
    ) -> list[Scale]:
        flips = [np.eye(2), np.diag([-1.0, 1.0])] if search.mirrored else [np.eye(2)]
        found = []
        for flip, stretch, scale, part in itertools.product(flips, stretches, scales, parts):
            step = config.rotation_step * min(config.coarsest, config.side / (side * math.sqrt(scale.ratio)))
            rotations = _rotations(search.rotation, part, step)
            if rotations:
                found.append(Scale(scale.factor * base @ stretch @ flip, rotations, side))
        return found

    small = config.stretched_side
    yield grid(near, plain, first)
    yield grid(rest, plain, first) + grid(near, stretched, first, side=small)
    yield grid(near, plain, others) + grid(rest, plain, others)
    yield grid(near, stretched, others, side=small)


class _Factor(NamedTuple):
    """A scale, and the ratio of the sides of both images' footprints at it, at most 1."""

    factor: float
    ratio: float


def _scale_range(equal_areas: float, search: Search, relative: bool, config: DenseSearchConfig) -> tuple[float, float]:
    if search.scale is not None:
        return search.scale[0], search.scale[1]
    if relative:
        return 1 / config.near_scale, config.near_scale
    side = math.sqrt(config.most_shown)
    return equal_areas / side, equal_areas * side


def _scales(low: float, high: float, equal_areas: float, config: DenseSearchConfig) -> list[_Factor]:
    """Scales from low to high, in larger steps where the smaller footprint has fewer pixels."""
    found, scale = [], low
    while True:
        ratio = max(min(scale / equal_areas, equal_areas / scale), 1 / config.most_shown)
        found.append(_Factor(scale, ratio))
        if scale >= high * 0.999:
            return found
        scale = min(high, scale * config.scale_step ** min(config.coarsest, ratio**-0.5))


def _rotations(most: float, part: tuple[float, float], step: float) -> tuple[float, ...]:
    """Rotations in degrees up to the largest one, those whose size lies in a part of 0 to 180."""
    count = math.ceil(most / step - 1e-9)
    angles = [most * k / max(1, count) for k in range(-count, count + 1)]
    if most > 180 - step / 2:
        angles = angles[1:]  # the first is the same as the last
    return tuple(a for a in angles if part[0] < abs(a) <= part[1])


def _stretches(aspect: float, config: DenseSearchConfig) -> list[Matrix]:
    """Linear maps (2, 2) of determinant 1 with unequal scales along any direction."""
    if aspect <= 1.0:
        return []
    ratio = min(aspect, config.stretch)
    found = []
    for k in range(config.stretch_directions):
        angle = math.pi * k / config.stretch_directions
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        found.append(turn @ np.diag([math.sqrt(ratio), 1 / math.sqrt(ratio)]) @ turn.T)
    return found


def propose(
    frames: Sequence[Frame], scales: Sequence[Scale], most: int, region: Region, config: Config
) -> list[Hypothesis]:
    """Distinct hypotheses, best first, of one transform for all frames; those far worse than the best are left out.

    Args:
        frames: images of equal shapes.
        scales: what to search.
        most: number of hypotheses.
        region: what the search is confined to.
    """
    step = max(1, math.ceil(len(frames) / config.search.frames))
    found = [h for scale in scales for h in _at_scale(frames[::step], scale, region, config)]
    return comparable(distinct(found, frames[0], config.search.distance, most), config.search.comparable)


def comparable(found: Sequence[Hypothesis], part: float) -> list[Hypothesis]:
    """Hypotheses that score at least a part of what the best one, the first, does."""
    return [hypothesis for hypothesis in found if hypothesis.score >= part * found[0].score]


def distinct(found: Sequence[Hypothesis], frame: Frame, distance: float, most: int) -> list[Hypothesis]:
    """The best hypotheses that move the corners of the overlap apart, on average by `distance` of its side."""
    kept: list[Hypothesis] = []
    corners, images, least = np.empty((0, 4, 2)), np.empty((0, 4, 2)), np.empty(0)
    for hypothesis in sorted(found, key=lambda h: -h.score):
        here = hypothesis.transform(corners.reshape(-1, 2)).reshape(-1, 4, 2)
        if not (np.linalg.norm(images - here, axis=2).mean(1) > least).all():
            continue
        overlap = overlap_of(frame, hypothesis.transform)
        if overlap is None:
            continue
        box = cv2.boxPoints(cv2.minAreaRect(overlap.outline.astype(np.float32))).astype(np.float64)
        kept.append(hypothesis)
        corners = np.concatenate([corners, hypothesis.transform.inverse()(box)[None]])
        images = np.concatenate([images, box[None]])
        least = np.append(least, distance * math.sqrt(overlap.area))
        if len(kept) == most:
            break
    return kept


class _Pooled(NamedTuple):
    """Channels of one image, and what takes pixels of the full image to theirs."""

    channels: Channels
    from_full: Affine


class _Spectra(NamedTuple):
    """Channels of all frames at one scale, and what their correlation needs.

    Attributes:
        a, b: of each frame.
        of_b: spectra of the channels of B, and of what is known of them.
        side: of the square that holds A under any rotation.
        size: (height, width) of the transforms.
    """

    a: list[_Pooled]
    b: list[_Pooled]
    of_b: list[tuple[Tensor, Tensor]]
    side: int
    size: tuple[int, int]


def _prepared(frames: Sequence[Frame], scale: Scale, config: Config) -> _Spectra:
    a, b = _pooled(frames, scale, config)
    side = math.ceil(math.hypot(*a[0].channels.known.shape)) + 1
    height, width = (
        2 * cv2.getOptimalDFTSize((n + side - min(n, side) // 4) // 2 + 1) for n in b[0].channels.known.shape
    )
    of_b = [_spectra(one.channels.values, one.channels.known, (height, width)) for one in b]
    return _Spectra(a, b, of_b, side, (height, width))


def _at_scale(frames: Sequence[Frame], scale: Scale, region: Region, config: Config) -> list[Hypothesis]:
    """The best shifts for each rotation at one scale."""
    spectra = _prepared(frames, scale, config)
    (height, width), (h, w) = spectra.b[0].channels.known.shape, spectra.size
    found, to_a, back = [], spectra.a[0].from_full, spectra.b[0].from_full.inverse()
    for start in range(0, len(scale.rotations), _AT_ONCE):
        rotations = scale.rotations[start : start + _AT_ONCE]
        turns = [_about_centre(r, spectra.a[0].channels.known.shape, spectra.side) for r in rotations]
        surface = _surface(spectra, turns, config.search.min_overlap)
        if math.isfinite(region.shift):
            _confine(surface, spectra, turns, region, frames[0].a.shape)
        for row, score, x, y in _peaks(surface, config.search.peaks):
            shift = similarity(shift=(x if x < width else x - w, y if y < height else y - h))
            found.append(Hypothesis(score, compose(compose(to_a, turns[row]), compose(shift, back))))
    return found


def _pooled(frames: Sequence[Frame], scale: Scale, config: Config) -> tuple[list[_Pooled], list[_Pooled]]:
    """Channels of A under the linear map, and of B, at one resolution.

    The smaller footprint gets fewer pixels than where both are equal, the larger one more: so the smaller one still
    shows enough, and the larger one costs little.
    """
    (h, w), (hb, wb) = frames[0].a.shape, frames[0].b.shape
    own = math.sqrt(abs(np.linalg.det(scale.linear)))
    side_a, side_b = math.sqrt(h * w) * own, math.sqrt(hb * wb)
    ratio = max(min(side_a / side_b, side_b / side_a), 1 / config.search.most_shown)
    factor = max(
        max(side_a, side_b) * math.sqrt(ratio) / scale.side, max(1.0, own) / 2
    )  # pixels of B for one of the level
    pooled_a = [
        _Pooled(*pooled_channels(frame.a, scale.linear / own, factor / own, config.channels)) for frame in frames
    ]
    pooled_b = []
    for frame in frames:
        key = "pooled", round(factor, 6), config.channels
        if key not in frame.b.cache:
            frame.b.cache[key] = _Pooled(*pooled_channels(frame.b, np.eye(2), factor, config.channels))
        pooled_b.append(frame.b.cache[key])
    return pooled_a, pooled_b


def _surface(spectra: _Spectra, turns: Sequence[Similarity], min_overlap: float) -> Tensor:
    """Agreement (R, H, W) of all frames under each rotation and shift, 0 where they overlap too little.

    The sum over the overlap grows with it, the mean shrinks: the sum is divided by the overlap to the power of 3/4.
    """
    side, size = spectra.side, spectra.size
    products, overlaps, least = [], [], np.zeros(len(turns), np.float32)
    for a, b, (spectrum_b, known_b) in zip(spectra.a, spectra.b, spectra.of_b, strict=True):
        rotated, known = (np.stack(p) for p in zip(*(a.channels.rotated(t.full, side) for t in turns), strict=True))
        spectrum_a, known_a = _spectra(rotated, known, size)
        products.append(_correlation(spectrum_a, spectrum_b))
        overlaps.append(known_b * known_a.conj())
        least += min_overlap * known.sum((1, 2)).clip(max=float(b.channels.known.sum()))
    half = size[0] // 2, size[1] // 2
    overlap = torch.fft.irfft2(sum(overlaps[1:], overlaps[0]), half).mul_(4).clamp_(min=1)
    root = overlap.sqrt()
    weight = (root * root.sqrt()).reciprocal_()
    weight[overlap < torch.from_numpy(least)[:, None, None]] = 0
    weight = weight.repeat_interleave(2, 1).repeat_interleave(2, 2)
    surface: Tensor = torch.fft.irfft2(sum(products[1:], products[0]), size).mul_(weight)
    return surface


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spectrum (R, H, W) of the correlation of A (R, C, H, W) with B (C, H, W), summed over channels."""
    product = a[:, 0].conj() * b[0]
    for channel in range(1, len(b)):
        product.addcmul_(a[:, channel].conj(), b[channel])
    return product


def _confine(
    surface: Tensor, spectra: _Spectra, turns: Sequence[Similarity], region: Region, shape: tuple[int, int]
) -> None:
    """Set the surface (R, H, W) to 0 where a shift takes the centre of A too far from where it is expected."""
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    a, b = spectra.a[0], spectra.b[0]
    goal = b.from_full(region.around(centre))
    pixel = b.from_full.scale(goal)
    for row, turn in enumerate(turns):
        x, y = goal - turn(a.from_full(centre))
        dx, dy = (
            (torch.arange(n) - at + n / 2) % n - n / 2 for n, at in zip(surface.shape[:0:-1], (x, y), strict=True)
        )
        surface[row][
            torch.hypot(dx[None, :].expand_as(surface[row]), dy[:, None].expand_as(surface[row]))
            > region.shift * pixel + 2
        ] = 0


def _about_centre(rotation: float, shape: tuple[int, ...], side: int) -> Similarity:
    """Rotation about the centre of an image of this shape, which goes to the centre of a square."""
    h, w = shape
    turn = similarity(rotation)
    x, y = (side - 1) / 2 - turn(np.array([(w - 1) / 2, (h - 1) / 2]))
    return similarity(rotation, shift=(x, y))


def _spectra(channels: NDArray[np.float32], known: Grey, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Spectra of channels (..., 3, H, W), and of what is known of them (..., H, W) at half the resolution."""
    whole = _aligned(known)
    h, w = whole.shape[-2] // 2, whole.shape[-1] // 2
    half = whole[..., : 2 * h, : 2 * w].unflatten(-1, (w, 2)).mean(-1).unflatten(-2, (h, 2)).mean(-2)
    return torch.fft.rfft2(_aligned(channels), tuple(size)), torch.fft.rfft2(half, (size[0] // 2, size[1] // 2))


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
