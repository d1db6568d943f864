"""Image files as :func:`register` takes them: pixels, mask, and how both lie in the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SMALLEST = 64  # pixels that an image must be wide and high: a patch
GEO_EXTRA = "pip install 'rrl-match[geo]'"

# Tags of a TIFF file that OpenCV does not read.
_EXTRA_SAMPLES, _NODATA = 338, 42113
_GEOREFERENCE = (33550, 33922, 34264, 34735)  # pixel scale, tie points, matrix, keys
_ALPHA = (1, 2)  # values of _EXTRA_SAMPLES


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies on the map.

    Attributes:
        to_map: (3, 3), takes pixel (x, y), pixel centres at integers, to map coordinates.
        crs: coordinate reference system as WKT, "" if the file names none.
    """

    to_map: Matrix
    crs: str


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What was read of an image file.

    Attributes:
        path: of the file.
        size: (width, height) of the file in pixels.
        pixels: (H, W) or RGB (H, W, 3), uint8, uint16 or float32 without NaN; maybe a reduced part of the file.
        mask: (H, W) bool, where there is data; None if everywhere.
        to_file: (3, 3), takes a pixel (x, y) of `pixels` to one of the file, pixel centres at integers.
        georeference: of the file, None if it has none.
        is_raster: whether rasterio opened it.
        note: what a user should know about how it was read, or "".
    """

    path: Path
    size: tuple[int, int]
    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None
    to_file: Matrix = field(default_factory=lambda: np.eye(3))
    georeference: Georeference | None = None
    is_raster: bool = False
    note: str = ""

    @property
    def reduction(self) -> float:
        """Pixels of the file per pixel that was read, along a side."""
        return float(np.sqrt(np.linalg.det(self.to_file[:2, :2])))


def apply(matrix: Matrix, points: Matrix) -> Matrix:
    """Points (N, 2) under a matrix (3, 3)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    result: Matrix = moved[:, :2] / moved[:, 2:]
    return result


def inverse(matrix: Matrix) -> Matrix:
    """Of a matrix (3, 3)."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def read_image(path: Path, bands: tuple[int, ...] | None = None) -> ImageFile:
    """Read a PNG, JPEG, TIFF or other image that OpenCV decodes.

    Grey or RGB of any depth; an alpha channel becomes the mask, and so do NaN and infinite values.

    Args:
        path: of the file.
        bands: one or three channels to take, counted from 1 in the file's order (RGB); default: all colours.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no image, or one that :func:`register` cannot use; the message says what to do.
        ImportError: it is georeferenced, which needs rasterio.
    """
    image = decode(path)
    tags = tiff_tags(path)
    if tags.keys() & {*_GEOREFERENCE, _NODATA}:
        raise ImportError(
            f"{path} is georeferenced or names a nodata value, which needs rasterio: {GEO_EXTRA}, "
            "or convert it to PNG if the pixels are all you need"
        )
    channels = image.reshape(*image.shape[:2], -1)
    alpha = None
    if channels.shape[2] == 4:
        has_alpha = not tags or tags.get(_EXTRA_SAMPLES) in _ALPHA
        alpha, channels = channels[..., 3] if has_alpha else None, channels[..., : 3 if bands is None else 4]
        channels = channels[..., :3] if has_alpha else channels
    elif channels.shape[2] not in (1, 3) and bands is None:
        channels = channels[..., : 3 if channels.shape[2] > 3 else 1]
    if bands is not None:
        if max(bands) > channels.shape[2]:
            raise ValueError(f"{path} has {channels.shape[2]} bands, not {max(bands)}: choose others")
        channels = channels[..., [band - 1 for band in bands]]
    shown = None if alpha is None else alpha >= _full(alpha.dtype) / 2
    pixels, mask = as_pixels(channels, shown, path)
    return ImageFile(path, (image.shape[1], image.shape[0]), pixels, mask)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Where a mask file (H, W) is not zero in any of its colours.

    Raises:
        OSError, ValueError: the file is missing, cannot be read or is no image.
    """
    image = decode(path)
    channels = image.reshape(*image.shape[:2], -1)
    channels = channels[..., :3] if channels.shape[2] == 4 else channels
    shown: NDArray[np.bool_] = (channels != 0).any(axis=2)
    return shown


