"""Image A warped onto B, where both overlap, at one level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np

from rrl_match.channels import ChannelConfig, Channels, Grey, block_channels
from rrl_match.registration.images import Frame, Level, PreparedImage
from rrl_match.transforms import MatrixTransform, Points, Transform, compose, similarity

_IDENTITY = similarity()
_GRID = 32  # pixels of a level that windows of B are rounded to, so that their channels are found again


class Overlap(NamedTuple):
    """Where two images overlap under a transform.

    Attributes:
        outline: (K, 2) xy in B, a convex polygon.
        area: square pixels of B.
        unit: pixels of B for a pixel of the coarser image.
        of_a: part of what A shows that B shows, too.
    """

    outline: Points
    area: float
    unit: float
    of_a: float

    @property
    def side(self) -> float:
        """Root of the area, in units."""
        return math.sqrt(self.area) / self.unit


def overlap_of(frame: Frame, transform: Transform) -> Overlap | None:
    """Where the known parts of A and B overlap; None if they do not, or the transform folds A."""
    outline_a = frame.a.outline
    if isinstance(transform, MatrixTransform) and (outline_a @ transform.full[2, :2] + 1 <= 1e-6).any():
        return None
    outline_a = transform(outline_a)
    area, outline = cv2.intersectConvexConvex(outline_a.astype(np.float32), frame.b.outline.astype(np.float32))
    if outline is None or area < 4:
        return None
    points = outline.reshape(-1, 2).astype(np.float64)
    middle = transform.inverse()(points.mean(0))
    whole = float(cv2.contourArea(outline_a.astype(np.float32)))
    return Overlap(points, float(area), max(1.0, transform.scale(middle)), min(1.0, float(area) / max(whole, 1e-9)))


@dataclass(frozen=True, eq=False)
class Overlay:
    """A, warped, and B, both cut to where they overlap: levels of one shape (H, W).

    Attributes:
        a, b: see :class:`Level`; `from_full` takes pixels of B to those of both.
        pixel: pixels of B that one of the level covers.
        config: of the channels.
        cache: channels of B, by what they are computed from.
    """

    a: Level
    b: Level
    pixel: float
    config: ChannelConfig
    cache: dict[object, Any]

    @property
    def to_level(self) -> MatrixTransform:
        """Takes pixels of B to those of the level."""
        return self.b.from_full

    @cached_property
    def channels_a(self) -> Channels:
        """Channels of A."""
        return block_channels(*self.a[:3], self.config)

    @cached_property
    def channels_b(self) -> Channels:
        """Channels of B, the same for each transform."""
        key = "channels", self.pixel, self.b.image.shape, tuple(self.to_level.full[:2, 2]), self.config
        if key not in self.cache:
            self.cache[key] = block_channels(*self.b[:3], self.config)
        channels: Channels = self.cache[key]
        return channels


def overlay_of(
    frame: Frame, transform: Transform, overlap: Overlap, pixel: float, config: ChannelConfig, margin: int = 0
) -> Overlay:
    """A warped onto B at a level.

    Args:
        frame: the images.
        transform: from A to B.
        overlap: under the transform.
        pixel: pixels of B that one of the level covers, below 1 to enlarge; rounded to a sixteenth of an octave.
        config: of the channels.
        margin: pixels of the level beside the overlap that are kept.
    """
    pixel = 2 ** (round(16 * math.log2(pixel)) / 16)
    level = frame.b.level(pixel)
    left, top, right, bottom = _window(level.from_full(overlap.outline), level.image.shape, margin)
    to_level = compose(level.from_full, similarity(shift=(-left, -top)))
    image, known, holes = (one[top:bottom, left:right] for one in level[:3])
    b = Level(image, known, holes, to_level)
    return Overlay(_warped(frame.a, transform, b), b, pixel, config, frame.b.cache)


def _window(outline: Points, shape: Sequence[int], margin: int) -> tuple[int, int, int, int]:
    """The part of a level of this shape that holds an outline: left, top, right and bottom, on a coarse grid."""
    first = np.floor((outline.min(0) - margin) / _GRID) * _GRID
    last = np.ceil((outline.max(0) + 1 + margin) / _GRID) * _GRID
    (left, top), (right, bottom) = first.clip(0).astype(int), np.minimum(last, shape[::-1]).astype(int)
    return int(left), int(top), int(max(right, left + 1)), int(max(bottom, top + 1))


def _warped(image: PreparedImage, transform: Transform, b: Level) -> Level:
    """A, what is known of it and its holes, warped to a level of B; from a smaller version where that shrinks."""
    whole, shape = transform.between(_IDENTITY, b.from_full), b.image.shape
    size = shape[1], shape[0]
    middle = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2])
    scale = whole.scale(whole.inverse()(middle))
    shrink = 2.0 ** max(0, math.floor(math.log2(1 / scale) + 0.3)) if 0 < scale < 1 else 1.0
    level = image.level(shrink)
    whole = whole.between(level.from_full.inverse(), _IDENTITY)
    at = np.empty((0, 0, 2), np.float32) if isinstance(whole, MatrixTransform) else whole.map(shape)

    def warped(layer: Grey, border: int) -> Grey:
        if isinstance(whole, MatrixTransform):
            found = cv2.warpPerspective(layer, whole.full, size, flags=cv2.INTER_LINEAR, borderMode=border)
        else:
            found = cv2.remap(layer, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=border)
        return np.asarray(found, np.float32)

    known = warped(level.known, cv2.BORDER_CONSTANT)
    holes = warped(level.holes, cv2.BORDER_CONSTANT) if level.holes.any() else 0 * known
    return Level(warped(level.image, cv2.BORDER_REPLICATE), known, holes, b.from_full)
