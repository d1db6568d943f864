"""What the commands share: exit codes, types of arguments, output."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from rrl_match.errors import MissingExtraError
from rrl_match.hub import DEFAULT_WEIGHTS, bundled_names

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, NEGATIVE, MISTAKE, BUG, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes
_OF_FILES = frozenset((".csv", ".geojson", ".gif", ".jpeg", ".jpg", ".json", ".png", ".tif", ".tiff"))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions, and tells the defaults of options."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        is_told = "(default:" in text or default in (None, argparse.SUPPRESS, [])
        return text if is_told or action.nargs == 0 or not action.option_strings else f"{text} (default: %(default)s)"


def add_command(
    subparsers: Subparsers, name: str, summary: str, description: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Add the parser of a command."""
    return subparsers.add_parser(
        name, help=summary, description=description or summary, epilog=epilog, formatter_class=HelpFormatter
    )


def check_folder(parser: argparse.ArgumentParser, path: Path) -> None:
    """End the process if --out is, or looks like, a file."""
    if path.exists() and not path.is_dir():
        parser.error(f"--out must be a folder, but {path} is a file")
    if not path.exists() and path.suffix.lower() in _OF_FILES:
        parser.error(f"--out must be a folder, in which several files are written, but {path} looks like a file")


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line at once, even to a pipe; to stdout if no stream is given."""
    stream = stream or sys.stdout
    stream.write(line + "\n")
    stream.flush()


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and ``--device``."""
    names = f"{', '.join(bundled_names())}, a folder or a Hub repo id"
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS, help=names)
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1 or auto, CUDA if there is one")


def add_warping(parser: argparse.ArgumentParser) -> None:
    """Add ``--grid`` and ``--resampling``, of files that are warped."""
    parser.add_argument(
        "--grid", choices=("a", "b"), default="b", help="of warped files: B's pixels, or A's resolution on B's map"
    )
    add_resampling(parser)


def add_resampling(parser: argparse.ArgumentParser) -> None:
    """Add ``--resampling``."""
    parser.add_argument(
        "--resampling",
        choices=("nearest", "bilinear", "cubic"),
        help="of warped files (default: bilinear; nearest for bands of classes or flags)",
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add options that say how far to look."""
    parser.add_argument("--max-rotation", type=float, metavar="DEG", help="largest rotation to search (default: 180)")
    parser.add_argument(
        "--scale",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="pixels of B for a pixel of A, or relative to the georeferences (default: what the images' sizes allow)",
    )
    parser.add_argument(
        "--max-shift",
        type=float,
        metavar="PIXELS",
        help="pixels of B that A's centre may lie from where the georeferences, or equal pixels, put it (default: any)",
    )
    parser.add_argument("--mirrored", action="store_true", help="search mirrored images, too")


def search_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`rrl_match.Search` that were given; ends the process if they make no sense."""
    error = args.parser.error
    if args.max_rotation is not None and not 0 <= args.max_rotation <= 180:
        error(f"--max-rotation must be from 0 to 180 degrees, got {args.max_rotation:g}")
    if args.max_shift is not None and not 0 < args.max_shift < float("inf"):
        error(f"--max-shift must be a positive number of pixels, got {args.max_shift:g}")
    if args.scale is not None and not 0 < args.scale[0] <= args.scale[1] < float("inf"):
        error(f"--scale must be two positive numbers, LOW <= HIGH, got {args.scale[0]:g} {args.scale[1]:g}")
    given = {"rotation": args.max_rotation, "scale": args.scale and tuple(args.scale), "shift": args.max_shift}
    return {name: value for name, value in (given | {"mirrored": args.mirrored or None}).items() if value is not None}


def device(text: str) -> str:
    """A device of PyTorch that is there, or "auto"."""
    if text != "auto":
        from rrl_match.inference import choose_device

        try:
            choose_device(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def count(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def count_or_none(text: str) -> int:
    """An integer of at least 0."""
    return 0 if text == "0" else count(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], got {text}")
    return value


def require_extra(*modules: str) -> None:
    """Raises MissingExtraError if modules of the extra `train` are missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"this command needs {', '.join(missing)}: pip install 'rrl-match[train]'")
