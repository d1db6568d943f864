"""What the commands of ``rrl-match`` share."""

from __future__ import annotations

import argparse
import sys
from typing import TypeAlias

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def write_line(line: str) -> None:
    """Write a line to stdout at once, even if it is a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
