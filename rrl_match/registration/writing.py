"""What the command writes of a registration: JSON, tie points, the warped image and a checkerboard."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.patches import percentile_range
from rrl_match.registration import Registration, raster
from rrl_match.registration.reading import ImageFile, Matrix, apply, decode, inverse

RECORD = "registration.json"  # written last: a folder that has it is complete
CHECKERBOARD = "checkerboard.png"
TIE_POINTS = "tie_points.csv"
QGIS_POINTS = "tie_points.points"
_LOSSLESS = [cv2.IMWRITE_TIFF_COMPRESSION, 5]  # LZW; without it, OpenCV 4 stores float colours with errors of 2 %
WARPED = ("warped.tif", "warped.png")


def file_matrix(result: Registration, a: ImageFile, b: ImageFile) -> Matrix | None:
    """The matrix, also a rejected one, from pixels of file A to file B, (3, 3); None if there is none."""
    found = result.matrix if result.ok else result.rejected
    if found is None:
        return None
    whole = found if found.shape == (3, 3) else np.vstack([found, [0, 0, 1]])
    matrix = b.to_file @ whole @ inverse(a.to_file)
    return np.asarray(matrix / matrix[2, 2], np.float64)


def describe(result: Registration, a: ImageFile, b: ImageFile, model: str) -> dict[str, Any]:
    """A registration in terms of JSON; matrices and distances in pixels of the files."""
    matrix = file_matrix(result, a, b)
    rows = None if matrix is None else (matrix if model == "homography" else matrix[:2]).tolist()
    tie_a, tie_b = tie_points(result, a, b)
    residual = None
    if result.ok and matrix is not None and result.inliers.any():
        residual = float(np.median(np.linalg.norm(apply(matrix, tie_a) - tie_b, axis=1)[result.inliers]))
    return {
        "ok": bool(result.ok),
        "reason": result.reason,
        "model": model,
        "matrix": rows if result.ok else None,
        "rejected": None if result.ok else rows,
        "matched_fraction": float(result.matched_fraction),
        "matches": len(tie_a),
        "inliers": int(result.inliers.sum()),
        "median_residual": residual,
        "size_a": list(a.size),
        "size_b": list(b.size),
        "reduction_a": a.reduction,
        "reduction_b": b.reduction,
        "map_offset": raster.map_offset(a, b, matrix) if result.ok and matrix is not None else None,
        "notes": [note for note in (a.note, b.note) if note],
    }


def as_json(record: dict[str, Any]) -> str:
    """A line for each entry."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def tie_points(result: Registration, a: ImageFile, b: ImageFile) -> tuple[Matrix, Matrix]:
    """Matched keypoints (K, 2) xy, in pixels of files A and B."""
    rows_a, rows_b = result.matches.indices.T
    return apply(a.to_file, result.keypoints_a[rows_a]), apply(b.to_file, result.keypoints_b[rows_b])


def write_results(folder: Path, result: Registration, a: ImageFile, b: ImageFile, record: dict[str, Any]) -> None:
    """Write all files of a registration; of a refused one, the record alone.

    Raises:
        OSError, ValueError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [folder / name for name in (RECORD, CHECKERBOARD, TIE_POINTS, QGIS_POINTS, *WARPED)]
    for image in (a, b):
        if image.path.resolve() in [path.resolve() for path in earlier]:
            raise ValueError(f"{image.path} would be overwritten by the results: choose another folder for them")
    for path in earlier:
        path.unlink(missing_ok=True)
    matrix = file_matrix(result, a, b)
    if result.ok and matrix is not None:
        write_tie_points(folder / TIE_POINTS, result, a, b)
        write_qgis_points(folder / QGIS_POINTS, result, a, b)
        write_checkerboard(folder / CHECKERBOARD, result, a, b)
        write_warped(folder, result, a, b, matrix)
    unfinished = folder / f"{RECORD}.part"
    unfinished.write_text(as_json(record) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / RECORD)


def write_tie_points(path: Path, result: Registration, a: ImageFile, b: ImageFile) -> None:
    """A row for each match: pixels of both files, centres at integers, and map coordinates if B has them."""
    points_a, points_b = tie_points(result, a, b)
    columns = ["x_a", "y_a", "x_b", "y_b"]
    parts = [points_a, points_b]
    if b.georeference is not None:
        columns += ["map_x", "map_y"]
        parts.append(apply(b.georeference.to_map, points_b))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "score", "inlier"])
        for row, score, inlier in zip(np.hstack(parts), result.matches.scores, result.inliers, strict=True):
            writer.writerow([*map(_number, row), f"{score:.4f}", int(inlier)])


def write_qgis_points(path: Path, result: Registration, a: ImageFile, b: ImageFile) -> None:
    """Ground control points for QGIS's georeferencer with A as the raster to georeference; outliers are not enabled.

    QGIS counts pixels from the corner, y negative downwards. If B has no map coordinates, its pixels in the same
    convention take their part; if A has some, QGIS expects them for A, too.
    """
    points_a, points_b = tie_points(result, a, b)
    source, destination = (
        apply(image.georeference.to_map, points) if image.georeference else (points + 0.5) * (1, -1)
        for image, points in ((a, points_a), (b, points_b))
    )
    names = ("sourceX", "sourceY") if a.georeference else ("pixelX", "pixelY")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        if b.georeference and b.georeference.crs:
            file.write(f"#CRS: {b.georeference.crs}\n")
        file.write(",".join(("mapX", "mapY", *names, "enable")) + "\n")
        for row, inlier in zip(np.hstack([destination, source]), result.inliers, strict=True):
            file.write(",".join([*map(_number, row), str(int(inlier))]) + "\n")


def write_checkerboard(path: Path, result: Registration, a: ImageFile, b: ImageFile) -> None:
    """Both images, as they were read and with even contrast, in alternating cells."""
    board = np.asarray(result.checkerboard(_displayed(a), _displayed(b)))
    _write_image(path, board.clip(0, 255).astype(np.uint8))


def write_warped(folder: Path, result: Registration, a: ImageFile, b: ImageFile, matrix: Matrix) -> None:
    """All bands of A in B's frame: a GeoTIFF if either is a raster, else A's depth and channels."""
    if a.is_raster or b.is_raster:
        raster.warp_raster(a, b, matrix, folder / WARPED[0])
        return
    pixels = decode(a.path)
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:
        pixels = pixels.astype(np.float64)
    _write_image(folder / WARPED[pixels.dtype in (np.uint8, np.uint16)], result.warp(pixels, b.size[::-1]))


def _displayed(image: ImageFile) -> NDArray[np.uint8]:
    """RGB (H, W, 3) with even contrast."""
    low, high = percentile_range(image.pixels if image.mask is None else image.pixels[image.mask])
    stretched: NDArray[np.uint8] = np.clip(
        (image.pixels.astype(np.float32) - low) * (255 / (high - low)), 0, 255
    ).astype(np.uint8)
    if stretched.ndim == 2:
        stretched = np.repeat(stretched[..., None], 3, axis=2)
    if image.mask is not None:
        stretched[~image.mask] = 0
    return stretched


def _write_image(path: Path, image: NDArray[Any]) -> None:
    """Grey, RGB or RGBA."""
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    written, data = cv2.imencode(path.suffix, np.ascontiguousarray(image), _LOSSLESS if path.suffix == ".tif" else [])
    if not written:
        raise ValueError(f"{path} cannot be written")
    path.write_bytes(data.tobytes())


def _number(value: float) -> str:
    """With nine decimals, which resolve 0.1 mm in degrees, but for zeros at the end."""
    return f"{value:.9f}".rstrip("0").rstrip(".")
