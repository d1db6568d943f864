"""What is written of a registration of two files: JSON, tie points, the warped image and a checkerboard."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.drawing import displayed
from rrl_match.errors import ImageError
from rrl_match.io.georeferencing import write_control_points
from rrl_match.io.images import IDENTITY, Grid, ImageFile, Resampling, bgr, decode, holds_classes
from rrl_match.io.rasters import RASTERS, is_raster, map_offset
from rrl_match.io.report import REPORT, THUMBNAIL, write_report
from rrl_match.io.reprojection import approximated
from rrl_match.io.warping import WhichGrid, own_grid, warp_raster, write_displacement
from rrl_match.registration import Registration
from rrl_match.transforms import DisplacementField, MatrixTransform, Points, Transform, Translation

RECORD = "registration.json"  # written last: a folder that has it is complete
CHECKERBOARD = "checkerboard.png"
TIE_POINTS = "tie_points.csv"
QGIS_POINTS = "tie_points.points"
CONTROL_POINTS = "tie_points.vrt"
DISPLACEMENT = "displacement.tif"
FILES = (
    *(RECORD, CHECKERBOARD, TIE_POINTS, QGIS_POINTS, CONTROL_POINTS, DISPLACEMENT, REPORT, THUMBNAIL),
    *("warped.tif", "warped.png"),
)
_LOSSLESS = [cv2.IMWRITE_TIFF_COMPRESSION, 5]  # LZW; without it, OpenCV 4 stores float colours with errors of 2 %


@dataclass(frozen=True, eq=False)
class FileRegistration:
    """A registration of two files, with locations in pixels of the files, pixel centres at integers.

    Attributes:
        result: in pixels as they were read.
        a, b: what was read of the files.
    """

    result: Registration
    a: ImageFile
    b: ImageFile

    @cached_property
    def transform(self) -> Transform | None:
        """From file A to file B, also a rejected one; None if there is none."""
        found = self.result.transform or self.result.rejected
        if found is None:
            return None
        as_read = Translation(np.eye(3))
        from_file = as_read if self.a.to_file is IDENTITY else self.a.to_file.inverse()
        to_file = as_read if self.b.to_file is IDENTITY else self.b.to_file
        if isinstance(from_file, MatrixTransform):
            return found.between(from_file, to_file)
        size = self.a.pixels.shape[1::-1]
        corners = self.a.to_file(np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) * (np.array(size) - 1.0))
        return approximated(lambda points: to_file(found(from_file(points))), corners.min(0), corners.max(0))

    @cached_property
    def tie_points(self) -> tuple[Points, Points]:
        """Locations (K, 2) xy in files A and B."""
        points = self.result.tie_points
        return self.a.to_file(points.a), self.b.to_file(points.b)

    def describe(self) -> dict[str, Any]:
        """In terms of JSON."""
        result, transform = self.result, self.transform
        found = None if transform is None else transform.to_dict()
        return {
            "ok": result.ok,
            "reason": result.reason,
            "advice": result.advice,
            "model": result.model,
            "transform": found if result.ok else None,
            "matrix": transform.matrix.tolist() if result.ok and isinstance(transform, MatrixTransform) else None,
            "rejected": None if result.ok else found,
            "probability": float(result.probability),
            "expected_error": result.error * self.b.reduction if np.isfinite(result.error) else None,
            "overlap": float(result.overlap),
            "agreement": float(result.agreement),
            "tie_points": len(result.tie_points),
            "inliers": int(result.tie_points.inliers.sum()),
            "size_a": list(self.a.size),
            "size_b": list(self.b.size),
            "georeference_a": _georeference(self.a),
            "georeference_b": _georeference(self.b),
            "reduction_a": self.a.reduction,
            "reduction_b": self.b.reduction,
            "map_offset": map_offset(self.a, self.b, transform) if result.ok and transform is not None else None,
            "notes": [*self.a.notes, *self.b.notes, *result.notes],
        }

    def write(
        self, folder: Path, record: dict[str, Any], resampling: Resampling | None = None, which: WhichGrid = "b"
    ) -> None:
        """Write all files of a registration; of a refused one, the record and the report.

        Args:
            folder: made if it does not exist; what an earlier call wrote into it goes.
            record: with what :meth:`describe` gave.
            resampling: see :func:`~rrl_match.io.warping.warp_raster`.
            which: the grid of the warped file: B's, or A's own resolution on B's map.

        Raises:
            OSError, ImageError: the folder or a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [folder / name for name in FILES]
        for image in (self.a, self.b):
            if image.path.resolve() in [path.resolve() for path in earlier]:
                raise ImageError(f"{image.path} would be overwritten by the results: choose another folder for them")
        for path in earlier:
            path.unlink(missing_ok=True)
        shown_a, shown_b = _shown(self.a), _shown(self.b)
        if self.result.ok and self.transform is not None:
            self._write_tie_points(folder / TIE_POINTS, self.transform)
            self._write_qgis_points(folder / QGIS_POINTS)
            write_image(folder / CHECKERBOARD, self.result.checkerboard(shown_a, shown_b))
            grid, transform = self.b.grid, self.transform
            if which == "a":
                grid, transform = own_grid(transform, self.a.size, grid)
            write_warped(self.a.path, transform, grid, folder / "warped", resampling)
            if self.a.is_raster:
                self._write_control_points(folder / CONTROL_POINTS, self.transform)
            if isinstance(self.transform, DisplacementField) and RASTERS:
                write_displacement(self.transform, self.b.grid, folder / DISPLACEMENT)
        write_report(folder, record, self.result, shown_a, shown_b)
        unfinished = folder / f"{RECORD}.part"
        unfinished.write_text(as_json(record) + "\n", encoding="utf-8")
        os.replace(unfinished, folder / RECORD)

    def _write_tie_points(self, path: Path, transform: Transform) -> None:
        """A row for each tie point: pixels of both files, and map coordinates if B has them."""
        columns, parts = ["x_a", "y_a", "x_b", "y_b"], list(self.tie_points)
        if self.b.georeference is not None:
            columns += ["map_x", "map_y"]
            parts.append(self.b.georeference.to_map(parts[1]))
        residuals = np.linalg.norm(transform(parts[0]) - parts[1], axis=1)
        points = self.result.tie_points
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "score", "residual", "inlier"])
            for row, score, residual, inlier in zip(
                np.hstack(parts), points.scores, residuals, points.inliers, strict=True
            ):
                judged = "" if np.isnan(score) else f"{score:.4f}"
                writer.writerow([*map(_number, row), judged, f"{residual:.3f}", int(inlier)])

    def _write_control_points(self, path: Path, transform: Transform) -> None:
        """File A as a VRT with the tie points that agree as ground control points, where the transform puts them.

        They lie on the map of B, or, if it has none, in its pixels as GDAL counts them, y negative downwards.
        """
        in_a = self.tie_points[0][self.result.tie_points.inliers]
        write_control_points(self.a.path, in_a, transform(in_a), self.b.georeference, path)

    def _write_qgis_points(self, path: Path) -> None:
        """Ground control points for QGIS's georeferencer, where A is georeferenced; outliers are not enabled.

        QGIS counts pixels from the corner of an image as it lies in its file, y negative downwards. If B has no map
        coordinates, its pixels in the same convention take their part; if A has some, QGIS expects them for A, too.
        """
        source, destination = (
            image.georeference.to_map(points) if image.georeference else (image.to_stored(points) + 0.5) * (1, -1)
            for image, points in zip((self.a, self.b), self.tie_points, strict=True)
        )
        names = ("sourceX", "sourceY") if self.a.georeference else ("pixelX", "pixelY")
        with path.open("w", encoding="utf-8", newline="\n") as file:
            if self.b.georeference and self.b.georeference.crs:
                file.write(f"#CRS: {self.b.georeference.crs}\n")
            file.write(",".join(("mapX", "mapY", *names, "enable")) + "\n")
            for row, inlier in zip(np.hstack([destination, source]), self.result.tie_points.inliers, strict=True):
                file.write(",".join([*map(_number, row), str(int(inlier))]) + "\n")


