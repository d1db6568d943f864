"""A raster on the reference system of another one, where no affine transform leads from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrl_match.transforms import Affine, DisplacementField, Points, compose
from rrl_match.transforms.displacement import dense_basis

_TOLERANCE = 0.01  # pixels that GDAL's warper may be off; its default is 0.125
_CELLS, _SAMPLES = 12, 4  # of the field in each direction, and of a cell


def converted(points: Points, of: str, to: str) -> Points | None:
    """Map coordinates (N, 2) in another reference system, both as WKT; None if they cannot be converted."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    if bool(of) != bool(to):
        return None
    if of != to:
        try:
            points = np.array(transform(of, to, *points.T)[:2]).T
        except RasterioError:
            return None
    return points if np.isfinite(points).all() else None


@contextmanager
def reprojected(dataset: Any, crs: str) -> Iterator[Any]:
    """A dataset of rasterio as one on another reference system, north up, about as fine; with an alpha band."""
    from rasterio.vrt import WarpedVRT

    with WarpedVRT(dataset, crs=crs, tolerance=_TOLERANCE) as warped:
        yield warped


def read_reprojected(warped: Any, bands: list[int], view: Any, nearest: bool) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Bands (C, H, W) of a view of a dataset from :func:`reprojected`, and where there are data (H, W).

    Only what the view shows is warped, at once to its size.
    """
    from rasterio import Affine as Geotransform
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.vrt import WarpedVRT

    source, reduced = warped.src_dataset, view.width > 1.2 * view.columns or view.height > 1.2 * view.rows
    scale = np.diag([view.width / view.columns, view.height / view.rows])
    to_grid = Affine(np.column_stack([scale, (view.left, view.top)]))
    corner = compose(to_grid, Affine(np.array(warped.transform, np.float64).reshape(3, 3))).full
    method = Resampling.nearest if nearest else Resampling.average if reduced else Resampling.cubic
    frame = {"transform": Geotransform(*corner[:2].ravel()), "width": view.columns, "height": view.rows}
    alpha = ColorInterp.alpha not in source.colorinterp
    with WarpedVRT(
        source, crs=warped.crs, resampling=method, tolerance=_TOLERANCE, add_alpha=alpha, **frame
    ) as at_view:
        return at_view.read(bands), np.asarray(at_view.dataset_mask() > 0)


def approximated(function: Callable[[Points], Points], low: Points, high: Points) -> DisplacementField:
    """A smooth function of pixels (N, 2) between two corners (2,), as a field."""
    side = np.linspace(0, 1, 9)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * (high - low) + low
    base = Affine.estimate(grid, function(grid))
    if not isinstance(base, Affine):
        raise ValueError(f"the function must take pixels to an area, but {base.reason}")
    there = base(grid)
    first, size = there.min(0), np.ptp(there, axis=0)
    at = np.linspace(0, _CELLS, _CELLS * _SAMPLES + 1)
    lattice = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2) / _CELLS * size + first
    off = (function(base.inverse()(lattice)) - lattice).reshape(len(at), len(at), 2)
    solve = np.linalg.pinv(dense_basis(at, _CELLS))
    coefficients = np.stack([solve @ off[..., k] @ solve.T for k in (0, 1)], 2)
    scale = _CELLS / size
    return DisplacementField(base, coefficients, Affine(np.column_stack([np.diag(scale), -scale * first])))
