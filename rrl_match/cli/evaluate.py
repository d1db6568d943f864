"""``rrl-match evaluate``: measure weights on patch benchmarks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rrl_match.cli.common import DONE, Subparsers, add_command, add_weights, require_extra, write_line


def add_parser(subparsers: Subparsers) -> None:
    """Add ``evaluate``."""
    parser = add_command(subparsers, "evaluate", "measure weights on patch benchmarks")
    add_weights(parser)
    parser.add_argument(
        "--benchmark",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help=".npz with patches_a, patches_b, category, pairs and kind; repeat it for several",
    )
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="to compute in"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the metrics as JSON as well")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table for each benchmark."""
    require_extra("sklearn")
    from rrl_match.matcher import RRLMatcher
    from rrl_match.training.evaluation import Benchmark, evaluate, rows_of, summary, table
    from rrl_match.training.results import save_results

    if args.save and not args.save.parent.is_dir():
        args.parser.error(f"the folder {args.save.parent} of --save does not exist")
    matcher = RRLMatcher.from_pretrained(args.weights, device=args.device, dtype=args.dtype)
    benchmarks = {path.stem: Benchmark.load(path) for path in args.benchmark}  # all, before any is measured
    if len(benchmarks) < len(args.benchmark):
        args.parser.error("the files of benchmarks must have different names, by which their metrics are saved")
    results = {}
    for path in args.benchmark:
        result = evaluate(matcher, benchmarks[path.stem], progress=sys.stderr.isatty())
        results[path.stem] = result
        write_line(f"{args.weights} on {path.name}, {matcher.dtype} on {matcher.device}; all metrics in percent")
        for line in table(result):
            write_line(line)
    if len(results) > 1:
        for line in summary(results):
            write_line(line)
    if args.save:
        save_results(args.save, rows_of(results, str(matcher.dtype).removeprefix("torch.")))
    return DONE
