"""Rasters that rasterio opens: read by window and overview, warped block by block onto the grid of another one.

The only module that imports rasterio, and only when a raster is opened.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.registration.reading import SMALLEST, Georeference, ImageFile, Matrix, apply, as_pixels, inverse

MAX_PIXELS = 16_000_000  # of a raster that are read for registration; larger ones are reduced
MARGIN = 0.15  # of the larger side of the overlap, added to it on every side
BLOCK = 1024  # pixels of a side that are warped at once, a multiple of a tile
TILE = 256
CACHE = 256 * 2**20  # bytes of decoded tiles that GDAL keeps; its default is 5 % of the machine's memory
_PLAIN = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})  # read by OpenCV, if no world file lies beside
_DEGREE = 111_320.0  # metres along a meridian


class View(NamedTuple):
    """A window of a raster, in its pixels, and the size in pixels that it is read at."""

    left: int
    top: int
    width: int
    height: int
    columns: int
    rows: int

    @property
    def to_file(self) -> Matrix:
        """(3, 3), takes a pixel of what is read to one of the file, pixel centres at integers."""
        x, y = self.width / self.columns, self.height / self.rows
        return np.array([[x, 0, self.left + (x - 1) / 2], [0, y, self.top + (y - 1) / 2], [0, 0, 1]])


def is_raster(path: Path) -> bool:
    """Whether rasterio should open a file: it is installed, and the file is no PNG, JPEG or the like without a map."""
    if importlib.util.find_spec("rasterio") is None or path.is_dir():
        return False
    suffix = path.suffix.lower()
    worlds = (f".{suffix[1:2]}{suffix[-1:]}w", f"{suffix}w", ".wld")
    return suffix not in _PLAIN or any(path.with_suffix(world).is_file() for world in worlds)


@contextmanager
def _opened(source: Any, *args: Any, **options: Any) -> Iterator[Any]:
    """A dataset of rasterio; its errors as ValueError, and no warning about a missing georeference."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    if isinstance(source, Path) and not args and not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(source, *args, **options) as dataset:
                yield dataset
        except RasterioError as error:
            if args:
                raise ValueError(f"{source} cannot be written: {error}") from error
            raise ValueError(f"{source} cannot be read ({error}): convert it to GeoTIFF, PNG or JPEG") from error


def read_raster(path: Path, bands: tuple[int, ...] | None = None, view: View | None = None) -> ImageFile:
    """Read a raster, reduced to at most MAX_PIXELS; nodata, masks and alpha become the mask.

    Args:
        path: of a file that GDAL opens.
        bands: one or three bands to take, counted from 1; default: red, green and blue if the file names them, else
            the first three, or the first if there are fewer.
        view: what to read of it, as from :func:`common_views`; default: all.

    Raises:
        OSError, ValueError: the file is missing, cannot be read, or :func:`register` cannot use it.
    """
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    with _opened(path) as dataset:
        if not dataset.count:
            raise ValueError(f"{path} holds several rasters, name one of them: {', '.join(dataset.subdatasets)}")
        chosen = _checked_bands(dataset, bands, path)
        view = view or _whole(dataset)
        window = Window(*view[:4])
        shape = view.rows, view.columns
        palette = dataset.colormap(1) if dataset.count == 1 and _has_palette(dataset) else None
        how = Resampling.nearest if palette else Resampling.average
        data = dataset.read(chosen, window=window, out_shape=(len(chosen), *shape), resampling=how)
        shown = dataset.dataset_mask(window=window, out_shape=shape) > 0
        size, georeference = (dataset.width, dataset.height), _georeference(dataset)
        ignored = georeference is None and (bool(dataset.gcps[0]) or dataset.rpcs is not None)
    channels = np.moveaxis(data, 0, 2)
    if palette:
        table = np.array([palette.get(k, (0, 0, 0, 0))[:3] for k in range(256)], np.uint8)
        channels = table[channels[..., 0]]
    pixels, mask = as_pixels(channels, shown, path)
    note = f"{path} has ground control points or RPCs but no transform, so it counts as not georeferenced: run gdalwarp"
    return ImageFile(path, size, pixels, mask, view.to_file, georeference, True, note if ignored else "")


