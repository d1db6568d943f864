"""From scores to matches: which pairs to score, and which of them to keep. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypeVar

from rrl_match.cascade import score_contenders
from rrl_match.drawing import Drawable, RGBImage, matches_side_by_side
from rrl_match.extraction import Keypoints, as_points
from rrl_match.features import Features
from rrl_match.patches import is_count, is_number

ArrayIndexPairs: TypeAlias = NDArray[np.generic] | Sequence[Sequence[int]]
IndexPairs: TypeAlias = ArrayIndexPairs | Tensor

BLOCK = 2**22  # numbers of a matrix that are looked at together: 32 MB in float64

IndicesT = TypeVar("IndicesT", bound="NDArray[np.int64] | Tensor", covariant=True, default=NDArray[np.int64])
ScoresT = TypeVar("ScoresT", bound="NDArray[np.float32] | Tensor", covariant=True, default=NDArray[np.float32])


@dataclass(frozen=True, eq=False)
class Matches(Generic[IndicesT, ScoresT]):
    """Matching pairs; arrays if the patches were arrays, else tensors.

    Attributes:
        indices: (K, 2) int64, row of A and row of B, in ascending order of A.
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

    indices: IndicesT
    scores: ScoresT

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        scores = _as_array(self.scores)
        found = f", scores from {scores.min():.2f} to {scores.max():.2f}" if len(scores) else ""
        return f"Matches({len(self)} pairs{found})"

    def draw(
        self, image_a: Drawable, image_b: Drawable, points_a: Keypoints, points_b: Keypoints, lines: int = 100
    ) -> RGBImage:
        """Both images side by side with the matches, as uint8 RGB (H, W, 3).

        Args:
            image_a, image_b: (H, W), RGB or RGBA; other than uint8, they are mapped from their percentile range.
            points_a, points_b: (N, 2) and (M, 2) xy of the patches that were matched, or a list of ``cv2.KeyPoint``
                or LAFs.
            lines: how many matches are joined by lines; all have dots.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        ends = []
        given = (("points_a", points_a), ("points_b", points_b))
        for (name, keypoints), rows in zip(given, _as_array(self.indices).T, strict=True):
            points = as_points(keypoints, name)
            if len(rows) and rows.max() >= len(points):
                raise ValueError(f"{name} must have a row for each patch that was matched, got {len(points)} rows")
            ends.append(points[rows])
        every = np.ones(len(self), np.bool_)
        return matches_side_by_side(image_a, image_b, (ends[0], ends[1]), every, lines)

    def to_cv2(self) -> list[cv2.DMatch]:
        """As a list of ``cv2.DMatch``, with 1 - score as the distance."""
        pairs, scores = _as_array(self.indices), _as_array(self.scores)
        return [cv2.DMatch(int(a), int(b), float(1 - s)) for (a, b), s in zip(pairs, scores, strict=True)]

    def to_kornia(self) -> tuple[Tensor, Tensor]:
        """As kornia's matchers return them: distances (K, 1), which are 1 - score, and indices (K, 2)."""
        return 1 - torch.as_tensor(self.scores)[:, None], torch.as_tensor(self.indices)


