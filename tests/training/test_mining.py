import pytest
import torch

from rrl_match.training.mining import mine_pairs, negative_mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_negatives_are_of_another_image_or_far_apart():
    image = torch.tensor([0, 0, 0, 1])
    position = torch.tensor([[10.0, 10.0], [13.0, 14.0], [10.0, 15.5], [10.0, 10.0]])
    expected = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]).bool()
    assert torch.equal(negative_mask(torch.zeros(4), image, position, 5.0), expected)


def test_negatives_are_of_one_group():
    """Images 0 and 1 are of one source, image 2 of another."""
    group, image = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 2])
    position = torch.tensor([[10.0, 10.0], [10.0, 10.0], [10.0, 10.0], [90.0, 10.0]])
    expected = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]).bool()
    assert torch.equal(negative_mask(group, image, position, 24.0), expected)


def test_locations_exactly_at_the_distance_are_negatives():
    position = torch.tensor([[0.0, 0.0], [24.0, 0.0]])
    zeros = torch.zeros(2, dtype=torch.int64)
    assert negative_mask(zeros, zeros, position, 24.0).tolist() == [[False, True], [True, False]]


def random_locations(n, seed=0):
    """A mask of negatives and similarities."""
    g = generator(seed)
    image = torch.randint(3, (n,), generator=g)
    position = torch.rand(n, 2, generator=g) * 100
    return negative_mask(torch.zeros(n), image, position, 30.0), torch.randn(n, n, generator=g)


@pytest.mark.parametrize("hard_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_half_matches_and_no_forbidden_pair(hard_fraction, seed):
    negative, similarity = random_locations(20, seed)
    pairs = mine_pairs(similarity, negative, hard_fraction, generator(seed))
    assert pairs.shape == (40, 2)
    assert pairs.dtype == torch.int64
    own = torch.arange(20)
    assert torch.equal(pairs[:20], torch.stack([own, own], 1))
    rows_a, rows_b = pairs[20:].unbind(1)
    assert negative[rows_a, rows_b].all()
    # Each location has one negative, along A or along B.
    assert ((rows_a == own) | (rows_b == own)).all()


def test_hardest_is_the_most_similar_of_those_allowed():
    negative, similarity = random_locations(20)
    pairs = mine_pairs(similarity, negative, 1.0, generator(), hardest=1)[20:]
    allowed = similarity.masked_fill(~negative, -torch.inf)
    along_a = pairs[:, 0] == torch.arange(20)
    assert 0 < along_a.sum() < 20
    for k, (a, b) in enumerate(pairs.tolist()):
        assert (a, b) == ((k, int(allowed[k].argmax())) if along_a[k] else (int(allowed[:, k].argmax()), k))


def test_hard_negatives_are_spread_over_the_hardest():
    n, seen = 12, set()
    negative = ~torch.eye(n, dtype=torch.bool)
    similarity = torch.arange(float(n)).expand(n, n) + torch.arange(float(n))[:, None]
    for seed in range(40):
        pairs = mine_pairs(similarity, negative, 1.0, generator(seed), hardest=3)
        seen |= set(pairs[n].tolist()) - {0}
    assert seen == {n - 1, n - 2, n - 3}


def test_fewer_allowed_than_hardest():
    negative = negative_mask(torch.zeros(5), torch.tensor([0, 0, 0, 0, 1]), torch.zeros(5, 2), 1.0)
    for seed in range(20):
        rows_a, rows_b = mine_pairs(torch.rand(5, 5), negative, 1.0, generator(seed))[5:].unbind(1)
        assert negative[rows_a, rows_b].all()


def test_random_negatives_reach_every_allowed_partner():
    n = 6
    seen = {
        tuple(p)
        for s in range(100)
        for p in mine_pairs(torch.zeros(n, n), ~torch.eye(n).bool(), 0.0, generator(s))[n:].tolist()
    }
    assert seen == {(a, b) for a in range(n) for b in range(n) if a != b}


def test_same_generator_state_same_pairs():
    negative, similarity = random_locations(16)
    pairs = [mine_pairs(similarity, negative, 0.5, generator(s)) for s in (1, 1, 2)]
    assert torch.equal(pairs[0], pairs[1])
    assert not torch.equal(pairs[0], pairs[2])


def test_no_gradient_flows_through_mining():
    negative, similarity = random_locations(8)
    assert not mine_pairs(similarity.requires_grad_(), negative, 1.0, generator()).requires_grad


def test_location_without_a_negative_gets_none():
    group = torch.tensor([0, 0, 1])
    negative = negative_mask(group, torch.tensor([0, 1, 2]), torch.zeros(3, 2), 1.0)
    pairs = mine_pairs(torch.zeros(3, 3), negative, 0.5, generator())
    assert pairs[:3].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert len(pairs) == 5
    assert negative[pairs[3:, 0], pairs[3:, 1]].all()
