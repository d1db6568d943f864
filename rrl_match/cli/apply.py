"""``rrl-match apply``: apply a registration to other files."""

from __future__ import annotations

import argparse
from pathlib import Path

from rrl_match.cli.common import DONE, Subparsers, add_command, add_warping, check_folder, write_line

_EPILOG = """
What lies on A is placed by its georeference, or by its size: other bands, other resolutions. Tables of points hold
pixels of A in columns x, y; GeoJSON has longitudes and latitudes, coordinates of A's map, or pixels of A.

  rrl-match apply result/registration.json nir.tif red_edge.tif --out aligned
  rrl-match apply result/registration.json drone.tif --grid a --out aligned       (A's resolution on B's map)
  rrl-match apply result/registration.json drone.tif --georeference-only --out aligned
  rrl-match apply result/registration.json trees.csv fields.geojson --out aligned
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add ``apply``."""
    parser = add_command(
        subparsers,
        "apply",
        "apply a registration to other bands, rasters or points",
        description="Move what lies on image A of a registration to image B. Prints the files that it writes.",
        epilog=_EPILOG,
    )
    parser.add_argument("registration", type=Path, help="a registration.json that `rrl-match register` wrote")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="image, raster, .csv or .geojson")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where files of the same names go")
    add_warping(parser)
    parser.add_argument(
        "--georeference-only", action="store_true", help="correct the georeference of rasters without resampling them"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Apply, and print the files that were written."""
    from rrl_match.io.apply import apply, read_registration

    check_folder(args.parser, args.out)
    stems = [path.stem for path in args.files]
    if len(set(stems)) < len(stems):
        args.parser.error("the files must have different names, by which the results go")
    for path in (args.registration, *args.files):
        if not path.is_file():
            args.parser.error(f"{path} does not exist")
    applied = read_registration(args.registration)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.files:
        out = apply(applied, path, args.out, args.grid, args.resampling, args.georeference_only)
        write_line(str(out))
    return DONE
