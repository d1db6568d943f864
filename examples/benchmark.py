"""How fast this machine scores pairs, and what share of its matrix-product rate that is.

    python examples/benchmark.py [--device cuda] [--save figures.json] [--markdown]

Rates are comparable within one run only: a plain matrix product in the same dtype takes turns with each of them, and
the share of its rate carries over between machines.
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

from rrl_match import RRLMatcher, __version__

GFLOP_PER_PAIR = 1.253
BATCHES = (1, 8, 64, 512)
ROUNDS = 3  # of which the median counts

Call: TypeAlias = Callable[[], object]

FIRST_SCORE = """
import sys, time
import numpy, torch
began = time.perf_counter()
from rrl_match import RRLMatcher
matcher = RRLMatcher.from_pretrained(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
matcher.score(*numpy.zeros((2, 64, 64), numpy.uint8))
print(time.perf_counter() - began, time.perf_counter() - loaded)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="vis-nir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--matrix", type=int, default=500, help="patches of each band for score_matrix; 0 to leave out")
    parser.add_argument("--places", type=int, default=2000, help="patches of each band for match; 0 to leave out")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")
    args = parser.parse_args()

    figures: dict[str, Any] = {}
    for part in measure(args):
        figures |= part
        if not args.markdown:
            print(json.dumps(part), flush=True)
    if args.markdown:
        print("\n".join(markdown(figures)))
    if args.save:
        args.save.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures, part by part."""
    fastest = RRLMatcher.from_pretrained(args.weights, device=args.device)
    device = fastest.device
    count = max(*BATCHES, args.matrix, args.places)
    patches_a, patches_b = np.random.default_rng(0).integers(0, 256, (2, count, 64, 64), dtype=np.uint8)

    yield {"machine": machine(device)}
    yield {"versions": {"rrl_match": __version__, "torch": torch.__version__, "python": platform.python_version()}}
    yield {"seconds": first_score(args.weights, device)}
    rows: list[dict[str, Any]] = []
    for dtype in args.dtypes:
        matcher = RRLMatcher.from_pretrained(args.weights, device=device, dtype=dtype)
        rows += speed(matcher, patches_a, patches_b, args.seconds)
    yield {"speed": rows}
    if args.matrix:
        some = patches_a[: args.matrix], patches_b[: args.matrix]
        yield {"score_matrix": timed(lambda: fastest.score_matrix(*some), args.matrix**2)}
    if args.places:
        many = patches_a[: args.places], patches_b[: args.places]
        yield {"match": timed(lambda: fastest.match(*many), args.places)}
    yield {"peak_memory_mb": round(peak_memory(device) / 1e6)}


def speed(matcher: RRLMatcher, patches_a: Any, patches_b: Any, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each batch, beside a matrix product in the same dtype."""
    size = 2048 if matcher.device.type == "cpu" else 8192
    x, y = (torch.randn(size, size, device=matcher.device).to(matcher.dtype) for _ in range(2))
    for batch in BATCHES:
        some = patches_a[:batch], patches_b[:batch]
        calls: list[Call] = [functools.partial(matcher.score, *some), functools.partial(torch.mm, x, y)]
        pairs, products = rates(calls, seconds, matcher.device)
        gflops, ceiling = pairs * batch * GFLOP_PER_PAIR, products * 2 * size**3 / 1e9
        yield {
            "dtype": str(matcher.dtype).removeprefix("torch."),
            "batch": batch,
            "pairs_per_second": round(pairs * batch, 1),
            "milliseconds_per_call": round(1e3 / pairs, 2),
            "gflops": round(gflops, 1),
            "matrix_product_gflops": round(ceiling, 1),
            "share": round(gflops / ceiling, 3),
        }


def rates(calls: Sequence[Call], seconds: float, device: torch.device) -> list[float]:
    """Calls per second of each, measured in turns, over about `seconds` each."""

    def run(call: Call, times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for call in calls:
        run(call, 1)  # warm
    times = [max(1, int(seconds / ROUNDS / run(call, 1))) for call in calls]
    rounds = [[n / run(call, n) for call, n in zip(calls, times, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(of_call) for of_call in zip(*rounds, strict=True)]


def timed(call: Call, items: int) -> dict[str, float]:
    """Seconds of one call, and how many of its items that is a second."""
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    return {"patches_or_pairs": items, "seconds": round(seconds, 2), "per_second": round(items / seconds, 1)}


def first_score(weights: str, device: torch.device) -> dict[str, float]:
    """In a fresh process that has imported torch: to the first score, and that score alone."""
    command = [sys.executable, "-c", FIRST_SCORE, weights, str(device)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    total, alone = map(float, printed.split())
    return {"import_to_first_score": round(total, 2), "first_score": round(alone, 3)}


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had, on the device or, for a CPU, in memory; 0 where nobody says."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def markdown(figures: dict[str, Any]) -> Iterator[str]:
    """The README's table, and the other figures below."""
    yield f"{figures['machine']}; PyTorch {figures['versions']['torch']}"
    yield ""
    yield "| dtype | batch | pairs/s | GFLOP/s | of matrix product |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in figures["speed"]:
        yield (
            f"| {row['dtype']} | {row['batch']} | {row['pairs_per_second']:.0f} "
            f"| {row['gflops']:.0f} | {100 * row['share']:.0f} % |"
        )
    yield ""
    for name in ("seconds", "score_matrix", "match", "peak_memory_mb"):
        if name in figures:
            yield f"- {name}: {json.dumps(figures[name])}"


if __name__ == "__main__":
    main()
