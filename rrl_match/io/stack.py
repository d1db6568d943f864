"""Bands of a multispectral camera, or dates, onto one of them: registered pair by pair, made consistent, one file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from numpy.typing import NDArray

from rrl_match.errors import ImageError, MissingExtraError
from rrl_match.io.batch import Options, register_pair
from rrl_match.io.images import GEO_EXTRA, Grid, Resampling
from rrl_match.io.pairs import Pair
from rrl_match.io.rasters import opened
from rrl_match.io.results import FileRegistration
from rrl_match.io.warping import Warped, warped_onto, windows
from rrl_match.matcher import RRLMatcher
from rrl_match.registration.pose_graph import Link, adjust
from rrl_match.transforms import MatrixTransform, Translation, matrix_kind

Record: TypeAlias = dict[str, Any]


class Layer(NamedTuple):
    """A file, and the transform that takes its pixels to the reference."""

    path: Path
    transform: MatrixTransform


def stack_files(matcher: RRLMatcher, paths: Sequence[Path], reference: int, options: Options, out: Path) -> Record:
    """Register all pairs of files, make their transforms consistent, and write all bands onto one file.

    Files that no way of registered pairs leads to the reference from are left out; if all are, nothing is written.

    Args:
        matcher: its modalities are those of an earlier file and of a later one.
        paths: of the files; each may have several bands.
        reference: index of the file whose pixels and georeference all get.
        options: how to read and register them; to all pairs together, the most general model is fitted that any of
            them needed.
        out: the GeoTIFF to write; the bands are named after their files.

    Returns:
        what was found, in terms of JSON: `out`, None if nothing was written; for each of `files`, its `transform` to
        the reference, None if there is none; for each of `pairs`, whether it is `ok`, and if so the median distance
        in pixels of the reference between its tie points, `residual`, and whether it `agrees` with all others.

    Raises:
        OSError, RRLMatchError: a file cannot be read, used or written.
    """
    if importlib.util.find_spec("rasterio") is None:
        raise MissingExtraError(f"a stack is written by rasterio: {GEO_EXTRA}")
    if out.resolve() in [path.resolve() for path in paths]:
        raise ImageError(f"{out} would be overwritten: choose another name with --out")
    numbers, found = list(combinations(range(len(paths)), 2)), []
    for a, b in tqdm(numbers, desc="registering", unit=" pairs", disable=None):
        found.append(register_pair(matcher, Pair("", paths[a], paths[b]), options))
    links = list(_links(numbers, found))
    adjusted = adjust(links, len(paths), reference, _kind(found))
    of_files = list(zip(paths, adjusted.transforms, strict=True))
    layers = [Layer(path, transform) for path, transform in of_files if transform is not None]
    if len(layers) > 1:
        write_stack(layers, _grid(reference, numbers, found), out, options.resampling)
    of_links = zip(adjusted.residuals.tolist(), adjusted.agree.tolist(), strict=True)
    by_ends = dict(zip(((link.a, link.b) for link in links), of_links, strict=True))
    return {
        "out": str(out) if len(layers) > 1 else None,
        "reference": str(paths[reference]),
        "files": [
            {"file": str(path), "transform": None if transform is None else transform.to_dict()}
            for path, transform in of_files
        ],
        "pairs": [_described(pair, by_ends.get(ends)) for ends, pair in zip(numbers, found, strict=True)],
    }


def _kind(found: Sequence[FileRegistration]) -> type[MatrixTransform]:
    """The most general model that a pair needed: freedom that none needs costs accuracy at the corners."""
    kinds = [matrix_kind(pair.result.model) for pair in found if pair.result.ok]
    return max(kinds, key=lambda kind: kind.parameters, default=Translation)


def _grid(reference: int, numbers: Sequence[tuple[int, int]], found: Sequence[FileRegistration]) -> Grid:
    """Of the reference."""
    first, pair = next(each for each in zip(numbers, found, strict=True) if reference in each[0])
    return (pair.a if first[0] == reference else pair.b).grid


def _links(numbers: Sequence[tuple[int, int]], found: Sequence[FileRegistration]) -> Iterator[Link]:
    """The pairs that were registered, by their tie points that agree."""
    for (a, b), pair in zip(numbers, found, strict=True):
        if pair.result.ok and isinstance(pair.transform, MatrixTransform):
            inliers, (points_a, points_b) = pair.result.tie_points.inliers, pair.tie_points
            yield Link(a, b, pair.transform, points_a[inliers], points_b[inliers])


def write_stack(layers: Sequence[Layer], grid: Grid, out: Path, resampling: Resampling | None = None) -> None:
    """Write all bands of files on one grid as a GeoTIFF, named after their files.

    Values keep their type if it is the same in all files, and nodata; else they get one that holds all of them. Where
    a band shows nothing, there is nodata, NaN among floats, or else 0, and a mask of where all bands show something.

    Args:
        layers: the files.
        grid: size and georeference of what is written.
        out: the GeoTIFF.
        resampling: see :func:`~rrl_match.io.warping.warped_onto`.

    Raises:
        OSError, ImageError: a file cannot be read or written.
    """
    with ExitStack() as stack:
        warped = [stack.enter_context(warped_onto(*layer, grid, resampling)) for layer in layers]
        bands = [_bands(one.source) for one in warped]
        profile = warped[0].profile | {"count": sum(map(len, bands)), "photometric": "minisblack"} | _type(warped)
        profile["predictor"] = 3 if np.dtype(profile["dtype"]).kind == "f" else 2
        target = stack.enter_context(opened(out, "w", **profile))
        target.descriptions = [
            name
            for layer, one, chosen in zip(layers, warped, bands, strict=True)
            for name in _names(layer.path, one.source, chosen)
        ]
        for window in windows(grid):
            values, shown = _block(warped, bands, window)
            missing = 0 if profile["nodata"] is None else profile["nodata"]
            target.write(np.where(shown, values, missing).astype(profile["dtype"]), window=window)
            if profile["nodata"] is None:
                target.write_mask(shown.all(axis=0), window=window)


def _bands(source: Any) -> list[int]:
    """Indices of the bands of a dataset, but for alpha."""
    return [number for number, colour in enumerate(source.colorinterp) if colour.name != "alpha"]


def _names(path: Path, source: Any, bands: Sequence[int]) -> list[str]:
    """Of bands: the file's name, and where it has several, theirs or their numbers."""
    names = [source.descriptions[band] or f"{path.stem} {band + 1}" for band in bands]
    return names if len(bands) > 1 else [source.descriptions[bands[0]] or path.stem]