def write_warped(
    path: Path, transform: Transform, grid: Grid, stem: Path, resampling: Resampling | None = None
) -> Path:
    """Write all bands of a file on another grid: a GeoTIFF if either is a raster, else the image's depth and channels.

    Args:
        path: of a raster or an image.
        transform: takes pixels of the file to the grid.
        grid: size and georeference of what is written.
        stem: of the file to write, without its suffix.
        resampling: see :func:`~rrl_match.io.warping.warp_raster`.

    Returns:
        the file that was written.
    """
    if grid.georeference or is_raster(path):
        out = Path(f"{stem}.tif")
        warp_raster(path, transform, grid, out, resampling)
        return out
    pixels = decode(path)
    method = resampling or ("nearest" if holds_classes(pixels) else "bilinear")
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:
        pixels = pixels.astype(np.float64)
    out = Path(f"{stem}.png" if pixels.dtype in (np.uint8, np.uint16) else f"{stem}.tif")
    write_image(out, transform.warp(pixels, grid.size[::-1], "linear" if method == "bilinear" else method))
    return out


def write_image(path: Path, image: NDArray[Any]) -> None:
    """Write a grey, RGB or RGBA image in the format that the name ends with, without loss."""
    written, data = cv2.imencode(
        path.suffix, np.ascontiguousarray(bgr(image)), _LOSSLESS[: 2 * (path.suffix == ".tif")]
    )
    if not written:
        raise ImageError(f"{path} cannot be written")
    path.write_bytes(data.tobytes())


def as_json(record: dict[str, Any]) -> str:
    """A line for each entry."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _georeference(image: ImageFile) -> dict[str, Any] | None:
    """In terms of JSON, as :func:`rrl_match.io.apply.read_registration` reads it."""
    found = image.georeference
    return None if found is None else {"to_map": found.to_map.matrix.tolist(), "crs": found.crs}


def _shown(image: ImageFile) -> NDArray[np.uint8]:
    """RGB (H, W, 3) with even contrast, black where there are no data."""
    pixels = image.pixels.astype(np.float32)  # uint8, too, is stretched
    if image.mask is not None:
        pixels[~image.mask] = np.nan
    return displayed(pixels)


def _number(value: float) -> str:
    """With nine decimals, which resolve 0.1 mm in degrees, but for zeros at the end."""
    return f"{value:.9f}".rstrip("0").rstrip(".")
