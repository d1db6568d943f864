"""Images as the registration sees them: grey, with what is known of them, at any resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.borders import border_without_data
from rrl_match.channels import Grey
from rrl_match.patches import ValueRange, ValueRanges, as_grey, checked_range, percentile_range, range_per_band
from rrl_match.transforms import MatrixTransform, Points, resizing

Array: TypeAlias = NDArray[np.generic] | Tensor
Images: TypeAlias = Array | Sequence[Array]
Pixels: TypeAlias = NDArray[Any]  # uint8, uint16 or floating point
Mask: TypeAlias = NDArray[np.bool_]

_THUMBNAIL = 256  # pixels of the longer side


class Level(NamedTuple):
    """An image at one resolution.

    Attributes:
        image: (H, W) in [0, 1]; missing pixels are filled from their surroundings.
        known: (H, W) in [0, 1], the part of each pixel that is known.
        holes: (H, W) in [0, 1], the part that is missing although it lies inside the footprint.
        from_full: takes pixels of the full image to pixels of this one.
    """

    image: Grey
    known: Grey
    holes: Grey
    from_full: MatrixTransform


class PreparedImage:
    """A grey image with what is known of it and its range of values; gives smaller and larger versions of both.

    Attributes:
        grey: (H, W) uint8, uint16 or float32, missing pixels filled.
        known: (H, W) bool.
        value_range: grey values that become 0 and 1.
        guessed: (H, W) bool, the border that was taken for having no data, or None.
        outline: (K, 2) xy, the convex hull of all known pixels.
        cache: what is computed from this image alone and needed again.
    """

    def __init__(self, grey: Pixels, known: Mask, value_range: ValueRange, guessed: Mask | None = None) -> None:
        self._given = grey
        self.grey = grey if known.all() else filled(grey, known)
        self.known, self.value_range, self.guessed = known, value_range, guessed
        self._levels: dict[tuple[int, int], Level] = {}
        self.cache: dict[object, Any] = {}
        self.outline = _outline(known)
        self._holes = _holes(known, self.outline)

    @property
    def shape(self) -> tuple[int, int]:
        h, w = self.grey.shape
        return int(h), int(w)

    def level(self, factor: float) -> Level:
        """The image, smaller by a factor, or larger by one below 1; kept for the next call."""
        h, w = self.shape
        size = (max(1, round(w / factor)), max(1, round(h / factor)))
        if size not in self._levels:
            layers = [self.grey, self.known.astype(np.float32), self._holes]
            if size != (w, h):
                how = cv2.INTER_AREA if factor > 1 else cv2.INTER_LINEAR
                layers = [cv2.resize(layer, size, interpolation=how) for layer in layers]
            from_full = resizing((w / size[0], h / size[1]))
            self._levels[size] = Level(self._normalised(layers[0]), layers[1], layers[2], from_full)
        return self._levels[size]

    def thumbnail(self) -> NDArray[np.uint8]:
        """A small version (h, w)."""
        level = self.level(max(1.0, max(self.shape) / _THUMBNAIL))
        return np.asarray((level.image * 255).round().astype(np.uint8) * (level.known > 0.5), np.uint8)

    def without_guess(self) -> PreparedImage:
        """The image with the border that was taken for having no data."""
        if self.guessed is None:
            return self
        return PreparedImage(self._given, self.known | self.guessed, self.value_range)

    def _normalised(self, grey: Pixels) -> Grey:
        low, high = self.value_range
        scaled: Grey = grey.astype(np.float32)
        scaled -= np.float32(low)
        scaled *= np.float32(1 / (high - low))
        return np.clip(scaled, 0, 1, out=scaled)


class Frame(NamedTuple):
    """Images A and B, taken at once."""

    a: PreparedImage
    b: PreparedImage


def prepare(
    image: Pixels | Tensor, mask: Pixels | Tensor | None, value_range: ValueRange | None, band: str
) -> PreparedImage:
    """Check an image and find what it shows.

    NaN and infinite pixels, transparent ones (RGBA) and borders without data show nothing.

    Args:
        image: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); uint8, uint16 or floating point.
        mask: (H, W), zero where the image shows nothing; if given, borders without data are not looked for.
        value_range: grey values that become 0 and 1.
        band: "a" or "b", for messages.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    grey, known = _grey_and_known(image, f"image_{band}")
    given = checked_range(value_range, f"image_{band}")
    guessed = None
    if mask is not None:
        array = np.asarray(mask.cpu().numpy() if isinstance(mask, Tensor) else mask)
        if array.shape != grey.shape:
            raise ValueError(f"mask_{band} must have the shape of image_{band}, {grey.shape}, got {array.shape}")
        known = known & (array != 0)
    else:
        border = border_without_data(grey, known)
        if border.any() and not border.all():
            guessed, known = border & known, known & ~border
    default = (0.0, 255.0) if grey.dtype == np.uint8 else None
    return PreparedImage(grey, known, given or default or _percentiles(grey, known), guessed)