def _type(warped: Sequence[Warped]) -> dict[str, Any]:
    """Data type and nodata that hold the values of all files."""
    dtype = np.result_type(*(name for one in warped for name in one.source.dtypes))
    nodata = [one.profile["nodata"] for one in warped]
    if len(set(map(str, nodata))) == 1:
        return {"dtype": dtype.name, "nodata": nodata[0]}
    return {"dtype": np.result_type(dtype, np.float32).name, "nodata": np.nan}


def _block(
    warped: Sequence[Warped], bands: Sequence[Sequence[int]], window: Any
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values and where there are data, of a block of all bands: (bands, h, w)."""
    values, shown = [], []
    for one, chosen in zip(warped, bands, strict=True):
        of_file, known = one.read(window)
        values.append(of_file[chosen])
        shown.append(known[chosen])
    return np.concatenate(values), np.concatenate(shown)


def _described(pair: FileRegistration, adjusted: tuple[float, bool] | None) -> Record:
    """A pair in terms of JSON."""
    result = pair.result
    record: Record = {
        "image_a": str(pair.a.path),
        "image_b": str(pair.b.path),
        "ok": result.ok,
        "reason": result.reason,
        "probability": float(result.probability),
    }
    if adjusted is not None:
        residual, agrees = adjusted
        record |= {"residual": None if math.isnan(residual) else residual, "agrees": agrees}
    return record
