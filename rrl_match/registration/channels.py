"""Orientation channels: what both bands have in common at an edge, whatever its contrast.

Nobody else knows how many channels there are, or how they rotate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.registration.config import ChannelConfig
from rrl_match.registration.images import Grey, Level, PreparedImage
from rrl_match.transforms import Affine, Matrix, MatrixTransform, compose, resizing

COUNT = 3


@dataclass(frozen=True, eq=False)
class Channels:
    """Strength of the gradient and its orientation as a doubled angle, so that its sign, which differs, has no effect.

    Attributes:
        values: (H, W, 3) float32: about unit length wherever there is structure, zero where nothing is known. The
            second and third are the strength times cosine and sine of twice the angle.
        known: (H, W) float32, 1 where an image is known, 0 elsewhere.
        whole: (H, W) float32, 0 in holes, 1 elsewhere. Outside its footprint an image has no structure; in a hole it
            may have any.
    """

    values: NDArray[np.float32]
    known: Grey
    whole: Grey

    @cached_property
    def energy(self) -> Grey:
        """Squared length (H, W)."""
        squared = self.values * self.values
        total: Grey = squared[..., 0] + squared[..., 1] + squared[..., 2]
        return total

    @property
    def strength(self) -> Grey:
        """(H, W)."""
        return self.values[..., 0]

    def stacked(self) -> NDArray[np.float32]:
        """Channels first, (3, H, W)."""
        return np.ascontiguousarray(np.moveaxis(self.values, -1, 0))

    def rotated(self, matrix: Matrix, side: int) -> tuple[NDArray[np.float32], Grey]:
        """Channels (3, side, side) and known (side, side) under a rotation (3, 3); orientations rotate with it."""
        strength, x, y = cv2.split(cv2.warpAffine(self.values, matrix[:2], (side, side), flags=cv2.INTER_LINEAR))
        cosine, sine = matrix[0, 0], matrix[1, 0]
        c, s = cosine * cosine - sine * sine, 2 * cosine * sine  # of the doubled angle
        turned = np.stack([strength, cv2.addWeighted(x, c, y, -s, 0), cv2.addWeighted(x, s, y, c, 0)])
        return turned, np.asarray(
            cv2.warpAffine(self.known, matrix[:2], (side, side), flags=cv2.INTER_NEAREST), np.float32
        )


def agreement(a: Channels, b: Channels) -> tuple[float, float]:
    """How much the channels of two images of one shape have in common, and over how many pixels.

    The covariance of the strengths and the sum of products of the orientations.
    """
    both = a.known * b.known
    count = float(both.sum(dtype=np.float64))
    if count < 100:
        return 0.0, 0.0
    strength_a, strength_b = (float((one.strength * both).sum(dtype=np.float64)) for one in (a, b))
    total = float((a.values * b.values).sum(dtype=np.float64))  # where either is unknown, it is zero
    return total - strength_a * strength_b / count, count


def block_channels(image: Grey, known: Grey, holes: Grey, config: ChannelConfig) -> Channels:
    """Channels for block matching, of a level: its grey values, what is known and what is missing, (H, W) each.

    With smoothed gradients, this is a compact form of CFOG (Ye et al., "Fast and robust matching for multimodal remote
    sensing image registration", TGRS 2019): the two lowest harmonics of its channels hold nearly all of their energy.
    """
    smooth, enough = _smoothed(_gradients(image), known, config.blur, config)
    whole = np.ones_like(enough)
    if holes.any():
        footprint = _smoothed(None, known + holes, config.blur, config)[1]
        whole -= footprint * (1 - enough)
    return Channels(_scaled(smooth, enough, config), enough, whole)


def pooled_channels(
    image: PreparedImage, linear: Matrix, factor: float, config: ChannelConfig
) -> tuple[Channels, Affine]:
    """Channels for the dense search, of an image under a linear map (2, 2) and then smaller by a factor.

    Gradients are taken in a larger image and pooled, so that thin edges count. What varies slowly is subtracted: it is
    in common to many wrong transforms.

    Returns:
        The channels, and what takes pixels of the full image to theirs.
    """
    fine, from_full = _resampled(image, linear, max(factor / config.oversampling, min(1.0, factor)))
    gradients = _gradients(fine.image) * _inner(fine.known)[..., None]
    h, w = fine.known.shape
    ratio = factor / max(factor / config.oversampling, min(1.0, factor))
    size = max(8, round(w / ratio)), max(8, round(h / ratio))
    known = fine.known
    if size != (w, h):
        how = cv2.INTER_AREA if size[0] < w else cv2.INTER_LINEAR
        gradients, known = (
            np.asarray(cv2.resize(one, size, interpolation=how), np.float32) for one in (gradients, known)
        )
    smooth = np.asarray(cv2.GaussianBlur(gradients, (0, 0), config.pooled_blur), np.float32)
    known = (known >= config.known).astype(np.float32)
    values = _scaled(smooth, known, config)
    weight = cv2.GaussianBlur(known, (0, 0), config.highpass)
    values -= cv2.GaussianBlur(values, (0, 0), config.highpass) / np.maximum(weight, 1e-3)[..., None]
    values *= known[..., None]
    to_small = compose(from_full, resizing((w / size[0], h / size[1])))
    return Channels(values, known, known), Affine(to_small.full)


def _resampled(image: PreparedImage, linear: Matrix, factor: float) -> tuple[Level, MatrixTransform]:
    """An image under a linear map (2, 2), smaller by a factor, as large as it takes to hold all of it."""
    level = image.level(factor)
    if np.allclose(linear, np.eye(2)):
        return level, level.from_full
    h, w = level.image.shape
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]]) @ linear.T
    first, last = np.floor(corners.min(0)), np.ceil(corners.max(0))
    move = Affine(np.column_stack([linear, -first]))
    size = tuple(int(n) for n in last - first + 1)
    warped = cv2.warpAffine(level.image, move.full[:2], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    known = np.asarray(cv2.warpAffine(level.known, move.full[:2], size, flags=cv2.INTER_LINEAR), np.float32)
    from_full = compose(level.from_full, move)
    return Level(np.asarray(warped, np.float32), known, np.zeros_like(known), Affine(from_full.full)), from_full


def _gradients(image: Grey) -> NDArray[np.float32]:
    """Strength, and strength times cosine and sine of twice the angle: (H, W, 3)."""
    dx, dy = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    strength = np.sqrt(dx * dx + dy * dy)  # cv2.magnitude rounds differently from one memory address to the next
    inverse = 1 / np.maximum(strength, 1e-9)
    return np.asarray(cv2.merge([strength, (dx * dx - dy * dy) * inverse, 2 * dx * dy * inverse]), np.float32)


def _inner(known: Grey) -> Grey:
    """Known pixels all of whose neighbours are known: elsewhere, gradients are those of what was filled in."""
    return np.asarray(
        cv2.erode((known > 0.99).astype(np.float32), np.ones((3, 3), np.uint8), borderValue=1.0), np.float32
    )


def _smoothed(
    gradients: NDArray[np.float32] | None, known: Grey, blur: float, config: ChannelConfig
) -> tuple[NDArray[np.float32], Grey]:
    """Gradients (H, W, 3), smoothed as if only known ones were there, and where enough were known for it, as 0 or 1."""
    inner = _inner(known)
    part = np.asarray(cv2.GaussianBlur(inner, (0, 0), blur), np.float32)
    enough = (part >= config.known).astype(np.float32)
    if gradients is None:
        return np.empty(0, np.float32), enough
    smooth = np.asarray(cv2.GaussianBlur(gradients * inner[..., None], (0, 0), blur), np.float32)
    return np.asarray(smooth * (enough / np.maximum(part, np.float32(1e-3)))[..., None], np.float32), enough


def _scaled(gradients: NDArray[np.float32], known: Grey, config: ChannelConfig) -> NDArray[np.float32]:
    """Channels scaled to about unit length wherever there is structure, and to zero where nothing is known."""
    strength, x, y = cv2.split(gradients)
    x, y = x * config.orientation_weight, y * config.orientation_weight
    length = np.sqrt(strength * strength + x * x + y * y)
    length += config.floor * cv2.mean(length, mask=(known > 0).astype(np.uint8))[0] + 1e-6
    factor = known / length
    return np.asarray(cv2.merge([strength * factor, x * factor, y * factor]), np.float32)
