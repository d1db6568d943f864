"""``rrl-match stack``: bands of a camera, or dates, onto one of them, as one file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rrl_match.cli.common import (
    DONE,
    NEGATIVE,
    Subparsers,
    add_command,
    add_resampling,
    add_search,
    add_weights,
    count,
    search_of,
    write_line,
)
from rrl_match.transforms import MatrixTransform, Transform

_EPILOG = """
All pairs are registered, and their transforms made consistent. Name the bands that are most like the weights' first
band, as visible ones, first. Prints the transforms, from pixels of each file to the reference, as JSON. Needs
pip install 'rrl-match[geo]'. Exit code: 0 all stacked, 1 some could not be registered and are left out, 2 mistake.

  rrl-match stack blue.tif green.tif red.tif nir.tif --reference 2 --model homography --out stack.tif
  rrl-match stack may.tif june.tif july.tif --out dates.tif
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add ``stack``."""
    parser = add_command(
        subparsers,
        "stack",
        "put bands of a camera, or dates, onto one of them",
        description="Register files with each other and write all their bands onto the pixels of one of them.",
        epilog=_EPILOG,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="BAND", help="images or rasters, of one or more bands")
    parser.add_argument("--reference", type=count, default=1, metavar="N", help="which of them the others are put onto")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the GeoTIFF to write")
    add_weights(parser)
    models = [name for name, kind in Transform.kinds.items() if issubclass(kind, MatrixTransform)]
    parser.add_argument(
        "--model", choices=models, default="affine", help="what may be fitted; homography for lenses side by side"
    )
    add_search(parser)
    add_resampling(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Stack, and print what was found."""
    from rrl_match.io.batch import Options
    from rrl_match.io.results import as_json
    from rrl_match.io.stack import stack_files

    if len(args.files) < 2:
        args.parser.error("name two files or more")
    if args.reference > len(args.files):
        args.parser.error(f"--reference must be from 1 to {len(args.files)}, the number of files")
    if args.out.suffix.lower() not in (".tif", ".tiff") or args.out.is_dir():
        args.parser.error(f"--out must be a file whose name ends with .tif, got {args.out}")
    options = Options(args.weights, args.device, args.model, search_of(args), resampling=args.resampling)
    record = stack_files(options.matcher(), args.files, args.reference - 1, options, args.out)
    write_line(as_json(record))
    left_out = [one["file"] for one in record["files"] if one["transform"] is None]
    for file in left_out:
        write_line(f"left out: {file} could not be registered to the others", sys.stderr)
    return NEGATIVE if left_out else DONE
