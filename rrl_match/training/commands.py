"""The commands ``train``, ``evaluate`` and ``convert`` of ``rrl-match``.

What they need beyond rrl-match itself is imported when they run, so that ``rrl-match --help`` works without it.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from rrl_match._command_line import Subparsers, write_line


def add_commands(subparsers: Subparsers) -> None:
    """Add the parsers; each sets ``run``, which takes the parsed arguments and returns the exit code."""
    _add_train(subparsers)
    _add_evaluate(subparsers)
    _add_convert(subparsers)


def _add_train(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("train", help="train weights on registered image pairs")
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the network; needs a C++ compiler on a CPU")
    parser.add_argument("--steps", type=_count, help="steps of the main phase (default: the recipe's)")
    parser.add_argument(
        "--pretraining-steps", type=_count_or_none, metavar="STEPS", help="steps of pretraining; 0 skips it"
    )
    parser.add_argument("--checkpoint-every", type=_count, default=100, metavar="STEPS")
    parser.add_argument("--validate-every", type=_count, default=400, metavar="STEPS")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    _require_extra("accelerate", "sklearn", "tensorboard", "tqdm")
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
    return 0


def _add_evaluate(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("evaluate", help="measure weights on patch benchmarks")
    parser.add_argument("--weights", default="universal", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument(
        "--benchmark",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help=".npz with patches_a, patches_b, category, pairs and kind; repeat it for several",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the metrics as JSON as well")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    _require_extra("sklearn")
    from rrl_match.matcher import RRLMatcher
    from rrl_match.training.evaluation import Benchmark, evaluate, rows_of, summary, table
    from rrl_match.training.results import save_results

    if args.save and not args.save.parent.is_dir():
        raise FileNotFoundError(f"folder {args.save.parent} does not exist")  # before anything is measured
    matcher = RRLMatcher.from_pretrained(args.weights, device=args.device, dtype=args.dtype)
    benchmarks = {path.stem: Benchmark.load(path) for path in args.benchmark}  # all, before any is measured
    if len(benchmarks) < len(args.benchmark):
        raise ValueError("the files of benchmarks must have different names, by which their metrics are saved")
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
    return 0


def _add_convert(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("convert", help="convert one of the authors' Keras models to a weights folder")
    parser.add_argument("file", type=Path, help="HDF5 file, of the training or the test graph")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--modalities", nargs=2, default=("vis", "nir"), metavar=("A", "B"), help="names of the bands")
    parser.add_argument("--threshold", type=float, default=0.5, help="score above which a pair counts as a match")
    parser.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    _require_extra("h5py", "sklearn")
    from rrl_match.pretrained import ModelConfig, save_folder
    from rrl_match.training.card import model_card
    from rrl_match.training.convert import load_keras_weights
    from rrl_match.training.network import TrainingRRLNet

    network = load_keras_weights(args.file)
    if isinstance(network, TrainingRRLNet):
        network = network.prune()
    training = {"data": "", "recipe": f"converted from {args.file.name}, trained with the authors' code"}
    config = ModelConfig(tuple(args.modalities), args.threshold, network.config, "float32", training)
    write_line(f"weights: {save_folder(args.out, network, config, model_card(config))}")
    return 0


def _require_extra(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(f"this command needs {', '.join(missing)}: pip install 'rrl-match[train]'")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)
