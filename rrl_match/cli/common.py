"""What the commands share: exit codes, types of arguments, output."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import TextIO, TypeAlias

from rrl_match.errors import MissingExtraError
from rrl_match.hub import DEFAULT_WEIGHTS, bundled_names

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, NEGATIVE, MISTAKE, INTERRUPTED = 0, 1, 2, 130  # exit codes


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line at once, even to a pipe; to stdout if no stream is given."""
    stream = stream or sys.stdout
    stream.write(line + "\n")
    stream.flush()


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and ``--device``."""
    names = f"{', '.join(bundled_names())}, a folder or a Hub repo id (default: %(default)s)"
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS, help=names)
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1 or auto, the default")


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
