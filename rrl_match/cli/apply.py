"""``rrl-match apply``: apply a registration to other files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rrl_match.cli.common import DONE, Subparsers, write_line
from rrl_match.io.images import Resampling

_EPILOG = """
What lies on A is placed by its georeference, or by its size: other bands, other resolutions. Tables hold pixels of A in
columns x, y; GeoJSON lies on A's map, or has pixels of A. Exit code: 0 all written, 2 mistake.

  rrl-match apply result/registration.json nir.tif red_edge.tif --out aligned
  rrl-match apply result/registration.json drone.tif --grid a --out aligned       (A's resolution on B's map)
  rrl-match apply result/registration.json drone.tif --georeference-only --out aligned
  rrl-match apply result/registration.json trees.csv fields.geojson --out aligned
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add ``apply``."""
    parser = subparsers.add_parser(
        "apply",
        help="apply a registration to other bands, rasters or points",
        description="Move what lies on image A of a registration to image B. Prints the files that it writes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("registration", type=Path, help="a registration.json that `rrl-match register` wrote")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="image, raster, .csv or .geojson")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where files of the same names go")
    parser.add_argument(
        "--grid", choices=("a", "b"), default="b", help="B's pixels (default), or the file's resolution on B's map"
    )
    parser.add_argument(
        "--resampling",
        choices=get_args(Resampling),
        help="default: bilinear; nearest for bands of classes or flags",
    )
    parser.add_argument(
        "--georeference-only", action="store_true", help="correct the georeference of rasters without resampling them"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Apply, and print the files that were written."""
    from rrl_match.io import apply

    if args.out.exists() and not args.out.is_dir():
        args.parser.error(f"--out must be a folder, but {args.out} is a file")
    stems = [path.stem for path in args.files]
    if len(set(stems)) < len(stems):
        args.parser.error("the files must have different names, by which the results go")
    applied = apply.read_registration(args.registration)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.files:
        if path.suffix.lower() in apply.POINTS:
            out = apply.apply_to_points(applied, path, args.out)
        elif path.suffix.lower() in apply.SHAPES:
            out = apply.apply_to_shapes(applied, path, args.out)
        elif args.georeference_only:
            out = apply.apply_to_georeference(applied, path, args.out)
        else:
            out = apply.apply_to_image(applied, path, args.out, args.grid, args.resampling)
        write_line(str(out))
    return DONE
