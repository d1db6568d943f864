"""How often the descriptors propose the true partner: what bounds every match that they shortlist for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.matcher import RRLMatcher
from rrl_match.modeling import Band
from rrl_match.training.evaluation import Benchmark

Recall = dict[str, dict[str, float]]


def shortlist_recall(matcher: RRLMatcher, benchmark: Benchmark, candidates: Sequence[int] = (8, 16, 32)) -> Recall:
    """Share of places, in percent, whose patches are among each other's first candidates of their category.

    Args:
        matcher: with descriptors.
        benchmark: whose places count; its pairs do not.
        candidates: numbers k of candidates.

    Returns:
        ``result[category or "mean"]``: "pool", the number of patches of B in the category; "k of A", how often a
        patch of A has its partner among its first k; and "k", how often it has, or the partner has it among its own,
        which is when :meth:`RRLMatcher.match` scores the pair.

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
        rank_a = (similarity >= true[:, None]).sum(1)  # of equal ones, the true one comes last
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
        figures = (f"{row[column]:10.0f}" if column == "pool" else f"{row[column]:10.2f}" for column in columns)
        yield f"  {name}".ljust(20) + "".join(figures)


def _descriptors(matcher: RRLMatcher, patches: NDArray[np.uint8], band: Band, at_once: int = 256) -> Tensor:
    """(N, dim) on the CPU; the codes, which are a thousand times as large, are let go of at once."""
    starts = range(0, len(patches), at_once)
    return torch.cat([matcher.encode(patches[k : k + at_once], band).descriptors.cpu() for k in starts])
