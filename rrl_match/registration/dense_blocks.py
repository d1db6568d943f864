"""Blocks up to the border of the overlap, and the tie points that they give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.channels import Channels
from rrl_match.cost_surfaces import cost_surfaces, lowest
from rrl_match.registration.block_matching import Blocks, Grid
from rrl_match.registration.config import Config
from rrl_match.registration.images import Frame
from rrl_match.registration.overlay import Overlap, Overlay, overlay_of
from rrl_match.registration.result import TiePoints
from rrl_match.transforms import Transform


def dense_blocks(frames: Sequence[Frame], transform: Transform, overlap: Overlap, grid: Grid, config: Config) -> Blocks:
    """Blocks up to the border of the overlap; what either image does not show of them has no part in their costs.

    Args:
        frames: each has blocks of its own.
        transform: from A to B, around which they are looked for.
        overlap: under it.
        grid: which blocks.
        config: of channels and blocks.
    """
    grid = grid._replace(cells=max(4, round(grid.cells / math.sqrt(len(frames)))))
    parts = []
    for number, frame in enumerate(frames):
        overlay = overlay_of(frame, transform, overlap, grid.pixel, config.channels, margin=grid.radius)
        edge = grid.half + grid.radius + 1
        a, b = (_padded(one, edge) for one in (overlay.channels_a, overlay.channels_b))
        centres = _centres(overlay, grid, config) + edge
        surfaces = cost_surfaces(a, b, centres, grid.half, grid.radius)
        offsets, inside = lowest(surfaces) if len(centres) else (np.empty((0, 2)), np.empty(0, bool))
        to_b = overlay.to_level.inverse()
        predicted, matched = to_b(centres - edge), to_b(centres - edge + offsets)
        parts.append((predicted, matched, inside, surfaces, np.full(len(centres), number)))
    predicted, matched, inside, surfaces, frame_of = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Blocks(
        points=transform.inverse()(predicted),
        predicted=predicted,
        matched=matched,
        found=inside,
        surfaces=surfaces,
        frame=frame_of,
        pixel=grid.pixel,
        asked=len(frames) * grid.cells**2,
    )


def _padded(channels: Channels, edge: int) -> Channels:
    """Channels with a border of which nothing is known, as everywhere where nothing is known."""
    known = np.pad(channels.known * channels.whole, edge)
    return Channels(np.pad(channels.values, ((0, 0), (edge, edge), (edge, edge))), known, known)


def _centres(overlay: Overlay, grid: Grid, config: Config) -> NDArray[np.int64]:
    """The strongest corner (x, y) of each cell of which both images know enough around it."""
    both = np.minimum(overlay.channels_a.known, overlay.channels_b.known)
    side = 2 * grid.half + 1
    known = cv2.boxFilter(both, -1, (side, side), borderType=cv2.BORDER_CONSTANT) >= config.local.known
    corners = np.where(known & (both > 0), cv2.cornerMinEigenVal(overlay.a.image, 5), 0.0)
    rows, columns = np.nonzero(both > 0)
    if not len(rows):
        return np.empty((0, 2), np.int64)
    (top, bottom), (left, right) = (rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)
    size = max(4.0, grid.half / 3, math.sqrt((bottom - top) * (right - left)) / grid.cells)
    down = np.linspace(top, bottom, max(1, round((bottom - top) / size)) + 1).astype(int)
    across = np.linspace(left, right, max(1, round((right - left) / size)) + 1).astype(int)
    centres = []
    for y0, y1 in itertools.pairwise(down):
        for x0, x1 in itertools.pairwise(across):
            cell = corners[y0:y1, x0:x1]
            dy, dx = divmod(int(cell.argmax()), cell.shape[1])
            if cell[dy, dx] > 0:
                centres.append((x0 + dx, y0 + dy))
    return np.array(centres, np.int64).reshape(-1, 2)


def tie_points(
    frames: Sequence[Frame], transform: Transform, overlap: Overlap, pixel: float, config: Config
) -> TiePoints:
    """Locations over the whole overlap, and where they are found around a transform; without scores.

    Args:
        frames, transform, overlap: see :func:`dense_blocks`.
        pixel: pixels of B that one of the level covers.
        config: of :class:`LocalConfig` and more.
    """
    settings = config.local
    grid = Grid(pixel, settings.tie_points, settings.half, settings.radii[1])
    blocks = dense_blocks(frames, transform, overlap, grid, config)
    residuals = np.linalg.norm(transform(blocks.points) - blocks.matched, axis=1)
    agreeing, found = blocks.agreeing(transform, config.blocks.bound), blocks.found
    scores = np.full(int(found.sum()), np.nan, np.float32)
    return TiePoints(blocks.points[found], blocks.matched[found], scores, residuals[found], agreeing[found])
