"""Which candidates are scored, and that the others would hardly change what matches."""

import numpy as np
import pytest
import torch

from rrl_match.cascade import score_contenders
from rrl_match.matching import select_matches


def candidates(noise, count=200, each=12, seed=0):
    """Pairs, similarities that tell of their scores but for noise, and scores: patch n of A belongs to n of B."""
    rng = np.random.default_rng(seed)
    others = np.stack([np.repeat(np.arange(count), each), rng.integers(0, count, count * each)], 1)
    pairs = np.unique(np.concatenate([others, np.stack([np.arange(count)] * 2, 1)]), axis=0)
    logits = np.where(pairs[:, 0] == pairs[:, 1], rng.normal(3, 1.5, len(pairs)), rng.normal(-3, 2, len(pairs)))
    similarities = 0.1 * (logits + noise * rng.normal(0, 1, len(pairs)))
    return torch.from_numpy(pairs), torch.from_numpy(similarities), torch.from_numpy(logits).sigmoid().float()


def scorer(pairs, scores, calls):
    table = {tuple(pair): score for pair, score in zip(pairs.tolist(), scores.tolist(), strict=True)}

    def score(some):
        calls.append(len(some))
        return torch.tensor([table[tuple(pair)] for pair in some.tolist()])

    return score


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_matches_are_those_of_scoring_all(noise, mutual):
    pairs, similarities, scores = candidates(noise)
    calls = []
    options = {"mutual": mutual, "threshold": 0.5}
    found = select_matches(*score_contenders(pairs, similarities, scorer(pairs, scores, calls), **options), **options)
    expected = select_matches(pairs, scores, **options)
    same = set(map(tuple, found[0].tolist())) & set(map(tuple, expected[0].tolist()))
    assert len(same) >= 0.98 * max(len(found[0]), len(expected[0]))
    assert sum(calls) < (0.35 if noise < 1 else 0.7) * len(pairs)


def test_no_pair_is_scored_twice_and_the_order_is_kept():
    pairs, similarities, scores = candidates(1.0)
    calls = []
    scored, found = score_contenders(pairs, similarities, scorer(pairs, scores, calls), mutual=True, threshold=0.5)
    assert len(scored) == sum(calls) == len(torch.unique(scored, dim=0))
    keys = scored[:, 0] * 1000 + scored[:, 1]
    assert (keys.diff() > 0).all()
    rows = [pairs.tolist().index(pair) for pair in scored.tolist()]
    torch.testing.assert_close(found, scores[rows])


@pytest.mark.parametrize("change", ["few", "nan"])
def test_all_are_scored(change):
    pairs, similarities, scores = candidates(1.0, count=20 if change == "few" else 200)
    if change == "nan":
        similarities[3] = torch.nan
    scored, found = score_contenders(pairs, similarities, scorer(pairs, scores, []), mutual=True, threshold=0.5)
    torch.testing.assert_close(scored, pairs)
    torch.testing.assert_close(found, scores)


def test_similarities_that_say_nothing():
    """Equal ones leave nothing to regress on; what matches is still found."""
    pairs, similarities, scores = candidates(1.0)
    options = {"mutual": True, "threshold": 0.5}
    scored = score_contenders(pairs, torch.zeros_like(similarities), scorer(pairs, scores, []), **options)
    found, expected = select_matches(*scored, **options)[0], select_matches(pairs, scores, **options)[0]
    same = set(map(tuple, found.tolist())) & set(map(tuple, expected.tolist()))
    assert len(same) >= 0.9 * len(expected)
