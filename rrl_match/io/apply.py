"""A registration that was written, applied to other files: bands and resolutions of A, points and shapes."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from rrl_match.errors import DataError, ImageError
from rrl_match.io.images import Georeference, Grid, Resampling, decode
from rrl_match.io.rasters import correct_georeference, grid_of, is_raster
from rrl_match.io.reprojection import converted
from rrl_match.io.results import write_warped
from rrl_match.io.tables import read_table
from rrl_match.transforms import Affine, MatrixTransform, Points, Transform, compose, resizing

Which: TypeAlias = Literal["a", "b"]
_SAME_SHAPE = 0.01  # relative difference of the sides' ratio that rounding explains
_ROUNDING = 1e-3  # pixels
_LARGEST = 2**31  # pixels of a written file
POINTS = (".csv", ".txt", ".tsv")
SHAPES = (".geojson", ".json")


@dataclass(frozen=True)
class Applied:
    """A registration that was written.

    Attributes:
        transform: takes pixels of file A to file B.
        a, b: grids of both files.
    """

    transform: MatrixTransform
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
    if not isinstance(transform, MatrixTransform):
        raise DataError(f"{path}: a {transform.kind} cannot be applied to other files")
    return Applied(transform, *grids)


def apply_to_image(
    applied: Applied, path: Path, folder: Path, which: Which = "b", resampling: Resampling | None = None
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
    transform = compose(_on_a(applied, path), applied.transform)
    grid, stem = applied.b, folder / path.stem
    if which == "a":
        grid, to_grid = _own_grid(transform, size, applied.b)
        transform = compose(transform, to_grid)
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
    correct_georeference(path, compose(_on_a(applied, path), applied.transform), applied.b, out)
    return out


def apply_to_points(applied: Applied, path: Path, folder: Path) -> Path:
    """Add to a table of points its places in B: columns x_b, y_b and, if B is georeferenced, map_x and map_y.

    Args:
        applied: the registration.
        path: of a table with columns x and y, or x_a and y_a: pixels of file A, pixel centres at integers.
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
            points.append((float(cells[x]), float(cells[y])))
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
    """Move the shapes of a GeoJSON file from A to B: on the maps of both, or pixels where one has none.

    Raises:
        OSError, DataError: a file cannot be read or written.
    """
    out = folder / path.name
    _check_out(path, out)
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
        moved = _moved(shapes, applied)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no GeoJSON: {error}") from error
    out.write_text(json.dumps(moved) + "\n", encoding="utf-8")
    return out


def _moved(shape: Any, applied: Applied) -> Any:
    """A GeoJSON object, with all coordinates in it moved."""
    if isinstance(shape, list):
        return [_moved(one, applied) for one in shape]
    if not isinstance(shape, dict):
        return shape
    return {
        key: _coordinates(value, applied) if key == "coordinates" else _moved(value, applied)
        for key, value in shape.items()
        if key not in ("bbox", "crs")
    }


def _coordinates(values: Any, applied: Applied) -> Any:
    if values and isinstance(values[0], list):
        return [_coordinates(one, applied) for one in values]
    point = np.array(values[:2], np.float64)
    if applied.a.georeference is not None:
        point = applied.a.georeference.to_map.inverse()(point)
    found = applied.transform(point)
    if applied.b.georeference is not None:
        found = applied.b.georeference.to_map(found)
    return [*found.tolist(), *values[2:]]


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


def _own_grid(transform: MatrixTransform, size: tuple[int, int], b: Grid) -> tuple[Grid, Affine]:
    """The grid of a file's own resolution that holds all of it on B's map, and the transform to it from B's grid."""
    width, height = size
    outline = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64) - 0.5
    corners = transform(outline)
    low, high = corners.min(0), corners.max(0)
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
    return Grid((columns, rows), georeference), to_grid


def _check_out(path: Path, out: Path) -> None:
    if path.resolve() == out.resolve():
        raise ImageError(f"{path} would be overwritten: choose another folder with --out")
