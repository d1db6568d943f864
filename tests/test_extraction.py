from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from rrl_match import extract_patches
from rrl_match.extraction import as_frames

H, W = 150, 200
IMAGE = np.arange(H * W, dtype=np.uint16).reshape(H, W)  # all pixels differ
RAMP = (np.arange(W) * 0.5 + np.arange(H)[:, None] * 2.0).astype(np.float32)


def padded(image, x, y, size=64):
    """The patch at whole (x, y), cut from an image extended by reflection."""
    pad = 4 * size
    return np.pad(image, pad, mode="reflect")[y - size // 2 + pad :, x - size // 2 + pad :][:size, :size]


@pytest.mark.parametrize(("x", "y"), [(32, 32), (100, 80), (W - 32, H - 32), (33, 117)])
def test_patch_covers_half_open_window(x, y):
    patches, valid = extract_patches(IMAGE, [(x, y)])
    assert patches.shape == (1, 64, 64)
    assert patches.dtype == np.uint16
    assert valid.dtype == np.bool_
    assert valid.tolist() == [True]
    np.testing.assert_array_equal(patches[0], IMAGE[y - 32 : y + 32, x - 32 : x + 32])
    assert patches[0, 32, 32] == IMAGE[y, x]


@pytest.mark.parametrize(
    ("x", "y"), [(31, 32), (32, 31), (W - 31, 80), (80, H - 31), (0, 0), (W - 1, H - 1), (-20, 40), (80, H + 31)]
)
def test_patch_over_the_border_is_reflected(x, y):
    patches, valid = extract_patches(IMAGE, [(x, y)])
    assert valid.tolist() == [False]
    np.testing.assert_array_equal(patches[0], padded(IMAGE, x, y))


@pytest.mark.parametrize(
    ("x", "expected"), [(31.99, False), (32.0, True), (32.5, True), (W - 32.5, True), (W - 32, True), (W - 31.9, False)]
)
def test_validity_between_pixels(x, expected):
    assert extract_patches(IMAGE, [(x, 70.0)])[1].tolist() == [expected]


@pytest.mark.parametrize("offset", [(0.5, 0.0), (0.0, 0.25), (0.75, 0.5), (1 / 32, 31 / 32)])
def test_between_pixels_is_bilinear(offset):
    x, y = 80 + offset[0], 60 + offset[1]
    patches, valid = extract_patches(RAMP, [(x, y)])
    steps = np.arange(-32, 32)
    np.testing.assert_allclose(patches[0], (x + steps) * 0.5 + (y + steps)[:, None] * 2.0, atol=1e-4)
    assert valid.all()


def test_between_pixels_is_exact_to_a_32nd():
    points = np.random.default_rng(0).uniform(40, 100, (20, 2))
    patches, _ = extract_patches(RAMP, points)
    np.testing.assert_allclose(patches[:, 32, 32], points @ [0.5, 2.0], atol=2.5 / 64 + 1e-4)


def test_more_points_than_are_cut_at_once():
    points = np.random.default_rng(0).integers(40, 100, (1100, 2)) + 0.5
    patches, valid = extract_patches(RAMP, points)
    assert valid.all()
    np.testing.assert_allclose(patches[:, 32, 32], points @ [0.5, 2.0], atol=1e-4)


def test_whole_and_broken_points_together_keep_their_order():
    points = [(80.5, 70), (80, 70), (-5, 3), (81, 70)]
    patches, valid = extract_patches(RAMP, points)
    assert valid.tolist() == [True, True, False, True]
    for point, patch in zip(points, patches, strict=True):
        np.testing.assert_array_equal(patch, extract_patches(RAMP, [point])[0][0])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("uint8", "uint8"),
        ("uint16", "uint16"),
        (">u2", "uint16"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float32"),
        (">f4", "float32"),
    ],
)
def test_dtype_of_the_image_is_kept(dtype, expected):
    image = (IMAGE % 256).astype(dtype)
    patches, _ = extract_patches(image, [(50, 60), (50.5, 60), (3, 3)])
    assert patches.dtype == np.dtype(expected)
    np.testing.assert_array_equal(patches[0], image[28:92, 18:82].astype(expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_image_as_a_tensor(dtype):
    image = torch.from_numpy((IMAGE % 256).astype(np.uint8)).to(dtype)
    patches, _ = extract_patches(image, [(50, 60)])
    np.testing.assert_array_equal(patches[0], (IMAGE % 256)[28:92, 18:82])


def test_image_is_a_view_and_stays_as_it_is():
    frozen = IMAGE.copy()
    frozen.setflags(write=False)
    image = frozen[::-1, ::2]
    patches, _ = extract_patches(image, [(50, 60), (50.5, 60)])
    np.testing.assert_array_equal(patches[0], image[28:92, 18:82])
    assert not np.shares_memory(patches, image)


@pytest.mark.parametrize(("dtype", "rounding"), [(np.uint8, 1), (np.uint16, 1), (np.float32, 1e-3)])
def test_colour_image_is_rgb(dtype, rounding):
    rgb = np.random.default_rng(2).integers(0, 256, (H, W, 3)).astype(dtype)
    patches, _ = extract_patches(rgb, [(50, 60)])
    np.testing.assert_allclose(patches[0], (rgb @ [0.299, 0.587, 0.114])[28:92, 18:82], atol=rounding)


def test_one_channel_image():
    np.testing.assert_array_equal(
        extract_patches(IMAGE[..., None], [(50, 60)])[0], extract_patches(IMAGE, [(50, 60)])[0]
    )


POINTS = np.array([[50.0, 60.0], [70.5, 80.25]], np.float32)
LAFS = np.concatenate([np.tile(np.float32([[7, 1], [-1, 7]]), (2, 1, 1)), POINTS[:, :, None]], 2)


@pytest.mark.parametrize(
    "keypoints",
    [
        POINTS.tolist(),
        [tuple(p) for p in POINTS.tolist()],
        POINTS.astype(np.float64),
        POINTS.astype(">f8"),
        POINTS.astype(np.float16),
        torch.from_numpy(POINTS).requires_grad_(),
        torch.from_numpy(POINTS).bfloat16(),
        [cv2.KeyPoint(float(x), float(y), 5.0, 30.0) for x, y in POINTS],
        tuple(cv2.KeyPoint(float(x), float(y), 5.0) for x, y in POINTS),
        LAFS,
        LAFS[None],
        torch.from_numpy(LAFS)[None],
    ],
    ids=[
        "lists",
        "tuples",
        "double",
        "big-endian",
        "half",
        "tensor",
        "bfloat16",
        "KeyPoint",
        "tuple of KeyPoint",
        "LAFs",
        "batch of LAFs",
        "tensor of LAFs",
    ],
)
def test_kinds_of_keypoints(keypoints):
    exact = keypoints if isinstance(keypoints, torch.Tensor) and keypoints.dtype == torch.bfloat16 else POINTS
    expected = POINTS if exact is POINTS else exact.float().numpy()
    np.testing.assert_array_equal(extract_patches(RAMP, keypoints)[0], extract_patches(RAMP, expected)[0])


WHOLE = {"orientation": True, "scale": True}


def lafs(points, linear, size=64):
    """As in kornia: they map [-1, 1] x [-1, 1] to the patch."""
    linear = np.broadcast_to(np.asarray(linear, float), (len(points), 2, 2)) * (size / 2)
    return np.concatenate([linear, np.asarray(points, float)[:, :, None]], axis=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_identity_frame_is_upright(dtype):
    image = np.random.default_rng(0).integers(0, 200, (150, 170)).astype(dtype)
    points = [(40, 50), (80.5, 70.25), (10, 140), (160.2, 3.4)]
    upright, valid = extract_patches(image, points)
    framed, inside = extract_patches(image, lafs(points, np.eye(2)), **WHOLE)
    assert framed.dtype == upright.dtype
    np.testing.assert_array_equal(inside, valid)
    np.testing.assert_allclose(framed[:2].astype(float), upright[:2], atol=1)


def test_rotation_by_90_degrees():
    image = np.random.default_rng(0).integers(0, 255, (130, 130), dtype=np.uint8)
    rotation = [[0, -1], [1, 0]]  # the patch's x axis points down the image
    patches, valid = extract_patches(image, lafs([(60, 64)], rotation), **WHOLE)
    assert valid.all()
    ys, xs = np.mgrid[:64, :64] - 32
    np.testing.assert_array_equal(patches[0], image[64 + xs, 60 - ys])


def test_scaled_frames_show_the_same_of_an_image_of_another_size():
    small = cv2.GaussianBlur(np.random.default_rng(0).random((120, 120)).astype(np.float32), (0, 0), 4)
    large = cv2.resize(small, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    expected = extract_patches(small, [(60, 60)])[0]
    at = 3 * (60 + 0.5) - 0.5
    patches, valid = extract_patches(large, lafs([(at, at)], 3 * np.eye(2)), **WHOLE)
    assert valid.all()
    np.testing.assert_allclose(patches, expected, atol=0.02)


def test_frames_that_shrink_do_not_alias():
    stripes = np.tile(np.array([0, 255], np.uint8), (800, 400))
    patches, _ = extract_patches(stripes, lafs([(400, 400)], 8 * np.eye(2)), **WHOLE)
    assert np.abs(patches[0].astype(float) - 127.5).max() < 10


def test_keypoints_of_opencv_bring_angle_and_size():
    image = np.random.default_rng(1).integers(0, 255, (200, 200), dtype=np.uint8)
    keypoints = [cv2.KeyPoint(100.0, 90.0, 64 / 6, 90.0), cv2.KeyPoint(100.0, 90.0, 64 / 6)]
    patches, _ = extract_patches(image, keypoints, **WHOLE)
    framed, _ = extract_patches(image, lafs([(100, 90)], [[0, -1], [1, 0]]), **WHOLE)
    assert np.abs(patches[0].astype(int) - framed[0]).max() <= 2
    assert np.abs(patches[1].astype(int) - extract_patches(image, [(100, 90)])[0][0]).max() <= 2


def test_orientation_and_scale_of_keypoints_of_opencv():
    """Either alone leaves the other as in an upright patch: the angle 0, or a pixel of the image a pixel."""
    image = cv2.GaussianBlur(np.random.default_rng(1).random((300, 300)).astype(np.float32), (0, 0), 3)
    keypoint = cv2.KeyPoint(150.0, 140.0, 16.0, 30.0)
    rotated, _ = extract_patches(image, [keypoint], orientation=True)
    scaled, _ = extract_patches(image, [keypoint], scale=True)
    expected, _ = extract_patches(image, [cv2.KeyPoint(150.0, 140.0, 64 / 6, 30.0)], **WHOLE)
    np.testing.assert_allclose(rotated, expected, atol=1e-6)
    expected, _ = extract_patches(image, [cv2.KeyPoint(150.0, 140.0, 16.0, 0.0)], **WHOLE)
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


@pytest.mark.parametrize("mirror", [1, -1])
def test_orientation_and_scale_of_a_laf(mirror):
    """Orientation is its matrix without the factor that it changes areas by; scale is the root of that factor alone."""
    image = cv2.GaussianBlur(np.random.default_rng(1).random((300, 300)).astype(np.float32), (0, 0), 3)
    shape = np.array([[0.8, -0.6], [0.6, 0.8]]) @ np.diag([1.25, mirror * 0.8]) @ [[1, 0.3], [0, 1]]  # |det| = 1
    frame = lafs([(150, 140)], 1.7 * shape)
    for part, linear in (({"orientation": True}, shape), ({"scale": True}, 1.7 * np.eye(2)), (WHOLE, 1.7 * shape)):
        patches, valid = extract_patches(image, frame, **part)
        assert valid.all()
        np.testing.assert_allclose(patches, extract_patches(image, lafs([(150, 140)], linear), **WHOLE)[0], atol=1e-5)


def test_laf_of_no_area_has_no_orientation():
    with pytest.raises(ValueError, match="keypoints holds LAFs of no area"):
        extract_patches(IMAGE, lafs([(75, 70)], [[1, 1], [0, 0]]), orientation=True)


@pytest.mark.parametrize("far", [1e3, 1e6, -1e9])
def test_frames_far_outside(far):
    patches, valid = extract_patches(IMAGE, lafs([(far, far)], 2 * np.eye(2)), **WHOLE)
    assert patches.shape == (1, 64, 64)
    assert not valid.any()


@pytest.mark.parametrize(
    "keypoints",
    [
        lafs([(75, 70)], [[np.nan, 0], [0, 1]]),
        torch.from_numpy(lafs([(75, 70)], [[1, np.inf], [0, 1]])),
        [cv2.KeyPoint(75.0, 70.0, float("nan"))],
        [cv2.KeyPoint(75.0, 70.0, 31.0, float("nan"))],
    ],
)
def test_frames_that_are_not_finite(keypoints):
    """Without this error, their patches would hold uninitialised memory."""
    with pytest.raises(ValueError, match="keypoints holds NaN or infinite"):
        extract_patches(IMAGE, keypoints, **WHOLE)


def test_frames_of_doubles_keep_their_resolution():
    far = 2.0**24 + 0.5  # between two pixels, where float32 has none
    frames = torch.from_numpy(lafs([(far, 0)], np.eye(2)))
    assert as_frames(frames, 64, **WHOLE)[0, 0, 2] == far


@pytest.mark.parametrize("part", [{"orientation": True}, {"scale": True}, WHOLE])
def test_points_have_no_frame(part):
    with pytest.raises(ValueError, match=r"keypoints must be LAFs .* orientation=True or scale=True"):
        extract_patches(IMAGE, POINTS, **part)
    assert extract_patches(IMAGE, np.empty((0, 2)), orientation=True)[0].shape == (0, 64, 64)


@pytest.mark.parametrize(
    "keypoints",
    [[], (), np.empty((0, 2)), torch.empty(0, 2), np.empty((0, 2, 3)), torch.empty(1, 0, 2, 3)],
    ids=["list", "tuple", "array", "tensor", "LAFs", "batch of LAFs"],
)
def test_no_keypoints(keypoints):
    patches, valid = extract_patches(IMAGE, keypoints)
    assert patches.shape == (0, 64, 64)
    assert patches.dtype == np.uint16
    assert valid.shape == (0,)
    assert valid.dtype == np.bool_


@pytest.mark.parametrize("far", [1e4, 1e6, 1e9, 1e20, 1e300])
def test_points_far_outside(far):
    patches, valid = extract_patches(RAMP, [(far, 70), (-far, 70), (50, far), (-far, -far + 0.5)])
    assert not valid.any()
    assert patches.min() >= RAMP.min()
    assert patches.max() <= RAMP.max()


@pytest.mark.parametrize("shape", [(20, 30), (1, 1), (64, 3)])
def test_image_smaller_than_a_patch(shape):
    image = IMAGE[: shape[0], : shape[1]]
    patches, valid = extract_patches(image, [(1, 1)])
    assert not valid.any()
    np.testing.assert_array_equal(patches[0], padded(image, 1, 1))


@pytest.mark.parametrize("shape", [(70, 40_000), (40_000, 70)])
def test_image_longer_than_opencv_remaps(shape):
    image = np.broadcast_to((np.arange(max(shape)) % 251).astype(np.uint8), (70, 40_000))
    points = np.array([[39_950.0, 35.0], [39_900.5, 34.5]])
    transposed = shape[0] > shape[1]
    patches, valid = extract_patches(image.T if transposed else image, points[:, ::-1] if transposed else points)
    assert valid.all()
    line = patches[1, :, 0] if transposed else patches[1, 0]
    np.testing.assert_allclose(line, (image[0, 39_868:39_932] + image[0, 39_869:39_933].astype(float)) / 2, atol=1)


@pytest.mark.parametrize("size", [2, 16, 128])
def test_patch_size(size):
    patches, _ = extract_patches(IMAGE, [(75, 70), (5, 5)], patch_size=size)
    assert patches.shape == (2, size, size)
    np.testing.assert_array_equal(patches[0], padded(IMAGE, 75, 70, size))
    np.testing.assert_array_equal(patches[1], padded(IMAGE, 5, 5, size))


@pytest.mark.parametrize("size", [0, -2, 63, 64.0, "64", None])
def test_bad_patch_size(size):
    for keypoints, part in ((POINTS, {}), (lafs(POINTS, np.eye(2)), WHOLE)):
        with pytest.raises((TypeError, ValueError), match="patch_size must be"):
            extract_patches(IMAGE, keypoints, patch_size=size, **part)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (None, TypeError),
        ("image.png", TypeError),
        ([[0.0, 1.0]], TypeError),
        (IMAGE.astype(np.int32), TypeError),
        (IMAGE > 9, TypeError),
        (IMAGE.astype(complex), TypeError),
        (np.ma.masked_less(IMAGE, 9), TypeError),
        (torch.zeros(H, W, dtype=torch.int64), TypeError),
        (torch.zeros(H, W).to_sparse(), TypeError),
        (np.zeros((3, H, W), np.uint8), ValueError),
        (np.zeros((H, W, 4), np.uint8), ValueError),
        (np.zeros((1, H, W, 3), np.uint8), ValueError),
        (np.zeros(H, np.uint8), ValueError),
        (np.zeros((0, W), np.uint8), ValueError),
        (np.where(RAMP > 9, np.nan, RAMP), ValueError),
        (np.where(RAMP > 9, np.inf, RAMP), ValueError),
    ],
    ids=[
        "None",
        "string",
        "lists",
        "int32",
        "bool",
        "complex",
        "masked",
        "int64 tensor",
        "sparse",
        "channels first",
        "RGBA",
        "batch",
        "rank 1",
        "empty",
        "NaN",
        "inf",
    ],
)
def test_bad_image(image, error):
    with pytest.raises(error, match="image "):
        extract_patches(image, POINTS)


@pytest.mark.parametrize(
    ("keypoints", "error"),
    [
        (None, (TypeError, ValueError)),
        ("abc", TypeError),
        ([1.0, 2.0], ValueError),
        (np.zeros((3, 3)), ValueError),
        (np.zeros((2, 5, 2, 3)), ValueError),
        ([(1.0, 2.0), (3.0,)], (TypeError, ValueError)),
        ([(float("nan"), 2.0)], ValueError),
        ([(float("inf"), 2.0)], ValueError),
        ([cv2.KeyPoint(float("nan"), 2.0, 3.0)], ValueError),
        (cv2.KeyPoint(1.0, 2.0, 3.0), TypeError),
        ([cv2.KeyPoint(1.0, 2.0, 3.0), (1.0, 2.0)], TypeError),
        ([("a", "b")], TypeError),
    ],
    ids=[
        "None",
        "string",
        "one point",
        "three columns",
        "two batches",
        "ragged",
        "NaN",
        "inf",
        "NaN KeyPoint",
        "one KeyPoint",
        "mixed",
        "letters",
    ],
)
def test_bad_keypoints(keypoints, error):
    with pytest.raises(error, match="keypoints "):
        extract_patches(IMAGE, keypoints)
