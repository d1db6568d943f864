"""Metrics of a matcher on a patch benchmark."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrl_match.errors import DataError
from rrl_match.matcher import RRLMatcher
from rrl_match.training.metrics import auc, average_precision, fdr95, fpr95, fpr95_sorted_index

Metrics = dict[str, dict[str, dict[str, float]]]  # by kind of negatives, category or "mean", and metric

METRICS = {
    "FPR95": fpr95,
    "FPR95 (sorted index)": fpr95_sorted_index,
    "FDR95": fdr95,
    "AUC": auc,
    "AP": average_precision,
}


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Locations, each with a patch of both bands, and labelled pairs of them.

    Attributes:
        patches_a, patches_b: uint8 (N, 64, 64).
        category: (N,) str; metrics are averaged over these, unweighted.
        pairs: (P, 2), row of `patches_a` and row of `patches_b`.
        kind: (P,) str, "match" or the kind of negative: "random" (another location), "near" (of the
            same image).
    """

    patches_a: NDArray[np.uint8]
    patches_b: NDArray[np.uint8]
    category: NDArray[np.str_]
    pairs: NDArray[np.int32]
    kind: NDArray[np.str_]

    @classmethod
    def load(cls, path: str | Path) -> Benchmark:
        """Read an ``.npz`` with arrays of these names.

        Raises:
            DataError: no such file, or an array is missing or does not fit the others.
        """
        try:
            with open(path, "rb") as file:
                if not zipfile.is_zipfile(file):
                    raise ValueError("it is no .npz file")
                arrays = np.load(file, allow_pickle=False)
                read = cls(*(arrays[name] for name in ("patches_a", "patches_b", "category", "pairs", "kind")))
            n, p = len(read.patches_a), len(read.pairs)
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            objects = "Object arrays" in str(error)  # NumPy advises to unpickle them
            told = "an array holds Python objects, not numbers or text" if objects else error
            raise DataError(f"{path} is not a patch benchmark: {told}") from error
        if read.patches_b.shape[:1] != (n,) or read.category.shape != (n,) or read.kind.shape != (p,):
            raise DataError(f"{path}: patches_a, patches_b and category, or pairs and kind, are not equally many")
        if read.pairs.dtype.kind not in "iu" or read.pairs.shape != (p, 2) or not p:
            raise DataError(
                f"{path}: pairs must be integers of shape (P, 2), got {read.pairs.dtype} {read.pairs.shape}"
            )
        if read.pairs.min() < 0 or read.pairs.max() >= n:
            raise DataError(f"{path}: pairs must lie in 0..{n - 1}")
        if read.kind.dtype.kind != "U" or not {"match"} < set(read.kind.tolist()):
            raise DataError(f"{path}: kind must be text, 'match' for some pairs and the kind of negative for others")
        return read


def evaluate(matcher: RRLMatcher, benchmark: Benchmark, progress: bool = False) -> Metrics:
    """Metrics in percent.

    Raises:
        DataError: the patches are not of the size that the weights take.
    """
    for patches in (benchmark.patches_a, benchmark.patches_b):
        if patches.shape[1:3] != (matcher.patch_size,) * 2:
            size = f"{matcher.patch_size} x {matcher.patch_size}"
            raise DataError(f"patches of a benchmark must be {size} pixels, as the weights take, got {patches.shape}")
    features_a = matcher.encode(benchmark.patches_a, "a")
    features_b = matcher.encode(benchmark.patches_b, "b")
    scores = matcher.score_features(features_a, features_b, benchmark.pairs, progress=progress)
    return metrics_of(benchmark, scores)


def metrics_of(benchmark: Benchmark, scores: NDArray[np.float32]) -> Metrics:
    """Metrics of given scores (P,), as :func:`evaluate` returns them."""
    category = benchmark.category[benchmark.pairs[:, 0]]
    label = (benchmark.kind == "match").astype(int)
    result: Metrics = {}
    for kind in sorted(set(benchmark.kind.tolist()) - {"match"}, reverse=True):
        by_category: dict[str, dict[str, float]] = {}
        for name in np.unique(category).tolist():
            rows = (category == name) & ((benchmark.kind == kind) | (label == 1))
            if len(set(label[rows].tolist())) < 2:
                raise DataError(
                    f"category {name!r} lacks matching pairs or {kind!r} negatives, so metrics are undefined"
                )
            by_category[name] = {metric: 100 * f(label[rows], scores[rows]) for metric, f in METRICS.items()}
        mean = {metric: float(np.mean([v[metric] for v in by_category.values()])) for metric in METRICS}
        result[kind] = {**by_category, "mean": mean}
    return result


def rows_of(results: dict[str, Metrics], dtype: str | None = None) -> list[dict[str, Any]]:
    """Rows for :func:`~rrl_match.training.results.save_results`: results of :func:`evaluate` by benchmark, in percent.

    Args:
        results: by name of the benchmark.
        dtype: that the scores were computed in, if a network computed them.
    """
    return [
        {"data": data, "negatives": kind, "category": category}
        | ({"dtype": dtype} if dtype else {})
        | {metric: round(value, 2) for metric, value in values.items()}
        for data, by_kind in results.items()
        for kind, by_category in by_kind.items()
        for category, values in by_category.items()
    ]


def summary(results: dict[str, Metrics]) -> Iterator[str]:
    """Lines with the FPR95 of several benchmarks: :func:`evaluate`'s results by name, the mean of their categories."""
    kinds = sorted({kind for result in results.values() for kind in result}, reverse=True)
    yield "FPR95, mean".ljust(24) + "".join(kind.rjust(10) for kind in kinds)
    for name, result in results.items():
        values = (f"{result[kind]['mean']['FPR95']:10.2f}" if kind in result else " " * 10 for kind in kinds)
        yield f"  {name}".ljust(24) + "".join(values)


def table(result: Metrics) -> Iterator[str]:
    """Lines of a table of :func:`evaluate`'s result."""
    for kind, by_category in result.items():
        yield f"{kind} negatives".ljust(20) + "".join(metric.rjust(22) for metric in METRICS)
        for name, values in by_category.items():
            yield f"  {name}".ljust(20) + "".join(f"{values[metric]:22.2f}" for metric in METRICS)
