from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from rrl_match import Matches
from rrl_match.matching import Vicinity, nearest_candidates, select_matches


def select(matrix, **options):
    """select_matches of all pairs of a matrix of scores, as a list of (a, b, score)."""
    scores = torch.tensor(matrix)
    n, m = scores.shape
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(m))
    indices, selected = select_matches(pairs, scores.flatten(), **{"mutual": True, "threshold": 0.0, **options})
    assert indices.dtype == torch.int64
    return [(*pair, pytest.approx(score)) for pair, score in zip(indices.tolist(), selected.tolist(), strict=True)]


MATRIX = [[0.1, 0.9, 0.2], [0.8, 0.7, 0.1], [0.3, 0.6, 0.5]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 1, 0.9), (1, 0, 0.8)]),
        ({"mutual": False}, [(0, 1, 0.9), (1, 0, 0.8), (2, 1, 0.6)]),
        ({"threshold": 0.8}, [(0, 1, 0.9)]),
        ({"threshold": 0.95}, []),
    ],
)
def test_select_matches(options, expected):
    assert select(MATRIX, **options) == expected


def test_a_score_at_the_threshold_is_no_match():
    assert select([[0.5]], threshold=0.5) == []
    assert select([[0.5]], threshold=0.25) == [(0, 0, 0.5)]


@pytest.mark.parametrize("mutual", [True, False])
def test_of_equal_scores_the_first_wins(mutual):
    expected = [(0, 0, 0.5)] if mutual else [(0, 0, 0.5), (1, 0, 0.5)]
    assert select([[0.5, 0.5], [0.5, 0.5]], mutual=mutual) == expected


def test_best_of_a_may_be_worse_than_another_pair_of_the_same_b():
    assert select([[0.6, 0.5], [0.7, 0.1]]) == [(1, 0, 0.7)]


def test_matches_come_in_the_order_of_a():
    pairs = torch.tensor([[5, 0], [2, 2], [9, 1], [2, 7]])
    indices, scores = select_matches(pairs, torch.tensor([0.6, 0.7, 0.9, 0.8]), mutual=True, threshold=0.5)
    assert indices.tolist() == [[2, 7], [5, 0], [9, 1]]
    torch.testing.assert_close(scores, torch.tensor([0.8, 0.6, 0.9]))


@pytest.mark.parametrize("mutual", [True, False])
def test_select_matches_of_nothing(mutual):
    indices, scores = select_matches(torch.empty(0, 2, dtype=torch.int64), torch.empty(0), mutual=mutual, threshold=0.5)
    assert indices.shape == (0, 2)
    assert indices.dtype == torch.int64
    assert scores.shape == (0,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mutual", [True, False])
def test_select_matches_against_loops(seed, mutual):
    matrix = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed)).mul(8).round().div(8)  # many ties
    expected = []
    for a, row in enumerate(matrix.tolist()):
        b = row.index(max(row))
        column = matrix[:, b].tolist()
        if row[b] > 0.25 and (not mutual or column.index(max(column)) == a):
            expected.append((a, b, row[b]))
    assert select(matrix.tolist(), mutual=mutual, threshold=0.25) == expected


A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
B = torch.tensor([[0.8, 0.6], [0.6, 0.8]])


def test_nearest_candidates_of_both_directions():
    # of A: 0 -> 0, 1 -> 1, 2 -> 1; of B: 0 -> 0, 1 -> 1
    assert nearest_candidates(A, B, 1).tolist() == [[0, 0], [1, 1], [2, 1]]
    # of B besides: nothing new; of A from the other side: 2 is nobody's nearest
    assert nearest_candidates(B, A, 1).tolist() == [[0, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("candidates", [3, 4, 100])
def test_nearest_candidates_are_all_pairs_where_enough_are_asked_for(candidates):
    pairs = nearest_candidates(A, B, candidates)
    assert pairs.tolist() == [[a, b] for a in range(3) for b in range(2)]
    assert pairs.dtype == torch.int64


@pytest.mark.parametrize(("n", "m"), [(0, 2), (3, 0), (0, 0)])
def test_nearest_candidates_of_nothing(n, m):
    assert nearest_candidates(A[:n], B[:m], 2).shape == (0, 2)


def test_nearest_candidates_of_more_rows_than_a_block():
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(4100, 3, generator=generator))
    b = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator))
    similarity = a @ b.T
    expected = {(i, int(similarity[i].argmax())) for i in range(4100)}
    expected |= {(int(similarity[:, j].argmax()), j) for j in range(5)}
    pairs = nearest_candidates(a, b, 1)
    assert sorted(map(tuple, pairs.tolist())) == sorted(expected)


