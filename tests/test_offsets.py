"""Where the centre of a patch lies in another one."""

import cv2
import numpy as np
import pytest
import torch
from networks import make_patches, tiny_matcher
from scenes import make_scene

from rrl_match import extract_patches

SHIFTS = np.array([(0, 0), (3, -2), (-7.5, 4.25), (15, -15), (-12.75, 9.5), (0.5, 15.5)])


@pytest.fixture(scope="module")
def matcher():
    return tiny_matcher()


def cut(rotation=0.0):
    """Patches of a scene, and those of its negative around points that are off by SHIFTS."""
    image = make_scene(0).astype(np.float32) / 255
    h, w = image.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rotation, 1.0)
    turned = cv2.warpAffine(1 - image, matrix, (w, h), borderMode=cv2.BORDER_REFLECT)
    centres = np.random.default_rng(0).integers(80, min(w, h) - 80, (len(SHIFTS), 2)).astype(float)
    patches_a, _ = extract_patches(image, centres)
    patches_b, _ = extract_patches(turned, cv2.transform(centres[None], matrix)[0] - SHIFTS)
    return patches_a, patches_b


@pytest.mark.parametrize(("rotation", "within"), [(0, 0.35), (7, 1.0), (-7, 1.0)])
def test_offset_between_pixels(matcher, rotation, within):
    offsets = matcher.offsets(*cut(rotation))
    assert offsets.dtype == np.float32
    assert np.abs(offsets - SHIFTS).max() < within


def test_nothing_fits(matcher):
    patches_a, patches_b = cut()
    assert np.isnan(matcher.offsets(patches_a, np.full_like(patches_b, 0.5))).all()
    unrelated = matcher.offsets(make_patches(40, seed=1), make_patches(40, seed=2))
    assert np.isnan(unrelated).all(1).mean() > 0.8
    image = make_scene(0)
    near, _ = extract_patches(image, [(100, 100)])
    far, _ = extract_patches(image, [(122, 100)])
    assert np.isnan(matcher.offsets(near, far)).all()


def test_kinds(matcher):
    patches_a, patches_b = cut()
    offsets = matcher.offsets(patches_a, patches_b)
    of_tensors = matcher.offsets(torch.from_numpy(patches_a), torch.from_numpy(patches_b))
    assert isinstance(of_tensors, torch.Tensor)
    np.testing.assert_array_equal(of_tensors.numpy(), offsets)
    np.testing.assert_allclose(matcher.offsets(patches_a[1], patches_b[1]), offsets[1], atol=1e-4)  # alone: (2,)
    thermal = (patches_b * 900 + 28_000).astype(np.uint16)
    ranged = matcher.offsets(patches_a, thermal, value_range=(None, (28_000, 28_900)))
    np.testing.assert_allclose(ranged, offsets, atol=0.1)
    assert matcher.offsets(patches_a[:0], patches_b[:0]).shape == (0, 2)


def test_lengths_that_differ(matcher):
    with pytest.raises(ValueError, match="patches_a and patches_b must have the same length, got 3 and 2: pass them"):
        matcher.offsets(make_patches(3, 0), make_patches(2, 0))
