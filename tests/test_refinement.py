"""The last pixel: edges that are found again."""

import cv2
import numpy as np
import pytest

from rrl_match.refinement import edge_offsets


@pytest.fixture
def blobs():
    """(240, 320) in [0, 1]: smooth blobs with edges in all directions."""
    noise = np.random.default_rng(0).random((240, 320)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return (smooth > smooth.mean()).astype(np.float32)


def moved(image, matrix):
    return cv2.warpAffine(image, np.asarray(matrix, np.float64), image.shape[::-1], flags=cv2.INTER_LINEAR)


POINTS = np.array([[100.0, 90.0], [160.0, 120.0], [200.0, 130.0]])
UPRIGHT = np.repeat(np.eye(2)[None], 3, axis=0)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (2.5, 1.25)])
@pytest.mark.parametrize("inverted", [False, True])
def test_shift_is_found_whatever_the_contrast(blobs, shift, inverted):
    there = moved(blobs, [[1, 0, shift[0]], [0, 1, shift[1]]])
    there = 0.7 - 0.5 * there if inverted else there
    offsets, found = edge_offsets(blobs, there, POINTS, POINTS, UPRIGHT, radius=6)
    assert found.all()
    np.testing.assert_allclose(offsets, np.tile(shift, (3, 1)), atol=0.15)


def test_offsets_are_in_pixels_of_a(blobs):
    """B is turned and twice as large; its surroundings are brought to A's frame first."""
    linear = 2 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    origin = np.array([160.0, 120.0])
    matrix = np.hstack([linear, (np.array([320.0, 240.0]) - linear @ origin)[:, None]])
    there = cv2.warpAffine(blobs, matrix, (640, 480), flags=cv2.INTER_LINEAR)
    predicted = POINTS @ linear.T + matrix[:, 2] - linear @ np.array([2.0, -1.0])
    offsets, found = edge_offsets(blobs, there, POINTS, predicted, np.repeat(linear[None], 3, 0), radius=5)
    assert found.all()
    np.testing.assert_allclose(offsets, np.tile([2.0, -1.0], (3, 1)), atol=0.3)


def test_nothing_found_beyond_the_radius_or_the_picture(blobs):
    there = moved(blobs, [[1, 0, 9], [0, 1, 0]])
    _, found = edge_offsets(blobs, there, POINTS[:1], np.add(POINTS[:1], (4, 0)), UPRIGHT[:1], radius=5)
    assert not found.any(), "the maximum lies at the border of what was searched"
    near_border = np.array([[20.0, 90.0], [100.0, 90.0]])
    _, found = edge_offsets(blobs, blobs, near_border, near_border, UPRIGHT[:2], radius=4)
    assert found.tolist() == [False, True]


def test_flat_and_empty(blobs):
    flat = np.full_like(blobs, 0.5)
    offsets, found = edge_offsets(flat, flat, POINTS, POINTS, UPRIGHT, radius=4)
    assert not found.any()
    assert np.isfinite(offsets).all()
    offsets, found = edge_offsets(blobs, blobs, np.empty((0, 2)), np.empty((0, 2)), np.empty((0, 2, 2)), radius=4)
    assert offsets.shape == (0, 2)
    assert found.shape == (0,)
