"""Image files as :func:`register` takes them: pixels, mask, and how both lie in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.errors import ImageError
from rrl_match.transforms import Affine, compose

Resampling: TypeAlias = Literal["nearest", "bilinear", "cubic"]

SMALLEST = 32  # pixels that an image must be wide and high
GEO_EXTRA = "pip install 'rrl-match[geo]'"
IDENTITY = Affine(np.eye(3))
_FEW = 16  # distinct values that a band of classes or flags may have
_CLASSES = re.compile(r"(?i)(^|[^a-z])(qa|scl|class(es)?|labels?|masks?|flags?|quality|fmask|land.?cover)([^a-z]|$)")
_NOT_DATA = 1e38  # floating-point values of this magnitude stand for missing data, as -3.4e38 in many rasters


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies on the map.

    Attributes:
        to_map: takes pixel (x, y), pixel centres at integers, to map coordinates.
        crs: coordinate reference system as WKT, "" if the file names none.
    """

    to_map: Affine
    crs: str


class Grid(NamedTuple):
    """Where pixels lie that are written.

    Attributes:
        size: (width, height) in pixels.
        georeference: of the grid, None if it has none.
    """

    size: tuple[int, int]
    georeference: Georeference | None = None


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What was read of an image file.

    Attributes:
        path: of the file.
        size: (width, height) of the file in pixels.
        pixels: (H, W) or RGB (H, W, 3), uint8, uint16 or float32 without NaN; maybe a reduced part of the file, and
            turned upright.
        mask: (H, W) bool, where there is data; None if everywhere.
        to_file: takes a pixel (x, y) of `pixels` to one of the file, pixel centres at integers.
        georeference: of the file, None if it has none.
        is_raster: whether rasterio opened it.
        notes: what a user should know about how it was read.
    """

    path: Path
    size: tuple[int, int]
    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None
    to_file: Affine = IDENTITY
    georeference: Georeference | None = None
    is_raster: bool = False
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """Of the file."""
        return Grid(self.size, self.georeference)

    @property
    def reduction(self) -> float:
        """Pixels of the file per pixel that was read, along a side."""
        return self.to_file.scale((0, 0))


class Orientation(NamedTuple):
    """One of the eight ways to lay an image: it is mirrored along its axes, and then they are swapped."""

    mirrored_x: bool = False
    mirrored_y: bool = False
    swapped: bool = False

    def turn(self, image: NDArray[Any]) -> NDArray[Any]:
        """An image (H, W, ...), laid this way: (H, W, ...), or (W, H, ...) if the axes are swapped."""
        turned = image[:: -1 if self.mirrored_y else 1, :: -1 if self.mirrored_x else 1]
        return turned.swapaxes(0, 1) if self.swapped else turned

    def back(self, width: int, height: int) -> Affine:
        """Takes pixels of the turned image to those of the image of this size."""
        x = (-1, width - 1) if self.mirrored_x else (1, 0)
        y = (-1, height - 1) if self.mirrored_y else (1, 0)
        mirror = Affine(np.array([[x[0], 0, x[1]], [0, y[0], y[1]]]))
        swap = Affine(np.array([[0, 1, 0], [1, 0, 0]]) if self.swapped else np.eye(3))
        return Affine(compose(swap, mirror).full)


ORIENTATIONS = tuple(Orientation(*each) for each in product((False, True), repeat=3))


def read_image(path: Path, bands: tuple[int, ...] | None = None) -> ImageFile:
    """Read a PNG, JPEG, TIFF or other image that OpenCV decodes.

    Grey or RGB of any depth; an alpha channel becomes the mask, and so do NaN and infinite values.

    Args:
        path: of the file.
        bands: one or three channels to take, counted from 1 in the file's order (RGB); default: all colours.

    Raises:
        OSError: the file is missing or cannot be read.
        ImageError: it is no image, or one that :func:`register` cannot use; the message says what to do.
    """
    image = decode(path)
    channels = image.reshape(*image.shape[:2], -1)
    is_tiff = path.suffix.lower() in (".tif", ".tiff")
    alpha = None
    if channels.shape[2] == 4 and not is_tiff:  # a fourth band of a TIFF may be near infrared: OpenCV does not tell
        alpha, channels = channels[..., 3], channels[..., :3]
    if bands is not None:
        if max(bands) > channels.shape[2]:
            raise ImageError(f"{path} has {channels.shape[2]} bands, not {max(bands)}: choose others")
        channels = channels[..., [band - 1 for band in bands]]
    elif channels.shape[2] not in (1, 3):
        channels = channels[..., : 3 if channels.shape[2] > 3 else 1]
    shown = None if alpha is None else alpha >= _full(alpha.dtype) / 2
    pixels, mask = as_pixels(channels, shown, path)
    note = f"{path}: a georeference, a nodata value or an alpha band would be read by rasterio: {GEO_EXTRA}"
    return ImageFile(path, (image.shape[1], image.shape[0]), pixels, mask, notes=(note,) if is_tiff else ())


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where a mask file (H, W) is not zero in any of its colours.

    Raises:
        OSError, ImageError: the file is missing, cannot be read or is no image.
    """
    image = decode(path)
    channels = image.reshape(*image.shape[:2], -1)
    channels = channels[..., :3] if channels.shape[2] == 4 else channels
    shown: NDArray[np.bool_] = (channels != 0).any(axis=2)
    return shown


