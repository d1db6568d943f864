"""The candidates that can still change which pairs match: only these are scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Chosen on training images of eleven sources.
_ALL = 600  # pairs: so few are all scored
_FIRST = 0.5  # pairs for each patch (the mean of both bands) that are scored first, the likeliest ones,
_SPREAD = 0.25  # and evenly spread over the others,
_ROUND = 0.25  # and in each further round
_MARGIN = 2.0  # standard deviations that a score may be above its prediction
_TEMPERATURE = 0.05  # of similarities
_LEAST = 1e-7  # score and complement of the score, in logits

Floats = NDArray[np.float64]


def score_contenders(
    pairs: Tensor, similarities: Tensor, score: Callable[[Tensor], Tensor], *, mutual: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    """Score candidates, best first, until no other one is likely to change which of them match.

    A linear regression on the similarities of descriptors predicts the logits of candidates from those that are
    scored. A candidate is scored if it may, by its prediction and the regression's standard deviation, match itself or
    displace a match. What matches is that of scoring all but for rare cases; the scores are the same.

    Args:
        pairs: (P, 2) int64 on the CPU, rows of A and of B; no pair twice.
        similarities: (P,) cosine similarities of their descriptors.
        score: pairs (K, 2) to scores (K,).
        mutual, threshold: as for :func:`select_matches`.

    Returns:
        the pairs (K, 2) that were scored, in the order in which they came, and their scores (K,).
    """
    known = similarities.cpu().double().numpy()
    if len(pairs) <= _ALL or not np.isfinite(known).all():  # NaN from an overflow of float16: the scores report it
        return pairs, score(pairs)
    evidence = _evidence(pairs.numpy(), known)
    a, b = pairs.numpy().T
    count = (len(np.unique(a)) + len(np.unique(b))) / 2
    scores = torch.full((len(pairs),), -1.0, device="cpu")
    logits = np.full(len(pairs), -np.inf)
    limit = float(_logit(np.float64(threshold)))
    rows = _first_rows(evidence[:, 2], round(_FIRST * count), round(_SPREAD * count))
    while len(rows):
        scores[rows] = score(pairs[rows])
        logits[rows] = _logit(scores[rows].double().numpy())
        predicted, deviation = _predicted(evidence, logits)
        lead = predicted + _MARGIN * deviation - _asked(a, b, logits, limit, mutual)
        lead[np.isfinite(logits)] = -np.inf
        rows = np.argsort(-lead, kind="stable")[: max(1, round(_ROUND * count))]
        rows = rows[lead[rows] > 0]
    scored = torch.from_numpy(np.isfinite(logits))
    return pairs[scored], scores[scored]


def _logit(scores: Floats) -> Floats:
    clipped = np.clip(scores, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), np.float64)


def _evidence(pairs: NDArray[np.int64], similarities: Floats) -> Floats:
    """What the logit of a pair is predicted from, (P, 3): one, its similarity, and how it stands among others.

    The last is the logarithm of a dual softmax (Sun et al., "LoFTR", CVPR 2021), over the candidates of either patch.
    """
    scaled = similarities / _TEMPERATURE
    standing = 2 * scaled
    for group in pairs.T:
        most = np.full(group.max(initial=0) + 1, -np.inf)
        np.maximum.at(most, group, scaled)
        standing -= most[group] + np.log(np.bincount(group, np.exp(scaled - most[group]))[group])
    return np.stack([np.ones_like(scaled), similarities, standing], 1)


def _first_rows(standing: Floats, first: int, spread: int) -> NDArray[np.int64]:
    """The likeliest pairs, and some evenly spread over the others."""
    order = np.argsort(-standing, kind="stable")
    others = np.sort(order[first:])
    return np.concatenate(
        [order[:first], others[np.linspace(0, len(others) - 1, min(spread, len(others))).astype(int)]]
    )


def _predicted(evidence: Floats, logits: Floats) -> tuple[Floats, float]:
    """Predicted logits (P,), and the standard deviation of those that are known (finite) from their prediction."""
    known = np.isfinite(logits)
    weights = np.linalg.lstsq(evidence[known], logits[known], rcond=None)[0]
    predicted: Floats = evidence @ weights
    return predicted, float((predicted - logits)[known].std())


def _asked(a: NDArray[np.int64], b: NDArray[np.int64], logits: Floats, limit: float, mutual: bool) -> Floats:
    """The logit (P,) above which a pair would match or displace a match, by the logits that are known (finite)."""
    best_a, best_b = np.full(a.max() + 1, limit), np.full(b.max() + 1, limit)
    np.maximum.at(best_a, a, logits)
    if not mutual:
        return best_a[a]
    np.maximum.at(best_b, b, logits)
    match = (logits > limit) & (logits == best_a[a]) & (logits == best_b[b])
    of_match_a, of_match_b = np.full(len(best_a), np.inf), np.full(len(best_b), np.inf)
    of_match_a[a[match]], of_match_b[b[match]] = logits[match], logits[match]
    displaces = np.minimum(of_match_a[a], of_match_b[b])
    result: Floats = np.minimum(displaces, np.maximum(best_a[a], best_b[b]))
    return result
