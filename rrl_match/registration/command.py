"""``rrl-match register``: register two image files, or a list of pairs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from rrl_match._command_line import Subparsers, write_line
from rrl_match._version import __version__
from rrl_match.errors import RRLMatchError
from rrl_match.matcher import RRLMatcher
from rrl_match.registration import Search, raster, register
from rrl_match.registration.pairs import TABLE, Pair, read_pairs, table, write_table
from rrl_match.registration.reading import ImageFile, read_image, read_mask, with_mask
from rrl_match.registration.writing import RECORD, as_json, describe, write_results

OK, REFUSED, MISTAKE = 0, 1, 2  # exit status
_ERRORS_ALONE = 2  # of OpenCV's levels of logging
_MISTAKES = (RRLMatchError, ValueError, OSError, ImportError)
_EPILOG = """
The matrix takes pixel (x, y) of A to B, pixel centres at integers. Exit code: 0 registered, 1 refused, 2 mistake.

  rrl-match register visible.png nir.png --out result
  rrl-match register rgb.jpg thermal.tiff --weights vis-lwir --value-range-b 29000 31500 --out result
  rrl-match register drone.tif sentinel.tif --bands-a 4 --out result     (needs pip install 'rrl-match[geo]')
  rrl-match register --pairs pairs.csv --out results                     (columns image_a,image_b[,name,mask_a,mask_b])
