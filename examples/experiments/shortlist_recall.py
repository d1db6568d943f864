"""How often the descriptors propose the true partner, which limits the matches of :meth:`RRLMatcher.match`.

``python shortlist_recall.py --weights NAME --benchmark FILE`` prints the recall by category, in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.matcher import RRLMatcher
from rrl_match.modeling import Band
from rrl_match.training.evaluation import Benchmark

Recall = dict[str, dict[str, float]]


def shortlist_recall(matcher: RRLMatcher, benchmark: Benchmark, candidates: Sequence[int] = (8, 16, 32)) -> Recall:
    """Percentage of locations whose true partner is among the first candidates of their category.

    Args:
        matcher: with descriptors.
        benchmark: its patches are used, its pairs are not.
        candidates: numbers k of candidates.

    Returns:
        ``result[category or "mean"]``: "pool", the number of patches of B in the category; "k of A", how often the
        first k candidates of a patch of A contain its partner; "k", how often they do so for A or for B, which is when
        :meth:`RRLMatcher.match` scores the pair.

    Raises:
        ValueError: the weights have no descriptors.
    """
    if not matcher.config.network.descriptor_dim:
        raise ValueError("these weights have no descriptors to propose candidates by")
    descriptors = [
        _descriptors(matcher, benchmark.patches_a, "a"),
        _descriptors(matcher, benchmark.patches_b, "b"),
    ]
    result: Recall = {}
    for name in np.unique(benchmark.category).tolist():
        rows = torch.from_numpy(np.flatnonzero(benchmark.category == name))
        similarity = descriptors[0][rows] @ descriptors[1][rows].T
        true = similarity.diagonal()
        rank_a = (similarity >= true[:, None]).sum(1)  # of equal ones, the true one counts as the last
        rank_either = torch.minimum(rank_a, (similarity >= true).sum(0))
        result[name] = {"pool": float(len(rows))}
        for label, rank in ((" of A", rank_a), ("", rank_either)):
            result[name] |= {f"{k}{label}": 100 * float((rank <= k).double().mean()) for k in candidates}
    result["mean"] = {key: float(np.mean([row[key] for row in result.values()])) for key in next(iter(result.values()))}
    return result


def table(result: Recall) -> Iterator[str]:
    """Lines of a table of :func:`shortlist_recall`'s result."""
    columns = list(result["mean"])
    yield "candidates".ljust(20) + "".join(column.rjust(10) for column in columns)
    for name, row in result.items():
        values = (f"{row[column]:10.0f}" if column == "pool" else f"{row[column]:10.2f}" for column in columns)
        yield f"  {name}".ljust(20) + "".join(values)


def _descriptors(matcher: RRLMatcher, patches: NDArray[np.uint8], band: Band, at_once: int = 256) -> Tensor:
    """(N, dim) on the CPU; the feature maps, a thousand times as large, are dropped batch by batch."""
    starts = range(0, len(patches), at_once)
    return torch.cat([matcher.encode(patches[k : k + at_once], band).descriptors.cpu() for k in starts])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the categories."""
    parser = argparse.ArgumentParser(description="Print how often the descriptors propose the true partner.")
    parser.add_argument("--weights", required=True, help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--benchmark", type=Path, required=True, help=".npz as rrl-match evaluate reads it")
    parser.add_argument("--candidates", type=int, nargs="+", default=[8, 16, 32], help="numbers of candidates")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    args = parser.parse_args(arguments)
    matcher = RRLMatcher.from_pretrained(args.weights, device=args.device, dtype=args.dtype)
    result = shortlist_recall(matcher, Benchmark.load(args.benchmark), args.candidates)
    print(f"{args.weights} on {args.benchmark.name}, {matcher.dtype} on {matcher.device}; recall in percent")
    for line in table(result):
        print(line)


if __name__ == "__main__":
    main()
