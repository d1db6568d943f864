"""From scores to matches: pure functions on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Vicinity(NamedTuple):
    """Where partners are looked for: a patch of A belongs near where it is predicted in picture B.

    Attributes:
        predicted: (N, 2) xy, where the patches of A are expected in picture B.
        places: (M, 2) xy, where the patches of B lie.
        radius: pixels of picture B; a place at this very distance is near still.
    """

    predicted: Tensor
    places: Tensor
    radius: float

    def near(self, rows: slice) -> Tensor:
        """(n, M) bool: which places lie near those `rows` of A."""
        distance = torch.cdist(self.predicted[rows], self.places, compute_mode="donot_use_mm_for_euclid_dist")
        return distance <= self.radius

    def pairs(self) -> Tensor:
        """All index pairs (P, 2) int64 that lie near each other, in ascending order."""
        found = [torch.empty(0, 2, dtype=torch.int64, device=self.places.device)]
        for rows in _blocks(len(self.predicted), len(self.places)):
            pairs = torch.nonzero(self.near(rows))
            pairs[:, 0] += rows.start
            found.append(pairs)
        return torch.cat(found)

    def turned(self) -> Vicinity:
        """The same, with A and B exchanged."""
        return Vicinity(self.places, self.predicted, self.radius)


def similarities(descriptors_a: Tensor, descriptors_b: Tensor) -> Tensor:
    """Cosines (N, M) of descriptors (N, dim) and (M, dim) of unit length, whatever autocast the caller is in."""
    with torch.autocast(descriptors_a.device.type, enabled=False):
        return descriptors_a @ descriptors_b.T


def nearest_candidates(
    descriptors_a: Tensor, descriptors_b: Tensor, candidates: int, vicinity: Vicinity | None = None
) -> Tensor:
    """Index pairs (P, 2): every row of A with the rows of B most similar to it, and every row of B likewise.

    Descriptors are (N, dim) and (M, dim), unit length. Candidates of both directions, so that the mutual check
    has something to check; a pair found twice is given once. At most candidates * (N + M) pairs; with a vicinity, of
    those that lie near each other alone.
    """
    n, m = len(descriptors_a), len(descriptors_b)
    if not n or not m:
        return torch.empty(0, 2, dtype=torch.int64, device=descriptors_a.device)
    turned = None if vicinity is None else vicinity.turned()
    keys = []
    for queries, others, around, forward in (
        (descriptors_a, descriptors_b, vicinity, True),
        (descriptors_b, descriptors_a, turned, False),
    ):
        k = min(candidates, len(others))
        for rows in _blocks(len(queries), len(others)):
            similarity = similarities(queries[rows], others)
            if around is not None:
                similarity.masked_fill_(~around.near(rows).to(similarity.device), -torch.inf)
            best = similarity.topk(k, dim=1)
            own, rank = torch.nonzero(best.values != -torch.inf).unbind(1)  # with NaN: of an overflow, to be told
            found, own = best.indices[own, rank], own + rows.start
            keys.append(own * m + found if forward else found * m + own)
    key = torch.unique(torch.cat(keys))
    return torch.stack([key // m, key % m], 1)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Rows of a matrix (count, width), so few at once that they take 32 MB in float64."""
    size = max(1, 2**22 // max(1, width))
    return (slice(start, start + size) for start in range(0, count, size))
