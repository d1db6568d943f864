"""Match patches of images from different sensors with RRL-Net."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from rrl_match import export, selftest
from rrl_match._version import __version__
from rrl_match.errors import RRLMatchError
from rrl_match.registration import command as registration
from rrl_match.training import commands as training

# In the order of the help. Each adds one or more parsers to argparse's subparsers, with the default `run`: a function
# from the parsed arguments to the exit code.
COMMANDS = (
    registration.add_command,
    training.add_commands,
    export.add_command,
    selftest.add_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; expected errors end the process with a one-line message."""
    parser = argparse.ArgumentParser("rrl-match", description=__doc__)
    parser.add_argument("--version", action="version", version=f"rrl-match {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(subparsers)
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rrl_match").setLevel(logging.INFO)
    try:
        return int(args.run(args))
    except (RRLMatchError, ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