def _as_array(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


class Near:
    """Limits :meth:`RRLMatcher.match` to partners near a predicted position.

    Args:
        radius: largest distance of a partner from the predicted position, in pixels of image B, inclusive.
        positions_a: (N, 2) xy, the predicted positions of the patches of A in image B.
        positions_b: (M, 2) xy, the positions of the patches of B in image B. Both may also be a list of
            ``cv2.KeyPoint`` or LAFs.

    Attributes:
        radius: as given.
        positions_a, positions_b: float64 arrays.

    Raises:
        TypeError, ValueError: naming the argument.

    Images that are registered to within 20 pixels already:

    >>> visible, infrared = np.random.default_rng(0).integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
    >>> positions = np.array([(40, 40), (80, 40), (120, 40), (160, 40), (200, 40)])
    >>> near = Near(radius=20, positions_a=positions + 9, positions_b=positions)
    >>> matcher.match(visible, infrared, threshold=0, near=near).indices.tolist()
    [[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]
    """

    def __init__(self, radius: float, positions_a: Keypoints, positions_b: Keypoints) -> None:
        if not is_number(radius) or not 0 < radius <= 1e9:
            raise ValueError(f"radius must be a positive number of pixels, got {radius!r}")
        self.radius = float(radius)
        self.positions_a = as_points(positions_a, "positions_a")
        self.positions_b = as_points(positions_b, "positions_b")

    def __repr__(self) -> str:
        return f"Near({self.radius:g}, {len(self.positions_a)} positions of A, {len(self.positions_b)} of B)"

    def mask(self, rows: slice) -> Tensor:
        """(n, M) bool: which patches of B are near these `rows` of A."""
        a, b = torch.from_numpy(self.positions_a[rows]), torch.from_numpy(self.positions_b)
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") <= self.radius

    def pairs(self) -> Tensor:
        """All index pairs (P, 2) int64 within the radius, in ascending order."""
        found = [torch.empty(0, 2, dtype=torch.int64, device="cpu")]
        for rows in _blocks(len(self.positions_a), len(self.positions_b)):
            pairs = torch.nonzero(self.mask(rows))
            pairs[:, 0] += rows.start
            found.append(pairs)
        return torch.cat(found)

    def swapped(self) -> Near:
        """The same with A and B exchanged."""
        return Near(self.radius, self.positions_b, self.positions_a)


class Candidates:
    """The pairs that :meth:`RRLMatcher.match` scores, of N patches of A and M of B.

    Args:
        shape: N and M.
        per_patch: partners that the descriptors propose for each patch of either band; None for all.
        near: limits the partners to those near a predicted position.
        index_pairs: (P, 2) integers, the pairs themselves.
        described: whether the weights have descriptors.

    Raises:
        TypeError, ValueError: naming the argument of :meth:`RRLMatcher.match`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        per_patch: int | None,
        near: Near | None,
        index_pairs: IndexPairs | None,
        described: bool,
    ) -> None:
        n, m = shape
        if per_patch is not None and not is_count(per_patch):
            raise ValueError(f"candidates must be a positive integer, or None to score all pairs, got {per_patch!r}")
        if near is not None and index_pairs is not None:
            raise ValueError("index_pairs and near both select the candidates: pass only one of them")
        if near is not None:
            _check_near(near, n, m)
        self.n, self.m, self.near = n, m, near
        self.index_pairs: Tensor | None = None
        if index_pairs is not None:
            self.index_pairs = torch.unique(as_index_pairs(index_pairs, n, m), dim=0)
        unlimited = per_patch is None or per_patch >= max(n, m)
        self.per_patch = None if unlimited else per_patch
        self.all_pairs = unlimited and near is None and index_pairs is None
        if self.per_patch is not None and not described:
            if near is None and index_pairs is None:
                raise ValueError(
                    "these weights have no descriptors to find candidates by: pass index_pairs or near, "
                    f"or candidates=None to score all {n * m} pairs"
                )
            self.per_patch = None

    def pairs(self, descriptors_a: Tensor, descriptors_b: Tensor) -> Tensor:
        """Index pairs (P, 2) int64 on the CPU; none twice."""
        if self.index_pairs is not None:
            return self.index_pairs
        if self.per_patch is not None:
            return nearest_candidates(descriptors_a, descriptors_b, self.per_patch, self.near).cpu()
        return self.near.pairs() if self.near is not None else all_pairs(self.n, self.m)

    def score(
        self,
        features_a: Features,
        features_b: Features,
        score: Callable[[Tensor], Tensor],
        *,
        mutual: bool,
        threshold: float,
    ) -> tuple[Tensor, Tensor]:
        """Pairs (K, 2) and their scores (K,): of proposed pairs, those that may change what matches; else all.

        Args:
            features_a, features_b: of the patches.
            score: pairs (K, 2) to scores (K,).
            mutual, threshold: as for :func:`select_matches`.
        """
        a, b = features_a.descriptors, features_b.descriptors
        pairs = self.pairs(a, b)
        if self.index_pairs is not None or self.per_patch is None:
            return pairs, score(pairs)
        rows_a, rows_b = pairs.to(a.device).unbind(1)
        return score_contenders(pairs, (a[rows_a] * b[rows_b]).sum(1), score, mutual=mutual, threshold=threshold)


def _check_near(near: Near, n: int, m: int) -> None:
    if not isinstance(near, Near):
        raise TypeError(f"near must be rrl_match.Near(radius, positions_a, positions_b), got {type(near).__name__}")
    for band, positions, count in (("a", near.positions_a, n), ("b", near.positions_b, m)):
        if len(positions) != count:
            raise ValueError(
                f"near.positions_{band} must have one position for each of the {count} patches of "
                f"{band.upper()}, got {len(positions)}"
            )


def as_index_pairs(index_pairs: IndexPairs, n: int, m: int) -> Tensor:
    """Index pairs as (P, 2) int64 on the CPU, checked against the numbers of patches.

    Raises:
        TypeError, ValueError: not integers, another shape, or out of range.
    """
    try:
        values: NDArray[Any] = (
            index_pairs.detach().cpu().numpy() if isinstance(index_pairs, Tensor) else np.asarray(index_pairs)
        )
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor without values
        raise ValueError(f"index_pairs must have shape (P, 2), row of A and row of B: {error}") from error
    if values.size == 0:
        return torch.empty(0, 2, dtype=torch.int64, device="cpu")
    if values.dtype.kind not in "iu":
        raise TypeError(f"index_pairs must be integers, got {values.dtype}")
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"index_pairs must have shape (P, 2), row of A and row of B, got {values.shape}")
    if values.min() < 0 or (values.max(0) >= (n, m)).any():
        raise ValueError(
            f"index_pairs must be rows, counted from 0, of {n} patches of A and {m} of B, "
            f"got values from {values.min(0).tolist()} to {values.max(0).tolist()}"
        )
    return torch.from_numpy(values.astype(np.int64))


def checked_threshold(threshold: float | None, default: float) -> float:
    """The threshold of :meth:`RRLMatcher.match`, or the default for `None`.

    Raises:
        ValueError: not a number in [0, 1].
    """
    if threshold is None:
        return default
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold!r}")
    return threshold


def all_pairs(n: int, m: int) -> Tensor:
    """All index pairs (n * m, 2) int64, in ascending order."""
    return torch.cartesian_prod(torch.arange(n, device="cpu"), torch.arange(m, device="cpu"))


def select_matches(index_pairs: Tensor, scores: Tensor, *, mutual: bool, threshold: float) -> tuple[Tensor, Tensor]:
    """The best partner for each row of A, of scored candidates.

    Args:
        index_pairs: (P, 2) int64, rows of A and of B; no pair twice.
        scores: (P,).
        mutual: keep a pair only if it is also the best one for its row of B.
        threshold: keep pairs with a score above it.

    Returns:
        indices (K, 2) in ascending order of A, and scores (K,). Of equal scores, the first one wins.
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
    """(P,) bool: whether a pair is the first one with the highest score in its group (P,)."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    ordered = group[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    best = torch.zeros_like(first)
    best[order[first]] = True
    return best


def similarities(descriptors_a: Tensor, descriptors_b: Tensor) -> Tensor:
    """Cosine similarities (N, M) of descriptors (N, dim) and (M, dim) of unit length, outside any autocast."""
    with torch.autocast(descriptors_a.device.type, enabled=False):
        return descriptors_a @ descriptors_b.T


def nearest_candidates(
    descriptors_a: Tensor, descriptors_b: Tensor, candidates: int, near: Near | None = None
) -> Tensor:
    """Index pairs (P, 2): every row of A with the rows of B most similar to it, and vice versa.

    Both directions, because the mutual check needs the best partners of either side. At most candidates * (N + M)
    pairs, none twice. With `near`, only pairs within its radius.

    Args:
        descriptors_a, descriptors_b: (N, dim) and (M, dim), unit length.
        candidates: partners for each row.
    """
    n, m = len(descriptors_a), len(descriptors_b)
    if not n or not m:
        return torch.empty(0, 2, dtype=torch.int64, device=descriptors_a.device)
    a, b = _nearest(descriptors_a, descriptors_b, candidates, near).unbind(1)
    other_b, other_a = _nearest(descriptors_b, descriptors_a, candidates, near.swapped() if near else None).unbind(1)
    key = torch.unique(torch.cat([a * m + b, other_a * m + other_b]))
    return torch.stack([key // m, key % m], 1)


def _nearest(queries: Tensor, others: Tensor, candidates: int, near: Near | None) -> Tensor:
    """Index pairs (P, 2): every row of `queries` with the rows of `others` most similar to it."""
    pairs = []
    for rows in _blocks(len(queries), len(others)):
        similarity = similarities(queries[rows], others)
        if near is not None:
            similarity.masked_fill_(~near.mask(rows).to(similarity.device), -torch.inf)
        best = similarity.topk(min(candidates, len(others)), dim=1)
        # NaN, from an overflow of float16, is kept: the scores then report it.
        row, rank = torch.nonzero(best.values != -torch.inf).unbind(1)
        pairs.append(torch.stack([row + rows.start, best.indices[row, rank]], 1))
    return torch.cat(pairs)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Blocks of rows of a matrix (count, width) of at most :data:`BLOCK` numbers."""
    size = max(1, BLOCK // max(1, width))
    return (slice(start, start + size) for start in range(0, count, size))
