"""SIFT's descriptor on the patches that RRL-Net is measured on.

``python baselines.py --benchmark FILE ...`` prints its metrics by category, in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.training.evaluation import Benchmark, Metrics, metrics_of, rows_of, table
from rrl_match.training.results import save_results


def sift_descriptors(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 128) of patches (N, 64, 64): OpenCV's SIFT (Lowe, IJCV 2004), one upright keypoint of 10 px at the centre."""
    sift = cv2.SIFT.create()
    centre = cv2.KeyPoint(32, 32, 10, 0)  # x, y, size, angle
    return np.concatenate([np.empty((0, 128), np.float32), *(sift.compute(patch, [centre])[1] for patch in patches)])


def evaluate_sift(benchmark: Benchmark) -> Metrics:
    """Metrics in percent, as :func:`rrl_match.training.evaluation.evaluate` gives them, by Euclidean distance."""
    a, b = sift_descriptors(benchmark.patches_a), sift_descriptors(benchmark.patches_b)
    return metrics_of(benchmark, -np.linalg.norm(a[benchmark.pairs[:, 0]] - b[benchmark.pairs[:, 1]], axis=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the metrics of each benchmark."""
    parser = argparse.ArgumentParser(description="Print the metrics of SIFT's descriptor on patch benchmarks.")
    parser.add_argument("--benchmark", nargs="+", type=Path, required=True, help=".npz as rrl-match evaluate reads it")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the metrics as JSON as well")
    args = parser.parse_args(arguments)
    results = {path.stem: evaluate_sift(Benchmark.load(path)) for path in args.benchmark}
    for name, result in results.items():
        print(f"SIFT on {name}; all metrics in percent")
        for line in table(result):
            print(line)
    if args.save:
        save_results(args.save, rows_of(results))


if __name__ == "__main__":
    main()
