"""A registration that was written, applied to other files: bands and resolutions of A, points and shapes."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rrl_match.errors import DataError, ImageError
from rrl_match.io.georeferencing import correct_georeference
from rrl_match.io.images import IDENTITY, SMALLEST, Georeference, Grid, Resampling, decode, read_image
from rrl_match.io.rasters import grid_of, is_raster
from rrl_match.io.reprojection import converted
from rrl_match.io.results import write_warped
from rrl_match.io.tables import read_numbers, read_table
from rrl_match.io.warping import WhichGrid, own_grid
from rrl_match.transforms import Affine, Points, Transform, Translation, compose, resizing

_SAME_SHAPE = 0.01  # relative difference of the sides' ratio that rounding explains
_AS_IT_IS = Translation(np.eye(3))
_LONGITUDE_LATITUDE = "OGC:CRS84"
_TABLES = (".csv", ".txt", ".tsv")
_SHAPES = (".geojson", ".json")


@dataclass(frozen=True)
class Applied:
    """A registration that was written.

    Attributes:
        transform: takes pixels of file A to file B.
        a, b: grids of both files.
    """

    transform: Transform
    a: Grid
    b: Grid


def read_registration(path: Path) -> Applied:
    """Read a ``registration.json``.

    Raises:
        OSError, DataError: it is missing, no such file, or of a pair that was refused.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        refused = "" if record["ok"] else record["reason"]
        transform = None if refused else Transform.from_dict(record["transform"])
        grids = [Grid((record[f"size_{n}"][0], record[f"size_{n}"][1]), _georeference(record, n)) for n in "ab"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no registration.json that `rrl-match register` wrote: {error!r}") from error
    if transform is None:
        raise DataError(f"{path} holds no transform, the pair was refused: {refused}")
    return Applied(transform, *grids)


def apply(
    applied: Applied,
    path: Path,
    folder: Path,
    grid: WhichGrid = "b",
    resampling: Resampling | None = None,
    georeference_only: bool = False,
) -> Path:
    """Apply a registration to a file of any kind; see the functions below."""
    if path.suffix.lower() in _SHAPES:
        return apply_to_shapes(applied, path, folder)
    if path.suffix.lower() in _TABLES and not _is_image(path):
        return apply_to_points(applied, path, folder)
    if georeference_only:
        return apply_to_georeference(applied, path, folder)
    return apply_to_image(applied, path, folder, grid, resampling)


def _is_image(path: Path) -> bool:
    """Whether a table is one of temperatures rather than of points."""
    try:
        return bool(read_numbers(path).shape[1] >= SMALLEST)
    except ImageError:
        return False


def apply_to_image(
    applied: Applied, path: Path, folder: Path, which: WhichGrid = "b", resampling: Resampling | None = None
) -> Path:
    """Warp an image or raster that lies on A, of any resolution, onto B's map.

    Args:
        applied: the registration.
        path: of the file; it is placed on A by its georeference if both have one, else by its size.
        folder: where the file of the same name goes, as GeoTIFF, PNG or TIFF.
        which: "b" for B's grid, "a" for the file's own resolution and extent on B's map.
        resampling: see :func:`~rrl_match.io.warping.warp_raster`.

    Returns:
        the file that was written.

    Raises:
        OSError, ImageError: a file cannot be read, placed or written.
    """
    size = _grid(path).size
    transform = applied.transform.between(_on_a(applied, path), _AS_IT_IS)
    grid, stem = applied.b, folder / path.stem
    if which == "a":
        grid, transform = own_grid(transform, size, applied.b)
    for out in (Path(f"{stem}.tif"), Path(f"{stem}.png")):
        _check_out(path, out)
    return write_warped(path, transform, grid, stem, resampling)


def apply_to_georeference(applied: Applied, path: Path, folder: Path) -> Path:
    """Write an image or raster that lies on A as a GeoTIFF on B's map, without resampling it.

    It is placed on A as in :func:`apply_to_image`.

    Raises:
        OSError, ImageError: a file cannot be read, placed or written, or B is not georeferenced.
    """
    out = folder / f"{path.stem}.tif"
    _check_out(path, out)
    upright = IDENTITY if is_raster(path) else read_image(path).to_stored.inverse()  # GDAL takes pixels as they lie
    on_a = compose(upright, _on_a(applied, path))
    correct_georeference(path, applied.transform.between(on_a, _AS_IT_IS), applied.b, out)
    return out


def apply_to_points(applied: Applied, path: Path, folder: Path) -> Path:
    """Add to a table of points its places in B: columns x_b, y_b and, if B is georeferenced, map_x and map_y.

    Args:
        applied: the registration.
        path: of a table with columns x and y, or x_a and y_a: pixels of file A, pixel centres at integers. The decimal
            sign may be a comma.
        folder: where the table of the same name goes, as CSV.

    Raises:
        OSError, DataError: a file cannot be read or written; the message names the line.
    """
    rows = read_table(path, set())
    names = list(rows[0].cells) if rows else []
    x, y = next(((x, y) for x, y in (("x_a", "y_a"), ("x", "y")) if {x, y} <= set(names)), ("", ""))
    if not x:
        raise DataError(f"{path} must have columns x and y, or x_a and y_a, and a row for each point, got {names}")
    points = []
    for line, cells in rows:
        try:
            points.append([float(cells[name].replace(",", ".")) for name in (x, y)])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {x} and {y} must be numbers") from error
    found = applied.transform(points)
    columns, values = ["x_b", "y_b"], found
    if applied.b.georeference is not None:
        columns += ["map_x", "map_y"]
        values = np.hstack([found, applied.b.georeference.to_map(found)])
    out = folder / f"{path.stem}.csv"
    _check_out(path, out)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *columns])
        for row, value in zip(rows, values.tolist(), strict=True):
            writer.writerow([*row.cells.values(), *(f"{number:.9g}" for number in value)])
    return out


