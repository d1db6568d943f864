"""Command line: ``python -m rrl_match register | selftest | export``; training: ``python -m rrl_match.training``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rrl_match.errors import RRLMatchError
from rrl_match.export import BATCHES, BOUND, PARTS, export_onnx, export_torch
from rrl_match.matcher import RRLMatcher
from rrl_match.pretrained import bundled_names
from rrl_match.registration import command
from rrl_match.selftest import run_checks, versions


def _selftest(_: argparse.Namespace) -> int:
    """Versions, then a line for each check; 1 if one failed or there was nothing to check."""
    for name, version in versions().items():
        _say(f"{name:16s}{version}")
    failed = 0
    for check in run_checks():
        what = f"{check.weights:16s}{check.device:10s}{str(check.dtype).removeprefix('torch.'):10s}"
        outcome = check.problem or f"differs by {check.deviation:.1e}, bound {check.bound:.0e}"
        against = "" if check.released else " (no scores were stored at release: against this CPU's float32)"
        _say(f"{what}{'ok' if check.passed else 'FAILED':8s}{outcome}{against}")
        failed += not check.passed
    if not bundled_names():
        _say("no bundled weights: rrl-match is not installed, only imported from a checkout")
        return 1
    _say(f"{failed} checks failed" if failed else "all checks passed")
    return int(failed > 0)


def _export(args: argparse.Namespace) -> int:
    export = {"onnx": export_onnx, "torch": export_torch}[args.format]
    matcher = RRLMatcher.from_pretrained(args.weights, device="cpu", dtype="float32")
    for written in export(matcher, args.folder, args.parts):
        _say(f"{written.path}: within {written.deviation:.1e} of PyTorch at batches of {BATCHES}, bound {BOUND:.0e}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; mistakes are told in a line."""
    parser = argparse.ArgumentParser("python -m rrl_match", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    selftest = commands.add_parser("selftest", help="check the bundled weights on this machine; output for bug reports")
    selftest.set_defaults(run=_selftest)
    export = commands.add_parser("export", help="write a network for ONNX Runtime or torch.export.load")
    export.add_argument("weights", help="a bundled name, a folder or a Hub repo id")
    export.add_argument("folder", type=Path, help="where the files go")
    export.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    export.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    export.set_defaults(run=_export)
    command.add_command(commands)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except (RRLMatchError, ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