def with_mask(image: ImageFile, shown: NDArray[np.bool_], path: Path) -> ImageFile:
    """The image without what a mask of the whole file, (H, W) bool, leaves out.

    Raises:
        ValueError: naming `path`, the mask's; it has another size than the file, or leaves nothing.
    """
    if shown.shape != image.size[::-1]:
        size = " x ".join(map(str, shown.shape[::-1]))
        raise ValueError(f"{path} is {size} pixels, but {image.path} is {image.size[0]} x {image.size[1]}")
    height, width = image.pixels.shape[:2]
    (x, _, left), (_, y, top) = image.to_file[:2]
    columns, rows = np.rint(np.arange(width) * x + left), np.rint(np.arange(height) * y + top)
    mask = shown[rows.astype(int)[:, None], columns.astype(int)]
    mask = mask if image.mask is None else mask & image.mask
    if not mask.any():
        raise ValueError(f"{path} leaves nothing of {image.path}: it must be non-zero where there is data")
    return replace(image, mask=mask)


def as_pixels(
    channels: NDArray[Any], shown: NDArray[np.bool_] | None, path: Path
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Channels (H, W, 1 or 3) of any type as pixels and mask of an :class:`ImageFile`.

    Raises:
        ValueError: the image has complex values, is too small or shows nothing.
    """
    if channels.dtype.kind == "c":
        raise ValueError(f"{path} has complex values: write its amplitude, e.g. in decibels, as float32")
    height, width = channels.shape[:2]
    if min(height, width) < SMALLEST:
        raise ValueError(f"{path} is {width} x {height} pixels, at least {SMALLEST} x {SMALLEST} are needed")
    if channels.dtype not in (np.uint8, np.uint16):
        channels = channels.astype(np.float32)
        finite = np.isfinite(channels).all(axis=2)
        if not finite.all():
            shown = finite if shown is None else shown & finite
            channels = np.where(shown[..., None], channels, np.median(channels[shown]) if shown.any() else 0)
    if shown is not None and not shown.any():
        raise ValueError(f"{path} shows nothing: all of it is transparent, nodata or NaN")
    pixels = channels[..., 0] if channels.shape[2] == 1 else channels
    return np.ascontiguousarray(pixels), None if shown is None or shown.all() else shown


def decode(path: Path) -> NDArray[Any]:
    """Pixels of an image file (H, W), RGB (H, W, 3) or RGBA (H, W, 4), of the file's depth, JPEGs rotated upright.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: OpenCV cannot decode it, or it is a truncated JPEG.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name an image file, or a list of pairs with --pairs")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    data = np.fromfile(path, np.uint8)
    is_jpeg = data[:2].tobytes() == b"\xff\xd8"
    if is_jpeg and b"\xff\xd9" not in data[-65536:].tobytes():
        raise ValueError(f"{path} is a truncated JPEG: copy or download it again")
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if is_jpeg else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error as error:
        raise ValueError(
            f"{path} cannot be decoded ({error.err}): images of more than 2^30 pixels need {GEO_EXTRA}, as GeoTIFFs"
        ) from error
    if image is None:
        raise ValueError(
            f"{path} cannot be read as an image: convert it to PNG, JPEG or TIFF; "
            f"for other formats of georeferenced rasters, {GEO_EXTRA}"
        )
    if image.ndim == 3 and image.shape[2] in (3, 4):
        return image[..., [2, 1, 0, 3][: image.shape[2]]]
    return np.asarray(image)


def tiff_tags(path: Path) -> dict[int, int]:
    """First value or offset of each tag of a TIFF file's first image, classic or BigTIFF; empty for other files.

    >>> tiff_tags(Path(__file__))
    {}
    """
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16 or struct.unpack(order + "H", head[2:4])[0] not in (42, 43):
            return {}
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        file.seek(struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0])
        count, entry = ("Q", 20) if big else ("H", 12)
        raw = file.read(struct.calcsize(count))
        entries = struct.unpack(order + count, raw)[0] if len(raw) == struct.calcsize(count) else 0
        table = file.read(min(entries, 4096) * entry)
    tags = {}
    for start in range(0, len(table) - entry + 1, entry):
        tag, kind = struct.unpack_from(order + "HH", table, start)
        value = {1: "B", 3: "H"}.get(kind, "I")  # a byte, a short, or longer
        tags[tag] = struct.unpack_from(order + value, table, start + entry - (8 if big else 4))[0]
    return tags


def _full(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
