"""A smooth displacement is found where the images are bent, and none is put on what a matrix explains."""

import cv2
import numpy as np
import pytest
from scenes import NEAR, EdgeMatcher, frame_of, inverted, make_scene, moved

from rrl_match import register
from rrl_match.registration import local
from rrl_match.registration.block_matching import Blocks
from rrl_match.registration.config import Config
from rrl_match.registration.local import bend
from rrl_match.registration.overlay import Overlap
from rrl_match.transforms import Affine, DisplacementField, similarity


def bent(scene, amplitude):
    """The other sensor's image of a scene under a wave, and where it shows locations of the scene."""
    h, w = scene.shape
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))

    def wave(x, y):
        return amplitude * np.sin(2 * np.pi * y / h), amplitude * np.sin(2 * np.pi * x / w)

    dx, dy = wave(x, y)
    image = cv2.remap(inverted(scene), x + dx, y + dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)

    def truth(points):
        found = np.array(points, float)
        for _ in range(50):
            found = points - np.stack(wave(*found.T), 1)
        return found

    return image, truth


def grid_of(shape, margin=0):
    h, w = shape
    x, y = np.meshgrid(np.linspace(margin, w - 1 - margin, 15), np.linspace(margin, h - 1 - margin, 15))
    return np.stack([x.ravel(), y.ravel()], 1)


@pytest.fixture(scope="module")
def scene():
    return make_scene(4, (400, 440), (3, 8))


@pytest.fixture(scope="module")
def result(scene):
    return register(EdgeMatcher(), scene, bent(scene, 8)[0], "local", search=NEAR)


def test_a_wave_is_found(scene, result):
    _, truth = bent(scene, 8)
    points = grid_of(scene.shape, margin=25)  # the border shows mirrored pixels
    off = np.linalg.norm(result.transform(points) - truth(points), axis=1)
    assert result.ok
    assert result.model == "local"
    assert result.matrix is None
    assert np.median(off) < 0.3
    assert off.max() < 1.5
    assert not result.transform.folds


def test_tie_points_cover_the_overlap(scene, result):
    points = result.tie_points
    assert points.inliers.sum() >= 200
    cells = (points.a[points.inliers] / scene.shape[::-1] * 4).astype(int).clip(0, 3)
    assert len({tuple(cell) for cell in cells}) == 16
    np.testing.assert_allclose(np.linalg.norm(result.transform(points.a) - points.b, axis=1), points.residuals)


def test_what_a_matrix_explains_stays_global(scene):
    there, truth = moved(scene, 3, 1.02, (2, -1))
    frame = frame_of(scene, there)
    assert bend([frame], None, truth, Config()) is None


def test_a_wrong_hypothesis_is_not_bent(scene):
    other = frame_of(scene, inverted(make_scene(9, scene.shape, (3, 8))))
    assert bend([other], None, similarity(), Config()) is None


def test_a_field_becomes_json(result):
    copy = DisplacementField.from_dict(result.transform.to_dict())
    points = grid_of((300, 300))
    np.testing.assert_array_equal(copy(points), result.transform(points))


def test_blocks_of_tiles_determine_a_field():
    """Their costs are quadratic around where the field takes them; a matrix explains the others."""
    x, y = np.meshgrid(np.linspace(20, 780, 20), np.linspace(20, 700, 20))
    points = np.stack([x.ravel(), y.ravel()], 1)
    offsets = np.arange(-6, 7)
    outline = np.array([(0, 0), (799, 0), (799, 719), (0, 719.0)])
    overlap = Overlap(outline, 800 * 720.0, 1.0, 1.0)

    def found(bend, certain):
        there = bend * np.stack([np.sin(points[:, 1] / 150), np.cos(points[:, 0] / 170)], 1)
        costs = (offsets - there[:, 0, None, None]) ** 2 + (offsets[:, None] - there[:, 1, None, None]) ** 2
        noise = np.random.default_rng(0).uniform(0.9, 1.1, costs.shape)
        matched, everywhere = points + there, np.ones(len(points), bool)
        numbers = np.zeros(len(points), int)
        blocks = Blocks(points, points, matched, everywhere, (1 + costs / 10) * noise, numbers, 1.0, len(points))
        return local.bent(blocks, Affine(np.eye(3)), overlap, certain, Config()), matched

    field, matched = found(3.0, 4.0)
    assert np.abs(field(points) - matched).mean() < 0.2
    assert found(0.0, 4.0)[0] is None
    assert found(3.0, np.inf)[0] is None
