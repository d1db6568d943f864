"""Measure how fast this machine encodes, scores, matches and registers.

    python examples/benchmark.py [--device cuda] [--save results.json]
    python examples/benchmark.py --weights universal-lite --against universal

Compare rates within one run only. A plain matrix product in the same dtype alternates with the scoring: the ratio of
both rates is comparable between machines.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from example_pair import read_pair
from numpy.typing import NDArray

from rrl_match import RRLMatcher, __version__, extract_patches, register

GFLOP_PER_PAIR = 1.253
ROUNDS = 3  # the median counts

Call: TypeAlias = Callable[[], object]

FIRST_SCORE = """
import sys, time
import numpy, torch
start = time.perf_counter()
from rrl_match import RRLMatcher
matcher = RRLMatcher.from_pretrained(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
matcher.score(*numpy.zeros((2, 64, 64), numpy.uint8))
print(time.perf_counter() - start, time.perf_counter() - loaded)
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="vis-nir", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement of score")
    parser.add_argument("--matrix", type=int, default=500, help="patches per band for score_matrix; 0 to skip")
    parser.add_argument("--match", type=int, default=2000, help="patches per band for match; 0 to skip")
    parser.add_argument("--register", type=int, default=3, help="repetitions of register; 0 to skip")
    parser.add_argument("--against", metavar="WEIGHTS", help="only compare the speed of two sets of weights")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    matcher = RRLMatcher.from_pretrained(args.weights, device=args.device)
    image_a, image_b, a_to_b = read_pair("naip")
    count = max(*args.batch_sizes, args.matrix, args.match)
    points = np.random.default_rng(0).uniform(150, 500, (count, 2))
    patches_a, _ = extract_patches(image_a, points)
    patches_b, _ = extract_patches(image_b, points @ a_to_b[:, :2].T + a_to_b[:, 2])

    if args.against:
        header = f"| dtype | call | {args.weights} |\n| --- | --- | ---: |"
        print_ratios(args.against, matcher.device, header, weights_ratios(args, patches_a, patches_b))
        return
    results: dict[str, Any] = {
        "machine": machine(matcher.device),
        "versions": {"rrl_match": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seconds": first_score(args.weights, matcher.device),
        "score": [],
    }
    print(f"{results['machine']}; PyTorch {torch.__version__}; {results['seconds']}\n", flush=True)
    print("| dtype | batch size | pairs/s | GFLOP/s | of matrix product |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for dtype in args.dtypes:
        scorer = RRLMatcher.from_pretrained(args.weights, device=matcher.device, dtype=dtype)
        for row in score_rates(scorer, args.batch_sizes, patches_a, patches_b, args.seconds):
            results["score"].append(row)
            print(
                f"| {row['dtype']} | {row['batch_size']} | {row['pairs_per_second']:.0f} | {row['gflops']:.0f} "
                f"| {100 * row['of_matrix_product']:.0f} % |",
                flush=True,
            )
    took = results["seconds"]
    if args.matrix:
        took["score_matrix"] = seconds(lambda: matcher.score_matrix(patches_a[: args.matrix], patches_b[: args.matrix]))
    if args.match:
        took["match"] = seconds(lambda: matcher.match(patches_a[: args.match], patches_b[: args.match]))
    if args.register:
        runs = [seconds(lambda: register(matcher, image_a, image_b)) for _ in range(args.register)]
        took["register"] = statistics.median(runs)
    results["peak_memory_mb"] = round(peak_memory(matcher.device) / 1e6)
    print(f"\n{matcher.dtype}: {took} s, peak memory {results['peak_memory_mb']} MB")
    if args.save:
        args.save.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def print_ratios(baseline: str, device: torch.device, header: str, rows: Iterator[str]) -> None:
    """A table of speeds relative to a baseline, row by row as they are measured."""
    print(f"Times as fast as {baseline}; {machine(device)}:\n\n{header}", flush=True)
    for row in rows:
        print(row, flush=True)


def score_rates(
    matcher: RRLMatcher, batch_sizes: Sequence[int], patches_a: NDArray[Any], patches_b: NDArray[Any], duration: float
) -> Iterator[dict[str, Any]]:
    """A row for each batch size: pairs per second, beside a matrix product in the same dtype."""
    size = 2048 if matcher.device.type == "cpu" else 8192
    x, y = (torch.randn(size, size, device=matcher.device).to(matcher.dtype) for _ in range(2))
    product = functools.partial(torch.mm, x, y)
    for batch_size in batch_sizes:
        score = functools.partial(matcher.score, patches_a[:batch_size], patches_b[:batch_size])
        calls, products = rates([score, product], duration, matcher.device)
        gflops, ceiling = calls * batch_size * GFLOP_PER_PAIR, products * 2 * size**3 / 1e9
        yield {
            "dtype": str(matcher.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "pairs_per_second": round(calls * batch_size, 1),
            "gflops": round(gflops, 1),
            "of_matrix_product": round(gflops / ceiling, 3),
        }


def weights_ratios(args: argparse.Namespace, patches_a: NDArray[Any], patches_b: NDArray[Any]) -> Iterator[str]:
    """A row for each dtype and call: how many times as fast one set of weights is as the other."""
    for dtype in args.dtypes:
        both = [RRLMatcher.from_pretrained(w, device=args.device, dtype=dtype) for w in (args.weights, args.against)]
        compared = [(f"`score`, batch size {n}", "score", n) for n in args.batch_sizes]
        compared += [
            (f"`{name}`, {n} x {n}", name, n) for name, n in (("score_matrix", args.matrix), ("match", args.match))
        ]
        for label, name, n in compared:
            if n:
                calls = [functools.partial(getattr(m, name), patches_a[:n], patches_b[:n]) for m in both]
                one, other = rates(calls, args.seconds, both[0].device)
                yield f"| {dtype} | {label} | {one / other:.1f} |"


def rates(calls: Sequence[Call], duration: float, device: torch.device) -> list[float]:
    """Calls per second of each, alternating, over about `duration` seconds each."""

    def run(call: Call, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for call in calls:
        run(call, 1)  # warm up
    times = [max(1, int(duration / ROUNDS / run(call, 1))) for call in calls]
    rounds = [[n / run(call, n) for call, n in zip(calls, times, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(of_call) for of_call in zip(*rounds, strict=True)]


def seconds(call: Call) -> float:
    """Duration of one call in seconds."""
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 2)


def first_score(weights: str, device: torch.device) -> dict[str, float]:
    """Seconds from import to the first score, and for that score alone, in a new process that has imported torch."""
    command = [sys.executable, "-c", FIRST_SCORE, weights, str(device)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    total, alone = map(float, printed.split())
    return {"import_to_first_score": round(total, 2), "first_score": round(alone, 3)}


def machine(device: torch.device) -> str:
    """Name of the device; for a CPU also threads and instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes, on the GPU or else the CPU; 0 if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
