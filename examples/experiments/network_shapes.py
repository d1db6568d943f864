"""How accurate and how fast networks of several shapes are that were trained with equal budgets.

    rrl-match train --data FOLDER --recipe wide.json --out runs/wide  # one run for each shape
    python network_shapes.py runs/wide runs/narrow --baseline universal --plot FILE.png

Prints a row for each run and plots accuracy over speed.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrl_match.matcher import RRLMatcher

ROUNDS = 5  # the median counts


class Shape(NamedTuple):
    """Accuracy and speed of the network that a run trained."""

    name: str
    parameters: int
    fpr95: float  # of the weights kept, in percent: mean over the sources' held-back images
    times_as_fast: list[float]  # as the baseline, for each batch size


def measure(runs: Sequence[Path], baseline: str, batch_sizes: Sequence[int], dtype: str, seconds: float) -> list[Shape]:
    """Shapes in the order of the runs.

    Args:
        runs: finished run folders of ``rrl-match train``.
        baseline: weights to compare speeds with.
        batch_sizes: of :meth:`RRLMatcher.score`.
        dtype: as of :class:`RRLMatcher`.
        seconds: duration of each measurement, on the CPU; the networks alternate.
    """
    names = [baseline, *(str(run / "weights") for run in runs)]
    matchers = [RRLMatcher.from_pretrained(name, device="cpu", dtype=dtype) for name in names]
    rates = [_rates(matchers, batch_size, seconds) for batch_size in batch_sizes]
    shapes = []
    for k, (run, matcher) in enumerate(zip(runs, matchers[1:], strict=True), 1):
        parameters = sum(p.numel() for p in matcher._network.parameters())
        faster = [of_size[k] / of_size[0] for of_size in rates]
        shapes.append(Shape(run.name, parameters, held_back_fpr95(run), faster))
    return shapes


def held_back_fpr95(run: Path) -> float:
    """Lowest mean FPR95 in a run's log, which picked its weights."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return min(float(line["fpr95"]) for line in lines if line["phase"] in ("validation", "validation_average"))


def _rates(matchers: Sequence[RRLMatcher], batch_size: int, seconds: float) -> list[float]:
    """Pairs per second of each matcher."""
    patches = np.random.default_rng(0).integers(256, size=(2, batch_size, 64, 64), dtype=np.uint8)
    calls = [functools.partial(matcher.score, *patches) for matcher in matchers]
    rounds = []
    for _ in range(1 + ROUNDS):
        done = []
        for call in calls:
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds / ROUNDS:
                call()
                count += 1
            done.append(count * batch_size / (time.perf_counter() - start))
        rounds.append(done)
    return [statistics.median(of_call) for of_call in zip(*rounds[1:], strict=True)]  # the first round warms up


def plot(shapes: Sequence[Shape], baseline: str, batch_sizes: Sequence[int], path: Path) -> None:
    """Plot FPR95 over the speed at each batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, batch_size in enumerate(batch_sizes):
        faster = [shape.times_as_fast[k] for shape in shapes]
        axes.plot(faster, [shape.fpr95 for shape in shapes], "so^v"[k % 4], label=f"batch size {batch_size}")
    for shape in shapes:
        axes.annotate(
            shape.name, (shape.times_as_fast[-1], shape.fpr95), (0, 7), textcoords="offset points", size=8, ha="center"
        )
    axes.set(xlabel=f"times as fast as {baseline}", ylabel="FPR95 in percent")
    axes.margins(x=0.2, y=0.1)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and plot accuracy and speed of several runs."""
    parser = argparse.ArgumentParser(description="Compare networks of several shapes by accuracy and speed.")
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("--baseline", default="universal", help="weights to compare speeds with")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args(arguments)
    shapes = measure(args.runs, args.baseline, args.batch_sizes, args.dtype, args.seconds)
    columns = [f"times as fast, batch size {n}" for n in args.batch_sizes]
    print("|", " | ".join(["shape", "million parameters", "FPR95", *columns]), "|")
    print("| ---", "| ---:" * (2 + len(columns)), "|")
    for shape in shapes:
        faster = [f"{ratio:.1f}" for ratio in shape.times_as_fast]
        print("|", " | ".join([shape.name, f"{shape.parameters / 1e6:.2f}", f"{shape.fpr95:.1f}", *faster]), "|")
    if args.plot:
        plot(shapes, args.baseline, args.batch_sizes, args.plot)


if __name__ == "__main__":
    main()