def apply_to_shapes(applied: Applied, path: Path, folder: Path) -> Path:
    """Move the shapes of a GeoJSON file from A to B.

    Where A and B are georeferenced, coordinates are in the reference system that the file's member `crs` names, or
    longitude and latitude, as the standard has it; they stay in it. Other coordinates lie on A's map and go to B's.
    Where an image is not georeferenced, its pixels take the part of its map.

    Raises:
        OSError, DataError: a file cannot be read or written.
    """
    out = folder / path.name
    _check_out(path, out)
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
        positions: list[list[float]] = []
        _each_position(shapes, positions)
        points = np.array([one[:2] for one in positions], np.float64).reshape(-1, 2)
        moved = _moved(applied, points, _reference_system(shapes, points)).tolist()
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path} is no GeoJSON: {error}") from error
    for one, place in zip(positions, moved, strict=True):
        one[:2] = place
    out.write_text(json.dumps(shapes) + "\n", encoding="utf-8")
    return out


def _each_position(shape: dict[str, Any], positions: list[list[float]]) -> None:
    """Collect the lists of coordinates in a GeoJSON object, and remove the bounds that will be wrong."""
    shape.pop("bbox", None)
    for part in [*shape.get("features", ()), *shape.get("geometries", ()), shape.get("geometry")]:
        if part is not None:
            _each_position(part, positions)
    waiting = [shape["coordinates"]] if "coordinates" in shape else []
    while waiting:
        values = waiting.pop()
        if values and isinstance(values[0], list):
            waiting += values
        elif values:
            positions.append(values)


def _reference_system(shapes: dict[str, Any], points: Points) -> str:
    """Of a GeoJSON object, as rasterio reads it; "" if it can only be that of A's map."""
    if shapes.get("crs"):
        return str(shapes["crs"]["properties"]["name"])
    return _LONGITUDE_LATITUDE if (np.abs(points) <= (180, 90)).all() else ""


def _moved(applied: Applied, points: Points, crs: str) -> Points:
    """Where points on A's map, or of its pixels, come to lie on B's."""
    a, b = applied.a.georeference, applied.b.georeference
    stays = bool(crs and a and a.crs and b and b.crs)
    if a is not None:
        on_a = converted(points, crs, a.crs) if stays else points
        if on_a is None:
            raise ValueError(f"its coordinates cannot be converted from {crs} to the map of A")
        points = a.to_map.inverse()(on_a)
    points = applied.transform(points)
    if b is not None:
        points = b.to_map(points)
        there = converted(points, b.crs, crs) if stays else points
        if there is None:
            raise ValueError(f"its coordinates cannot be converted from the map of B to {crs}")
        points = there
    return points


def _georeference(record: dict[str, Any], name: str) -> Georeference | None:
    found = record[f"georeference_{name}"]
    return None if found is None else Georeference(Affine(np.array(found["to_map"])), found["crs"])


def _grid(path: Path) -> Grid:
    if is_raster(path):
        return grid_of(path)
    height, width = decode(path).shape[:2]
    return Grid((width, height))


def _on_a(applied: Applied, path: Path) -> Affine:
    """Takes pixels of a file to those of A."""
    grid, a = _grid(path), applied.a
    (width, height), (width_a, height_a) = grid.size, a.size
    if grid.georeference is not None and a.georeference is not None:
        corners: Points = np.array([(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)]) * (width - 1, height - 1)
        there = converted(grid.georeference.to_map(corners), grid.georeference.crs, a.georeference.crs)
        found = there is not None and Affine.estimate(corners, a.georeference.to_map.inverse()(there))
        if not isinstance(found, Affine):
            raise ImageError(f"the georeference of {path} cannot be compared with that of the registration's image A")
        return found
    if abs(math.log(width * height_a / (height * width_a))) > _SAME_SHAPE:
        raise ImageError(
            f"{path} is {width} x {height} pixels, of another shape than image A of the registration, "
            f"{width_a} x {height_a}: only what shows the same area can be placed without georeferences"
        )
    return resizing((width / width_a, height / height_a))


def _check_out(path: Path, out: Path) -> None:
    if path.resolve() == out.resolve():
        raise ImageError(f"{path} would be overwritten: choose another folder with --out")
