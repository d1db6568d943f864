"""Dense block matching around a transform, and hypotheses aligned by it in small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.channels import Grey, agreement
from rrl_match.cost_surfaces import Surfaces, cost_surfaces, lowest
from rrl_match.registration.config import BlockConfig, Config
from rrl_match.registration.dense_search import Hypothesis, comparable, distinct
from rrl_match.registration.images import Frame
from rrl_match.registration.overlay import Overlap, Overlay, overlap_of, overlay_of
from rrl_match.transforms import MatrixTransform, Points, Transform, compose, simpler_kinds


class Blocks(NamedTuple):
    """Blocks of all frames at one level.

    Attributes:
        points: (N, 2) xy, their centres in A.
        predicted: (N, 2) xy, where the transform takes them in B: offset 0 of the surfaces.
        matched: (N, 2) xy, where they are found in B.
        found: (N,), whether that lies within what was searched.
        surfaces: (N, S, S), how much they differ from B around `predicted`, at offsets in pixels of the level.
        frame: (N,), index of the frame.
        pixel: pixels of B that one of the level covers.
        asked: how many blocks the overlap would have if both images knew all of it.
    """

    points: Points
    predicted: Points
    matched: Points
    found: NDArray[np.bool_]
    surfaces: Surfaces
    frame: NDArray[np.int64]
    pixel: float
    asked: int

    def agreeing(self, transform: Transform, bound: float) -> NDArray[np.bool_]:
        """Which blocks (N,) were found within `bound` pixels of the level of where a transform takes them."""
        off = np.linalg.norm(transform(self.points) - self.matched, axis=1)
        return np.asarray(self.found & (off < bound * self.pixel))


class Grid(NamedTuple):
    """Blocks to look for.

    Attributes:
        pixel: pixels of B that one of the level covers.
        cells: of the overlap in each direction, with a block each.
        half: half the width of a block, in pixels of the level.
        radius: pixels of the level that a block is searched for, in every direction.
    """

    pixel: float
    cells: int
    half: int
    radius: int


def match_blocks(frames: Sequence[Frame], transform: Transform, overlap: Overlap, grid: Grid, config: Config) -> Blocks:
    """Look for blocks of A in B, around where a transform takes them.

    Args:
        frames: each has blocks of its own, so that all together have about as many as one alone would.
        transform: from A to B.
        overlap: under it.
        grid: which blocks.
    """
    grid = grid._replace(cells=max(4, round(grid.cells / math.sqrt(len(frames)))))
    side = 2 * grid.radius + 1
    points, found, surfaces, frame = [np.empty((0, 2))], [np.empty(0, bool)], [np.empty((0, side, side))], []
    matched, predicted = [np.empty((0, 2))], [np.empty((0, 2))]
    for number, one in enumerate(frames):
        overlay = overlay_of(one, transform, overlap, grid.pixel, config.channels, margin=grid.radius)
        centres, half = _block_centres(overlay, grid, config.blocks)
        frame += [number] * len(centres)
        if not len(centres):
            continue
        surfaces.append(cost_surfaces(overlay.channels_a, overlay.channels_b, centres, half, grid.radius))
        offsets, inside = lowest(surfaces[-1])
        to_b = overlay.to_level.inverse()
        predicted.append(to_b(centres))
        matched.append(to_b(centres + offsets))
        points.append(transform.inverse()(predicted[-1]))
        found.append(inside)
    return Blocks(
        points=np.concatenate(points),
        predicted=np.concatenate(predicted),
        matched=np.concatenate(matched),
        found=np.concatenate(found),
        surfaces=np.concatenate(surfaces),
        frame=np.array(frame, np.int64),
        pixel=grid.pixel,
        asked=len(frames) * grid.cells**2,
    )


def _block_centres(overlay: Overlay, grid: Grid, config: BlockConfig) -> tuple[NDArray[np.int64], int]:
    """The strongest corner (x, y) of each cell whose block both images know well enough; and its half width."""
    both = np.minimum(overlay.channels_a.known, overlay.channels_b.known)
    smallest = min(both.shape)
    half = min(grid.half, int(0.14 * smallest), (smallest - 1) // 2 - grid.radius - 2)
    if half < 6:
        return np.empty((0, 2), np.int64), half
    corners = np.asarray(cv2.cornerMinEigenVal(overlay.a.image, 5), np.float32) * both
    first, side = half + grid.radius, 2 * half + 1
    known = _inner_part(both, side) >= config.known
    known &= _inner_part(both + (1 - overlay.channels_a.whole * overlay.channels_b.whole), side) >= config.covered
    lines = []
    for n in both.shape:
        count = max(1, min(grid.cells, (n - 2 * first) // max(4, half // 4)))
        lines.append(np.linspace(first, n - first, count + 1).astype(int))
    centres = []
    for top, bottom in zip(lines[0][:-1], lines[0][1:], strict=True):
        for left, right in zip(lines[1][:-1], lines[1][1:], strict=True):
            cell = corners[top:bottom, left:right]
            dy, dx = divmod(int(cell.argmax()), cell.shape[1])
            if cell[dy, dx] > 0 and known[top + dy, left + dx]:
                centres.append((left + dx, top + dy))
    return np.array(centres, np.int64).reshape(-1, 2), half


def _inner_part(image: Grey, side: int) -> Grey:
    """Mean (H, W) of an image over a square around each pixel."""
    return np.asarray(cv2.boxFilter(image, -1, (side, side), borderType=cv2.BORDER_CONSTANT), np.float32)


def fit_simplest(
    blocks: Blocks, base: MatrixTransform, kind: type[MatrixTransform], config: BlockConfig, simplify: bool
) -> tuple[MatrixTransform, type[MatrixTransform]] | None:
    """Robust transform from A to where the blocks were found, and its kind, a simpler one where that explains as much.

    Freedom that the blocks do not need follows their errors, and takes the corners of an image along. Kinds are
    compared by the likelihood of the blocks' residuals: blocks far off count more than those nearly reached.

    Args:
        blocks: of all frames.
        base: what a transform of the kind is composed with, from A to B.
        kind: the freest kind.
        config: bounds.
        simplify: whether simpler kinds are tried.
    """
    start, matched, bound = base(blocks.points[blocks.found]), blocks.matched[blocks.found], config.bound * blocks.pixel
    if len(start) < 6:
        return None
    fitted = kind.estimate_robust(start, matched, bound)
    if not isinstance(fitted, MatrixTransform):
        return None
    most = config.simpler * _cost(fitted, start, matched, bound) + config.negligible
    for simpler in simpler_kinds(kind) if simplify else []:
        found = simpler.estimate_robust(start, matched, bound)
        if isinstance(found, MatrixTransform) and _cost(found, start, matched, bound) <= most:
            return compose(base, found), simpler
    return compose(base, fitted), kind


def _cost(transform: MatrixTransform, points: Points, matched: Points, bound: float) -> float:
    """Negative log-likelihood of a block's residual, of a Cauchy distribution as wide as `bound`."""
    return float(np.log1p(((transform(points) - matched) ** 2).sum(1) / bound**2).mean())


