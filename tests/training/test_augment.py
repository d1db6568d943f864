import dataclasses

import cv2
import numpy as np
import pytest
import torch

from rrl_match.training.augment import augment, blur, jpeg, mixed_grey, to_grey
from rrl_match.training.recipe import Photometry

ALL = Photometry(
    probability=1.0,
    channel_mix=True,
    gamma=2.0,
    contrast=0.8,
    brightness=0.5,
    shading=0.8,
    inversion=0.5,
    tone=0.2,
    blur=2.0,
    noise=0.2,
    stripes=0.1,
    speckle=0.3,
    quantisation=0.1,
    jpeg=True,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(n=4, seed=0):
    """Smooth patches (n, 1, 64, 64) that fill [0, 1]."""
    rng = np.random.default_rng(seed)
    patches = [cv2.GaussianBlur(rng.standard_normal((64, 64)).astype(np.float32), (0, 0), 3) for _ in range(n)]
    return torch.from_numpy(np.stack([(p - p.min()) / (p.max() - p.min()) for p in patches]))[:, None]


def test_neutral_parameters_leave_patches_unchanged():
    patches = smooth()
    torch.testing.assert_close(blur(patches, torch.zeros(4)), patches, rtol=0, atol=1e-6)
    torch.testing.assert_close(jpeg(patches, torch.zeros(4)), patches, rtol=0, atol=1e-3)
    assert torch.equal(augment(patches, Photometry(probability=1.0), generator()), patches)


def test_blur_is_opencvs():
    patches = smooth()
    patches[0] = torch.rand(1, 64, 64, generator=generator())
    sigma = torch.tensor([0.4, 0.8, 1.0, 1.5])
    blurred = blur(patches, sigma)
    for seen, patch, s in zip(blurred, patches, sigma.tolist(), strict=True):
        expected = cv2.GaussianBlur(patch[0].numpy(), (9, 9), s, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(seen[0, 8:-8, 8:-8], expected[8:-8, 8:-8], rtol=0, atol=1e-5)


def test_blur_keeps_a_flat_patch_flat():
    flat = torch.full((2, 1, 64, 64), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([0.5, 2.0])), flat)


def test_jpeg_with_a_small_scale_leaves_nearly_all():
    patches = smooth()
    torch.testing.assert_close(jpeg(patches, torch.full((4,), 0.02)), patches, rtol=0, atol=0.02)


def test_jpeg_at_scale_one_is_quality_50():
    patches = smooth(seed=1)
    seen = jpeg(patches, torch.ones(4)).clamp(0, 1) * 255
    for patch, one in zip(patches, seen, strict=True):
        ok, coded = cv2.imencode(".jpg", (patch[0] * 255).round().byte().numpy(), [cv2.IMWRITE_JPEG_QUALITY, 50])
        assert ok
        expected = cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32)
        assert np.abs(one[0].numpy() - expected).mean() < 1
        assert np.abs(one[0].numpy() - 255 * patch[0].numpy()).mean() > 1


@pytest.mark.parametrize("seed", range(3))
def test_patches_stay_in_the_unit_range(seed):
    patches = torch.cat([smooth(), torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64)])
    out = augment(patches, ALL, generator(seed))
    assert out.shape == patches.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.isfinite(out).all()


