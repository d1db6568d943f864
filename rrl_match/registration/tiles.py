"""A registration refined at full resolution, on tiles that are spread over the overlap and read one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import cv2
import numpy as np

from rrl_match.registration.block_matching import Blocks, Grid, match_blocks
from rrl_match.registration.config import Config
from rrl_match.registration.images import Frame, Mask, Pixels, PreparedImage, prepare
from rrl_match.registration.overlay import Overlap, overlap_of
from rrl_match.registration.refinement import finest_pixel
from rrl_match.registration.result import Registration, TiePoints
from rrl_match.transforms import Affine, MatrixTransform, Points, Transform, compose, similarity

Fit: TypeAlias = "Callable[[Blocks, Transform, Config], tuple[Transform, str] | None]"
"""The transform that blocks say, which were looked for around another one, and its model; None if they say none."""


class Part(NamedTuple):
    """A part of an image.

    Attributes:
        pixels: (H, W) or RGB (H, W, 3); uint8, uint16 or floating point.
        mask: (H, W) bool, where there is data; None if everywhere.
        from_whole: takes pixels of the whole image, as it was registered, to those of the part.
    """

    pixels: Pixels
    mask: Mask | None
    from_whole: Affine


class Source(Protocol):
    """Reads parts of an image that was reduced to be registered, at its full resolution."""

    @property
    def finest(self) -> float:
        """Pixels of the image, as it was registered, along a pixel of its full resolution."""

    def __call__(self, low: Points, high: Points, pixel: float) -> Part | None:
        """Read a part.

        Args:
            low, high: (2,) xy, its corners in pixels of the image as it was registered; they may lie outside.
            pixel: along a pixel of what is wanted, in the same unit.

        Returns:
            None where the image shows nothing.
        """


class Reader:
    """Reads parts of an image, prepared as the whole was.

    Args:
        image: the whole.
        source: of its full resolution; None if `image` has it.
    """

    def __init__(self, image: PreparedImage, source: Source | None = None) -> None:
        self._image, self._source = image, source
        self.finest = 1.0 if source is None else source.finest

    def read(self, low: Points, high: Points, pixel: float) -> tuple[PreparedImage, Affine] | None:
        """A part, and what takes pixels of the whole to its own; see :class:`Source`."""
        if self._source is None:
            return self._cut(low, high)
        part = self._source(low, high, pixel)
        if part is None:
            return None
        known = np.ones(part.pixels.shape[:2], bool) if part.mask is None else part.mask
        if not self._image.known.all():
            size, matrix = known.shape[::-1], part.from_whole.full[:2]
            there = cv2.warpAffine(self._image.known.view(np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
            known = known & (there > 0)
        if not known.any():
            return None
        return prepare(part.pixels, known, self._image.value_range, "a"), part.from_whole

    def _cut(self, low: Points, high: Points) -> tuple[PreparedImage, Affine] | None:
        image = self._image
        left, top = np.floor(low).clip(0).astype(int).tolist()
        right, bottom = (np.ceil(high) + 1).clip(0, image.shape[::-1]).astype(int).tolist()
        known = image.known[top:bottom, left:right]
        if not known.any():
            return None
        part = PreparedImage(image.grey[top:bottom, left:right], known, image.value_range)
        return part, Affine(similarity(shift=(-left, -top)).full)


class _Round(NamedTuple):
    """Tiles to match at once: pixels of B along one of the level, tiles in each direction, and how far to look."""

    pixel: float
    tiles: int
    radius: int


def refine_on_tiles(
    found: Registration, readers: Sequence[tuple[Reader, Reader]], overlap: Overlap, fit: Fit, config: Config
) -> Registration:
    """A registration with its transform and tie points from the finest level of both images.

    Tiles lie where blocks were found on the coarser level, so that none shows water or clouds alone. Their blocks give
    one fit together. Where they do not agree on a transform, that of the coarser level stays.

    Args:
        found: what was accepted.
        readers: of A and B for each frame; frames take turns.
        overlap: under its transform.
        fit: of the kind of transform that was asked for.
        config: numbers of the method.
    """
    transform, coarse = found.transform, finest_pixel(overlap, config)
    if transform is None or not len(found.tie_points):
        return found
    finest = max(max(b.finest, a.finest * _scale(transform, found.tie_points.a)) for a, b in readers)
    if coarse <= finest * config.tiles.finer:
        return found
    kinds = dataclasses.replace(config.blocks, simpler=config.tiles.simpler, negligible=config.tiles.negligible)
    config = dataclasses.replace(config, blocks=kinds)
    reached, blocks, spread, model = coarse, None, found.tie_points, found.model
    for one in _rounds(coarse, finest, config):
        centres = _centres(spread, overlap, one, config)
        matched = _match_tiles(readers, transform, centres, one, config)
        fitted = fit(matched, transform, config) if len(matched.points) else None
        if fitted is None or matched.agreeing(fitted[0], config.blocks.bound).mean() < config.verify.min_agreeing:
            break
        (transform, model), blocks, reached = fitted, matched, one.pixel
    if blocks is None or reached > finest * config.tiles.finer:
        note = f"refined at {reached:.1f} pixels of B only: what is finer in both images does not agree"
        found = dataclasses.replace(found, notes=(*found.notes, note))
    if blocks is None:
        return found
    points = _tie_points(blocks, transform, config)
    return dataclasses.replace(found, transform=transform, model=model, tie_points=points)


def _scale(transform: Transform, points: Points) -> float:
    """Pixels of B for a pixel of A in the middle of points."""
    determinant = np.linalg.det(transform.jacobian(points.mean(0)[None])[0])
    return math.sqrt(abs(float(determinant)))


def _rounds(coarse: float, finest: float, config: Config) -> list[_Round]:
    """Ever finer rounds with few tiles each, and one with all of them."""
    settings = config.tiles
    steps = max(1, math.ceil(math.log(coarse / finest) / math.log(settings.step)))
    pixels = [finest * (coarse / finest) ** (1 - k / steps) for k in range(1, steps + 1)]
    few = [_Round(pixel, settings.few, settings.radii[0]) for pixel in pixels]
    return [*few, _Round(finest, settings.most, settings.radii[1])]


def _match_tiles(
    readers: Sequence[tuple[Reader, Reader]], transform: Transform, centres: Points, one: _Round, config: Config
) -> Blocks:
    """Blocks of all tiles around where a transform takes them, in pixels of the whole images."""
    parts = []
    for number, centre in enumerate(centres):
        frame = number % len(readers)
        blocks = _match_tile(readers[frame], _near(transform, centre), centre, one, config)
        if blocks is not None:
            parts.append(blocks._replace(frame=blocks.frame + frame))
    return _joined(parts, one)


def _centres(spread: TiePoints, overlap: Overlap, one: _Round, config: Config) -> Points:
    """Centres of tiles (N, 2) in B: a grid over the overlap, in which each is moved until it holds a tie point."""
    side = one.pixel * config.tiles.side
    low, size = overlap.outline.min(0), np.maximum(np.ptp(overlap.outline, axis=0), 1e-9)
    least = np.ceil(size / side).clip(1, config.tiles.least)
    counts = np.floor(size / side / config.tiles.apart).clip(least, one.tiles)
    step = np.maximum(size - side, 0) / np.maximum(counts - 1, 1)
    first = low + np.minimum(side, size) / 2
    places = ((spread.b - first) / np.maximum(step, 1e-9)).round().clip(0, counts - 1)
    middles = first + places * step
    off = np.linalg.norm(spread.b - middles, axis=1) / side + ~spread.inliers
    order = np.lexsort((off, places[:, 0], places[:, 1]))
    _, best = np.unique(places[order], axis=0, return_index=True)
    rows = order[best]
    reach = config.tiles.held * side / 2
    return np.asarray(middles[rows].clip(spread.b[rows] - reach, spread.b[rows] + reach))


def _near(transform: Transform, centre: Points) -> MatrixTransform:
    """A transform around a location of B, as a matrix."""
    if isinstance(transform, MatrixTransform):
        return transform
    at = transform.inverse()(centre)
    linear = transform.jacobian(at[None])[0]
    return Affine(np.column_stack([linear, transform(at) - linear @ at]))


def _match_tile(
    readers: tuple[Reader, Reader], transform: MatrixTransform, centre: Points, one: _Round, config: Config
) -> Blocks | None:
    """Blocks of a tile around a location of B; None if either image shows nothing there."""
    half = config.tiles.side / 2 * one.pixel
    corners = centre + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    in_a = transform.inverse()(corners)
    pixel_a = one.pixel / transform.scale(in_a.mean(0))
    a = readers[0].read(in_a.min(0) - 2 * pixel_a, in_a.max(0) + 2 * pixel_a, pixel_a)
    b = readers[1].read(corners.min(0), corners.max(0), one.pixel)
    if a is None or b is None:
        return None
    (image_a, to_a), (image_b, to_b) = a, b
    there, frame = compose(compose(to_a.inverse(), transform), to_b), Frame(image_a, image_b)
    overlap = overlap_of(frame, there)
    if overlap is None:
        return None
    grid = Grid(one.pixel * to_b.scale(centre), config.tiles.cells, config.blocks.half, one.radius)
    blocks = match_blocks([frame], there, overlap, grid, config)
    back_a, back_b = to_a.inverse(), to_b.inverse()
    return blocks._replace(
        points=back_a(blocks.points), predicted=back_b(blocks.predicted), matched=back_b(blocks.matched)
    )


def _joined(parts: Sequence[Blocks], one: _Round) -> Blocks:
    """Blocks of all tiles."""
    side = 2 * one.radius + 1
    return Blocks(
        points=np.concatenate([np.empty((0, 2)), *(part.points for part in parts)]),
        predicted=np.concatenate([np.empty((0, 2)), *(part.predicted for part in parts)]),
        matched=np.concatenate([np.empty((0, 2)), *(part.matched for part in parts)]),
        found=np.concatenate([np.empty(0, bool), *(part.found for part in parts)]),
        surfaces=np.concatenate([np.empty((0, side, side)), *(part.surfaces for part in parts)]),
        frame=np.concatenate([np.empty(0, np.int64), *(part.frame for part in parts)]),
        pixel=one.pixel,
        asked=sum(part.asked for part in parts),
    )


def _tie_points(blocks: Blocks, transform: Transform, config: Config) -> TiePoints:
    """Where blocks were found."""
    a, b, found = blocks.points, blocks.matched, blocks.found
    residuals = np.linalg.norm(transform(a) - b, axis=1)
    scores = np.full(len(a), np.nan, np.float32)
    agreeing = blocks.agreeing(transform, config.blocks.bound)
    return TiePoints(a[found], b[found], scores[found], residuals[found], agreeing[found])
