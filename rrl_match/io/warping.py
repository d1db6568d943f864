"""Rasters warped block by block onto the grid of another one, by GDAL or OpenCV, with all that they carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.errors import ImageError
from rrl_match.io.images import Georeference, Grid, Resampling, holds_classes, read_image
from rrl_match.io.rasters import CENTRE, View, has_palette, is_raster, opened
from rrl_match.transforms import (
    FLAGS,
    Affine,
    DisplacementField,
    MatrixTransform,
    Points,
    Transform,
    compose,
    similarity,
)

WhichGrid: TypeAlias = Literal["a", "b"]  # A's own resolution on B's map, or B's pixels

_BLOCK = 1024  # pixels of a side that are warped at once, a multiple of a tile
_TILE = 256
_ROUNDING = 1e-3  # pixels
_LARGEST = 2**31  # pixels of a written file
_SAMPLE = 512  # pixels of a side of what is looked at to tell classes from measurements

# Gives a block of the warped raster: values and whether there is data, both (bands, h, w).
_Reader: TypeAlias = "Callable[[Any], tuple[NDArray[Any], NDArray[np.bool_]]]"


class Warped(NamedTuple):
    """A file warped onto a grid, as :func:`warped_onto` gives it.

    Attributes:
        source: the dataset of the file.
        profile: how rasterio creates a GeoTIFF of it.
        read: gives a block.
    """

    source: Any
    profile: dict[str, Any]
    read: _Reader


@contextmanager
def warped_onto(path: Path, transform: Transform, grid: Grid, resampling: Resampling | None = None) -> Iterator[Warped]:
    """A file, to be read block by block as it lies on another grid.

    Where the file is finer, its pixels are averaged; those without data have no part in it. Memory does not grow with
    the size of the rasters.

    Args:
        path: of a raster or an image.
        transform: takes pixels of the file to the grid.
        grid: its size and georeference.
        resampling: default: "nearest" for bands of classes or flags, "bilinear" for all others.
    """
    with ExitStack() as stack:
        source = stack.enter_context(_opened_or_made(path))
        methods = [resampling or ("nearest" if classes else "bilinear") for classes in _bands_of_classes(source)]
        profile = _profile(source, grid)
        is_affine = isinstance(transform, MatrixTransform) and np.allclose(transform.full[2], (0, 0, 1))
        make = _by_gdal if is_affine else _by_opencv
        yield Warped(source, profile, make(source, transform, methods, profile, stack))


def windows(grid: Grid) -> Iterator[Any]:
    """The blocks of a grid."""
    from rasterio.windows import Window

    width, height = grid.size
    for top in range(0, height, _BLOCK):
        for left in range(0, width, _BLOCK):
            yield Window(left, top, min(_BLOCK, width - left), min(_BLOCK, height - top))


def warp_raster(path: Path, transform: Transform, grid: Grid, out: Path, resampling: Resampling | None = None) -> None:
    """Write all bands of a file on another grid, with the data type and nodata of the file.

    Where it shows nothing, there is nodata, NaN if floats name none, or else 0 and a mask.

    Args:
        path, transform, grid, resampling: see :func:`warped_onto`.
        out: the GeoTIFF to write.
    """
    with warped_onto(path, transform, grid, resampling) as warped, opened(out, "w", **warped.profile) as target:
        _copy_description(warped.source, target)
        for window in windows(grid):
            values, shown = warped.read(window)
            target.write(values, window=window)
            if _needs_mask(warped.source, warped.profile):
                target.write_mask(shown.any(axis=0), window=window)


def own_grid(transform: Transform, size: tuple[int, int], b: Grid) -> tuple[Grid, Transform]:
    """The grid of a file's own resolution that holds all of it on B's map.

    Args:
        transform: takes pixels of the file to those of B.
        size: (width, height) of the file in pixels.
        b: the grid of B.

    Returns:
        the grid, and the transform that takes pixels of the file to it.

    Raises:
        ImageError: it would be far too large.
    """
    width, height = size
    side, edge = np.linspace(0, 1, 17), np.ones(17)
    edges = [np.stack(one, 1) for one in ((side, 0 * edge), (side, edge), (0 * edge, side), (edge, side))]
    outline = transform(np.concatenate(edges) * (width, height) - 0.5)
    low, high = outline.min(0), outline.max(0)
    finer = 1 / transform.scale((width / 2, height / 2))
    columns, rows = np.ceil((high - low) * finer - _ROUNDING).astype(int).tolist()
    if columns * rows > _LARGEST:
        raise ImageError(f"the warped file would be {columns} x {rows} pixels")
    left, top = low
    to_grid = Affine(np.array([[finer, 0, -finer * left - 0.5], [0, finer, -finer * top - 0.5]]))
    georeference = b.georeference
    if georeference is not None:
        to_map = Affine(compose(to_grid.inverse(), georeference.to_map).full)
        georeference = Georeference(to_map, georeference.crs)
    return Grid((columns, rows), georeference), transform.between(similarity(), to_grid)


def write_displacement(field: DisplacementField, grid: Grid, out: Path) -> None:
    """Write how far a field displaces what lies at each pixel of a grid: a GeoTIFF of two float32 bands, x and y.

    In pixels of the grid, from where the field's matrix takes a location of A to where the field does.

    Args:
        field: from A to the grid.
        grid: size and georeference of what is written.
        out: the GeoTIFF to write.
    """
    profile = {**_profile_of(grid), "count": 2, "dtype": "float32", "predictor": 3}
    with opened(out, "w", **profile) as target:
        target.descriptions = "x, pixels", "y, pixels"
        for window in windows(grid):
            of_window = field.between(similarity(), similarity(shift=(-window.col_off, -window.row_off)))
            at = of_window.map((window.height, window.width)).astype(np.float64)
            pixels = np.stack(np.meshgrid(np.arange(window.width), np.arange(window.height)), -1)
            moved = pixels - of_window.base(at.reshape(-1, 2)).reshape(at.shape)
            target.write(np.moveaxis(moved, 2, 0).astype(np.float32), window=window)


def _by_gdal(source: Any, transform: Any, methods: list[Resampling], profile: Any, stack: ExitStack) -> _Reader:
    """By GDAL's warper, for affine transforms."""
    from rasterio import Affine as Geotransform
    from rasterio.enums import Resampling as Method
    from rasterio.vrt import WarpedVRT

    # both rasters on a map whose units are B's pixels, upside down: an identity would count as no georeference
    corners = compose(compose(CENTRE.inverse(), transform), CENTRE).full[:2] * np.array([[1], [-1]])
    frame = {
        "src_crs": "EPSG:3857",
        "crs": "EPSG:3857",
        "src_transform": Geotransform(*corners.ravel()),
        "transform": Geotransform.scale(1, -1),
        "width": profile["width"],
        "height": profile["height"],
        "src_nodata": profile["nodata"],
        "nodata": profile["nodata"],
        "add_alpha": _needs_mask(source, profile),
    }
    warped = {
        method: stack.enter_context(WarpedVRT(source, resampling=Method[method], **frame)) for method in set(methods)
    }

    def read(window: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        bands = [(warped[method], band) for band, method in enumerate(methods, 1)]
        values = np.stack([dataset.read(band, window=window) for dataset, band in bands])
        if frame["add_alpha"]:  # read_masks does not know of it
            alpha = warped[methods[0]]
            return values, np.broadcast_to(alpha.read(alpha.count, window=window) > 127, values.shape)
        return values, np.stack([dataset.read_masks(band, window=window) > 127 for dataset, band in bands])

    return read


def _by_opencv(source: Any, transform: Any, methods: list[Resampling], profile: Any, stack: ExitStack) -> _Reader:
    """By OpenCV, for all other transforms."""

    def read(window: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        shape = source.count, window.height, window.width
        values = np.full(shape, profile["nodata"] or 0, profile["dtype"])
        shown = np.zeros(shape, bool)
        to_window = similarity(shift=(-window.col_off, -window.row_off))
        at = transform.between(similarity(), to_window).map(shape[1:]).reshape(-1, 2).astype(np.float64)
        finer = 1 / math.sqrt(abs(np.linalg.det(transform.jacobian(at[len(at) // 2][None])[0])))
        view = _needed(source, at, finer if finer > 1.5 else 1.0)
        if view is None:
            return values, shown
        data, masks = _read_view(source, view)
        there: NDArray[np.float32] = view.to_file.inverse()(at).reshape(*shape[1:], 2).astype(np.float32)
        for band, method in enumerate(methods):
            found, shown[band] = _remap(data[band], masks[band] > 0, there, method, profile["nodata"])
            values[band][shown[band]] = found
        return values, shown

    return read


def _remap(
    data: NDArray[Any], known: NDArray[np.bool_], at: NDArray[np.float32], method: Resampling, nodata: float | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A band at locations (h, w, 2) of it, as a mean of what is known: values (K,) of where at least half is (h, w)."""
    exact = np.float32 if data.dtype.itemsize <= 2 or data.dtype == np.float32 else np.float64  # holds every value
    flags = FLAGS["linear" if method == "bilinear" else method]
    remap: Any = cv2.remap
    weight = remap(known.astype(exact), at, None, flags)
    moved = remap(np.where(known, data, 0).astype(exact), at, None, flags)
    shown: NDArray[np.bool_] = weight >= 0.5
    filled = moved[shown] / weight[shown]
    if data.dtype.kind in "iu":
        limits = np.iinfo(data.dtype)
        filled = np.rint(filled).clip(limits.min, limits.max)
        if nodata is not None:  # data that interpolation made nodata become the next value
            filled[filled == nodata] += 1 if nodata < limits.max else -1
    return filled.astype(data.dtype), shown


def _needed(source: Any, at: Points, finer: float) -> View | None:
    """What of the source holds locations (N, 2), reduced where it is finer than the target; None if nothing."""
    size = np.array([source.width, source.height])
    left, top = np.floor(at.min(0) - 2 * finer).clip(0, size).astype(int).tolist()
    right, bottom = np.ceil(at.max(0) + 1 + 2 * finer).clip(0, size).astype(int).tolist()
    if right <= left or bottom <= top:
        return None
    columns, rows = (max(1, math.ceil(side / finer)) for side in (right - left, bottom - top))
    return View(left, top, right - left, bottom - top, columns, rows)


def _read_view(source: Any, view: View) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and masks, both (bands, rows, columns)."""
    from rasterio.enums import Resampling as Method
    from rasterio.windows import Window

    how = Method.nearest if has_palette(source) else Method.average
    shape = source.count, view.rows, view.columns
    options = {"window": Window(*view[:4]), "out_shape": shape, "resampling": how}
    return source.read(**options), source.read_masks(**options)


@contextmanager
def _opened_or_made(path: Path) -> Iterator[Any]:
    """A file as a dataset; if OpenCV reads it, a dataset in memory of its pixels and mask."""
    if is_raster(path):
        with opened(path) as dataset:
            yield dataset
        return
    from rasterio.io import MemoryFile

    image = read_image(path)
    bands = np.moveaxis(image.pixels.reshape(*image.pixels.shape[:2], -1), 2, 0)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with MemoryFile() as memory:
        with opened(memory, "w", driver="GTiff", **shape) as dataset:
            dataset.write(bands)
            if image.mask is not None:
                dataset.write_mask(image.mask)
        with opened(memory.name) as dataset:
            yield dataset


def _bands_of_classes(dataset: Any) -> list[bool]:
    """Whether each band holds classes or flags, which must not be interpolated."""
    if has_palette(dataset):
        return [True] * dataset.count
    shape = min(_SAMPLE, dataset.height), min(_SAMPLE, dataset.width)
    return [
        holds_classes(dataset.read(band, out_shape=shape), dataset.descriptions[band - 1] or "")
        for band in dataset.indexes
    ]


def _needs_mask(source: Any, profile: dict[str, Any]) -> bool:
    return profile["nodata"] is None and all(one.name != "alpha" for one in source.colorinterp)


def _profile(source: Any, grid: Grid) -> dict[str, Any]:
    """How the warped raster is created."""
    dtype = np.dtype(source.dtypes[0])
    return {
        **_profile_of(grid),
        "count": source.count,
        "dtype": dtype.name,
        "nodata": np.nan if source.nodata is None and dtype.kind == "f" else source.nodata,
        "predictor": 3 if dtype.kind == "f" else 2,
    }


def _profile_of(grid: Grid) -> dict[str, Any]:
    """How a GeoTIFF on a grid is created, but for its bands."""
    from rasterio import Affine as Geotransform
    from rasterio.crs import CRS

    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": grid.size[0],
        "height": grid.size[1],
        "tiled": True,
        "blockxsize": _TILE,
        "blockysize": _TILE,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    if grid.georeference is not None:
        corner = compose(CENTRE.inverse(), grid.georeference.to_map).full
        profile["transform"] = Geotransform(*corner[:2].ravel())
        profile["crs"] = CRS.from_wkt(grid.georeference.crs) if grid.georeference.crs else None
    return profile


def _copy_description(source: Any, target: Any) -> None:
    """Names, meaning, scale and palette of the bands."""
    target.colorinterp = source.colorinterp
    target.descriptions = source.descriptions
    target.scales, target.offsets = source.scales, source.offsets
    if has_palette(source):
        target.write_colormap(1, source.colormap(1))
