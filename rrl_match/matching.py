"""From scores to matches: pure functions on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs that belong together.

    Attributes:
        indices: (K, 2) int64, row of A and row of B, in ascending order of A; arrays or tensors as the patches were.
        scores: (K,) float32 in [0, 1].

    >>> matches = Matches(np.array([[0, 2], [5, 1]]), np.array([0.75, 1.0], np.float32))
    >>> len(matches)
    2
    >>> [(m.queryIdx, m.trainIdx, m.distance) for m in matches.to_cv2()]
    [(0, 2, 0.25), (5, 1, 0.0)]
    >>> distances, indices = matches.to_kornia()
    >>> distances.tolist()
    [[0.25], [0.0]]
    """

    indices: Any
    scores: Any

    def __len__(self) -> int:
        return len(self.indices)

    def to_cv2(self) -> list[cv2.DMatch]:
        """As OpenCV's matches; the distance is 1 - score."""
        pairs, scores = _as_array(self.indices), _as_array(self.scores)
        return [cv2.DMatch(int(a), int(b), float(1 - s)) for (a, b), s in zip(pairs, scores, strict=True)]

    def to_kornia(self) -> tuple[Tensor, Tensor]:
        """As kornia's matchers return them: distances (K, 1), 1 - score, and indices (K, 2)."""
        return 1 - torch.as_tensor(self.scores)[:, None], torch.as_tensor(self.indices)


def _as_array(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def select_matches(index_pairs: Tensor, scores: Tensor, *, mutual: bool, threshold: float) -> tuple[Tensor, Tensor]:
    """Of scored candidates, the best partner for each row of A.

    Args:
        index_pairs: (P, 2) int64, rows of A and of B; no pair twice.
        scores: (P,).
        mutual: keep a pair only if it is the best one for its row of B as well.
        threshold: keep pairs with a score above it.

    Returns:
        indices (K, 2) in ascending order of A, and scores (K,). Of equal scores, the one given first wins.
    """
    if not len(index_pairs):
        return index_pairs, scores
    best = _best_of_each(index_pairs[:, 0], scores)
    if mutual:
        best = best & _best_of_each(index_pairs[:, 1], scores)
    rows = torch.nonzero(best & (scores > threshold)).flatten()
    rows = rows[torch.argsort(index_pairs[rows, 0], stable=True)]
    return index_pairs[rows], scores[rows]


def _best_of_each(group: Tensor, scores: Tensor) -> Tensor:
    """(P,) bool: whether a pair has the highest score, and is the first to have it, of its group (P,)."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    ordered = group[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    best = torch.zeros_like(first)
    best[order[first]] = True
    return best


def nearest_candidates(descriptors_a: Tensor, descriptors_b: Tensor, candidates: int) -> Tensor:
    """Index pairs (P, 2): every row of A with the rows of B most similar to it, and every row of B likewise.

    Descriptors are (N, dim) and (M, dim), unit length. Candidates of both directions, so that the mutual check
    has something to check; a pair found twice is given once. At most candidates * (N + M) pairs.
    """
    n, m = len(descriptors_a), len(descriptors_b)
    if not n or not m:
        return torch.empty(0, 2, dtype=torch.int64, device=descriptors_a.device)
    keys = []
    for queries, others, forward in ((descriptors_a, descriptors_b, True), (descriptors_b, descriptors_a, False)):
        k = min(candidates, len(others))
        for start in range(0, len(queries), 4096):
            found = (queries[start : start + 4096] @ others.T).topk(k, dim=1).indices
            own = torch.arange(start, start + len(found), device=found.device)[:, None].expand_as(found)
            keys.append((own * m + found if forward else found * m + own).flatten())
    key = torch.unique(torch.cat(keys))
    return torch.stack([key // m, key % m], 1)
