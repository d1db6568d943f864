"""From two images to a transform, or a refusal: what people bring, in small images."""

import dataclasses
import pickle
import threading

import cv2
import numpy as np
import pytest
import torch
from networks import tiny_matcher
from scenes import NEAR, EdgeMatcher, FaintMatcher, corner_error, inverted, make_scene, moved, warped

from rrl_match import RRLMatcher, ScoringError, Search, register
from rrl_match.registration import Config
from rrl_match.training.datasets import read_pairs
from rrl_match.transforms import Affine, MatrixTransform, Transform, Translation, compose, resizing, similarity

SMALL = 120, 140  # of images that are refused, which takes the longest


@pytest.fixture(scope="module")
def matcher():
    return EdgeMatcher()


@pytest.fixture(scope="module")
def scene():
    return make_scene(0)


def assert_found(result, truth, image_a, bound):
    assert result.ok, f"{result.reason}; {result.advice}"
    assert result.reason == result.advice == ""
    assert result.rejected is None
    assert corner_error(result.transform, truth, image_a.shape) < bound


@pytest.mark.parametrize(("model", "fitted"), [("similarity", "similarity"), ("homography", "similarity")])
def test_small_displacement(matcher, scene, model, fitted):
    there, truth = moved(scene, 7, 1.05, (4, -6))
    result = register(matcher, scene, there, model, search=NEAR)
    assert_found(result, truth, scene, 0.5)
    assert result.model == result.transform.kind == fitted, "the simplest that explains the images"
    assert result.probability > 0.9
    assert result.agreement > 0.8
    assert 0.7 < result.overlap <= 1
    points = result.tie_points
    assert points.a.shape == points.b.shape == (len(points), 2)
    assert points.scores.shape == points.residuals.shape == points.inliers.shape == (len(points),)
    assert points.inliers.sum() > 60
    assert np.isfinite(points.scores).sum() >= 10
    assert np.median(np.linalg.norm(truth(points.a) - points.b, axis=1)) < 0.5
    np.testing.assert_allclose(points.residuals, np.linalg.norm(result.transform(points.a) - points.b, axis=1))
    assert result.thumbnails.a.shape == scene.shape
    assert result.thumbnails.size_b == there.shape[::-1]


def test_image_a_as_the_reference(matcher, scene):
    there, truth = moved(scene, 7, 1.05, (4, -6))
    result = register(matcher, scene, there, "similarity", search=NEAR, reference="a")
    assert_found(result, truth.inverse(), there, 0.5)
    assert result.checkerboard(there, scene).shape[:2] == scene.shape
    back, points = result.inverse(), result.tie_points
    assert_found(back, truth, scene, 0.5)
    np.testing.assert_allclose(points.residuals, np.linalg.norm(result.transform(points.a) - points.b, axis=1))
    np.testing.assert_array_equal(back.tie_points.b, points.a)
    assert back.error == pytest.approx(1.05 * result.error, rel=0.02)
    np.testing.assert_allclose(back.error_at(points.b), 1.05 * result.error_at(points.a), rtol=0.02)
    assert result.overlap == pytest.approx(back.overlap * 1.05**2 * scene.size / there.size, abs=0.03)
    assert result.thumbnails.size_a == there.shape[::-1]


def test_the_model_is_taken_as_asked_without_simplify(matcher, scene):
    there, truth = moved(scene, 7)
    result = register(matcher, scene, there, "homography", search=NEAR, simplify=False)
    assert_found(result, truth, scene, 1.5)
    assert result.model == "homography"
    assert result.matrix.shape == (3, 3)


@pytest.mark.slow
def test_any_rotation_and_scale(matcher, scene):
    there, truth = moved(scene, 130, 0.75)
    assert_found(register(matcher, scene, there), truth, scene, 1.5)


def test_search_bounds_what_is_found(matcher):
    scene = make_scene(0, SMALL)
    result = register(matcher, scene, moved(scene, 100)[0], search=NEAR)
    assert not result.ok
    assert result.matrix is None
    assert result.reason


def test_images_of_different_locations_are_refused(matcher):
    for judge in (matcher, FaintMatcher()):
        result = register(judge, make_scene(0, SMALL), make_scene(5, SMALL), search=NEAR)
        assert not result.ok
        assert result.matrix is None
        assert result.reason
        assert result.advice


def test_low_scores_are_enough_where_all_else_agrees(scene):
    there, truth = moved(scene, 7, 1.05, (4, -6))
    assert_found(register(FaintMatcher(), scene, there, search=NEAR), truth, scene, 0.7)


# What cameras, satellites and files give