def vicinity(predicted, places, radius):
    return Vicinity(torch.tensor(predicted, dtype=torch.float64), torch.tensor(places, dtype=torch.float64), radius)


def test_pairs_of_a_vicinity():
    predicted, places = [(0, 0), (10, 0), (50, 50)], [(3, 4), (10, 5), (0, 0), (10, -5.001)]
    assert vicinity(predicted, places, 5).pairs().tolist() == [[0, 0], [0, 2], [1, 1]]  # one at 5 px, one beyond
    assert vicinity(predicted, places, 5).turned().pairs().tolist() == [[0, 0], [1, 1], [2, 0]]
    assert vicinity(predicted, places, 0.1).pairs().tolist() == [[0, 2]]
    assert vicinity(predicted, [(90, 90)], 5).pairs().shape == (0, 2)
    for some in (Vicinity(torch.empty(0, 2), torch.ones(4, 2), 5), Vicinity(torch.ones(4, 2), torch.empty(0, 2), 5)):
        assert some.pairs().shape == (0, 2)
        assert some.pairs().dtype == torch.int64


def test_places_far_from_the_origin_are_told_apart():
    """As in a mosaic of a gigapixel: in float32, or by way of a matrix product, they would not be."""
    assert vicinity([(1e7, 1e7)], [(1e7 + 3.001, 1e7), (1e7 + 2.999, 1e7)], 3).pairs().tolist() == [[0, 1]]


def test_nearest_candidates_in_a_vicinity():
    places = [(0, 0), (100, 0)]
    # 0 of A would have 0 of B, and 2 of A none, were they not kept apart
    assert nearest_candidates(A, B, 1, vicinity([(100, 3), (2, 0), (0, 1)], places, 5)).tolist() == [
        [0, 1],
        [1, 0],
        [2, 0],
    ]
    assert nearest_candidates(A, B, 1, vicinity([(50, 0)] * 3, places, 5)).shape == (0, 2)
    everywhere = vicinity([(50, 0)] * 3, places, 60)
    for k in (1, 2, 9):
        assert nearest_candidates(A, B, k, everywhere).tolist() == nearest_candidates(A, B, k).tolist()


def test_vicinity_of_more_rows_than_a_block(monkeypatch):
    monkeypatch.setattr(
        "rrl_match.matching._blocks", lambda count, width: (slice(k, k + 3) for k in range(0, count, 3))
    )
    generator = torch.Generator().manual_seed(0)
    predicted, places = (100 * torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (10, 8))
    a, b = (torch.nn.functional.normalize(torch.randn(n, 3, generator=generator)) for n in (10, 8))
    near = (predicted[:, None] - places).norm(dim=2) <= 40
    assert Vicinity(predicted, places, 40).pairs().tolist() == near.nonzero().tolist()
    similarity = (a @ b.T).masked_fill(~near, -2)
    expected = torch.zeros_like(near)
    expected.scatter_(1, similarity.topk(2, dim=1).indices, True)
    expected.T.scatter_(1, similarity.T.topk(2, dim=1).indices, True)
    pairs = nearest_candidates(a, b, 2, Vicinity(predicted, places, 40))
    assert pairs.tolist() == (expected & near).nonzero().tolist()


INDICES, SCORES = [[0, 3], [2, 1]], [0.75, 1.0]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_matches_to_cv2(kind):
    matches = Matches(kind(INDICES), kind(SCORES)).to_cv2()
    assert [(m.queryIdx, m.trainIdx, m.distance) for m in matches] == [(0, 3, 0.25), (2, 1, 0.0)]
    assert all(isinstance(m, cv2.DMatch) for m in matches)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_matches_to_kornia(kind):
    distances, indices = Matches(kind(INDICES), kind(np.float32(SCORES))).to_kornia()
    torch.testing.assert_close(distances, torch.tensor([[0.25], [0.0]]))
    torch.testing.assert_close(indices, torch.tensor(INDICES))


def test_no_matches():
    matches = Matches(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    assert len(matches) == 0
    assert matches.to_cv2() == []
    distances, indices = matches.to_kornia()
    assert distances.shape == (0, 1)
    assert indices.shape == (0, 2)
    assert len(Matches(np.array(INDICES), np.array(SCORES))) == 2
