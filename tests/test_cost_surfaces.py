"""Costs of blocks as the definition says, and their minima."""

import numpy as np
import pytest
from scenes import make_scene

from rrl_match.channels import ChannelConfig, block_channels
from rrl_match.cost_surfaces import cost_surfaces, lowest


def test_minimum_between_pixels():
    x, y = np.meshgrid(np.arange(-3.0, 4), np.arange(-3.0, 4))
    truth = np.array([(0.3, -1.2), (0.0, 2.4), (-1.45, 0.1)])
    cost = np.stack([(x - u) ** 2 + 2 * (y - v) ** 2 for u, v in truth])
    offsets, inside = lowest(cost)
    np.testing.assert_allclose(offsets, truth, atol=1e-9)
    assert inside.tolist() == [True] * 3
    assert lowest((x + y)[None])[1].tolist() == [False]


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
