"""``rrl-match selftest``: check the bundled weights on this machine."""

from __future__ import annotations

import argparse

from rrl_match.cli.common import DONE, NEGATIVE, Subparsers, add_command, write_line


def add_parser(subparsers: Subparsers) -> None:
    """Add ``selftest``."""
    parser = add_command(subparsers, "selftest", "check the bundled weights on this machine; output for bug reports")
    parser.set_defaults(run=run, parser=parser)


def run(_: argparse.Namespace) -> int:
    """Print the versions and one line per check; negative if a check failed or there was nothing to check."""
    from rrl_match.selftest import run_checks, versions

    for name, version in versions().items():
        write_line(f"{name:16s}{version}")
    outcomes = []
    for check in run_checks():
        where = f"{check.weights:16s}{check.device:10s}{str(check.dtype).removeprefix('torch.'):10s}"
        result = check.problem or f"deviation {check.deviation:.1e}, bound {check.bound:.0e}"
        reference = "" if check.released else " (no scores stored at release: compared with float32 on this CPU)"
        write_line(f"{where}{'ok' if check.passed else 'FAILED':8s}{result}{reference}")
        outcomes.append(check.passed)
    if not outcomes:
        write_line("no bundled weights: rrl-match is not installed")
    elif all(outcomes):
        write_line("all checks passed")
        return DONE
    else:
        write_line(f"{outcomes.count(False)} checks failed")
    return NEGATIVE
