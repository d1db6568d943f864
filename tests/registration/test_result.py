"""What a registration says and draws."""

import pickle

import numpy as np
import pytest
from scenes import make_scene, moved

from rrl_match import Registration
from rrl_match.transforms import Homography, Transform


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


def test_printed(pair):
    *_, result = pair
    assert "similarity" in str(result)
    assert "97%" in str(result)
    refused = str(Registration(reason="nothing agrees", advice="crop A"))
    assert "nothing agrees" in refused
    assert "crop A" in refused


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


def test_checkerboard(pair):
    scene, there, result = pair
    board = result.checkerboard(scene, there.astype(np.uint16) * 100, squares=4)
    assert board.shape == (*there.shape, 3)
    assert board.dtype == np.uint8
    same = result.checkerboard(scene, there, squares=4)
    np.testing.assert_array_equal(same[:55, 55:110], np.dstack([there[:55, 55:110]] * 3))
    np.testing.assert_array_equal(same[:55, :55, 0], result.warp(scene, there.shape)[:55, :55])


def test_pickled(pair):
    *_, result = pair
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.matrix, result.matrix)
    assert len(copy.tie_points) == 0
    assert isinstance(copy.transform, Transform)