@pytest.mark.parametrize("factor", [4.0, 1 / 3], ids=["A 4 times larger", "B 3 times larger"])
def test_images_of_different_sizes(matcher, factor):
    large = make_scene(0, (640, 720), (10, 22))
    size = (round(720 / max(factor, 1 / factor)), round(640 / max(factor, 1 / factor)))
    small = cv2.resize(large, size, interpolation=cv2.INTER_AREA)
    a, b = (large, inverted(small)) if factor > 1 else (small, inverted(large))
    truth = resizing((a.shape[1] / b.shape[1], a.shape[0] / b.shape[0]))
    result = register(matcher, a, b)
    assert_found(result, truth, a, 1.0 * max(1.0, 1 / factor))


def test_b_shows_a_fifth_of_a(matcher):
    large = make_scene(1, (400, 440), (4, 9))
    result = register(matcher, large, inverted(large)[130:310, 200:396])
    assert_found(result, similarity(shift=(-200, -130)), large, 1.5)
    assert result.overlap == pytest.approx(0.2, abs=0.02)


def test_pixels_that_are_not_square(matcher):
    scene, truth = make_scene(0, (260, 300)), Affine([[1.118, 0, -10], [0, 0.894, 12]])
    result = register(matcher, scene, warped(scene, truth.matrix))
    assert_found(result, truth, scene, 1.0)
    assert result.model == "affine"


def isolated(shape):
    return np.random.default_rng(0).random(shape) < 0.01


def scan_lines(shape):
    return np.broadcast_to(np.arange(shape[0])[:, None] % 25 < 3, shape)


@pytest.mark.parametrize("missing", [isolated, scan_lines], ids=lambda f: f.__name__)
def test_missing_pixels(matcher, scene, missing):
    there, truth = moved(scene, 5, 1.02, border=100)
    there = np.where(missing(there.shape), np.nan, there).astype(np.float32)
    assert_found(register(matcher, scene, there), truth, scene, 1.0)


def test_clouds(matcher):
    scene = make_scene(0, (260, 300))
    there, truth = moved(scene, 5, 1.02, border=100)
    cloud = cv2.GaussianBlur(np.random.default_rng(0).random(there.shape).astype(np.float32), (0, 0), 15)
    clear = cloud < np.quantile(cloud, 0.7)
    result = register(matcher, scene, np.where(clear, there, 250).astype(np.uint8), mask_b=clear)
    assert_found(result, truth, scene, 1.0)


def test_half_of_b_is_black(matcher, scene):
    there, truth = moved(scene, 5, 1.02, border=100)
    dark = np.where(there < np.percentile(there, 50), 0, there).astype(np.uint8)
    assert_found(register(matcher, scene, dark), truth, scene, 1.5)


def test_small_sensor(matcher):
    scene = make_scene(3, (240, 320), (8, 18))
    sensor = cv2.resize(inverted(scene), (64, 48), interpolation=cv2.INTER_AREA)
    assert_found(register(matcher, scene, sensor), resizing(5.0), scene, 1.0)


def test_mirrored_images(matcher, scene):
    there, truth = moved(scene, 5)
    flip = Affine([[-1, 0, there.shape[1] - 1], [0, 1, 0]])
    mirrored = np.ascontiguousarray(there[:, ::-1])
    result = register(matcher, scene, mirrored, search=dataclasses.replace(NEAR, mirrored=True))
    assert_found(result, compose(truth, flip), scene, 1.0)
    small = make_scene(0, SMALL)
    refused = register(matcher, small, np.ascontiguousarray(inverted(small)[:, ::-1]), search=NEAR)
    assert not refused.ok
    assert "Search(mirrored=True)" in refused.advice


def test_what_is_known_beforehand(matcher, scene):
    there, truth = moved(scene, 150, 1.1, (6, 3))
    search = Search(rotation=6, scale=(0.95, 1.05), aspect=1.0, shift=12)
    near = compose(truth, Translation([[1, 0, 5], [0, 1, -4]]))
    assert_found(register(matcher, scene, there, search=search, initial=near), truth, scene, 0.7)
    far = compose(truth, Translation([[1, 0, 60], [0, 1, 0]]))
    assert not register(matcher, scene, there, search=search, initial=far).ok


def test_translation(matcher, scene):
    there, truth = moved(scene, shift=(9.5, -5.25), border=100)
    result = register(matcher, scene, there, "translation")
    assert_found(result, truth, scene, 0.15)
    np.testing.assert_array_equal(result.matrix[:, :2], np.eye(2))


def test_a_transform_that_explains_half_of_the_overlap_is_refused(matcher):
    scene = make_scene(0, (260, 300))
    there, other = (moved(scene, 5, 1.02, shift, border=100)[0] for shift in ((0, 0), (0, 22)))
    there[:, 150:] = other[:, 150:]
    result = register(matcher, scene, there, search=NEAR)
    assert not result.ok
    assert result.rejected is not None


