"""Print, as JSON, the bytes by which memory grows over many calls, and while many pairs or patches are scored.

test_load.py runs this in a process of its own, so that other tests do not count.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from networks import make_patches, make_small

CALLS, PAIRS, PATCHES = 2000, 25_000, 6000


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def over_many_calls(matcher, a, b) -> int:
    """Growth over 2,000 calls, after 500 that fill PyTorch's caches."""
    tensor_a, tensor_b = torch.from_numpy(a), torch.from_numpy(b)
    calls = [
        lambda: matcher.score(a[0], b[0]),
        lambda: matcher.score([tensor_a[1]], [tensor_b[1]]),
        lambda: matcher.score_matrix(a[:1], b[:1]),
        lambda: matcher.encode(a[:1], "a"),
    ]
    for k in range(CALLS // 4):
        calls[k % len(calls)]()
    gc.collect()
    before = resident()
    for k in range(CALLS):
        calls[k % len(calls)]()
    gc.collect()
    return resident() - before


def over_many_pairs(matcher, a, b) -> int:
    """Growth while 25,000 pairs are scored; the patches are views of one and take no memory themselves."""
    many_a, many_b = (np.broadcast_to(patches[:1], (PAIRS, 16, 16)) for patches in (a, b))
    matcher.score(many_a[:1000], many_b[:1000], batch_size=256)
    growth, scores = most_during(lambda: matcher.score(many_a, many_b, batch_size=256))
    np.testing.assert_allclose(scores, np.full(PAIRS, matcher.score(a[0], b[0])), atol=1e-5, rtol=0)
    return growth


def over_a_long_matrix(matcher, a, b) -> int:
    """Growth while three patches are scored against many, whose features would take 32 MB."""
    many = np.broadcast_to(b[:1], (PATCHES, 16, 16))
    matcher.score_matrix(a[:3], many[:1000], batch_size=256)
    return max(
        most_during(lambda: matcher.score_matrix(a[:3], many, batch_size=256))[0],
        most_during(lambda: matcher.score_matrix(many, b[:3], batch_size=256))[0],
    )


def most_during(call):
    """Largest growth during a call, and its result."""
    gc.collect()
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return peak - before, result


if __name__ == "__main__":
    pair = make_patches(4, 9, 16), make_patches(4, 10, 16)
    small = make_small()
    growth = {
        "calls": over_many_calls(small, *pair),
        "pairs": over_many_pairs(small, *pair),
        "matrix": over_a_long_matrix(small, *pair),
    }
    json.dump(growth, sys.stdout)