def prepare_frames(
    images: tuple[Images, Images], masks: tuple[Images | None, Images | None], value_range: ValueRanges | None
) -> list[Frame]:
    """Checked frames, one or more, of equal shapes, of the images and masks of both bands.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    prepared = []
    for of_band, of_masks, given, band in zip(images, masks, range_per_band(value_range), "ab", strict=True):
        listed: list[Any] = list(of_band) if isinstance(of_band, (list, tuple)) else [of_band]
        of_each: list[Any] = list(of_masks) if isinstance(of_masks, (list, tuple)) else [of_masks] * len(listed)
        if not listed:
            raise ValueError(f"image_{band} is an empty list")
        if len(of_each) != len(listed):
            raise ValueError(f"mask_{band} must be one mask or {len(listed)}, one for each image, got {len(of_each)}")
        prepared.append([prepare(i, m, given, band) for i, m in zip(listed, of_each, strict=True)])
        shapes = {one.shape for one in prepared[-1]}
        if len(shapes) > 1:
            raise ValueError(f"image_{band} must be images of one size, got {sorted(shapes)}")
    if len(prepared[0]) != len(prepared[1]):
        counts = " and ".join(str(len(part)) for part in prepared)
        raise ValueError(f"image_a and image_b must be lists of one length, got {counts}")
    return [Frame(a, b) for a, b in zip(*prepared, strict=True)]


def _grey_and_known(image: Pixels | Tensor, name: str) -> tuple[Pixels, Mask]:
    """Grey image, and where it is finite and not transparent."""
    array = image.detach().cpu() if isinstance(image, Tensor) else image
    array = array.float().numpy() if isinstance(array, Tensor) and array.is_floating_point() else array
    array = array.numpy() if isinstance(array, Tensor) else array
    opaque = None
    if isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[2] == 4:
        opaque, array = array[..., 3] > 0, array[..., :3]
    finite: Mask | None = None
    if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size and array.ndim in (2, 3):
        finite = np.isfinite(array)
        if not finite.any():
            raise ValueError(f"{name} holds no finite value")
        array = np.where(finite, array, 0) if not finite.all() else array
        finite = np.asarray(finite.all(axis=2) if array.ndim == 3 else finite)
    grey = as_grey(array, name)
    if array.ndim == 3 and array.shape[2] == 3:  # red and blue weigh the same, so that RGB and BGR give the same grey
        grey = cv2.addWeighted(grey, 0.5, as_grey(array[..., ::-1], name), 0.5, 0)
    known = np.ones(grey.shape, bool) if finite is None else finite
    return grey, known if opaque is None else known & opaque


def _percentiles(grey: Pixels, known: Mask) -> ValueRange:
    step = max(1, int(np.sqrt(grey.size / 1_000_000)))
    sample, kept = grey[::step, ::step], known[::step, ::step]
    return percentile_range(sample[kept] if kept.any() else sample)


def _outline(known: Mask) -> Points:
    """Convex hull (K, 2) of known pixels, or of all if there are none."""
    rows = np.flatnonzero(known.any(1))
    first, last = known.argmax(1)[rows], known.shape[1] - 1 - known[:, ::-1].argmax(1)[rows]
    points = np.concatenate([np.stack([first, rows], 1), np.stack([last, rows], 1)]).astype(np.float32)
    if len(rows) < 2:
        h, w = known.shape
        points = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], np.float32)
    hull = cv2.approxPolyDP(cv2.convexHull(points), 0.005 * max(known.shape), True)
    return np.asarray(cv2.convexHull(hull)[:, 0], np.float64)


def _holes(known: Mask, outline: Points) -> Grey:
    """What is missing inside a footprint: (H, W), 0 or 1."""
    if known.all():
        return np.zeros(known.shape, np.float32)
    inside = cv2.fillConvexPoly(np.zeros(known.shape, np.uint8), outline.round().astype(np.int32), 1)
    around = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=1.0)  # the outline is only approximate
    return (around.astype(bool) & ~known).astype(np.float32)


def filled(grey: Pixels, known: Mask) -> Pixels:
    """Grey values (H, W) with those that are not known filled from their surroundings.

    Normalised convolution over a pyramid: a missing pixel takes the mean of the nearest known ones, on the finest
    level that has any (Gortler et al., "The lumigraph", SIGGRAPH 1996).
    """
    weight = known.astype(np.float32)
    sums = [np.where(known, grey, 0).astype(np.float32)]
    weights = [weight]
    for _ in range(math.ceil(math.log2(max(grey.shape)))):
        sums.append(np.asarray(cv2.pyrDown(sums[-1]), np.float32))
        weights.append(np.asarray(cv2.pyrDown(weights[-1]), np.float32))
    found = sums[-1] / np.maximum(weights[-1], 1e-6)
    for total, count in zip(sums[-2::-1], weights[-2::-1], strict=True):
        coarse = cv2.pyrUp(found, dstsize=count.shape[::-1])
        part = np.minimum(1, 4 * count)
        found = part * total / np.maximum(count, 1e-6) + (1 - part) * coarse
    return np.where(
        known, grey, found.astype(grey.dtype) if grey.dtype.kind == "f" else found.round().astype(grey.dtype)
    )
