"""Orientation channels: what both bands have in common at an edge, whatever its contrast.

Nobody else knows how many channels there are, or how they rotate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.registration.config import ChannelConfig
from rrl_match.registration.images import Grey, Level, PreparedImage
from rrl_match.transforms import Affine, Matrix, compose, resizing

COUNT = 3


@dataclass(frozen=True, eq=False)
class Channels:
    """Strength of the gradient and its orientation as a doubled angle, so that its sign, which differs, has no effect.

    Attributes:
        values: (3, H, W) float32: about unit length wherever there is structure, zero where nothing is known. The
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
        strength, x, y = self.values
        total: Grey = strength * strength + x * x + y * y
        return total

    @property
    def strength(self) -> Grey:
        """(H, W)."""
        return np.asarray(self.values[0], np.float32)

    def rotated(self, matrix: Matrix, side: int) -> tuple[NDArray[np.float32], Grey]:
        """Channels (3, side, side) and known (side, side) under a rotation (3, 3); orientations rotate with it."""
        strength, x, y = (cv2.warpAffine(v, matrix[:2], (side, side), flags=cv2.INTER_LINEAR) for v in self.values)
        known = cv2.warpAffine(self.known, matrix[:2], (side, side), flags=cv2.INTER_NEAREST)
        cosine, sine = matrix[0, 0], matrix[1, 0]
        c, s = cosine * cosine - sine * sine, 2 * cosine * sine  # of the doubled angle
        turned = np.stack([strength, cv2.addWeighted(x, c, y, -s, 0), cv2.addWeighted(x, s, y, c, 0)])
        return turned.astype(np.float32, copy=False), np.asarray(known, np.float32)


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
    gradients, part = _smoothed(_gradients(image), _inner(known, config), config.blur)
    enough = _enough(part, config)
    whole = np.ones_like(enough)
    if holes.any():
        footprint = _blurred(_inner(known + holes, config), config.blur)
        whole -= _enough(footprint, config) * (1 - enough)
    return Channels(_scaled(gradients, enough, part, config), enough, whole)


def pooled_channels(
    image: PreparedImage, linear: Matrix, factor: float, config: ChannelConfig
) -> tuple[Channels, Affine]:
    """Channels for the dense search, of an image under a linear map (2, 2) and then smaller by a factor.

    Gradients are taken in a larger image and pooled, so that thin edges count. What varies slowly is subtracted: it is
    in common to many wrong transforms.

    Returns:
        The channels, and what takes pixels of the full image to theirs.
    """
    finer = max(factor / config.oversampling, min(1.0, factor))
    fine = _resampled(image, linear, finer)
    known, inner = fine.known, _inner(fine.known, config)
    gradients = [one * inner for one in _gradients(fine.image)]
    h, w = known.shape
    size = max(8, round(w * finer / factor)), max(8, round(h * finer / factor))
    if size != (w, h):
        how = cv2.INTER_AREA if size[0] < w else cv2.INTER_LINEAR
        known, *gradients = (
            np.asarray(cv2.resize(one, size, interpolation=how), np.float32) for one in (known, *gradients)
        )
    known = (known >= config.known).astype(np.float32)
    values = _scaled([_blurred(one, config.pooled_blur) for one in gradients], known, np.ones_like(known), config)
    weight = np.maximum(_blurred(known, config.highpass), np.float32(1e-3))
    for one in values:
        one -= np.asarray(_blurred(one, config.highpass) / weight, np.float32)
        one *= known
    to_small = compose(fine.from_full, resizing((w / size[0], h / size[1])))
    return Channels(values, known, known), Affine(to_small.full)


def _resampled(image: PreparedImage, linear: Matrix, factor: float) -> Level:
    """An image under a linear map (2, 2), smaller by a factor, as large as it takes to hold all of it."""
    level = image.level(factor)
    if np.allclose(linear, np.eye(2)):
        return level
    h, w = level.image.shape
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]]) @ linear.T
    first, last = np.floor(corners.min(0)), np.ceil(corners.max(0))
    move = Affine(np.column_stack([linear, -first]))
    size = tuple(int(n) for n in last - first + 1)
    warped = cv2.warpAffine(level.image, move.full[:2], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    known = np.asarray(cv2.warpAffine(level.known, move.full[:2], size, flags=cv2.INTER_LINEAR), np.float32)
    return Level(np.asarray(warped, np.float32), known, np.zeros_like(known), compose(level.from_full, move))


def _gradients(image: Grey) -> list[Grey]:
    """Strength, and strength times cosine and sine of twice the angle, (H, W) each."""
    dx, dy = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    xx, yy = dx * dx, dy * dy
    strength = np.sqrt(xx + yy)  # cv2.magnitude rounds differently from one memory address to the next
    inverse = 1 / np.maximum(strength, np.float32(1e-9))
    return [np.asarray(one, np.float32) for one in (strength, (xx - yy) * inverse, 2 * dx * dy * inverse)]


def _inner(known: Grey, config: ChannelConfig) -> Grey:
    """Pixels whose neighbours are known, too, as 0 or 1: elsewhere, gradients are those of what was filled in."""
    enough = (known >= config.pixel_known).astype(np.float32)
    return np.asarray(cv2.erode(enough, np.ones((3, 3), np.uint8), borderValue=1.0), np.float32)


def _blurred(image: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def _smoothed(gradients: Sequence[Grey], inner: Grey, blur: float) -> tuple[list[Grey], Grey]:
    """Gradients smoothed where they are known, and the part of their surroundings that is: to be divided by it."""
    if inner.all():
        return [_blurred(one, blur) for one in gradients], inner
    return [_blurred(one * inner, blur) for one in gradients], _blurred(inner, blur)


def _enough(part: Grey, config: ChannelConfig) -> Grey:
    """Where enough of the surroundings is known, as 0 or 1."""
    return (part >= config.known).astype(np.float32)


def _scaled(gradients: Sequence[Grey], known: Grey, part: Grey, config: ChannelConfig) -> NDArray[np.float32]:
    """Channels (3, H, W) of about unit length wherever there is structure, and zero where nothing is known.

    Args:
        gradients: three of (H, W), of a part of their surroundings.
        known: (H, W), 0 or 1.
        part: (H, W), that part; where it is small, gradients are, too.
        config: weights.
    """
    strength, x, y = gradients
    squared = x * x
    squared += y * y
    squared *= np.float32(config.orientation_weight**2)
    squared += strength * strength
    length = np.sqrt(squared, out=squared)
    mean = cv2.mean(length / np.maximum(part, np.float32(1e-3)), mask=(known > 0).astype(np.uint8))[0]
    length += np.float32(config.floor * mean) * part
    length += np.float32(1e-6)
    factor = np.divide(known, length, out=length)
    turned = factor * np.float32(config.orientation_weight)
    return np.stack([strength * factor, x * turned, y * turned])
