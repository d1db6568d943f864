"""A hypothesis refined on ever finer levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rrl_match.registration.adjustment import adjust
from rrl_match.registration.block_matching import Blocks, Grid, fit_simplest, match_blocks
from rrl_match.registration.config import Config
from rrl_match.registration.images import Frame
from rrl_match.registration.overlay import Overlap, overlap_of
from rrl_match.transforms import MatrixTransform, Transform, as_matrix, compose, similarity


class Freedom(NamedTuple):
    """What may be fitted.

    Attributes:
        kind: the freest kind of transform,
        base: which is composed with this one; the identity, but for a known scale and rotation.
        simplify: whether a simpler kind is taken where it explains as much.
        aspect: largest ratio of the scales along two directions, relative to `base`.
    """

    kind: type[MatrixTransform]
    base: MatrixTransform
    simplify: bool
    aspect: float = 1.5


class Refined(NamedTuple):
    """A transform that was aligned on the finest level.

    Attributes:
        transform: from A to B.
        kind: of what was fitted.
        moved: how far the last fit moved the corners of the overlap on average, of its side. A transform that is right
            stays where it is.
        blocks: those of the last round.
        overlap: under the transform.
    """

    transform: Transform
    kind: type[Transform]
    moved: float
    blocks: Blocks
    overlap: Overlap


def refine(frames: Sequence[Frame], transform: MatrixTransform, freedom: Freedom, config: Config) -> Refined | None:
    """The transform under which most blocks coincide, near a hypothesis; None if there is none."""
    settings = config.refine
    overlap = overlap_of(frames[0], transform)
    if overlap is None:
        return None
    finest = finest_pixel(overlap, config)
    pixel = max(finest, overlap.unit * overlap.side / settings.first_side)
    coarse = freedom._replace(kind=freedom.kind.coarse(), simplify=True)
    while True:
        last = pixel <= finest * 1.01
        for radius, cells in list(zip(settings.radii, settings.cells, strict=True))[: None if last else 1]:
            grid = Grid(pixel, cells, config.blocks.half, radius)
            refined = _settled(frames, transform, grid, freedom if last else coarse, config)
            if refined is None:
                return None
            transform = as_matrix(refined.transform)
        if last:
            plausible = (
                refined is not None and _ratio_of_scales(refined, freedom.base) <= settings.slack * freedom.aspect
            )
            return refined if plausible else None
        pixel = max(finest, pixel / 2)


def _settled(
    frames: Sequence[Frame], transform: MatrixTransform, grid: Grid, freedom: Freedom, config: Config
) -> Refined | None:
    """A transform that was refitted until it hardly moves; None if hardly any block agrees with it."""
    refined = None
    for _ in range(config.refine.repeats):
        refined = _refitted(frames, transform, grid, freedom, config)
        if refined is None:
            return None
        if refined.blocks.agreeing(refined.transform, config.blocks.bound).mean() < config.refine.hopeless:
            return None
        if refined.moved < config.refine.settled:
            break
        transform = as_matrix(refined.transform)
    return refined


def _ratio_of_scales(refined: Refined, base: MatrixTransform) -> float:
    """Ratio of the scales along two directions at the middle of the overlap, relative to another transform."""
    middle = refined.transform.inverse()(refined.overlap.outline.mean(0))[None]
    linear = refined.transform.jacobian(middle)[0] @ np.linalg.inv(base.jacobian(middle)[0])
    scales = np.linalg.svd(linear, compute_uv=False)
    return float(scales[0] / max(scales[1], 1e-9))


def finest_pixel(overlap: Overlap, config: Config) -> float:
    """Pixels of B for one of the finest level: one unit, more in large overlaps, less in small ones."""
    settings = config.refine
    large = overlap.side / math.sqrt(settings.finest_pixels)
    small = max(1 / settings.enlarged, overlap.side / settings.least_side)
    return overlap.unit * max(large, min(1.0, small))


def _refitted(
    frames: Sequence[Frame], transform: MatrixTransform, grid: Grid, freedom: Freedom, config: Config
) -> Refined | None:
    """The transform that fits where blocks are found around where another one takes them."""
    overlap = overlap_of(frames[0], transform)
    if overlap is None:
        return None
    blocks = match_blocks(frames, transform, overlap, grid, config)
    found = fit(blocks, transform, freedom, config)
    if found is None:
        return None
    fitted, kind = found
    outline = transform.inverse()(overlap.outline)
    moved = np.linalg.norm(fitted(outline) - overlap.outline, axis=1).mean() / math.sqrt(overlap.area)
    after = overlap_of(frames[0], fitted)
    return None if after is None else Refined(fitted, kind, float(moved), blocks, after)


def fit(
    blocks: Blocks, transform: MatrixTransform, freedom: Freedom, config: Config
) -> tuple[MatrixTransform, type[MatrixTransform]] | None:
    """The transform that all blocks say together, and its kind; they were looked for around another transform."""
    found = fit_simplest(blocks, freedom.base, freedom.kind, config.blocks, freedom.simplify)
    if found is None:
        return None
    fitted, kind = found
    return _adjusted(fitted, transform, blocks, kind, config), kind


def _adjusted(
    fitted: MatrixTransform, transform: MatrixTransform, blocks: Blocks, kind: type[MatrixTransform], config: Config
) -> MatrixTransform:
    """A fitted transform, adjusted to the surfaces of all blocks, which were looked for under another one."""
    to_level = similarity(scale=1 / blocks.pixel)
    back = compose(transform.inverse(), fitted)
    step = compose(to_level.inverse(), compose(back, to_level))
    after = adjust(step, kind, to_level(blocks.predicted), blocks.surfaces, config.blocks)
    whole = compose(transform, compose(to_level, compose(after, to_level.inverse())))
    return type(fitted)(whole.full)
