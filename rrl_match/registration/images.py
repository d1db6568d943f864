"""Images as the registration sees them: grey, with a mask of what they show, at any resolution."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.patches import ValueRange, as_grey, checked_range, percentile_range
from rrl_match.registration.geometry import Matrix, shrinking

Pixels: TypeAlias = "NDArray[Any]"  # uint8, uint16 or floating point
Grey = NDArray[np.float32]
Mask = NDArray[np.uint8]

_BORDER_PIXELS = 2_000_000  # constant borders are looked for in images of this size


class Level(NamedTuple):
    """An image at one resolution.

    Attributes:
        image: (H, W) in [0, 1].
        mask: (H, W), 1 where the image shows something.
        matrix: (3, 3), takes pixels of the full image to pixels of this one.
    """

    image: Grey
    mask: Mask
    matrix: Matrix


class PreparedImage:
    """A grey image with its mask and grey-value range; gives smaller versions of both.

    Attributes:
        grey: (H, W) uint8, uint16 or float32.
        mask: (H, W), 1 where the image shows something.
        value_range: grey values that become 0 and 1.
    """

    def __init__(self, grey: Pixels, mask: Mask, value_range: ValueRange) -> None:
        self.grey, self.mask, self.value_range = grey, mask, value_range
        self._levels: dict[tuple[int, int], Level] = {}
        self.kept: dict[object, Any] = {}  # what is computed from this image alone and needed again

    @property
    def shape(self) -> tuple[int, int]:
        h, w = self.grey.shape
        return int(h), int(w)

    def level(self, factor: float) -> Level:
        """The image shrunk by a factor of at least 1; kept for the next call."""
        h, w = self.shape
        size = (max(1, round(w / factor)), max(1, round(h / factor))) if factor > 1 else (w, h)
        if size not in self._levels:
            small: Pixels = self.grey
            mask = self.mask
            if size != (w, h):
                small = cv2.resize(self.grey, size, interpolation=cv2.INTER_AREA)
                mask = np.asarray(cv2.resize(self.mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)
            matrix = shrinking((w / size[0], h / size[1]))
            self._levels[size] = Level(self.normalised(small), mask, matrix)
        return self._levels[size]

    def normalised(self, grey: Pixels) -> Grey:
        """Grey values of this image in [0, 1]."""
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
    image: Pixels | Tensor,
    mask: Pixels | Tensor | None,
    value_range: ValueRange | None,
    band: str,
) -> PreparedImage:
    """Check an image and find what it shows.

    NaN and infinite pixels, transparent ones (RGBA) and constant borders at either end of the values show nothing.

    Args:
        image: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); uint8, uint16 or floating point.
        mask: (H, W), zero where the image shows nothing; if given, constant borders are not looked for.
        value_range: grey values that become 0 and 1.
        band: "a" or "b", for messages.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    grey, shown = _grey_and_shown(image, f"image_{band}")
    given = checked_range(value_range, f"image_{band}")
    if mask is not None:
        array = np.asarray(mask.cpu().numpy() if isinstance(mask, Tensor) else mask)
        if array.shape != grey.shape:
            raise ValueError(f"mask_{band} must have the shape of image_{band}, {grey.shape}, got {array.shape}")
        shown = shown & (array != 0)
    default = (0, 255) if grey.dtype == np.uint8 else None
    if mask is None:
        shown = shown & ~_constant_borders(grey, shown, given or default or _percentiles(grey, shown))
    return PreparedImage(grey, shown.astype(np.uint8), given or default or _percentiles(grey, shown))


def _grey_and_shown(image: Pixels | Tensor, name: str) -> tuple[Pixels, NDArray[np.bool_]]:
    """Grey image, and where it is finite and not transparent."""
    array = image.detach().cpu() if isinstance(image, Tensor) else image
    array = array.float().numpy() if isinstance(array, Tensor) and array.is_floating_point() else array
    array = array.numpy() if isinstance(array, Tensor) else array
    opaque = None
    if isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[2] == 4:
        opaque, array = array[..., 3] > 0, array[..., :3]
    finite: NDArray[np.bool_] | None = None
    if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size and array.ndim in (2, 3):
        finite = np.isfinite(array)
        if not finite.any():
            raise ValueError(f"{name} holds no finite value")
        array = np.where(finite, array, 0) if not finite.all() else array
        finite = np.asarray(finite.all(axis=2) if array.ndim == 3 else finite)
    grey = as_grey(array, name)
    if array.ndim == 3 and array.shape[2] == 3:  # red and blue weigh the same, so that RGB and BGR give the same grey
        grey = cv2.addWeighted(grey, 0.5, as_grey(array[..., ::-1], name), 0.5, 0)
    shown = np.ones(grey.shape, bool) if finite is None else finite
    return grey, shown if opaque is None else shown & opaque


def _percentiles(grey: Pixels, shown: NDArray[np.bool_]) -> ValueRange:
    step = max(1, int(np.sqrt(grey.size / 1_000_000)))
    sample, kept = grey[::step, ::step], shown[::step, ::step]
    return percentile_range(sample[kept] if kept.any() else sample)


def _constant_borders(grey: Pixels, shown: NDArray[np.bool_], value_range: ValueRange) -> NDArray[np.bool_]:
    """(H, W), large areas at the image's border that have the lowest or highest value, but for JPEG's noise."""
    step = max(1, int(np.sqrt(grey.size / _BORDER_PIXELS)))
    small, (low, high) = grey[::step, ::step], value_range
    found = np.zeros(small.shape, np.uint8)
    tolerance = 0.03 * (high - low)
    hidden = ~shown[::step, ::step]
    for constant in ((small <= low + tolerance) | hidden, (small >= high) | hidden):
        if constant.mean() < 0.01:
            continue
        opened = cv2.morphologyEx(
            constant.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_REPLICATE
        )
        _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
        x, y, w, h, area = stats.T
        touches = (x == 0) | (y == 0) | (x + w == small.shape[1]) | (y + h == small.shape[0])
        border = touches & (area > 0.005 * small.size)
        border[0] = False  # the rest of the image
        found |= border[labels].astype(np.uint8)
    if not found.any():
        return np.zeros(grey.shape, bool)
    wider = cv2.dilate(found, np.ones((3, 3), np.uint8))
    whole: NDArray[np.bool_] = cv2.resize(wider, grey.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return whole
