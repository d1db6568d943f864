"""What a registration says and draws."""

import base64
import dataclasses
import pickle
import re

import cv2
import numpy as np
import pytest
import torch
from scenes import make_scene, moved

from rrl_match import Registration
from rrl_match.registration import TiePoints
from rrl_match.registration.error import ErrorMap
from rrl_match.registration.result import Thumbnails
from rrl_match.transforms import Homography, Transform, similarity


@pytest.fixture(scope="module")
def pair():
    scene = make_scene(0)
    there, truth = moved(scene, 6)
    return scene, there, Registration(transform=truth, model="similarity", probability=0.97, overlap=0.8, agreement=0.9)


def test_true_exactly_if_there_is_a_transform(pair):
    *_, result = pair
    refused = Registration(rejected=result.transform, reason="noise", advice="look at it")
    assert bool(result) is result.ok is True
    assert bool(refused) is refused.ok is False
    assert refused.matrix is None
    assert result.matrix.shape == (2, 3)
    assert Registration(transform=Homography(np.eye(3))).matrix.shape == (3, 3)


def test_printed_in_three_lines(pair):
    *_, result = pair
    result = dataclasses.replace(result, errors=ErrorMap(radius=1.7))
    assert str(result).splitlines() == [
        "Registration by a similarity transform, right with a probability of 97%",
        "  expected error: 90 % of the overlap within 1.7 pixels of B",
        "  80% of A overlaps B, 90% of it agrees",
    ]
    assert str(dataclasses.replace(result, model="affine")).startswith("Registration by an affine transform")
    refused = Registration(reason="nothing agrees", advice="crop A")
    assert str(refused).splitlines() == ["Registration refused: nothing agrees", "  crop A"]


def tie_points(transform):
    """A grid of 5 x 5; 1 pixel off, 1.7 in the right half; the last one does not agree."""
    a = np.stack(np.meshgrid(np.linspace(20, 200, 5), np.linspace(20, 170, 5)), -1).reshape(-1, 2)
    off = np.where(a[:, 0] > 100, 1.7, 1.0)
    off[-1] = 40
    b = transform(a) + np.stack([off, np.zeros(25)], 1)
    return TiePoints(a, b, np.ones(25, np.float32), off, off < 3)


def test_warp(pair):
    scene, there, result = pair
    inner = np.s_[50:-50, 50:-50]
    for interpolation in ("nearest", "linear", "cubic"):
        warped = result.warp(scene, there.shape, interpolation)
        assert warped.shape == there.shape
        assert np.corrcoef(warped[inner].ravel(), there[inner].ravel())[0, 1] < -0.9, "contrast is inverted"


def test_refused_registrations_do_not_warp(pair):
    scene, *_ = pair
    refused = Registration(reason="nothing agrees")
    for call in (lambda: refused.warp(scene, scene.shape), lambda: refused.checkerboard(scene, scene)):
        with pytest.raises(ValueError, match="no transform to warp by: nothing agrees"):
            call()
    with pytest.raises(ValueError, match="no transform to tell the error of: nothing agrees"):
        refused.error_map(scene)


def test_checkerboard(pair):
    scene, there, result = pair
    board = result.checkerboard(scene, there.astype(np.uint16) * 100, squares=4)
    assert board.shape == (*there.shape, 3)
    assert board.dtype == np.uint8
    same = result.checkerboard(scene, there, squares=4)
    np.testing.assert_array_equal(same[:55, 55:110], np.dstack([there[:55, 55:110]] * 3))
    np.testing.assert_array_equal(same[:55, :55, 0], result.warp(scene, there.shape)[:55, :55])


def test_pictures_of_all_that_register_takes(pair):
    scene, there, result = pair
    expected = result.checkerboard(scene, there)
    rgba = np.dstack([scene, scene, scene, np.full_like(scene, 255)])
    for a, b in (
        (torch.from_numpy(scene), torch.from_numpy(there)[..., None]),
        (rgba, [there, there]),
        (torch.from_numpy(np.dstack([scene] * 3)), there),
    ):
        np.testing.assert_array_equal(result.checkerboard(a, b), expected)
    half = torch.from_numpy(scene / np.float32(255)).bfloat16()
    assert result.checkerboard(half, there / np.float32(255)).shape == expected.shape
    with_holes = np.where(np.arange(there.size).reshape(there.shape) % 7 == 0, np.nan, there.astype(np.float32))
    assert result.error_map(with_holes).dtype == np.uint8
    transparent = rgba.copy()
    transparent[:, :110, 3] = 0
    assert not Registration(similarity()).checkerboard(transparent, rgba, squares=4)[:55, :55].any()
    with pytest.raises(ValueError, match=r"an image must have shape .*got \(5,\)"):
        result.checkerboard(np.zeros(5), there)


