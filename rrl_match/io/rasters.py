"""Rasters that rasterio opens: read by window and overview, and placed on each other by their georeferences.

This module, `reprojection`, `warping` and `georeferencing` import rasterio, only when a raster is opened.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrl_match.errors import ImageError
from rrl_match.io.images import (
    NUMBERS,
    ORIENTATIONS,
    SMALLEST,
    Georeference,
    Grid,
    ImageFile,
    Orientation,
    Reading,
    as_pixels,
    with_data,
)
from rrl_match.io.reprojection import approximated, converted, read_reprojected, reprojected
from rrl_match.registration.tiles import Part
from rrl_match.transforms import Affine, DisplacementField, Points, Transform, compose

MAX_PIXELS = 16_000_000  # of a raster that are read for registration; larger ones are reduced
MARGIN = 0.15  # of the larger side of the overlap, added to it on every side
_BENT = 0.05  # pixels that reference systems may differ from an affine transform
_LEAST_OVERLAP = 64  # pixels of its sides, with the margin
CACHE = 256 * 2**20  # bytes of decoded tiles that GDAL keeps; its default is 5 % of the machine's memory
# not opened by rasterio, if no world file lies beside
_PLAIN = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", *NUMBERS}
)  # read by OpenCV, if no world file lies beside
_DEGREE = 111_320.0  # metres along a meridian
CENTRE = Affine(np.array([[1.0, 0, 0.5], [0, 1, 0.5]]))  # from pixels with centres at integers to GDAL's


RASTERS = importlib.util.find_spec("rasterio") is not None  # whether they can be read and written


class View(NamedTuple):
    """A window of a raster, in its pixels, and the size in pixels that it is read at."""

    left: int
    top: int
    width: int
    height: int
    columns: int
    rows: int

    @property
    def to_file(self) -> Affine:
        """Takes a pixel of what is read to one of the file, pixel centres at integers."""
        x, y = self.width / self.columns, self.height / self.rows
        return Affine(np.array([[x, 0, self.left + (x - 1) / 2], [0, y, self.top + (y - 1) / 2]]))


def is_raster(path: Path) -> bool:
    """Whether rasterio should open a file: it is installed, and the file is no PNG, JPEG or the like without a map."""
    if not RASTERS or path.is_dir():
        return False
    suffix = path.suffix.lower()
    worlds = (f".{suffix[1:2]}{suffix[-1:]}w", f"{suffix}w", ".wld")
    return suffix not in _PLAIN or any(path.with_suffix(world).is_file() for world in worlds)


@contextmanager
def opened(source: Any, *args: Any, **options: Any) -> Iterator[Any]:
    """A dataset of rasterio; its errors as ImageError, and no warning about a missing georeference."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    if isinstance(source, Path) and not args and not source.exists() and ":" not in str(source):
        raise FileNotFoundError(f"{source} does not exist")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE), rasterio.open(source, *args, **options) as dataset:
                yield dataset
        except (RasterioError, rasterio._err.CPLE_BaseError) as error:
            if args:
                raise ImageError(f"{source} cannot be written: {error}") from error
            raise ImageError(f"{source} cannot be read ({error}): convert it to GeoTIFF, PNG or JPEG") from error


def read_raster(path: Path, bands: tuple[int, ...] | None = None, view: View | None = None, crs: str = "") -> ImageFile:
    """Read a raster, reduced to at most MAX_PIXELS; nodata, masks and alpha become the mask.

    A georeferenced raster is turned by right angles and mirrored so that north is up.

    Args:
        path: of a file that GDAL opens.
        bands: one or three bands to take, counted from 1; default: red, green and blue if the file names them, else
            the first three, or the first if there are fewer.
        view: what to read of it, as from :func:`common_views`; default: all.
        crs: the reference system to read it on, as from :func:`common_crs`; default: its own.

    Raises:
        OSError, ImageError: the file is missing, cannot be read, or :func:`register` cannot use it.
    """
    with opened(path) as dataset:
        if not dataset.count:
            raise ImageError(f"{path} holds several rasters, name one of them: {', '.join(dataset.subdatasets)}")
        chosen = _checked_bands(dataset, bands, path)
        with _on(dataset, crs) as read:
            view, laid = view or _whole(read), georeference_of(read)
            channels, shown = _read_view(read, chosen, view)
        size, georeference = (dataset.width, dataset.height), georeference_of(dataset)
        pages = dataset.subdatasets
        ignored = georeference is None and (bool(dataset.gcps[0]) or dataset.rpcs is not None)
    upright = _upright(laid)
    pixels, mask = as_pixels(upright.turn(channels), upright.turn(shown), path)
    to_grid = Affine(compose(upright.back(view.columns, view.rows), view.to_file).full)
    to_file = _back(to_grid, laid, georeference, pixels.shape) if crs and laid and georeference else to_grid
    notes = [f"{path} has {len(pages)} pages, the first was read; name another as {pages[-1]}"] if pages else []
    if ignored:
        notes.append(f"{path} has control points or RPCs but no transform, so it is not georeferenced: run gdalwarp")
    return ImageFile(
        path, size, pixels, mask, to_file, georeference=georeference, on=Reading(to_grid, crs), notes=tuple(notes)
    )


