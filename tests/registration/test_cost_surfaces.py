"""Minima of cost surfaces, and the transform under which all are low."""

import numpy as np
import pytest
from scenes import make_scene

from rrl_match.registration.channels import block_channels
from rrl_match.registration.config import BlockConfig, ChannelConfig
from rrl_match.registration.cost_surfaces import adjust, cost_surfaces, log_costs, lowest, peak_to_sidelobes
from rrl_match.transforms import Affine, Homography, Similarity, Translation, compose, similarity

CONFIG = BlockConfig()
IDENTITY = Similarity(np.eye(3))


def shift(x, y):
    return Translation([[1, 0, x], [0, 1, y]])


def test_minimum_between_pixels():
    x, y = np.meshgrid(np.arange(-3.0, 4), np.arange(-3.0, 4))
    truth = np.array([(0.3, -1.2), (0.0, 2.4), (-1.45, 0.1)])
    cost = np.stack([(x - u) ** 2 + 2 * (y - v) ** 2 for u, v in truth])
    offsets, inside = lowest(cost)
    np.testing.assert_allclose(offsets, truth, atol=1e-9)
    assert inside.tolist() == [True] * 3
    assert lowest((x + y)[None])[1].tolist() == [False]


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


@pytest.mark.parametrize("part", [0.0, 0.1], ids=["whole", "with holes"])
def test_costs_are_differences_at_offsets(part):
    """Computed by Fourier transforms, and as the definition says; pixels in holes do not count."""
    rng = np.random.default_rng(0)
    image, half, radius = make_scene(0).astype(np.float32) / 255, 10, 4
    ones, hole = np.ones_like(image), np.zeros_like(image)
    hole[70 : 70 + int(80 * part), 60:110] = 1
    a = block_channels(image, ones - hole, hole, ChannelConfig())
    b = block_channels(np.roll(1 - image, (2, -3), (0, 1)), ones, 0 * ones, ChannelConfig())
    centres = rng.integers(40, 150, (12, 2))
    costs = cost_surfaces(a, b, centres, half, radius)
    for (x, y), surface in zip(centres, costs, strict=True):
        for dx, dy in ((0, 0), (-3, 2), (4, -4)):
            here = np.s_[y - half : y + half + 1, x - half : x + half + 1]
            there = np.s_[y + dy - half : y + dy + half + 1, x + dx - half : x + dx + half + 1]
            squared = ((a.values[(slice(None), *here)] - b.values[(slice(None), *there)]) ** 2).sum(0) * a.whole[here]
            expected = squared.sum() / a.whole[here].sum()
            assert surface[dy + radius, dx + radius] == pytest.approx(expected, abs=2e-3)
    off, inside = lowest(costs)
    assert np.abs(off[inside] - (-3, 2)).max() < 0.3
