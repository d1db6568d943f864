"""How often the descriptors propose the true partner, which limits the matches of :meth:`RRLMatcher.match`.

``python shortlist_recall.py --weights NAME ... --benchmark FILE ...`` prints the recall by category, in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.matcher import RRLMatcher
from rrl_match.modeling import Band
from rrl_match.training.evaluation import Benchmark
from rrl_match.training.results import save_results


def shortlist_recall(
    matcher: RRLMatcher, benchmark: Benchmark, candidates: Sequence[int] = (8, 16, 32)
) -> Iterator[dict[str, Any]]:
    """Percentage of locations whose true partner is among the first candidates of their category.

    :meth:`RRLMatcher.match` scores a pair if it is among the candidates of either patch.

    Args:
        matcher: with descriptors.
        benchmark: its patches are used, its pairs are not.
        candidates: numbers k of candidates.

    Yields:
        for each category, then for their mean, and each number: "category", "patches_of_b", which compete with each
        other, "candidates" and "recall".

    Raises:
        ValueError: the weights have no descriptors.
    """
    if not matcher.config.network.descriptor_dim:
        raise ValueError("these weights have no descriptors to propose candidates by")
    a, b = _descriptors(matcher, benchmark.patches_a, "a"), _descriptors(matcher, benchmark.patches_b, "b")
    categories = np.unique(benchmark.category).tolist()
    recall = np.zeros((len(categories), len(candidates)))
    for n, category in enumerate(categories):
        rows = torch.from_numpy(np.flatnonzero(benchmark.category == category))
        similarity = a[rows] @ b[rows].T
        true = similarity.diagonal()
        # of equal ones, the true one counts as the last
        rank = torch.minimum((similarity >= true[:, None]).sum(1), (similarity >= true).sum(0))
        recall[n] = [100 * float((rank <= k).double().mean()) for k in candidates]
        yield from _rows(category, len(rows), candidates, recall[n])
    yield from _rows("mean", len(a) / len(categories), candidates, recall.mean(0))


def _rows(category: str, patches: float, candidates: Sequence[int], recall: NDArray[Any]) -> Iterator[dict[str, Any]]:
    for k, percent in zip(candidates, recall.tolist(), strict=True):
        yield {"category": category, "patches_of_b": round(patches), "candidates": k, "recall": round(percent, 1)}


def _descriptors(matcher: RRLMatcher, patches: NDArray[np.uint8], band: Band, at_once: int = 256) -> Tensor:
    """(N, dim) on the CPU; the feature maps, a thousand times as large, are dropped batch by batch."""
    starts = range(0, len(patches), at_once)
    return torch.cat([matcher.encode(patches[k : k + at_once], band).descriptors.cpu() for k in starts])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each category and number of candidates."""
    parser = argparse.ArgumentParser(description="Print how often the descriptors propose the true partner.")
    parser.add_argument("--weights", nargs="+", required=True, help="bundled names, folders or Hub repo ids")
    parser.add_argument("--benchmark", nargs="+", type=Path, required=True, help=".npz as rrl-match evaluate reads it")
    parser.add_argument("--candidates", type=int, nargs="+", default=[8, 16, 32], help="numbers of candidates")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the figures as JSON as well")
    args = parser.parse_args(arguments)
    rows = []
    for weights in args.weights:
        matcher = RRLMatcher.from_pretrained(weights, device=args.device, dtype=args.dtype)
        for path in args.benchmark:
            for row in shortlist_recall(matcher, Benchmark.load(path), args.candidates):
                rows.append({"weights": weights, "data": path.stem, **row})
                line = "{weights:16} {data:20} {category:16} {candidates:3} of {patches_of_b:5}: {recall:5.1f} %"
                print(line.format(**rows[-1]), flush=True)
    if args.save:
        save_results(args.save, rows)


if __name__ == "__main__":
    main()