@pytest.mark.parametrize("border", [255, "alpha", "mask"])
def test_borders_are_left_out(matcher, scene, border):
    """B is rotated within a larger frame; the frame's edges would be the strongest of all."""
    there, truth = moved(scene, 14)
    shown = moved(np.zeros_like(scene), 14)[0] > 0
    mask = shown if border == "mask" else None
    image_b = np.where(shown, there, {255: 255, "mask": 120}.get(border, 0)).astype(np.uint8)
    if border == "alpha":
        image_b = np.dstack([there, there, there, shown * np.uint8(255)]).astype(np.uint8)
    result = register(matcher, scene, image_b, mask_b=mask)
    assert_found(result, truth, scene, 1.5)
    assert bool(result.notes) is (border == 255), "what was assumed is said"
    x, y = result.tie_points.b[result.tie_points.inliers].round().astype(int).T
    assert shown[y, x].mean() > 0.99


def test_repeated_texture_is_refused(matcher):
    texture = np.tile(make_scene(2, (64, 64)), (5, 5))
    result = register(matcher, texture[:220, :220], inverted(texture[32:252, 20:240]), search=NEAR)
    assert not result.ok
    assert "another transform fits nearly as well" in result.reason


def test_16_bit(matcher, scene):
    there, truth = moved(scene, 4)
    assert_found(register(matcher, scene, there.astype(np.uint16) * 16 + 7000, search=NEAR), truth, scene, 1)


def test_large_images_are_refined_on_a_smaller_level(matcher):
    scene = make_scene(1, (700, 640))
    there, truth = moved(scene, 4)
    config = dataclasses.replace(Config(), refine=dataclasses.replace(Config().refine, finest_pixels=120_000))
    assert_found(register(matcher, scene, there, search=NEAR, config=config), truth, scene, 2)