def align(
    frames: Sequence[Frame], hypotheses: Sequence[Hypothesis], kind: type[MatrixTransform], config: Config
) -> list[Hypothesis]:
    """Hypotheses aligned in small images with the freedom of a kind, distinct ones, best first.

    In each round only the best go on.
    """
    settings = config.align
    frames = frames[:: max(1, math.ceil(len(frames) / config.search.frames))]
    found = list(hypotheses)
    for radius, cells, most in zip(settings.radii, settings.cells, settings.kept, strict=True):
        aligned = []
        for _, transform in found:
            overlap = overlap_of(frames[0], transform)
            if overlap is None:
                continue
            grid = Grid(_small_pixel(overlap, config), cells, settings.half, radius)
            blocks = match_blocks(frames, transform, overlap, grid, config)
            fitted = fit_simplest(blocks, transform, kind, config.blocks, simplify=True)
            if fitted is not None:
                aligned.append(Hypothesis(agreement_of(frames, fitted[0], config), fitted[0]))
        found = comparable(distinct(aligned, frames[0], config.search.distance, most), settings.comparable)
    return found


def agreement_of(frames: Sequence[Frame], transform: Transform, config: Config) -> float:
    """How well the channels of all frames agree under a transform in small images; the higher, the better."""
    overlap = overlap_of(frames[0], transform)
    if overlap is None:
        return 0.0
    total, area = 0.0, 0.0
    for frame in frames[:: max(1, math.ceil(len(frames) / config.search.frames))]:
        overlay = overlay_of(frame, transform, overlap, _small_pixel(overlap, config), config.channels)
        of_frame, count = agreement(overlay.channels_a, overlay.channels_b)
        total, area = total + of_frame, area + count
    shown = min(1.0, overlap.side / config.align.side)  # small overlaps agree by chance
    return float(shown * total / max(area, 1.0) ** 0.75)


def _small_pixel(overlap: Overlap, config: Config) -> float:
    """Pixels of B for one of the level on which hypotheses are aligned."""
    return overlap.unit * max(1 / config.refine.enlarged, overlap.side / config.align.side)