@contextmanager
def _on(dataset: Any, crs: str) -> Iterator[Any]:
    """A dataset on a reference system; as it is if none is given."""
    if not crs:
        yield dataset
        return
    with reprojected(dataset, crs) as warped:
        yield warped


def _back(to_grid: Affine, laid: Georeference, georeference: Georeference, shape: tuple[int, ...]) -> DisplacementField:
    """Takes pixels of what was read on another reference system to those of the file."""
    to_map, from_map = laid.to_map, georeference.to_map.inverse()

    def to_file(pixels: Points) -> Points:
        on_map = converted(to_map(to_grid(pixels)), laid.crs, georeference.crs)
        return from_map(np.full_like(pixels, np.nan) if on_map is None else on_map)

    return approximated(to_file, np.zeros(2), np.array(shape[1::-1]) - 1.0)


def _read_view(dataset: Any, bands: list[int], view: View) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels (H, W, C) as they lie in the dataset, classes in their colours, and where there are data (H, W)."""
    from rasterio.enums import Resampling as Method
    from rasterio.windows import Window

    source = getattr(dataset, "src_dataset", dataset)
    palette = source.colormap(1) if source.count == 1 and has_palette(source) else None
    if source is not dataset:
        data, shown = read_reprojected(dataset, bands, view, nearest=palette is not None)
    else:
        window, shape = Window(*view[:4]), (view.rows, view.columns)
        how = Method.nearest if palette else Method.average
        data = dataset.read(bands, window=window, out_shape=(len(bands), *shape), resampling=how)
        shown = np.asarray(dataset.dataset_mask(window=window, out_shape=shape) > 0)
    channels = np.moveaxis(data, 0, 2)
    if palette:
        table = np.array([palette.get(k, (0, 0, 0, 0))[:3] for k in range(256)], np.uint8)
        channels = table[channels[..., 0]]
    return channels, shown


class RasterParts:
    """Reads parts of a raster at its full resolution: a :class:`rrl_match.registration.tiles.Source`.

    Args:
        image: as :func:`read_raster` read it,
        on: and on which grid.
        bands: as there.
    """

    def __init__(self, image: ImageFile, on: Reading, bands: tuple[int, ...] | None = None) -> None:
        self._image, self._on, self._bands = image, on, bands
        self._steps = np.abs(on.to_grid.full[:2, :2]).sum(1)  # pixels of the grid, in x and y, along one that was read
        self.finest = 1 / float(self._steps.min())

    def __call__(self, low: Points, high: Points, pixel: float) -> Part | None:
        path = self._image.path
        with opened(path) as source, _on(source, self._on.crs) as dataset:
            view = self._view(np.array([low, high]), pixel, (dataset.width, dataset.height))
            if view is None:
                return None
            channels, shown = _read_view(dataset, _checked_bands(source, self._bands, path), view)
            upright = _upright(georeference_of(dataset))
        shown = with_data(channels, shown)
        if not shown.any():
            return None
        pixels, mask = as_pixels(upright.turn(channels), upright.turn(shown), path)
        to_grid = compose(upright.back(view.columns, view.rows), view.to_file)
        return Part(pixels, mask, Affine(compose(self._on.to_grid, to_grid.inverse()).full))

    def _view(self, corners: Points, pixel: float, size: tuple[int, int]) -> View | None:
        """What lies between two corners of what was read; None if that is next to nothing."""
        ends = self._on.to_grid(corners)
        left, top = np.floor(ends.min(0)).clip(0, size).astype(int).tolist()
        right, bottom = (np.ceil(ends.max(0)) + 1).clip(0, size).astype(int).tolist()
        width, height = right - left, bottom - top
        columns, rows = (np.array([width, height]) / np.maximum(1.0, self._steps * pixel)).round().astype(int).tolist()
        return View(left, top, width, height, columns, rows) if min(columns, rows) >= SMALLEST else None


def read_raster_mask(path: Path) -> NDArray[np.bool_]:
    """Where a mask file (H, W) has data other than zero in any band.

    Raises:
        OSError, ImageError: the file is missing or cannot be read.
    """
    with opened(path) as dataset:
        shown: NDArray[np.bool_] = (dataset.dataset_mask() > 0) & (dataset.read() != 0).any(axis=0)
        return shown


def common_crs(path_a: Path, path_b: Path) -> str:
    """The reference system of raster B as WKT, if A must be brought onto it: if no affine transform explains both."""
    with opened(path_a) as a, opened(path_b) as b:
        on_a, on_b = georeference_of(a), georeference_of(b)
        window = None if on_a is None or on_b is None else _overlap(a, on_a, b, on_b)
        if on_a is None or on_b is None or window is None:
            return ""
    side = np.linspace(0, 1, 9)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * window[2:] + window[:2]
    on_map = converted(on_a.to_map(grid), on_a.crs, on_b.crs)
    if on_map is None:
        return ""
    there = on_b.to_map.inverse()(on_map)
    found = Affine.estimate(grid, there)
    if not isinstance(found, Affine):
        return ""
    off = np.linalg.norm(found(grid) - there, axis=1).max() / max(1.0, found.scale((0, 0)))
    return on_b.crs if off > _BENT else ""


def common_views(path_a: Path, path_b: Path, crs: str = "") -> tuple[View, View] | None:
    """Where two georeferenced rasters overlap, with a margin for their errors, at one ground resolution.

    Args:
        path_a, path_b: of the files.
        crs: the reference system to read A on, as from :func:`common_crs`; default: its own.

    Returns:
        what to read of each, or None if either is not georeferenced, their reference systems cannot be converted into
        each other, or the overlap is too small.
    """
    with opened(path_a) as source, _on(source, crs) as a, opened(path_b) as b:
        on_a, on_b = georeference_of(a), georeference_of(b)
        if on_a is None or on_b is None or bool(on_a.crs) != bool(on_b.crs):
            return None
        windows = _overlap(a, on_a, b, on_b), _overlap(b, on_b, a, on_a)
        ground = _ground_pixel(a, on_a), _ground_pixel(b, on_b)
    coarsest = max(max(sizes) for sizes in ground)
    views = []
    for window, sizes in zip(windows, ground, strict=True):
        if window is None:
            return None
        x, y = (ratio if ratio > 1.2 else 1.0 for ratio in (coarsest / size for size in sizes))
        views.append((*window, window[2] / x, window[3] / y))
    too_many = max(1.0, *(math.sqrt(view[4] * view[5] / MAX_PIXELS) for view in views))
    view_a, view_b = (View(*v[:4], *(max(1, round(side / too_many)) for side in v[4:])) for v in views)
    return (view_a, view_b) if min(*view_a[4:], *view_b[4:]) >= _LEAST_OVERLAP else None


def by_georeference(a: ImageFile, b: ImageFile) -> Affine | None:
    """Where the georeferences say that pixels of A, as it was read, lie in B; None if they cannot be compared."""
    if a.georeference is None or b.georeference is None:
        return None
    height, width = a.pixels.shape[:2]
    grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 5), np.linspace(0, height - 1, 5)), -1).reshape(-1, 2)
    there = converted(a.georeference.to_map(a.to_file(grid)), a.georeference.crs, b.georeference.crs)
    if there is None:
        return None
    found = Affine.estimate(grid, b.to_file.inverse()(b.georeference.to_map.inverse()(there)))
    return found if isinstance(found, Affine) else None


def map_offset(a: ImageFile, b: ImageFile, transform: Transform) -> list[float] | None:
    """How far, in units of B's map, the middle of A lies from where A's own georeference puts it.

    Args:
        a, b: as they were read.
        transform: takes pixels of file A to file B.

    Returns:
        x and y; None if the georeferences cannot be compared.
    """
    if a.georeference is None or b.georeference is None:
        return None
    middle = a.to_file(np.array([[(n - 1) / 2 for n in a.pixels.shape[1::-1]]]))
    said = converted(a.georeference.to_map(middle), a.georeference.crs, b.georeference.crs)
    if said is None:
        return None
    offset: list[float] = (b.georeference.to_map(transform(middle)) - said)[0].tolist()
    return offset


def grid_of(path: Path) -> Grid:
    """Size and georeference of a raster."""
    with opened(path) as dataset:
        return Grid((dataset.width, dataset.height), georeference_of(dataset))


def georeference_of(dataset: Any) -> Georeference | None:
    """That of a dataset; None if its transform is missing, be there ground control points or not."""
    if dataset.transform.is_identity:
        return None
    corner = Affine(np.array(dataset.transform, np.float64).reshape(3, 3))
    return Georeference(Affine(compose(CENTRE, corner).full), dataset.crs.to_wkt() if dataset.crs else "")


def has_palette(dataset: Any) -> bool:
    """Whether a dataset holds classes with colours."""
    return bool(dataset.colorinterp[0].name == "palette" and dataset.dtypes[0] == "uint8")


def _checked_bands(dataset: Any, bands: tuple[int, ...] | None, path: Path) -> list[int]:
    if bands is not None:
        if max(bands) > dataset.count:
            raise ImageError(f"{path} has {dataset.count} bands, not {max(bands)}: choose others")
        return list(bands)
    names = [interpretation.name for interpretation in dataset.colorinterp]
    if {"red", "green", "blue"} <= set(names):
        return [names.index(colour) + 1 for colour in ("red", "green", "blue")]
    colours = [band for band, name in enumerate(names, 1) if name != "alpha"]
    if not colours:
        raise ImageError(f"{path} has nothing but an alpha band")
    return colours[:3] if len(colours) >= 3 else colours[:1]


def _whole(dataset: Any) -> View:
    width, height = dataset.width, dataset.height
    factor = max(1.0, math.sqrt(width * height / MAX_PIXELS))
    return View(0, 0, width, height, max(1, round(width / factor)), max(1, round(height / factor)))


def _upright(georeference: Georeference | None) -> Orientation:
    """How a raster must be turned so that x grows to the east and y to the south, as nearly as right angles can."""
    if georeference is None:
        return Orientation()
    linear = georeference.to_map.full[:2, :2]
    sizes = {one: linear @ one.back(1, 1).full[:2, :2] for one in ORIENTATIONS}
    return max(ORIENTATIONS, key=lambda one: sizes[one][0, 0] - sizes[one][1, 1])


def _ground_pixel(dataset: Any, georeference: Georeference) -> tuple[float, float]:
    """Width and height of a pixel, in metres if there is a reference system."""
    linear = georeference.to_map.full[:2, :2].copy()
    if dataset.crs and dataset.crs.is_geographic:
        middle = georeference.to_map((dataset.width / 2, dataset.height / 2))
        linear *= _DEGREE
        linear[0] *= math.cos(math.radians(middle[1]))
    elif dataset.crs:
        linear *= dataset.crs.linear_units_factor[1]
    width, height = np.hypot(*linear)
    return float(width), float(height)


def _overlap(dataset: Any, here: Georeference, other: Any, there: Georeference) -> tuple[int, int, int, int] | None:
    """Window of a dataset, (left, top, width, height), that the other one covers, with a margin; None if none."""
    side = np.linspace(0, 1, 21)
    edges = [np.stack([side, np.full_like(side, k)], 1) for k in (0, 1)]
    outline = np.concatenate(edges + [edge[:, ::-1] for edge in edges]) * (other.width, other.height) - 0.5
    on_map = converted(there.to_map(outline), there.crs, here.crs)
    if on_map is None:
        return None
    points = here.to_map.inverse()(on_map) + 0.5
    size = np.array([dataset.width, dataset.height])
    low, high = points.min(0).clip(0, size), points.max(0).clip(0, size)
    if (high - low < 1).any():
        return None
    margin = MARGIN * (high - low).max()
    left, top = (low - margin).clip(0, size).round().astype(int).tolist()
    right, bottom = (high + margin).clip(0, size).round().astype(int).tolist()
    return left, top, right - left, bottom - top
