"""Helpers of the commands of ``rrl-match``."""

from __future__ import annotations

import argparse
import sys
from typing import TextIO, TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line at once, even to a pipe; to stdout if no stream is given."""
    stream = stream or sys.stdout
    stream.write(line + "\n")
    stream.flush()