def read_raster_mask(path: Path) -> NDArray[np.bool_]:
    """Where a mask file (H, W) has data other than zero in any band.

    Raises:
        OSError, ValueError: the file is missing or cannot be read.
    """
    with _opened(path) as dataset:
        shown: NDArray[np.bool_] = (dataset.dataset_mask() > 0) & (dataset.read() != 0).any(axis=0)
        return shown


def common_views(path_a: Path, path_b: Path) -> tuple[View, View] | None:
    """Where two georeferenced rasters overlap, with a margin for their errors, at one ground resolution.

    Returns:
        what to read of each, or None if either is not georeferenced, their reference systems cannot be converted into
        each other, or the overlap is less than a patch.
    """
    with _opened(path_a) as a, _opened(path_b) as b:
        on_a, on_b = _georeference(a), _georeference(b)
        if on_a is None or on_b is None or bool(a.crs) != bool(b.crs):
            return None
        windows = [window for window in (_overlap(a, on_a, b, on_b), _overlap(b, on_b, a, on_a)) if window is not None]
        if len(windows) < 2:
            return None
        ground = _ground_pixel(a, on_a), _ground_pixel(b, on_b)
        coarsest = max(max(sizes) for sizes in ground)
        views = []
        for (left, top, width, height), sizes in zip(windows, ground, strict=True):
            x, y = (ratio if ratio > 1.2 else 1.0 for ratio in (coarsest / size for size in sizes))
            views.append((left, top, width, height, width / x, height / y))
        too_many = max(1.0, *(math.sqrt(view[4] * view[5] / MAX_PIXELS) for view in views))
        view_a, view_b = (View(*v[:4], *(max(1, round(side / too_many)) for side in v[4:])) for v in views)
    return (view_a, view_b) if min(*view_a[4:], *view_b[4:]) >= SMALLEST else None


def map_offset(a: ImageFile, b: ImageFile, matrix: Matrix) -> list[float] | None:
    """How far, in map units, the middle of A lies from where A's own georeference puts it; None if not comparable.

    Args:
        matrix: (3, 3), takes pixels of file A to file B.
    """
    if a.georeference is None or b.georeference is None or a.georeference.crs != b.georeference.crs:
        return None
    middle = apply(a.to_file, np.array([[(n - 1) / 2 for n in a.pixels.shape[1::-1]]]))
    there = apply(b.georeference.to_map, apply(matrix, middle))
    offset: list[float] = (there - apply(a.georeference.to_map, middle))[0].tolist()
    return offset


def warp_raster(a: ImageFile, b: ImageFile, matrix: Matrix, path: Path) -> None:
    """Write all bands of file A on the grid of file B: B's size and georeference, A's data type and nodata.

    Bilinear, after averaging where A is finer; pixels without data have no part in it. Where A shows nothing, there is
    nodata, NaN if floats name none, or else 0 and a mask. Memory does not grow with the size of the rasters.

    Args:
        a, b: as they were read; only B's size and georeference count.
        matrix: (3, 3), takes pixels of file A to file B.
        path: of the GeoTIFF to write.
    """
    from rasterio.windows import Window

    width, height = b.size
    from_b = inverse(matrix)
    with ExitStack() as stack:
        source = stack.enter_context(_opened_or_made(a))
        profile = _profile(source, b, width, height)
        target = stack.enter_context(_opened(path, "w", **profile))
        _copy_description(source, target)
        write_mask = profile["nodata"] is None and not _alpha(source)
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                window = Window(left, top, min(BLOCK, width - left), min(BLOCK, height - top))
                values, shown = _warped_block(source, from_b, window, profile["nodata"])
                target.write(values, window=window)
                if write_mask:
                    target.write_mask(shown.any(axis=0), window=window)


