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
from rrl_match.io.tables import read_numbers
from rrl_match.transforms import Affine, Transform, compose

Resampling: TypeAlias = Literal["nearest", "bilinear", "cubic"]

SMALLEST = 32  # pixels that an image must be wide and high
GEO_EXTRA = "pip install 'rrl-match[geo]'"
IDENTITY = Affine(np.eye(3))
NUMBERS = (".npy", ".csv", ".txt")  # of arrays and tables of numbers, as of temperatures
_JPEG = b"\xff\xd8"
_UPRIGHT = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
_WITH_PAGES = (".tif", ".tiff", ".gif", ".webp")
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


class Reading(NamedTuple):
    """On what grid a raster was read.

    Attributes:
        to_grid: takes a pixel (x, y) of what was read to one of the raster at full resolution on a reference system.
        crs: that system as WKT, "" for its own.
    """

    to_grid: Affine
    crs: str = ""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What was read of an image file.

    Attributes:
        path: of the file.
        size: (width, height) of the file in pixels.
        pixels: (H, W) or RGB (H, W, 3), uint8, uint16 or float32 without NaN; maybe a reduced part of the file, and
            turned upright.
        mask: (H, W) bool, where there is data; None if everywhere.
        to_file: takes a pixel (x, y) of `pixels` to one of the file, upright, pixel centres at integers.
        to_stored: takes a pixel of the file, upright, to one as it lies in the file, which differs for photographs that
            EXIF says to rotate. GDAL and QGIS show those as they lie.
        georeference: of the file, None if it has none.
        on: the grid that a raster was read on; None if rasterio did not open the file.
        notes: what a user should know about how it was read.
    """

    path: Path
    size: tuple[int, int]
    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None
    to_file: Transform = IDENTITY
    to_stored: Affine = IDENTITY
    georeference: Georeference | None = None
    on: Reading | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_raster(self) -> bool:
        """Whether rasterio opened the file."""
        return self.on is not None

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
    """Read a PNG, JPEG, TIFF or other image that OpenCV decodes, or numbers as .npy or .csv.

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
    size, notes = (image.shape[1], image.shape[0]), []
    if is_tiff:
        notes.append(f"{path}: a georeference, a nodata value or an alpha band would be read by rasterio: {GEO_EXTRA}")
    pages = _pages(path)
    if pages > 1:
        notes.append(f"{path} has {pages} pages, the first was read")
    stored = _orientation(path, image)
    if stored != Orientation():
        notes.append(
            f"{path} was rotated as its EXIF orientation says: pixels are counted in the upright image, "
            "but in tie_points.points as the file lies, as QGIS shows it"
        )
    to_stored = stored.back(*(size[::-1] if stored.swapped else size)) if stored != Orientation() else IDENTITY
    return ImageFile(path, size, pixels, mask, to_stored=to_stored, notes=tuple(notes))


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
        known = with_data(channels, shown)
        if not known.all():
            shown = known
            channels = np.where(shown[..., None], channels, np.median(channels[shown]) if shown.any() else 0)
        channels = channels.astype(np.float32)
    if shown is not None and not shown.any():
        raise ImageError(f"{path} shows nothing: all of it is transparent, nodata or NaN")
    pixels = channels[..., 0] if channels.shape[2] == 1 else channels
    return np.ascontiguousarray(pixels), None if shown is None or shown.all() else np.ascontiguousarray(shown)


def with_data(channels: NDArray[Any], shown: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Where (H, W) channels (H, W, C) have data: what is shown (H, W), and no value that stands for missing data."""
    known = np.ones(channels.shape[:2], bool) if shown is None else shown
    if channels.dtype.kind == "f":
        known = known & (np.abs(channels) < _NOT_DATA).all(axis=2)  # NaN is not
    return known


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
        ImageError: OpenCV cannot decode it, or it is empty or truncated.
    """
    if path.is_dir():
        raise ImageError(f"{path} is a folder: name an image file, or a list of pairs with --pairs")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix.lower() in NUMBERS:
        return read_numbers(path)
    data = np.fromfile(path, np.uint8)
    problem = _problem(data.tobytes())
    if problem:
        raise ImageError(f"{path} is {problem}: copy or download it again")
    if flags is None:
        flags = _UPRIGHT if data[:2].tobytes() == _JPEG else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(data, flags)
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


def _problem(data: bytes) -> str:
    """What is wrong with the bytes of an image file, or ""; OpenCV ignores a missing end, and fills with grey."""
    if not data:
        return "empty, 0 bytes"
    if data[:4] == b"\x89PNG":
        return "" if b"IEND" in data else "a truncated PNG"
    if data[:2] != _JPEG:
        return ""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # segments before the first scan
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return "" if b"\xff\xd9" in data[at:] else "a truncated JPEG"  # more may follow its end


def _pages(path: Path) -> int:
    """Pages of an image file, or frames of an animation."""
    return cv2.imcount(str(path)) if path.suffix.lower() in _WITH_PAGES else 1


def _orientation(path: Path, upright: NDArray[Any]) -> Orientation:
    """How OpenCV turned an image as it lies in the file."""
    data = np.fromfile(path, np.uint8)
    if data[:2].tobytes() != _JPEG or b"Exif" not in data[: 2**16].tobytes():
        return Orientation()
    stored = bgr(np.asarray(cv2.imdecode(data, _UPRIGHT | cv2.IMREAD_IGNORE_ORIENTATION)))
    return next(one for one in ORIENTATIONS if np.array_equal(one.turn(stored), upright))


def _full(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
