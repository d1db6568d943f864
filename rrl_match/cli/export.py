"""``rrl-match export``: networks as files for ONNX Runtime or ``torch.export.load``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rrl_match.cli.common import DONE, Subparsers, add_command, write_line
from rrl_match.hub import bundled_names


def add_parser(subparsers: Subparsers) -> None:
    """Add ``export``."""
    parser = add_command(subparsers, "export", "export a network for ONNX Runtime or torch.export.load")
    parser.add_argument("weights", help=f"{', '.join(bundled_names())}, a folder or a Hub repo id")
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="of the files")
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", help="scorer, encoder_a, encoder_b, pair_scorer (default: all)"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Export, and print how far each file differs from PyTorch."""
    from rrl_match.export import BATCHES, BOUND, PARTS, export_onnx, export_torch
    from rrl_match.matcher import RRLMatcher

    unknown = set(args.parts or ()) - set(PARTS)
    if unknown:
        args.parser.error(f"--parts must be some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    export = {"onnx": export_onnx, "torch": export_torch}[args.format]
    matcher = RRLMatcher.from_pretrained(args.weights, device="cpu", dtype="float32")
    batches = ", ".join(map(str, BATCHES))
    for file in export(matcher, args.folder, args.parts or PARTS):
        write_line(
            f"{file.path}: differs from PyTorch by {file.deviation:.1e}, bound {BOUND:.0e}, in batches of {batches}"
        )
    return DONE