def _checked_bands(dataset: Any, bands: tuple[int, ...] | None, path: Path) -> list[int]:
    if bands is not None:
        if max(bands) > dataset.count:
            raise ValueError(f"{path} has {dataset.count} bands, not {max(bands)}: choose others")
        return list(bands)
    names = [interpretation.name for interpretation in dataset.colorinterp]
    if {"red", "green", "blue"} <= set(names):
        return [names.index(colour) + 1 for colour in ("red", "green", "blue")]
    colours = [band for band, name in enumerate(names, 1) if name != "alpha"]
    if not colours:
        raise ValueError(f"{path} has nothing but an alpha band")
    return colours[:3] if len(colours) >= 3 else colours[:1]


def _alpha(dataset: Any) -> bool:
    return any(interpretation.name == "alpha" for interpretation in dataset.colorinterp)


def _has_palette(dataset: Any) -> bool:
    return bool(dataset.colorinterp[0].name == "palette" and dataset.dtypes[0] == "uint8")


def _whole(dataset: Any) -> View:
    width, height = dataset.width, dataset.height
    factor = max(1.0, math.sqrt(width * height / MAX_PIXELS))
    return View(0, 0, width, height, max(1, round(width / factor)), max(1, round(height / factor)))


def _georeference(dataset: Any) -> Georeference | None:
    """That of a dataset; None if its transform is missing, be there ground control points or not."""
    if dataset.transform.is_identity:
        return None
    corner = np.array(dataset.transform, dtype=np.float64).reshape(3, 3)
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return Georeference(corner @ centre, dataset.crs.to_wkt() if dataset.crs else "")


def _ground_pixel(dataset: Any, georeference: Georeference) -> tuple[float, float]:
    """Width and height of a pixel, in metres if there is a reference system."""
    linear = georeference.to_map[:2, :2].copy()
    if dataset.crs and dataset.crs.is_geographic:
        middle = apply(georeference.to_map, np.array([[dataset.width / 2, dataset.height / 2]]))
        linear *= _DEGREE
        linear[0] *= math.cos(math.radians(middle[0, 1]))
    elif dataset.crs:
        linear *= dataset.crs.linear_units_factor[1]
    width, height = np.hypot(*linear)
    return float(width), float(height)


def _overlap(dataset: Any, here: Georeference, other: Any, there: Georeference) -> tuple[int, int, int, int] | None:
    """Window of a dataset, (left, top, width, height), that the other one covers, with a margin; None if none."""
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    side = np.linspace(0, 1, 21)
    edges = [np.stack([side, np.full_like(side, k)], 1) for k in (0, 1)]
    outline: Matrix = np.concatenate(edges + [edge[:, ::-1] for edge in edges]) * (other.width, other.height) - 0.5
    points = apply(there.to_map, outline)
    if dataset.crs and dataset.crs != other.crs:
        try:
            points = np.array(transform(other.crs, dataset.crs, *points.T)[:2]).T
        except CRSError:
            return None
    points = apply(inverse(here.to_map), points) + 0.5
    if not np.isfinite(points).all():
        return None
    size = np.array([dataset.width, dataset.height])
    low, high = points.min(0).clip(0, size), points.max(0).clip(0, size)
    if (high - low < 1).any():
        return None
    margin = MARGIN * (high - low).max()
    left, top = (low - margin).clip(0, size).round().astype(int).tolist()
    right, bottom = (high + margin).clip(0, size).round().astype(int).tolist()
    return left, top, right - left, bottom - top


@contextmanager
def _opened_or_made(a: ImageFile) -> Iterator[Any]:
    """File A as a dataset; if OpenCV read it, a dataset in memory of its pixels and mask."""
    if a.is_raster:
        with _opened(a.path) as dataset:
            yield dataset
        return
    from rasterio.io import MemoryFile

    bands = np.moveaxis(a.pixels.reshape(*a.pixels.shape[:2], -1), 2, 0)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with MemoryFile() as memory:
        with _opened(memory, "w", driver="GTiff", **shape) as dataset:
            dataset.write(bands)
            if a.mask is not None:
                dataset.write_mask(a.mask)
        with _opened(memory.name) as dataset:
            yield dataset


