"""``rrl-match train``: train weights on registered image pairs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rrl_match.cli.common import DONE, Subparsers, add_command, count, count_or_none, require_extra, write_line


def add_parser(subparsers: Subparsers) -> None:
    """Add ``train``."""
    parser = add_command(subparsers, "train", "train weights on registered image pairs")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="FOLDER[=WEIGHT]",
        help="folder with a manifest.csv and its images; repeat it for several sources",
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder; an interrupted run resumes from it")
    parser.add_argument("--recipe", default="universal", help="a recipe of the package, or a JSON file")
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="WEIGHTS[=WEIGHT]",
        help="weights to start from, a bundled name or a folder; repeat it for the weighted mean of several",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="to compute in")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto is all GPUs, if there are any")
    parser.add_argument("--compile", action="store_true", help="compile the network; needs a C++ compiler on a CPU")
    parser.add_argument("--steps", type=count, help="steps of the main phase (default: the recipe's)")
    parser.add_argument(
        "--pretraining-steps", type=count_or_none, metavar="STEPS", help="steps of pretraining; 0 skips it"
    )
    parser.add_argument(
        "--checkpoint-every", type=count, default=100, metavar="STEPS", help="steps from one to the next"
    )
    parser.add_argument("--validate-every", type=count, default=400, metavar="STEPS", help="steps from one to the next")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Train, and print where the weights are."""
    require_extra("accelerate", "sklearn", "tensorboard", "tqdm")
    from rrl_match.training.datasets import read_source
    from rrl_match.training.recipe import Recipe
    from rrl_match.training.start import read_start
    from rrl_match.training.trainer import Trainer

    trainer = Trainer(
        Recipe.load(args.recipe).with_steps(args.steps, args.pretraining_steps),
        [read_source(folder) for folder in args.data],
        args.out,
        seed=args.seed,
        precision=args.precision,
        device=args.device,
        compile=args.compile,
        start=read_start(args.start),
        checkpoint_every=args.checkpoint_every,
        validate_every=args.validate_every,
    )
    write_line(f"weights: {trainer.train()}")
    return DONE
