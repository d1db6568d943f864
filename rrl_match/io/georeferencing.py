"""Files given another georeference: by a transform or by control points, without resampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rrl_match.errors import ImageError
from rrl_match.io.images import Georeference, Grid
from rrl_match.io.rasters import CENTRE, opened
from rrl_match.transforms import MatrixTransform, Points, Transform, compose


def write_control_points(
    path: Path, in_file: Points, there: Points, georeference: Georeference | None, out: Path
) -> None:
    """Write a VRT of a file whose georeference is ground control points, for ``gdalwarp -tps``.

    Args:
        path: of a file that GDAL opens.
        in_file: (N, 2) xy, pixels of the file.
        there: (N, 2) xy, where these lie, in pixels of a grid.
        georeference: of the grid; None: its pixels as GDAL counts them, y negative downwards, take the place of a map.
        out: the VRT to write.

    Raises:
        OSError, ImageError: a file cannot be read or written.
    """
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS
    from rasterio.shutil import copy

    on_map = (there + 0.5) * (1, -1) if georeference is None else georeference.to_map(there)
    rows = np.hstack([in_file + 0.5, on_map]).tolist()
    points = [GroundControlPoint(row=y, col=x, x=east, y=north) for x, y, east, north in rows]
    with opened(path) as dataset:
        copy(dataset, out, driver="VRT")
    with opened(out, "r+") as dataset:
        dataset.gcps = points, CRS.from_wkt(georeference.crs) if georeference and georeference.crs else CRS()


def correct_georeference(path: Path, transform: Transform, grid: Grid, out: Path) -> None:
    """Write a file as a GeoTIFF on another map, without resampling it.

    An affine transform becomes the georeference; of any other, ground control points are written.

    Args:
        path: of a file that GDAL opens.
        transform: takes pixels of the file to the grid.
        grid: with a georeference.
        out: the GeoTIFF to write.

    Raises:
        OSError, ImageError: a file cannot be read or written, or the grid has no georeference.
    """
    from rasterio import Affine as Geotransform
    from rasterio.control import GroundControlPoint
    from rasterio.crs import CRS
    from rasterio.shutil import copy

    if grid.georeference is None:
        raise ImageError(f"{path} cannot be georeferenced: the image B of the registration has no georeference")
    to_map, crs = grid.georeference.to_map, grid.georeference.crs
    with opened(path) as dataset:
        size = np.array([dataset.width, dataset.height])
        copy(dataset, out, driver="GTiff", compress="deflate")
    with opened(out, "r+") as dataset:
        if isinstance(transform, MatrixTransform) and np.allclose(transform.full[2], (0, 0, 1)):
            corner = compose(compose(CENTRE.inverse(), transform), to_map).full
            dataset.transform = Geotransform(*corner[:2].ravel())
            dataset.crs = CRS.from_wkt(crs) if crs else None
        else:
            side = np.linspace(0, 1, 10)
            pixels = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * size - 0.5
            rows = np.hstack([pixels + 0.5, to_map(transform(pixels))])
            points = [GroundControlPoint(row=y, col=x, x=east, y=north) for x, y, east, north in rows.tolist()]
            dataset.gcps = points, CRS.from_wkt(crs) if crs else CRS()
