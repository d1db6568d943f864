import pytest
import torch

from rrl_match.training.mining import mine_pairs, surely_different


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_surely_different_by_picture_or_by_distance():
    picture = torch.tensor([0, 0, 0, 1])
    position = torch.tensor([[10.0, 10.0], [13.0, 14.0], [10.0, 15.5], [10.0, 10.0]])
    expected = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]).bool()
    assert torch.equal(surely_different(picture, position, 5.0), expected)


def places(n, seed=0):
    g = generator(seed)
    picture = torch.randint(3, (n,), generator=g)
    return surely_different(picture, torch.rand(n, 2, generator=g) * 100, 30.0), torch.randn(n, n, generator=g)


@pytest.mark.parametrize("hard_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_half_matches_and_no_forbidden_pair(hard_share, seed):
    negative, similarity = places(20, seed)
    pairs = mine_pairs(similarity, negative, hard_share, generator(seed))
    assert pairs.shape == (40, 2)
    assert pairs.dtype == torch.int64
    own = torch.arange(20)
    assert torch.equal(pairs[:20], torch.stack([own, own], 1))
    rows_a, rows_b = pairs[20:].unbind(1)
    assert negative[rows_a, rows_b].all()
    # Each place looks for one partner, along A or along B.
    assert ((rows_a == own) | (rows_b == own)).all()


def test_hardest_is_the_most_alike_of_those_allowed():
    negative, similarity = places(20)
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
    picture = torch.tensor([0, 0, 0, 0, 1])
    negative = surely_different(picture, torch.zeros(5, 2), 1.0)
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
    negative, similarity = places(16)
    pairs = [mine_pairs(similarity, negative, 0.5, generator(s)) for s in (1, 1, 2)]
    assert torch.equal(pairs[0], pairs[1])
    assert not torch.equal(pairs[0], pairs[2])


def test_no_gradient_flows_through_mining():
    negative, similarity = places(8)
    assert not mine_pairs(similarity.requires_grad_(), negative, 1.0, generator()).requires_grad
