"""Blocks lie where both images show something, and the simplest model that explains them is taken."""

import numpy as np
import pytest
from scenes import frame_of, make_scene, moved

from rrl_match.registration.block_matching import Blocks, Grid, fit_simplest, match_blocks
from rrl_match.registration.config import BlockConfig, Config
from rrl_match.registration.overlay import overlap_of
from rrl_match.transforms import Affine, Homography, Similarity, Translation, matrix_kind, similarity

IDENTITY = Similarity(np.eye(3))


def blocks_at(points, matched):
    n = len(points)
    return Blocks(points, points, matched, np.ones(n, bool), np.ones((n, 3, 3)), np.zeros(n, int), 1.0, n)


@pytest.mark.parametrize(
    ("truth", "asked", "expected"),
    [
        (similarity(20, 1.1), "affine", "similarity"),
        (similarity(20, 1.1), "homography", "similarity"),
        (Affine([[1, 0, 0], [0, 1.05, 0]]), "affine", "affine"),
        (Affine([[1, 0, 0], [0, 1.05, 0]]), "homography", "affine"),
        (Homography([[1, 0, 0], [0, 1, 0], [3e-4, 0, 1]]), "homography", "homography"),
        (Affine([[1, 0, 0], [0, 1.3, 0]]), "affine", "affine"),
    ],
)
def test_simplest_model_that_fits(truth, asked, expected):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 300, (80, 2))
    matched = truth(points) + rng.normal(0, 0.3, (80, 2))
    found, kind = fit_simplest(blocks_at(points, matched), IDENTITY, matrix_kind(asked), BlockConfig(), True)
    assert kind.kind == expected
    assert np.abs(found(points) - truth(points)).max() < 0.7
    insisted = fit_simplest(blocks_at(points, matched), IDENTITY, matrix_kind(asked), BlockConfig(), False)
    assert insisted[1].kind == asked


def test_a_shift_on_top_of_what_is_known():
    points = np.random.default_rng(0).uniform(0, 300, (50, 2))
    base, beside = similarity(30, 1.2, (4, 5)), np.array([3.0, -2.0])
    found, kind = fit_simplest(blocks_at(points, base(points) + beside), base, Translation, BlockConfig(), True)
    assert kind is Translation
    np.testing.assert_allclose(found.full[:2, :2], base.full[:2, :2], atol=1e-9)
    np.testing.assert_allclose(found(points), base(points) + beside, atol=1e-6)


def test_too_few_blocks_fit_nothing():
    points = np.random.default_rng(0).uniform(0, 300, (5, 2))
    assert fit_simplest(blocks_at(points, points), IDENTITY, Similarity, BlockConfig(), True) is None


def test_blocks_lie_where_both_images_show_something():
    scene = make_scene(0)
    mask = np.zeros_like(scene)
    mask[:, :150] = 1
    there, truth = moved(scene, 3)
    frame = frame_of(scene, there, mask)
    blocks = match_blocks([frame], truth, overlap_of(frame, truth), Grid(1.0, 6, 20, 8), Config())
    assert 12 <= len(blocks.points) <= blocks.asked == 36
    assert 0 < blocks.points[:, 0].max() < 150
    error = np.linalg.norm(blocks.matched - truth(blocks.points), axis=1)
    assert np.median(error) < 0.3
    assert blocks.agreeing(truth, 3.0).mean() > 0.9
