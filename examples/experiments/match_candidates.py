"""What :meth:`RRLMatcher.match` loses, and how much faster it is, by scoring only the likely candidates.

``python match_candidates.py --weights NAME ... --benchmark FILE ...`` compares it with scoring all that the descriptors
propose: precision and recall in percent, and the time as a ratio within one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrl_match.matcher import RRLMatcher
from rrl_match.matching import Matches, nearest_candidates
from rrl_match.training.evaluation import Benchmark
from rrl_match.training.results import save_results


def match_candidates(matcher: RRLMatcher, benchmark: Benchmark, locations: int, candidates: int = 16) -> dict[str, Any]:
    """Precision and recall of both ways, and the ratio of their times, on locations spread over a benchmark.

    Args:
        matcher: with descriptors.
        benchmark: its patches are used, its pairs are not; patch n of A belongs to patch n of B.
        locations: how many of them, at most.
        candidates: as for :meth:`RRLMatcher.match`.
    """
    rows = np.unique(np.linspace(0, len(benchmark.patches_a) - 1, locations).astype(int))
    patches_a, patches_b = benchmark.patches_a[rows], benchmark.patches_b[rows]
    start = time.process_time()
    features_a, features_b = matcher.encode(patches_a, "a"), matcher.encode(patches_b, "b")
    encoded = time.process_time()
    matches = matcher.match_features(features_a, features_b, candidates=candidates)
    matched = time.process_time()
    pairs = nearest_candidates(features_a.descriptors, features_b.descriptors, candidates)
    of_all = matcher.match_features(features_a, features_b, index_pairs=pairs)
    every = time.process_time() - matched
    return {
        "locations": len(rows),
        **_shares(matches, len(rows), ""),
        **_shares(of_all, len(rows), "_of_all"),
        "times_as_fast": round((encoded - start + every) / (matched - start), 1),
    }


def _shares(matches: Matches, locations: int, suffix: str) -> dict[str, float]:
    right = int((matches.indices[:, 0] == matches.indices[:, 1]).sum())
    precision, recall = 100 * right / max(1, len(matches)), 100 * right / locations
    return {f"precision{suffix}": round(precision, 1), f"recall{suffix}": round(recall, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each of the weights and each benchmark."""
    parser = argparse.ArgumentParser(description="Compare match with scoring all candidates.")
    parser.add_argument("--weights", nargs="+", required=True, help="bundled names, folders or Hub repo ids")
    parser.add_argument("--benchmark", nargs="+", type=Path, required=True, help=".npz as rrl-match evaluate reads it")
    parser.add_argument("--locations", type=int, default=400, help="of each benchmark, at most")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the figures as JSON as well")
    args = parser.parse_args(arguments)
    rows = []
    for weights in args.weights:
        matcher = RRLMatcher.from_pretrained(weights)
        for path in args.benchmark:
            figures = match_candidates(matcher, Benchmark.load(path), args.locations)
            rows.append({"weights": weights, "data": path.stem, **figures})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if args.save:
        save_results(args.save, rows)


if __name__ == "__main__":
    main()
