"""Measure how fast this machine scores, matches and registers.

    python examples/benchmark.py [--device cuda] [--save results.json]
    OMP_NUM_THREADS=1 python examples/benchmark.py --weights universal --dtypes bfloat16

The sets of weights alternate, so that their ratio does not depend on what else the machine does. With one thread on a
CPU, seconds are processor time.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from example_pair import read_pair

from rrl_match import RRLMatcher, extract_patches, register
from rrl_match.training.results import machine, save_results

ROUNDS = 3  # the median counts

Call: TypeAlias = Callable[[], object]

FIRST_SCORE = """
import sys, time
import numpy, torch
start = time.perf_counter()
from rrl_match import RRLMatcher
RRLMatcher.from_pretrained(sys.argv[1], device=sys.argv[2]).score(*numpy.zeros((2, 64, 64), numpy.uint8))
print(time.perf_counter() - start)
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["universal", "universal-lite"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    parser.add_argument("--matrix", type=int, default=60, help="patches per band for score_matrix; 0 to skip")
    parser.add_argument("--match", type=int, default=300, help="patches per band for match; 0 to skip")
    parser.add_argument("--register", type=int, default=1, help="0 to skip")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    cv2.setNumThreads(torch.get_num_threads())
    about = machine()
    print(f"{about['gpu'] or about['cpu']}, {about['threads']} threads, PyTorch {about['torch']}\n", flush=True)
    print("| weights | dtype | call | size | seconds |\n| --- | --- | --- | ---: | ---: |")
    rows = []
    for row in measure(args):
        rows.append(row)
        print("| {weights} | {dtype} | {call} | {size} | {seconds:.4f} |".format(**row), flush=True)
    print(f"\npeak memory {peak_memory(args.device) / 1e6:.0f} MB")
    if args.save:
        save_results(args.save, rows)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each dtype, call and set of weights: size of the batch or patches per band, and seconds a call."""
    image_a, image_b, a_to_b = read_pair("naip")
    points = np.random.default_rng(0).uniform(150, 500, (max(*args.batch_sizes, args.matrix, args.match), 2))
    a, _ = extract_patches(image_a, points)
    b, _ = extract_patches(image_b, points @ a_to_b[:, :2].T + a_to_b[:, 2])
    for dtype in args.dtypes:
        matchers = [RRLMatcher.from_pretrained(name, device=args.device, dtype=dtype) for name in args.weights]
        sizes = [("score", n) for n in args.batch_sizes] + [("score_matrix", args.matrix), ("match", args.match)]
        for call, n in sizes:
            if n:
                calls = [functools.partial(getattr(matcher, call), a[:n], b[:n]) for matcher in matchers]
                yield from _rows(args, dtype, call, n, seconds_of(calls, args.seconds, matchers[0].device))
        if args.register:
            calls = [functools.partial(register, matcher, image_a, image_b) for matcher in matchers]
            yield from _rows(args, dtype, "register", 1, seconds_of(calls, args.seconds, matchers[0].device))
    first = [first_score(name, args.device) for name in args.weights]
    yield from _rows(args, "auto", "import and first score", 1, first)


def _rows(
    args: argparse.Namespace, dtype: str, call: str, size: int, seconds: Sequence[float]
) -> Iterator[dict[str, Any]]:
    for name, value in zip(args.weights, seconds, strict=True):
        yield {"weights": name, "dtype": dtype, "call": call, "size": size, "seconds": round(value, 4)}


def seconds_of(calls: Sequence[Call], duration: float, device: torch.device) -> list[float]:
    """Seconds of each call, alternating, over about `duration` seconds each."""
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter

    def run(call: Call, times: int) -> float:
        start = clock()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    for call in calls:
        run(call, 1)  # warm up
    times = [max(1, int(duration / ROUNDS / run(call, 1))) for call in calls]
    rounds = [[run(call, n) / n for call, n in zip(calls, times, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(of_call) for of_call in zip(*rounds, strict=True)]


def first_score(weights: str, device: str) -> float:
    """Seconds from import to the first score, in a new process that has imported torch."""
    command = [sys.executable, "-c", FIRST_SCORE, weights, device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(device: str) -> int:
    """Peak memory of this process in bytes, on the GPU or else the CPU; 0 if the system does not report it."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
