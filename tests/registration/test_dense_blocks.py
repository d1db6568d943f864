"""Blocks and tie points over the whole overlap."""

import numpy as np
import pytest
from scenes import frame_of, inverted, make_scene, moved

from rrl_match.registration.block_matching import Grid
from rrl_match.registration.config import Config
from rrl_match.registration.dense_blocks import dense_blocks, tie_points
from rrl_match.registration.overlay import overlap_of
from rrl_match.registration.result import TiePoints
from rrl_match.transforms import Affine


@pytest.fixture(scope="module")
def scene():
    return make_scene(4, (400, 440), (3, 8))


def test_blocks_reach_the_border(scene):
    frame, identity = frame_of(scene, inverted(scene)), Affine(np.eye(3))
    overlap = overlap_of(frame, identity)
    blocks = dense_blocks([frame], identity, overlap, Grid(1.0, 20, 26, 8), Config())
    low, high = blocks.points.min(0), blocks.points.max(0)
    assert (low < 20).all()
    assert (high > np.array(scene.shape[::-1]) - 21).all()
    assert blocks.agreeing(identity, 1.0).mean() > 0.95


def test_tie_points_of_a_matrix(scene):
    there, truth = moved(scene, 3, 1.02, (2, -1))
    frame = frame_of(scene, there)
    overlap = overlap_of(frame, truth)
    points = tie_points([frame], truth, overlap, 1.0, Config())
    assert points.inliers.sum() >= 200
    assert np.median(np.linalg.norm(truth(points.a) - points.b, axis=1)) < 0.3
    assert np.isnan(points.scores).all()
    cells = (points.a[points.inliers] / scene.shape[::-1] * 4).astype(int).clip(0, 3)
    assert len({tuple(cell) for cell in cells}) == 16


def test_points_that_were_there_are_not_added_again():
    def of(x):
        x = np.asarray(x, float)
        places = np.stack([x, x], 1)
        return TiePoints(places, places, x.astype(np.float32), x, x > 0)

    joined = of([0, 50]).joined(of([1, 20, 51, 90]), apart=5)
    np.testing.assert_array_equal(joined.residuals, [0, 50, 20, 90])
    assert len(TiePoints().joined(of([3]), apart=5)) == 1
