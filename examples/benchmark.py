"""How fast this machine scores pairs, and what share of its matrix-product rate that is.

    python examples/benchmark.py [--device cuda] [--seconds 3]

Rates are comparable within one run only; the share of the device's own rate carries over between machines.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from rrl_match import RRLMatcher, __version__

GFLOP_PER_PAIR = 1.253


def calls_per_second(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Rate of a call, over about `seconds`, after one call to warm up."""

    def timed(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed(1)
    count = max(1, int(seconds / timed(1)))
    return count / timed(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="vis-nir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    patches_a, patches_b = rng.integers(0, 256, (2, 512, 64, 64), dtype=np.uint8)
    device = RRLMatcher.from_pretrained(args.weights, device=args.device).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"rrl-match {__version__}, torch {torch.__version__}, {platform.machine()}, {device}: {name}")
    print(f"{'dtype':10s}{'batch':>8s}{'pairs/s':>12s}{'GFLOP/s':>12s}{'of matrix product':>20s}")
    for dtype in (torch.float32, torch.bfloat16):
        matcher = RRLMatcher.from_pretrained(args.weights, device=device, dtype=dtype)
        size = 2048 if device.type == "cpu" else 8192
        x, y = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        ceiling = calls_per_second(lambda x=x, y=y: x @ y, args.seconds, device) * 2 * size**3 / 1e9  # type: ignore[misc]
        for batch in (1, 8, 64, 512):

            def score(matcher: RRLMatcher = matcher, batch: int = batch) -> object:
                return matcher.score(patches_a[:batch], patches_b[:batch])

            pairs = batch * calls_per_second(score, args.seconds, device)
            rate = pairs * GFLOP_PER_PAIR
            print(f"{str(dtype)[6:]:10s}{batch:8d}{pairs:12.0f}{rate:12.0f}{100 * rate / ceiling:19.0f} %")


if __name__ == "__main__":
    main()