def test_matches_side_by_side(pair):
    scene, _, result = pair
    points = tie_points(result.transform)
    drawn = dataclasses.replace(result, tie_points=points).draw_matches(scene, np.zeros((95, 110), np.uint8))
    assert drawn.dtype == np.uint8
    assert drawn.shape == (400, 463 + 8 + 463, 3)  # both at one height
    x, y = ((points.a + 0.5) * 400 / 190).round().astype(int).T
    np.testing.assert_array_equal(drawn[y[-1], x[-1]], (229, 62, 62))  # does not agree
    assert len(np.unique(drawn[y, x], axis=0)) == 25  # the others can be told apart
    dots = dataclasses.replace(result, tie_points=points).draw_matches(scene, np.zeros((95, 110)), lines=0)
    assert (dots[:, 463:471] == 255).all()  # no line crosses the gap
    assert result.draw_matches(scene, scene).shape == drawn.shape  # without tie points


def test_error_of_locations(pair):
    *_, result = pair
    assert np.isinf(result.error)
    assert np.isinf(result.error_at([(5, 5)])).all()
    known = ErrorMap(np.array([[20.0, 90], [190, 40], [190, 165]]), np.array([1.0, 2, 3]), 2.5, reach=10)
    result = dataclasses.replace(result, errors=known)
    assert result.error == 2.5
    errors = result.error_at([(20, 90), (190, 40), (190, 165), (190, 195), (1000, 165)])
    np.testing.assert_allclose(errors, [1.0, 2.0, 3.0, 4.5, 3 * 81 / 2], rtol=1e-3)


def test_error_map_shows_what_error_at_says(pair):
    _, there, _ = pair

    class Known(Registration):
        def error_at(self, points):
            return np.where(points[:, 0] < 60, np.inf, np.where(points[:, 1] < 100, 0.0, 4.0))

    result = Known(transform=similarity())
    drawn = result.error_map(there, most=4)
    assert drawn.shape == (*there.shape, 3)
    grey = np.dstack([there] * 3)
    np.testing.assert_array_equal(drawn[:140, :55], grey[:140, :55])  # not known
    dark_blue, yellow = np.array([68, 1, 84]), np.array([253, 231, 37])  # of viridis
    for part, colour in ((np.s_[:90, 70:], dark_blue), (np.s_[110:, 90:], yellow)):
        np.testing.assert_allclose(drawn[part], 0.4 * grey[part] + 0.6 * colour, atol=3)
    assert drawn[145:, 10:60].std() > 20  # a legend
    assert result.error_map(there[:100, :100]).shape == (100, 100, 3)
    small = Thumbnails(there, there, (220, 100), (220, 190))  # A is lower than B
    lower = dataclasses.replace(result, thumbnails=small).error_map(there, most=4)
    np.testing.assert_array_equal(lower[105:140], grey[105:140])
    np.testing.assert_array_equal(lower[:90], drawn[:90])


def test_shown_in_notebooks(pair):
    scene, there, result = pair
    small = Thumbnails(scene[::2, ::2], there, (220, 190), (220, 190))
    page = dataclasses.replace(result, thumbnails=small)._repr_html_()
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1))
    board = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert board.shape == there.shape
    assert (
        np.corrcoef(board[50:-50, 50:-50].ravel(), result.checkerboard(scene, there, 6)[50:-50, 50:-50, 0].ravel())[
            0, 1
        ]
        > 0.9
    )
    assert "97%" in page
    refused = dataclasses.replace(result, transform=None, reason="a < b", thumbnails=small)._repr_html_()
    assert refused == "<pre>Registration refused: a &lt; b</pre>"


def test_pickled(pair):
    *_, result = pair
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.matrix, result.matrix)
    assert len(copy.tie_points) == 0
    assert isinstance(copy.transform, Transform)