def _profile(source: Any, b: ImageFile, width: int, height: int) -> dict[str, Any]:
    """How the warped raster is created."""
    from rasterio import Affine
    from rasterio.crs import CRS

    dtype = np.dtype(source.dtypes[0])
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": source.count,
        "dtype": dtype.name,
        "nodata": np.nan if source.nodata is None and dtype.kind == "f" else source.nodata,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": "deflate",
        "predictor": 3 if dtype.kind == "f" else 2,
        "bigtiff": "if_safer",
    }
    if b.georeference is not None:
        corner = b.georeference.to_map @ np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
        profile["transform"] = Affine(*corner[:2].ravel())
        profile["crs"] = CRS.from_wkt(b.georeference.crs) if b.georeference.crs else None
    return profile


def _copy_description(source: Any, target: Any) -> None:
    """Names, meaning, scale and palette of the bands."""
    target.colorinterp = source.colorinterp
    target.descriptions = source.descriptions
    target.scales, target.offsets = source.scales, source.offsets
    if _has_palette(source):
        target.write_colormap(1, source.colormap(1))


def _warped_block(
    source: Any, matrix: Matrix, window: Any, nodata: float | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A block of the warped raster, values and whether there is data, both (bands, h, w).

    Args:
        matrix: takes pixels of the target to the source.
        window: of the target.
    """
    shape = source.count, window.height, window.width
    dtype = np.dtype(source.dtypes[0])
    values = np.full(shape, 0 if nodata is None else nodata, dtype)
    shown = np.zeros(shape, bool)
    view = _needed(source, matrix, window)
    if view is None:
        return values, shown
    data, masks = _read_view(source, view)
    from_window = np.array([[1, 0, window.col_off], [0, 1, window.row_off], [0, 0, 1]])
    to_view = inverse(view.to_file) @ matrix @ from_window
    how = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if _has_palette(source) else cv2.INTER_LINEAR)
    size = window.width, window.height
    wide = np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64  # holds every value exactly
    for band, there in enumerate(masks > 0):
        weight = cv2.warpPerspective(there.astype(wide), to_view, size, flags=how)
        moved = cv2.warpPerspective(np.where(there, data[band], 0).astype(wide), to_view, size, flags=how)
        shown[band] = weight >= 0.5
        filled = moved[shown[band]] / weight[shown[band]]
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            filled = np.rint(filled).clip(limits.min, limits.max)
            if nodata is not None:  # data that interpolation made nodata become the next value
                filled[filled == nodata] += 1 if nodata < limits.max else -1
        values[band][shown[band]] = filled.astype(dtype)
    return values, shown


def _needed(source: Any, matrix: Matrix, window: Any) -> View | None:
    """What of the source a block of the target needs, reduced where the source is finer; None if nothing."""
    width, height = window.width, window.height
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64) - 0.5
    corners += (window.col_off, window.row_off)
    if (corners @ matrix[2, :2] + matrix[2, 2] <= 0).any():  # beyond the horizon of a homography
        low, high = np.zeros(2), np.array([source.width, source.height], np.float64)
        factor = math.sqrt(source.width * source.height / MAX_PIXELS)
    else:
        points = apply(matrix, corners)
        low, high = points.min(0), points.max(0)
        factor = math.sqrt(cv2.contourArea((points - low).astype(np.float32)) / (width * height))
    factor = factor if factor > 1.5 else 1.0
    size = np.array([source.width, source.height])
    left, top = np.floor(low - 2 * factor).clip(0, size).astype(int).tolist()
    right, bottom = np.ceil(high + 1 + 2 * factor).clip(0, size).astype(int).tolist()
    if right <= left or bottom <= top:
        return None
    columns, rows = (max(1, math.ceil(side / factor)) for side in (right - left, bottom - top))
    return View(left, top, right - left, bottom - top, columns, rows)


def _read_view(source: Any, view: View) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and masks, both (bands, rows, columns)."""
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    how = Resampling.nearest if _has_palette(source) else Resampling.average
    options = {
        "window": Window(*view[:4]),
        "out_shape": (source.count, view.rows, view.columns),
        "resampling": how,
    }
    return source.read(**options), source.read_masks(**options)
