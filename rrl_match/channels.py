"""Orientation channels: what both bands have in common at an edge, whatever its contrast.

Nobody else knows how many channels there are, or how they rotate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match._config import CheckedConfig

Grey: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class ChannelConfig(CheckedConfig):
    """Orientation channels."""

    blur: float = 1.5  # standard deviation in pixels of the level
    floor: float = 0.02  # of the mean strength: what is weaker counts as flat
    orientation_weight: float = 0.42  # of orientation against strength
    pooled_blur: float = 0.7  # of channels for the dense search, in their pixels
    highpass: float = 6.0  # what varies more slowly is taken out of these; standard deviation in their pixels
    oversampling: float = 3.0  # their gradients are taken in an image so much larger
    pixel_known: float = 0.7  # part of a pixel of the level that must be known: the rest was filled in
    known: float = 0.5  # part of a pixel's surroundings that must be known


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

    def rotated(self, matrix: NDArray[np.float64], side: int) -> tuple[NDArray[np.float32], Grey]:
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
    gradients, part = _smoothed(oriented_gradients(image), inner_pixels(known, config), config.blur)
    enough = _enough(part, config)
    whole = np.ones_like(enough)
    if holes.any():
        footprint = blurred(inner_pixels(known + holes, config), config.blur)
        whole -= _enough(footprint, config) * (1 - enough)
    return Channels(scaled_channels(gradients, enough, part, config), enough, whole)


def oriented_gradients(image: Grey) -> list[Grey]:
    """Strength, and strength times cosine and sine of twice the angle, (H, W) each."""
    dx, dy = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    xx, yy = dx * dx, dy * dy
    strength = np.sqrt(xx + yy)  # cv2.magnitude rounds differently from one memory address to the next
    inverse = 1 / np.maximum(strength, np.float32(1e-9))
    return [np.asarray(one, np.float32) for one in (strength, (xx - yy) * inverse, 2 * dx * dy * inverse)]


def inner_pixels(known: Grey, config: ChannelConfig) -> Grey:
    """Pixels whose neighbours are known, too, as 0 or 1: elsewhere, gradients are those of what was filled in."""
    enough = (known >= config.pixel_known).astype(np.float32)
    return np.asarray(cv2.erode(enough, np.ones((3, 3), np.uint8), borderValue=1.0), np.float32)


def blurred(image: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def _smoothed(gradients: Sequence[Grey], inner: Grey, blur: float) -> tuple[list[Grey], Grey]:
    """Gradients smoothed where they are known, and the part of their surroundings that is: to be divided by it."""
    if inner.all():
        return [blurred(one, blur) for one in gradients], inner
    return [blurred(one * inner, blur) for one in gradients], blurred(inner, blur)


def _enough(part: Grey, config: ChannelConfig) -> Grey:
    """Where enough of the surroundings is known, as 0 or 1."""
    return (part >= config.known).astype(np.float32)


def scaled_channels(gradients: Sequence[Grey], known: Grey, part: Grey, config: ChannelConfig) -> NDArray[np.float32]:
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
