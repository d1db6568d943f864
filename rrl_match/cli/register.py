"""``rrl-match register``: register two image files, a list of pairs, or the frames of a rig."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rrl_match.cli.common import (
    DONE,
    MISTAKE,
    NEGATIVE,
    Subparsers,
    add_command,
    add_search,
    add_warping,
    add_weights,
    check_folder,
    count,
    search_of,
    write_line,
)
from rrl_match.transforms import Transform

if TYPE_CHECKING:
    from rrl_match.io.batch import Options

_EPILOG = """
The transform takes pixel (x, y) of A to B, pixel centres at integers: A is moved, B stays. Either image may be A if the
weights' first band is like both, as a map and a photograph. Exit code: 0 registered, 1 refused, 2 mistake.

  rrl-match register visible.png nir.png --out result
  rrl-match register rgb.jpg thermal.tiff --weights vis-lwir --value-range-b 29000 31500 --out result
  rrl-match register drone.tif sentinel.tif --bands-a 4 --grid a --out result  (drone's resolution on sentinel's map)
  rrl-match register --pairs pairs.csv --out results                     (columns image_a,image_b[,name,mask_a,mask_b])
  rrl-match register --pairs frames.csv --rig --out result               (two fixed cameras; then rrl-match apply)
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add ``register``."""
    parser = add_command(
        subparsers,
        "register",
        "register two image files, a list of pairs, or the frames of a rig",
        description="Find the transform from image A to image B, or refuse. Prints it as JSON.",
        epilog=_EPILOG,
    )
    parser.add_argument("image_a", nargs="?", type=Path, metavar="A", help="image of the weights' first band")
    parser.add_argument("image_b", nargs="?", type=Path, metavar="B", help="image of their second band")
    parser.add_argument("--pairs", type=Path, metavar="CSV", help="a list of pairs instead; finished ones are kept")
    parser.add_argument(
        "--rig",
        action="store_true",
        help="the pairs are frames of two cameras that do not move against each other: one transform of all",
    )
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="processes for --pairs, with one thread each"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write the warped image, a checkerboard, tie points, a report"
    )
    add_weights(parser)
    parser.add_argument("--model", choices=tuple(Transform.kinds), default="affine", help="what may be fitted")
    add_search(parser)
    for band in "ab":
        _add_image(parser, band)
    parser.add_argument("--whole", action="store_true", help="search beyond where the georeferences overlap")
    add_warping(parser)
    parser.set_defaults(run=run, parser=parser)


def _add_image(parser: argparse.ArgumentParser, band: str) -> None:
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
        f"--bands-{band}",
        type=_bands,
        metavar="N[,N,N]",
        help=f"band or three bands of {name} to match by (default: colours)",
    )


def run(args: argparse.Namespace) -> int:
    """Register what the arguments name."""
    _check(args)
    return _run_list(args) if args.pairs and not args.rig else _run_one(args)


def _check(args: argparse.Namespace) -> None:
    """Ends the process for arguments that do not go together."""
    error = args.parser.error
    if args.pairs is None and args.image_b is None:
        error("name two images, A and B, or a list of pairs with --pairs")
    if args.pairs is not None:
        if args.image_a is not None:
            error("name two images or --pairs, not both")
        if args.out is None and not args.rig:
            error("--pairs needs --out FOLDER, where the results go")
        if args.mask_a or args.mask_b:
            error("masks of a list of pairs go into its columns mask_a and mask_b")
    elif args.rig:
        error("--rig needs the frames of both cameras as --pairs CSV")
    if args.jobs > 1 and (args.pairs is None or args.rig):
        error("--jobs is for a list of pairs that are registered one by one")
    if args.out is not None:
        check_folder(args.parser, args.out)
    for given, name in ((args.value_range_a, "a"), (args.value_range_b, "b")):
        if given is not None and not float("-inf") < given[0] < given[1] < float("inf"):
            error(f"--value-range-{name} must be two numbers, LOW < HIGH, got {given[0]:g} {given[1]:g}")


def _run_one(args: argparse.Namespace) -> int:
    from rrl_match.io.batch import register_files
    from rrl_match.io.pairs import Pair, read_pairs
    from rrl_match.io.results import as_json
    from rrl_match.io.rig import register_rig

    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)  # before the work, for it may not be possible
    options, progress = _options(args), sys.stderr.isatty()
    if args.rig:
        record = register_rig(options.matcher(), read_pairs(args.pairs), options, args.out, progress)
    else:
        pair = Pair("", args.image_a, args.image_b, args.mask_a, args.mask_b)
        record = register_files(options.matcher(), pair, options, args.out, progress)
    write_line(as_json(record))
    for note in record["notes"]:
        write_line(f"note: {note}", sys.stderr)
    if not record["ok"]:
        write_line(f"refused: {record['reason']}", sys.stderr)
        if record["advice"]:
            write_line(f"advice: {record['advice']}", sys.stderr)
    return DONE if record["ok"] else NEGATIVE


def _run_list(args: argparse.Namespace) -> int:
    from rrl_match.io.batch import register_list
    from rrl_match.io.pairs import outcome, read_pairs, table

    records = register_list(read_pairs(args.pairs), _options(args), args.out, args.jobs)
    write_line(table(records))
    outcomes = {outcome(record) for record in records}
    return MISTAKE if "error" in outcomes else NEGATIVE if "refused" in outcomes else DONE


def _options(args: argparse.Namespace) -> Options:
    from rrl_match.io.batch import Options

    return Options(
        weights=args.weights,
        device=args.device,
        model=args.model,
        search=search_of(args),
        value_range_a=args.value_range_a and tuple(args.value_range_a),
        value_range_b=args.value_range_b and tuple(args.value_range_b),
        bands_a=args.bands_a,
        bands_b=args.bands_b,
        whole=args.whole,
        resampling=args.resampling,
        grid=args.grid,
    )


def _bands(text: str) -> tuple[int, ...]:
    """One or three numbers from 1, separated by commas."""
    bands = tuple(int(part) for part in text.split(","))
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise argparse.ArgumentTypeError(f"one or three band numbers from 1, as 1 or 4,3,2, got {text!r}")
    return bands