def test_same_generator_state_same_result():
    patches = smooth()
    first, again, other = (augment(patches, ALL, generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    augment(smooth(), ALL, generator())
    mixed_grey(torch.rand(2, 3, 64, 64, generator=generator()), ALL, generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_input_is_not_changed_in_place():
    patches = smooth()
    before = patches.clone()
    augment(patches, ALL, generator())
    assert torch.equal(patches, before)


def test_probability_zero_is_the_identity_except_for_rounding():
    patches = smooth()
    photometry = dataclasses.replace(ALL, probability=0.0, inversion=0.0)
    torch.testing.assert_close(augment(patches, photometry, generator()), patches, rtol=0, atol=1 / 255)
    colour = torch.rand(4, 3, 64, 64, generator=generator())
    torch.testing.assert_close(mixed_grey(colour, photometry, generator()), to_grey(colour))


CHANGES = {
    "gamma": 2.0,
    "contrast": 0.5,
    "brightness": 0.3,
    "shading": 0.5,
    "inversion": 1.0,
    "tone": 0.2,
    "blur": 2.0,
    "noise": 0.1,
    "stripes": 0.1,
    "speckle": 0.3,
    "quantisation": 0.2,
    "jpeg": True,
}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_each_change_changes_patches(name, value):
    patches = smooth(8)
    out = augment(patches, Photometry(probability=1.0, **{name: value}), generator())
    assert ((out - patches).abs().amax((1, 2, 3)) > 1e-3).sum() >= 4  # some are drawn near to neutral


def test_probability_is_the_fraction_of_patches_that_change():
    patches = smooth(1).expand(400, -1, -1, -1)[:, :, :16, :16]
    out = augment(patches, Photometry(probability=0.25, brightness=0.3), generator())
    changed = ((out - patches).abs().amax((1, 2, 3)) > 1e-6).float().mean()
    assert 0.18 < changed < 0.32


def test_inversion_inverts_grey_values():
    patches = smooth()
    torch.testing.assert_close(augment(patches, Photometry(probability=0.0, inversion=1.0), generator()), 1 - patches)


def test_grey_is_bt601_if_not_mixed():
    colour = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
    colour = colour[:, :, None, None].expand(4, 3, 64, 64)
    expected = torch.tensor([0.299, 0.587, 0.114, 0.5])[:, None, None, None].expand(4, 1, 64, 64)
    torch.testing.assert_close(mixed_grey(colour, Photometry(), generator()), expected)


def test_mixed_grey_lies_between_the_colours():
    colour = torch.rand(64, 3, 8, 8, generator=generator())
    mixed = mixed_grey(colour, Photometry(probability=1.0, channel_mix=True), generator())
    assert mixed.shape == (64, 1, 8, 8)
    assert (mixed >= colour.amin(1, keepdim=True) - 1e-6).all()
    assert (mixed <= colour.amax(1, keepdim=True) + 1e-6).all()
    assert ((mixed - to_grey(colour)).abs().amax((1, 2, 3)) > 1e-3).all()
    grey = colour[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        mixed_grey(grey, Photometry(probability=1.0, channel_mix=True), generator()), grey[:, :1]
    )


def test_tone_is_a_function_of_the_grey_value():
    """Equal values stay equal, and the order of others changes in some patches."""
    ramp = torch.linspace(0.2, 0.8, 64).expand(16, 1, 64, 64)
    out = augment(ramp, Photometry(probability=1.0, tone=0.3), generator())
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    slope = out[:, 0, 0].diff()
    assert ((slope < 0).any(1) & (slope > 0).any(1)).sum() >= 4


def test_stripes_are_constant_along_rows_or_columns():
    flat = torch.full((32, 1, 64, 64), 0.5)
    out = augment(flat, Photometry(probability=1.0, stripes=0.05), generator())
    along_row, along_column = (out.std(dim).amax((1, 2)) < 1e-6 for dim in (3, 2))
    assert (along_row ^ along_column).all()
    assert along_row.any()
    assert along_column.any()


def test_speckle_grows_with_the_grey_value():
    patches = torch.tensor([0.1, 0.4])[None, None, :, None].repeat_interleave(32, 2).expand(8, 1, 64, 64)
    out = augment(patches, Photometry(probability=1.0, speckle=0.2), generator())
    dark, bright = ((out - patches)[:, :, rows].std((1, 2, 3)) for rows in (slice(32), slice(32, None)))
    torch.testing.assert_close(bright / dark, torch.full((8,), 4.0), rtol=0.15, atol=0)