def test_rig(matcher):
    """No frame shows enough by itself, all of them do."""
    frames_a, frames_b, masks = [], [], []
    for k in range(4):
        scene = make_scene(10 + k)
        there, truth = moved(scene, 5, shift=(3, 2))
        mask = np.zeros_like(scene)
        mask[(k // 2) * 80 : (k // 2) * 80 + 110, (k % 2) * 95 : (k % 2) * 95 + 125] = 1
        frames_a.append(scene)
        frames_b.append(there)
        masks.append(mask)
    result = register(matcher, frames_a, frames_b, "similarity", mask_a=masks, search=NEAR)
    assert_found(result, truth, scene, 1.5)


# What does not change the result, and what a result does not change


def test_same_bits_whatever_the_global_state(matcher, scene):
    there, _ = moved(scene, 5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    expected = register(matcher, scene, there, search=NEAR)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    cv2.setRNGSeed(99)
    with torch.device("meta"):
        listed = register(matcher, [scene], [there], search=NEAR)
    for result in (listed, pickle.loads(pickle.dumps(expected))):
        np.testing.assert_array_equal(result.matrix, expected.matrix)
        np.testing.assert_array_equal(result.tie_points.b, expected.tie_points.b)
        assert result.probability == expected.probability


def test_several_threads(matcher, scene):
    there, _ = moved(scene, 5)
    results = [None] * 2

    def work(k):
        results[k] = register(matcher, scene, there, search=NEAR).matrix

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(*results)


def test_order_of_colours_does_not_matter(matcher, scene):
    colour = np.stack([scene, np.roll(scene, 3, 1), 255 - scene], 2)
    there, _ = moved(scene, 4)
    rgb, bgr = (register(matcher, image, there, search=NEAR) for image in (colour, colour[..., ::-1]))
    np.testing.assert_array_equal(rgb.matrix, bgr.matrix)


def test_a_kind_of_transform_is_one_class(matcher, scene, monkeypatch):
    """Unequal scales along the axes and a shift: nobody but the class knows of it."""
    monkeypatch.setattr(Transform, "kinds", dict(Transform.kinds))

    class Axes(MatrixTransform, kind="axes"):
        parameters = 4
        rotates = False

        @classmethod
        def basis(cls, points):
            (x, y), zero, one = points.T, np.zeros(len(points)), np.ones(len(points))
            return np.stack([np.stack([x, zero, one, zero], 1), np.stack([zero, y, zero, one], 1)], 1)

        @classmethod
        def near_identity(cls, parameters):
            sx, sy, x, y = parameters
            return cls([[1 + sx, 0, x], [0, 1 + sy, y]])

    truth = Affine([[1.06, 0, -4], [0, 0.95, 7]])
    result = register(matcher, scene, warped(scene, truth.matrix, border=100), "axes", simplify=False)
    assert_found(result, truth, scene, 0.5)
    assert result.model == "axes"
    assert isinstance(Transform.from_dict(Axes(result.matrix).to_dict()), Axes)


def test_progress_bar(matcher, scene, capsys):
    register(matcher, scene, moved(scene, 5)[0], search=NEAR, progress=True)
    assert "registering" in capsys.readouterr().err


# Refusals and mistakes


@pytest.mark.parametrize("case", ["flat", "noise", "small", "masked", "black"])
def test_nothing_to_match_is_refused(case):
    rng = np.random.default_rng(0)
    noise, image_b = rng.integers(0, 256, (2, 100, 110), dtype=np.uint8)
    images = {"flat": np.full_like(noise, 90), "small": noise[:31], "black": np.zeros_like(noise)}
    mask = np.zeros_like(noise) if case == "masked" else None
    result = register(tiny_matcher(threshold=0.999), images.get(case, noise), image_b, mask_a=mask, search=NEAR)
    assert not result.ok
    assert result.matrix is None
    reasons = {"flat": "one grey value", "black": "one grey value", "small": "31 pixels wide or high, less than 32"}
    assert reasons.get(case, "") in result.reason
    assert result.reason


def test_overflow_of_the_matcher_is_a_refusal(scene):
    class Overflowing(EdgeMatcher):
        def score(self, patches_a, patches_b):
            raise ScoringError("dtype float16 overflows with these weights on these patches")

    result = register(Overflowing(), scene, moved(scene, 5)[0], search=NEAR)
    assert not result.ok
    assert "float16" in result.reason


def test_mistakes_of_a_matcher_are_not_hidden(scene):
    class Broken(EdgeMatcher):
        def score(self, patches_a, patches_b):
            raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        register(Broken(), scene, moved(scene, 5)[0], search=NEAR)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "rigid"}, ValueError, "model must be one of translation, similarity, affine, homography"),
        ({"image_a": [[1, 2]]}, TypeError, "image_a"),
        ({"image_a": []}, ValueError, "image_a is an empty list"),
        ({"image_b": np.full((90, 90), np.nan)}, ValueError, "image_b"),
        ({"image_b": np.zeros((0, 90), np.uint8)}, ValueError, "image_b"),
        ({"image_b": [np.zeros((90, 90), np.uint8)] * 2}, ValueError, "of one length, got 1 and 2"),
        ({"image_b": [np.zeros((90, 90), np.uint8), np.zeros((91, 90), np.uint8)]}, ValueError, "of one size"),
        ({"value_range": (9, 1)}, ValueError, "value_range for image_a"),
        ({"value_range": (None, (9, 1))}, ValueError, "value_range for image_b"),
        ({"value_range": 7}, TypeError, "value_range"),
        ({"mask_b": np.ones((3, 3))}, ValueError, r"mask_b must have the shape of image_b, \(90, 90\), got \(3, 3\)"),
        ({"mask_b": [np.ones((90, 90))] * 3}, ValueError, "mask_b must be one mask or 1"),
        ({"mask_a": "all"}, ValueError, "mask_a must have the shape"),
        ({"search": [(0, 1)]}, TypeError, "search must be a Search"),
        ({"initial": np.eye(3)}, TypeError, "initial must be a Transform"),
        ({"reference": "image_a"}, ValueError, 'reference must be "a" or "b"'),
    ],
)
def test_mistakes_are_named(matcher, arguments, error, message):
    good = {"image_a": np.zeros((90, 90), np.uint8), "image_b": np.zeros((90, 90), np.uint8)}
    with pytest.raises(error, match=message):
        register(matcher, **{**good, **arguments})


@pytest.mark.parametrize("seed", range(2))
def test_noise_is_refused_and_never_raises(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 256, (100, 110), dtype=np.uint8) for _ in range(2))
    if seed % 2:
        a, b = (cv2.GaussianBlur(image, (0, 0), 4) for image in (a, b))
    result = register(RRLMatcher.from_pretrained("vis-lwir", device="cpu"), a, b, search=NEAR)
    assert not result.ok
    assert result.matrix is None
    assert result.reason


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "n", "rotation", "bound"), [("vis-nir", 0, 6, 3), ("vis-lwir", 0, 75, 6), ("optical-sar", 1, 6, 8)]
)
def test_real_images(shared, domain, n, rotation, bound):
    """A training pair, whose bands are aligned to a few pixels themselves; and images of two locations."""
    pairs = read_pairs(shared / "data" / domain)[4::9]
    pair, other = pairs[n], pairs[n + 1]
    matcher = RRLMatcher.from_pretrained(domain, device="cpu")
    a, b = pair.image_a, pair.image_b
    move = Affine(cv2.getRotationMatrix2D((b.shape[1] / 2, b.shape[0] / 2), rotation, 1.06))
    result = register(matcher, a, cv2.warpAffine(b, move.matrix, b.shape[::-1]))
    assert_found(result, compose(Affine(pair.a_to_b), move), a, bound)
    assert not register(matcher, a, other.image_b, search=NEAR).ok
