"""Grey images, what is known of them, and how the rest is filled."""

import numpy as np
import pytest
import torch
from scenes import make_scene

from rrl_match.registration.images import filled, prepare


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_range_is_that_of_what_is_shown(kind):
    """A frame with nothing around it, as a warped one has, would be left with a fifteenth of the contrast."""
    frame = np.zeros((100, 100), np.uint16)
    frame[20:80, 20:80] = np.linspace(29_000, 31_000, 3600).reshape(60, 60)
    for mask in (kind(frame > 0), None):
        prepared = prepare(frame, mask, None, "b")
        assert np.ptp(prepared.level(1.0).image[25:75, 25:75]) > 0.8
    assert np.isfinite(prepare(frame, kind(np.zeros_like(frame, bool)), None, "b").level(1.0).image).all()


def test_missing_pixels_are_filled_from_their_surroundings():
    y, x = np.mgrid[:64.0, :80.0]
    image = (100 + x + 2 * y).astype(np.float32)
    known = np.random.default_rng(0).random(image.shape) > 0.1
    known[20:24] = False
    result = filled(np.where(known, image, np.nan), known)
    np.testing.assert_array_equal(result[known], image[known])
    assert np.abs(result - image)[8:-8, 8:-8].max() < 8, "of 230 grey values"
    assert filled(image.astype(np.uint8), known).dtype == np.uint8


def test_nan_infinite_and_transparent_pixels_are_unknown():
    image = make_scene(0).astype(np.float32)
    image[50, 60], image[70, 80] = np.nan, np.inf
    prepared = prepare(image, None, None, "a")
    assert (~prepared.known).sum() == 2
    assert np.isfinite(prepared.grey).all()
    rgba = np.dstack([make_scene(0)] * 3 + [np.full((190, 220), 255, np.uint8)])
    rgba[:30, :, 3] = 0
    assert not prepare(rgba, None, None, "a").known[:30].any()


def test_a_border_is_masked_and_can_be_taken_back():
    image = make_scene(3)
    whole = prepare(image, None, None, "a")
    assert whole.known.all()
    assert whole.without_guess() is whole
    image[:, :40] = 0
    prepared = prepare(image, None, None, "a")
    assert not prepared.known[:, :38].any()
    assert prepared.without_guess().known.all()
    assert prepare(image, np.ones((190, 220)), None, "a").known.all(), "a mask that is given is believed"
    assert prepared.outline[:, 0].min() >= 38


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_levels(factor):
    level = prepare(make_scene(0), None, None, "a").level(factor)
    assert level.image.shape == tuple(round(n / factor) for n in (190, 220))
    assert level.image.min() >= 0
    assert level.image.max() <= 1
    np.testing.assert_allclose(level.from_full([-0.5, -0.5]), [-0.5, -0.5], atol=1e-9)


def test_thumbnail_is_small_and_black_where_nothing_is_known():
    image = np.full((300, 600), np.nan, np.float32)
    image[:, 300:] = make_scene(0, (300, 300)) / np.float32(255)
    small = prepare(image, None, None, "a").thumbnail()
    assert small.shape == (128, 256)
    assert small.dtype == np.uint8
    assert not small[:, :127].any()
    assert small[:, 129:].std() > 20
    assert prepare(make_scene(0), None, None, "a").thumbnail().shape == (190, 220)


def test_grey_of_rgb_and_bgr_is_the_same():
    colour = np.dstack([make_scene(k) for k in range(3)])
    both = [prepare(image, None, None, "a").grey for image in (colour, colour[..., ::-1])]
    np.testing.assert_array_equal(*both)
