"""Images of what was matched: checkerboards, matches side by side, errors as colours; all uint8 RGB (H, W, 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.patches import percentile_range

RGBImage: TypeAlias = NDArray[np.uint8]
Drawable: TypeAlias = NDArray[Any] | Tensor | Sequence[NDArray[Any] | Tensor]

_HEIGHTS = 400, 1000  # pixels of matches side by side, at least and at most
_GAP = 8  # pixels between both images
_OUTLIER = (229, 62, 62)
_OPACITY = 0.6  # of colours over an image
_LEAST_FOR_LEGEND = 120  # pixels of the shorter side of an image that has room for one


def displayed(image: Drawable) -> RGBImage:
    """An image as uint8 RGB (H, W, 3).

    Args:
        image: (H, W), (H, W, 1), RGB or RGBA; of a list, the first. Other than uint8, it is mapped from its percentile
            range; what is not finite or transparent is black.

    Raises:
        TypeError, ValueError: it is no such image.
    """
    if isinstance(image, (list, tuple)) and len(image):
        return displayed(image[0])
    if isinstance(image, Tensor):
        image = (image.detach().cpu().float() if image.is_floating_point() else image.detach().cpu()).numpy()
    array = np.asarray(image)
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
        raise ValueError(f"an image must have shape (H, W), (H, W, 1), RGB (H, W, 3) or RGBA, got {array.shape}")
    shown = array[..., 3] > 0 if array.shape[2:] == (4,) else np.ones(array.shape[:2], bool)
    colours = array[..., :3] if array.shape[2:] == (4,) else array
    if colours.dtype != np.uint8:
        low, high = percentile_range(colours)
        scaled = (np.nan_to_num(colours.astype(np.float32), nan=low, neginf=low, posinf=high) - low) / (high - low)
        colours = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    grey = colours.ndim == 2 or colours.shape[2] == 1
    drawn = cv2.cvtColor(np.ascontiguousarray(colours), cv2.COLOR_GRAY2RGB) if grey else colours
    return np.asarray(np.where(shown[..., None], drawn, 0), np.uint8)


def checkerboard(warped: RGBImage, image_b: RGBImage, squares: int) -> RGBImage:
    """Alternating squares of two images of one size, so many along the longer side."""
    h, w = image_b.shape[:2]
    side = max(1, math.ceil(max(h, w) / squares))
    odd = (np.arange(h)[:, None] // side + np.arange(w) // side) % 2 == 1
    board: RGBImage = np.where(odd[..., None], image_b, warped)
    return board


def matches_side_by_side(
    image_a: Drawable,
    image_b: Drawable,
    points: tuple[NDArray[Any], NDArray[Any]],
    inliers: NDArray[np.bool_],
    lines: int,
) -> RGBImage:
    """Two images beside each other at one height, with their matches.

    Args:
        image_a, image_b: as in :func:`displayed`.
        points: (K, 2) xy in A and in B.
        inliers: (K,) bool; the others are red.
        lines: how many of the inliers, and of the others, are joined by lines, evenly chosen; all have a dot.
    """
    images = [displayed(image) for image in (image_a, image_b)]
    height = int(np.clip(max(drawn.shape[0] for drawn in images), *_HEIGHTS))
    resized, ends, left = [], [], 0
    for drawn, xy in zip(images, points, strict=True):
        factor = height / drawn.shape[0]
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        size = max(1, round(drawn.shape[1] * factor)), height
        resized.append(np.asarray(cv2.resize(drawn, size, interpolation=how), np.uint8))
        ends.append(((np.asarray(xy).reshape(-1, 2) + 0.5) * factor + (left, 0)).round().astype(int))
        left += size[0] + _GAP
    canvas = np.hstack([resized[0], np.full((height, _GAP, 3), 255, np.uint8), resized[1]])
    colours = [_hue(k / max(1, len(inliers))) if inlier else _OUTLIER for k, inlier in enumerate(inliers)]
    joined = {int(row) for chosen in (inliers, ~inliers) for row in _evenly(np.flatnonzero(chosen), lines)}
    for row, (start, end, colour) in enumerate(zip(*(e.tolist() for e in ends), colours, strict=True)):
        if row in joined:
            cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA)
        for at in (start, end):
            cv2.circle(canvas, at, 3, colour, -1, cv2.LINE_AA)
    return canvas


def error_overlay(errors: NDArray[np.float64], image_b: RGBImage, most: float | None) -> RGBImage:
    """Errors as colours over a grey image, with a legend; where they are not known, the image is grey.

    Args:
        errors: (h, w) pixels on an even grid over the image, infinite or NaN where unknown.
        image_b: of any size.
        most: error that has the last colour; default: what 99 % of the known ones lie below.
    """
    h, w = image_b.shape[:2]
    known = np.isfinite(errors)
    most = most or (_rounded(float(np.percentile(errors[known], 99))) if known.any() else 1.0)
    scaled = (np.where(known, errors, 0) / most).clip(0, 1).astype(np.float32)
    weight = cv2.resize(known.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    values = cv2.resize(scaled, (w, h), interpolation=cv2.INTER_LINEAR) / np.maximum(weight, 1e-3)
    where = cv2.resize(known.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)[..., None] > 0
    grey = cv2.cvtColor(cv2.cvtColor(image_b, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(grey, 1 - _OPACITY, _as_colours(values), _OPACITY, 0)
    drawn = np.where(where, mixed, grey)
    if min(h, w) >= _LEAST_FOR_LEGEND:
        _draw_legend(drawn, most)
    return np.asarray(drawn, np.uint8)


def _draw_legend(drawn: NDArray[Any], most: float) -> None:
    """Draw the colours from 0 to an error, in pixels, into the lower left corner."""
    h, w = drawn.shape[:2]
    size = min(h, w) / 500
    font, scale, weight = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, 0.5 * size), max(1, round(size))
    bar_w, bar_h, margin = w // 4, max(6, round(10 * size)), max(4, round(8 * size))
    texts = "0", f"{most:g} px"
    (end_w, text_h), _ = cv2.getTextSize(texts[1], font, scale, weight)
    top, left = h - 3 * margin - bar_h - text_h, margin
    drawn[top:, : bar_w + end_w // 2 + 3 * margin] //= 4
    bar = np.linspace(0, 1, bar_w, dtype=np.float32)[None].repeat(bar_h, 0)
    left += margin
    drawn[top + margin : top + margin + bar_h, left : left + bar_w] = _as_colours(bar)
    for text, x in zip(texts, (left, left + bar_w - end_w // 2), strict=True):
        cv2.putText(drawn, text, (x, h - margin), font, scale, (255, 255, 255), weight, cv2.LINE_AA)


def _as_colours(values: NDArray[Any]) -> RGBImage:
    """Values (H, W) from 0 to 1, from dark blue to yellow."""
    coloured = cv2.applyColorMap((np.asarray(values).clip(0, 1) * 255).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), np.uint8)


def _hue(part: float) -> tuple[int, int, int]:
    """A colour from yellow over green to blue, none of which is the red of outliers."""
    pixel = np.array([[[round(28 + part * 92), 200, 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def _evenly(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return np.asarray(rows[chosen], np.int64)


def _rounded(value: float) -> float:
    """The next number above of 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)
