"""Borders without data are found; dark content is kept."""

import cv2
import numpy as np
import pytest
from scenes import make_scene, moved

from rrl_match.borders import border_without_data


@pytest.mark.parametrize("value", [0, 255])
def test_frame_around_a_rotated_image(value):
    shown = moved(np.zeros((190, 220), np.uint8), 14)[0] > 0
    border = border_without_data(moved(make_scene(0), 14, border=value)[0])
    assert border[~shown].mean() > 0.98
    assert border[shown].mean() < 0.05, "no more than the rim, whose pixels are mixed"


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_dtypes(dtype):
    image = moved(make_scene(0), 14)[0]
    expected = border_without_data(image)
    np.testing.assert_array_equal(border_without_data(image.astype(dtype) * 40), expected)


def test_frame_of_a_jpeg():
    image = moved(make_scene(0), 14)[0]
    coded = cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_GRAYSCALE)
    difference = border_without_data(coded) != border_without_data(image)
    assert difference.mean() < 0.03


def test_margin_of_one_value():
    image = make_scene(3)
    assert not border_without_data(image).any()
    image[:, :40] = 0
    image[100:110, 100:110] = 0  # inside the image, so that it is content
    border = border_without_data(image)
    assert border[:, :38].all()
    assert not border[:, 45:].any()


def dark_ground(image):
    """Half of the pixels are clipped to black, at the border, too."""
    return np.where(image < np.percentile(image, 50), 0, image).astype(np.uint8)


def dark_below(image):
    """Ground with a light on it."""
    dark = image.copy()
    dark[110:] = 0
    dark[180:184, 100:104] = 200
    return dark


def classes(image):
    """A binary map, whose classes touch the border."""
    return np.where(cv2.GaussianBlur(image, (0, 0), 6) > 110, 255, 0).astype(np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        dark_ground,
        classes,
        pytest.param(dark_below, marks=pytest.mark.xfail(reason="a dark area need not have a footprint's outline")),
    ],
    ids=lambda f: f.__name__,
)
def test_content_is_not_a_border(content):
    border = border_without_data(content(make_scene(0)))
    assert border.mean() < 0.1, "no more than a corner of the image that holds nothing else"


def test_noisy_border_is_not_without_data():
    """Dark pixels that differ were measured."""
    image = make_scene(0)
    image[:, :60] = np.random.default_rng(0).integers(0, 6, (190, 60))
    assert not border_without_data(image).any()


@pytest.mark.parametrize("image", [np.zeros((40, 50), np.uint8), np.full((40, 50), 7.5, np.float32)])
def test_constant_images_have_no_border(image):
    assert not border_without_data(image).any()


def test_what_is_hidden_otherwise_does_not_count():
    image, known = make_scene(0), np.ones((190, 220), bool)
    known[:, :50] = False
    assert not border_without_data(np.where(known, image, 0), known).any()


def test_large_images_are_searched_in_a_smaller_one():
    image = np.full((1500, 1600), 90, np.uint8) + np.indices((1500, 1600)).sum(0).astype(np.uint8) % 50
    image[:300] = 0
    border = border_without_data(image)
    assert border.shape == image.shape
    assert border[:295].all()
    assert not border[310:].any()


def test_only_the_value_that_is_asked_for():
    """Clipped sky above the image is found unless borders are known to be black."""
    image = make_scene(0)
    image[:30] = 255
    assert border_without_data(image)[:28].all()
    assert not border_without_data(image, value=0).any()
    image[160:] = 0
    np.testing.assert_array_equal(border_without_data(image, value=0)[:, 0], np.arange(190) >= 159)
