from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from rrl_match import Matches, Near
from rrl_match.matching import nearest_candidates, select_matches


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
    # nearest in B of each row of A: 0, 1, 1; nearest in A of each row of B: 0, 1
    assert nearest_candidates(A, B, 1).tolist() == [[0, 0], [1, 1], [2, 1]]
    # exchanged: row 2 of A is nobody's nearest, but its own nearest is row 1 of B
    assert nearest_candidates(B, A, 1).tolist() == [[0, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("candidates", [3, 4, 100])
def test_nearest_candidates_are_all_pairs_if_there_are_enough_candidates(candidates):
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


def test_pairs_near_each_other():
    predicted, positions = [(0, 0), (10, 0), (50, 50)], [(3, 4), (10, 5), (0, 0), (10, -5.001)]
    near = Near(5, predicted, positions)
    assert near.pairs().tolist() == [[0, 0], [0, 2], [1, 1]]  # one pair at exactly 5 px, one just beyond
    assert near.swapped().pairs().tolist() == [[0, 0], [1, 1], [2, 0]]
    assert Near(0.1, predicted, positions).pairs().tolist() == [[0, 2]]
    assert Near(5, predicted, [(90, 90)]).pairs().shape == (0, 2)
    for none in (Near(5, np.empty((0, 2)), np.ones((4, 2))), Near(5, np.ones((4, 2)), np.empty((0, 2)))):
        assert none.pairs().shape == (0, 2)
        assert none.pairs().dtype == torch.int64


def test_repr_of_near():
    assert repr(Near(5, [(0, 0), (10, 0)], [(3, 4)])) == "Near(5, 2 positions of A, 1 of B)"


def test_positions_far_from_the_origin_are_resolved():
    """As in a gigapixel mosaic: neither float32 nor a matrix product would resolve them."""
    assert Near(3, [(1e7, 1e7)], [(1e7 + 3.001, 1e7), (1e7 + 2.999, 1e7)]).pairs().tolist() == [[0, 1]]


def test_nearest_candidates_near_a_position():
    positions = [(0, 0), (100, 0)]
    # Without `near`, row 0 of A would be paired with row 0 of B.
    near = Near(5, [(100, 3), (2, 0), (0, 1)], positions)
    assert nearest_candidates(A, B, 1, near).tolist() == [[0, 1], [1, 0], [2, 0]]
    assert nearest_candidates(A, B, 1, Near(5, [(50, 0)] * 3, positions)).shape == (0, 2)
    everywhere = Near(60, [(50, 0)] * 3, positions)
    for k in (1, 2, 9):
        assert nearest_candidates(A, B, k, everywhere).tolist() == nearest_candidates(A, B, k).tolist()


def test_near_of_more_rows_than_a_block(monkeypatch):
    monkeypatch.setattr("rrl_match.matching.BLOCK", 30)
    generator = torch.Generator().manual_seed(0)
    predicted, positions = (100 * torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (10, 8))
    a, b = (torch.nn.functional.normalize(torch.randn(n, 3, generator=generator)) for n in (10, 8))
    mask = (predicted[:, None] - positions).norm(dim=2) <= 40
    near = Near(40, predicted, positions)
    assert near.pairs().tolist() == mask.nonzero().tolist()
    similarity = (a @ b.T).masked_fill(~mask, -2)
    expected = torch.zeros_like(mask)
    expected.scatter_(1, similarity.topk(2, dim=1).indices, True)
    expected.T.scatter_(1, similarity.T.topk(2, dim=1).indices, True)
    pairs = nearest_candidates(a, b, 2, near)
    assert pairs.tolist() == (expected & mask).nonzero().tolist()


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


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_printed_matches(kind):
    assert repr(Matches(kind(INDICES), kind(np.float32(SCORES)))) == "Matches(2 pairs, scores from 0.75 to 1.00)"
    assert repr(Matches(np.empty((0, 2), np.int64), np.empty(0, np.float32))) == "Matches(0 pairs)"


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_matches_are_drawn(kind):
    matches = Matches(kind(INDICES), kind(np.float32(SCORES)))
    points_a, points_b = np.array([(10, 20), (0, 0), (30, 40)]), np.array([(0, 0), (50, 60), (0, 0), (70, 80)])
    black = np.zeros((400, 300), np.uint8)
    drawn = matches.draw(black, torch.zeros(400, 300), points_a, points_b, lines=0)
    assert drawn.shape == (400, 300 + 8 + 300, 3)
    shown = drawn.any(2)
    shown[:, 300:308] = False
    dots = cv2.connectedComponentsWithStats(shown.astype(np.uint8))[3][1:]
    ends = [(10, 20), (30, 40), (308 + 50, 60), (308 + 70, 80)]
    np.testing.assert_allclose(sorted(dots.tolist()), sorted(ends), atol=1)
    keypoints = [cv2.KeyPoint(*map(float, xy), 1.0) for xy in points_a]
    np.testing.assert_array_equal(matches.draw(black, black, keypoints, points_b, lines=0), drawn)
    with pytest.raises(ValueError, match="points_b must have a row for each patch that was matched, got 3 rows"):
        matches.draw(black, black, points_a, points_b[:3])
