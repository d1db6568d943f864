"""The transform under which the cost surfaces of all blocks are low."""

import numpy as np
import pytest

from rrl_match.registration.adjustment import adjust, log_costs, peak_to_sidelobes
from rrl_match.registration.config import BlockConfig
from rrl_match.transforms import Affine, Homography, Similarity, Translation, compose, similarity

CONFIG = BlockConfig()
IDENTITY = Similarity(np.eye(3))


def shift(x, y):
    return Translation([[1, 0, x], [0, 1, y]])


def surfaces_around(truth, centres, bends, reach=6):
    """Costs that bend as `bends` (N, 2, 2) say around where a transform takes the centres (N, 2)."""
    side = np.arange(-reach, reach + 1.0)
    offsets = np.stack(np.meshgrid(side, side), -1) - (truth(centres) - centres)[:, None, None]
    return 0.1 + np.einsum("nyxi,nij,nyxj->nyx", offsets, bends, offsets)


@pytest.mark.parametrize("kind", [Similarity, Affine, Homography], ids=lambda k: k.kind)
def test_edges_together_fix_a_transform(kind):
    """No block has a minimum of its own: each lies along an edge and leaves one direction open."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 300, (60, 2))
    truth = compose(shift(-138, -131), compose(similarity(0.5, 1.008), shift(140, 130)))
    if kind is not Similarity:
        stretch = Affine([[1.01, 0.004, 0], [0, 1, 0]])
        truth = compose(truth, compose(shift(-150, 0), compose(stretch, shift(150, 0))))
    if kind is Homography:
        truth = Homography(truth.full + np.array([[0, 0, 0], [0, 0, 0], [2e-5, -1e-5, 0]]))
    across = np.stack([np.cos(angle := rng.uniform(0, np.pi, 60)), np.sin(angle)], 1)
    surfaces = surfaces_around(truth, centres, across[:, :, None] * across[:, None])
    adjusted = adjust(IDENTITY, kind, centres, surfaces, CONFIG)
    np.testing.assert_allclose(adjusted(centres), truth(centres), atol=0.05)


def test_blocks_that_fit_elsewhere_do_not_pull():
    """A quarter of the blocks has its minimum 4 px off; an average of minima would be 1 px off."""
    centres = np.random.default_rng(1).uniform(0, 300, (60, 2))
    bends = np.broadcast_to(0.2 * np.eye(2), (60, 2, 2))
    surfaces = surfaces_around(shift(1.5, -0.5), centres, bends)
    surfaces[::4] = surfaces_around(shift(-2.5, -0.5), centres[::4], bends[::4])
    moved = adjust(shift(1, 0), Affine, centres, surfaces, CONFIG)(centres) - centres
    assert np.abs(moved - (1.5, -0.5)).max() < 0.4


@pytest.mark.parametrize("kind", [Translation, Similarity, Affine, Homography], ids=lambda k: k.kind)
def test_surfaces_that_say_nothing_leave_a_transform(kind):
    centres, start = np.random.default_rng(2).uniform(0, 300, (20, 2)), shift(0.4, 0.3)
    for surfaces in (np.zeros((20, 13, 13)), np.ones((20, 13, 13)), np.full((20, 13, 13), -1e-8)):
        np.testing.assert_allclose(adjust(start, kind, centres, surfaces, CONFIG).full, start.full, atol=1e-9)
    noise = np.random.default_rng(3).uniform(0, 1, (20, 13, 13))
    assert np.isfinite(adjust(shift(40, 0), kind, centres, noise, CONFIG).full).all()


def test_peak_to_sidelobes():
    centres = np.zeros((40, 2))
    deep = surfaces_around(IDENTITY, centres, np.broadcast_to(np.eye(2), (40, 2, 2)), 12)
    assert peak_to_sidelobes(log_costs(deep, CONFIG).mean(0), 5) > 4
    assert peak_to_sidelobes(log_costs(np.roll(deep, 7, 1), CONFIG).mean(0), 5) < 2
    assert peak_to_sidelobes(log_costs(np.roll(deep, 7, 1), CONFIG).mean(0), 5, (0, 7)) > 4
    assert peak_to_sidelobes(np.ones((25, 25)), 5) == 0