def with_mask(image: ImageFile, shown: NDArray[np.bool_], path: Path) -> ImageFile:
    """The image without what a mask of the whole file, (H, W) bool, leaves out.

    Raises:
        ImageError: naming `path`, the mask's; it has another size than the file, or leaves nothing.
    """
    if shown.shape != image.size[::-1]:
        size = " x ".join(map(str, shown.shape[::-1]))
        raise ImageError(f"{path} is {size} pixels, but {image.path} is {image.size[0]} x {image.size[1]}")
    there = image.to_file.inverse().warp(shown.astype(np.uint8), image.pixels.shape, "nearest")
    mask = np.asarray(there, np.bool_)
    mask = mask if image.mask is None else mask & image.mask
    if not mask.any():
        raise ImageError(f"{path} leaves nothing of {image.path}: it must be non-zero where there is data")
    return replace(image, mask=mask)


def as_pixels(
    channels: NDArray[Any], shown: NDArray[np.bool_] | None, path: Path
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Channels (H, W, 1 or 3) of any type as pixels and mask of an :class:`ImageFile`.

    Raises:
        ImageError: the image has complex values, is too small or shows nothing.
    """
    if channels.dtype.kind == "c":
        raise ImageError(f"{path} has complex values: write its amplitude, e.g. in decibels, as float32")
    height, width = channels.shape[:2]
    if min(height, width) < SMALLEST:
        raise ImageError(f"{path} is {width} x {height} pixels, at least {SMALLEST} x {SMALLEST} are needed")
    if channels.dtype not in (np.uint8, np.uint16):
        known = (np.abs(channels) < _NOT_DATA).all(axis=2)  # NaN is not
        if not known.all():
            shown = known if shown is None else shown & known
            channels = np.where(shown[..., None], channels, np.median(channels[shown]) if shown.any() else 0)
        channels = channels.astype(np.float32)
    if shown is not None and not shown.any():
        raise ImageError(f"{path} shows nothing: all of it is transparent, nodata or NaN")
    pixels = channels[..., 0] if channels.shape[2] == 1 else channels
    return np.ascontiguousarray(pixels), None if shown is None or shown.all() else np.ascontiguousarray(shown)


def holds_classes(band: NDArray[Any], name: str = "") -> bool:
    """Whether a band holds classes or flags, which must not be interpolated: integers of few values or such a name."""
    if band.dtype.kind not in "biu":
        return False
    return bool(_CLASSES.search(name)) or len(np.unique(band)) <= _FEW


def decode(path: Path, flags: int | None = None) -> NDArray[Any]:
    """Pixels of an image file (H, W), RGB (H, W, 3) or RGBA (H, W, 4), of the file's depth, JPEGs rotated upright.

    Args:
        path: of the file.
        flags: of ``cv2.imdecode``; default: all channels as they are.

    Raises:
        OSError: the file is missing or cannot be read.
        ImageError: OpenCV cannot decode it, or it is a truncated JPEG.
    """
    if path.is_dir():
        raise ImageError(f"{path} is a folder: name an image file, or a list of pairs with --pairs")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    data = np.fromfile(path, np.uint8)
    if _is_truncated(data.tobytes()):
        raise ImageError(f"{path} is a truncated JPEG: copy or download it again")
    if flags is None:
        is_jpeg = data[:2].tobytes() == b"\xff\xd8"
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if is_jpeg else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error as error:
        raise ImageError(
            f"{path} cannot be decoded ({error.err}): images of more than 2^30 pixels need {GEO_EXTRA}, as GeoTIFFs"
        ) from error
    if image is None:
        raise ImageError(
            f"{path} cannot be read as an image: convert it to PNG, JPEG or TIFF; "
            f"for TIFFs of other bands and other formats of rasters, {GEO_EXTRA}"
        )
    return bgr(image)


def bgr(image: NDArray[Any]) -> NDArray[Any]:
    """An image with red and blue swapped, of OpenCV's order or for it; a grey one as it is."""
    if image.ndim == 3 and image.shape[2] in (3, 4):
        return image[..., [2, 1, 0, 3][: image.shape[2]]]
    return np.asarray(image)


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker; OpenCV ignores that and fills with grey."""
    return data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-65536:]


def _full(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