"""


def add_command(subparsers: Subparsers) -> None:
    """Add ``register`` to the subparsers of ``rrl-match``."""
    parser = subparsers.add_parser(
        "register",
        help="register two image files, or a list of pairs",
        description="Find the transform from image A to image B, or refuse. Prints it as JSON.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image_a", nargs="?", type=Path, metavar="A", help="image of the weights' first band")
    parser.add_argument("image_b", nargs="?", type=Path, metavar="B", help="image of their second band")
    parser.add_argument("--pairs", type=Path, metavar="CSV", help="a list of pairs instead; finished ones are kept")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the warped image, a checkerboard, tie points")
    parser.add_argument("--weights", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--model", choices=("similarity", "affine", "homography"), default="affine")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default)")
    parser.add_argument("--max-rotation", type=float, metavar="DEG", help="largest rotation to search")
    parser.add_argument("--scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="scales to search, B over A")
    for band in "ab":
        name = band.upper()
        parser.add_argument(f"--mask-{band}", type=Path, metavar="FILE", help=f"non-zero where {name} has data")
        parser.add_argument(
            f"--value-range-{band}",
            nargs=2,
            type=float,
            metavar=("LOW", "HIGH"),
            help=f"values of {name} that become black and white (default: 8 bit 0 255, others by percentiles)",
        )
        parser.add_argument(
            f"--bands-{band}", type=_bands, metavar="N[,N,N]", help=f"band or three bands of {name} to match by"
        )
    parser.add_argument("--whole", action="store_true", help="search beyond where the georeferences overlap")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Register what the arguments name; returns the exit code."""
    try:
        _check(args)
        with _quiet_opencv():
            return _run_list(args) if args.pairs else _run_one(args)
    except _MISTAKES as error:
        write_line(f"error: {error}", sys.stderr)
        return MISTAKE


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that do not go together."""
    if args.pairs is None and args.image_b is None:
        raise ValueError("name two images, A and B, or a list of pairs with --pairs")
    if args.pairs is not None:
        if args.image_a is not None:
            raise ValueError("name two images or --pairs, not both")
        if args.out is None:
            raise ValueError("--pairs needs --out FOLDER, where the results go")
        if args.mask_a or args.mask_b:
            raise ValueError("masks of a list of pairs go into its columns mask_a and mask_b")
    if args.max_rotation is not None and not 0 <= args.max_rotation <= 180:
        raise ValueError(f"--max-rotation must be from 0 to 180 degrees, got {args.max_rotation:g}")
    if args.scale is not None and not 0 < args.scale[0] <= args.scale[1] < float("inf"):
        raise ValueError(f"--scale must be two positive numbers, LOW <= HIGH, got {args.scale[0]:g} {args.scale[1]:g}")


def _run_one(args: argparse.Namespace) -> int:
    pair = Pair("", args.image_a, args.image_b, args.mask_a, args.mask_b)
    record = _register(pair, args.out, args, lambda: _load(args), progress=sys.stderr.isatty())
    write_line(as_json(record))
    for note in record["notes"]:
        write_line(f"note: {note}", sys.stderr)
    if not record["ok"]:
        write_line(f"refused: {record['reason']}", sys.stderr)
    return OK if record["ok"] else REFUSED


def _run_list(args: argparse.Namespace) -> int:
    pairs = read_pairs(args.pairs)
    load = cache(lambda: _load(args))  # not at all if nothing is left to do
    records = []
    with tqdm(pairs, desc="registering", unit=" pairs", disable=None) as bar:
        for pair in bar:
            record = _finished(pair, args)
            if record is None:
                try:
                    record = _register(pair, args.out / pair.name, args, load)
                except _MISTAKES as error:
                    record = {"error": str(error)}
            records.append({"name": pair.name, "image_a": str(pair.image_a), "image_b": str(pair.image_b), **record})
    write_table(args.out / TABLE, records)
    write_line(table(records))
    if any("error" in record for record in records):
        return MISTAKE
    return OK if all(record["ok"] for record in records) else REFUSED


def _load(args: argparse.Namespace) -> RRLMatcher:
    name = [args.weights] if args.weights else []
    return RRLMatcher.from_pretrained(*name, device=args.device)


def _register(
    pair: Pair, folder: Path | None, args: argparse.Namespace, load: Callable[[], RRLMatcher], progress: bool = False
) -> dict[str, Any]:
    """Read, register and write a pair; returns its record."""
    a, b, note = _read_pair(pair, args)
    matcher = load()
    ranges = args.value_range_a, args.value_range_b
    result = register(
        matcher,
        a.pixels,
        b.pixels,
        args.model,
        mask_a=a.mask,
        mask_b=b.mask,
        value_range=None if ranges == (None, None) else ranges,
        progress=progress,
        **_search(args),
    )
    record = {
        "image_a": str(pair.image_a),
        "image_b": str(pair.image_b),
        **describe(result, a, b, args.model),
        "modalities": list(matcher.modalities),
        "settings": _settings(pair, args),
    }
    record["notes"] += [note] if note else []
    if folder is not None:
        write_results(folder, result, a, b, record)
    return record


def _read_pair(pair: Pair, args: argparse.Namespace) -> tuple[ImageFile, ImageFile, str]:
    """Both images, and a note on how they were read."""
    views: tuple[raster.View | None, raster.View | None] | None = None
    note = ""
    if not args.whole and raster.is_raster(pair.image_a) and raster.is_raster(pair.image_b):
        views = raster.common_views(pair.image_a, pair.image_b)
    view_a, view_b = views or (None, None)
    a = _read(pair.image_a, pair.mask_a, args.bands_a, view_a)
    b = _read(pair.image_b, pair.mask_b, args.bands_b, view_b)
    if views is None and not args.whole and a.georeference and b.georeference:
        note = "the georeferences do not overlap enough or cannot be compared: both rasters were searched whole"
    return a, b, note


def _read(path: Path, mask: Path | None, bands: tuple[int, ...] | None, view: raster.View | None) -> ImageFile:
    image = raster.read_raster(path, bands, view) if raster.is_raster(path) else read_image(path, bands)
    if mask is None:
        return image
    shown = raster.read_raster_mask(mask) if raster.is_raster(mask) else read_mask(mask)
    return with_mask(image, shown, mask)


def _search(args: argparse.Namespace) -> dict[str, Any]:
    """The argument `search` of :func:`register`; nothing if it is left at its default."""
    given = {}
    if args.max_rotation is not None:
        given["rotation"] = args.max_rotation
    if args.scale is not None:
        given["scale"] = tuple(args.scale)
    return {"search": Search(**given)} if given else {}


def _settings(pair: Pair, args: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on besides its images, in terms of JSON."""
    names = (
        "weights",
        "model",
        "max_rotation",
        "scale",
        "value_range_a",
        "value_range_b",
        "bands_a",
        "bands_b",
        "whole",
    )
    settings = {name: getattr(args, name) for name in names}
    masks = {"mask_a": pair.mask_a, "mask_b": pair.mask_b}
    settings |= {name: None if path is None else str(path) for name, path in masks.items()}
    found: dict[str, Any] = json.loads(json.dumps({**settings, "version": __version__}))
    return found


def _finished(pair: Pair, args: argparse.Namespace) -> dict[str, Any] | None:
    """The record of a pair that was registered with the same settings after its files last changed, if there is one."""
    path = args.out / pair.name / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        inputs = [file for file in pair[1:] if file is not None]
        same = [record["image_a"], record["image_b"]] == [str(pair.image_a), str(pair.image_b)]
        newer = all(Path(file).stat().st_mtime <= path.stat().st_mtime for file in inputs)
        return record if same and newer and record["settings"] == _settings(pair, args) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _bands(text: str) -> tuple[int, ...]:
    """One or three numbers from 1, separated by commas."""
    bands = tuple(int(part) for part in text.split(","))
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise argparse.ArgumentTypeError(f"one or three band numbers from 1, as 1 or 4,3,2, got {text!r}")
    return bands


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Without OpenCV's own warnings about files, which the command reports in its own words."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4, and of 5
    level = set_level(_ERRORS_ALONE)
    try:
        yield
    finally:
        set_level(level)
