"""Orientation channels of small, turned and stretched images, for the dense search."""

from __future__ import annotations

import cv2
import numpy as np

from rrl_match.channels import ChannelConfig, Channels, blurred, inner_pixels, oriented_gradients, scaled_channels
from rrl_match.registration.images import Level, PreparedImage
from rrl_match.transforms import Affine, Matrix, compose, resizing


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
    known, inner = fine.known, inner_pixels(fine.known, config)
    gradients = [one * inner for one in oriented_gradients(fine.image)]
    h, w = known.shape
    size = max(8, round(w * finer / factor)), max(8, round(h * finer / factor))
    if size != (w, h):
        how = cv2.INTER_AREA if size[0] < w else cv2.INTER_LINEAR
        known, *gradients = (
            np.asarray(cv2.resize(one, size, interpolation=how), np.float32) for one in (known, *gradients)
        )
    known = (known >= config.known).astype(np.float32)
    values = scaled_channels(
        [blurred(one, config.pooled_blur) for one in gradients], known, np.ones_like(known), config
    )
    weight = np.maximum(blurred(known, config.highpass), np.float32(1e-3))
    for one in values:
        one -= np.asarray(blurred(one, config.highpass) / weight, np.float32)
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
