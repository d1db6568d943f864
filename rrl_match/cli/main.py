"""Match and register images from different sensors with RRL-Net."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence

from rrl_match._version import __version__
from rrl_match.cli import apply, convert, evaluate, export, register, selftest, stack, train
from rrl_match.cli.common import BUG, INTERRUPTED, MISTAKE, HelpFormatter, write_line
from rrl_match.errors import RRLMatchError

# In the order of the help. Each adds a parser with the defaults `run`, a function from the parsed arguments to the exit
# code, and `parser`, itself. What a command needs is imported when it runs: `--version` and `--help` load no PyTorch.
COMMANDS = (register, apply, stack, train, evaluate, convert, export, selftest)
_EPILOG = """
Exit code of all commands: 0 done; 1 it ran, but refused a pair or failed a check; 2 a mistake in the arguments or
files, told in one line; 3 a bug, told by a traceback; 130 interrupted. `rrl-match COMMAND --help` says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; expected errors are one line on stderr, all others a traceback."""
    parser = argparse.ArgumentParser("rrl-match", description=__doc__, epilog=_EPILOG, formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=f"rrl-match {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rrl_match").setLevel(logging.INFO)
    try:
        return int(args.run(args))
    except (RRLMatchError, OSError) as error:
        write_line(f"error: {error}", sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        write_line("interrupted", sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return BUG
