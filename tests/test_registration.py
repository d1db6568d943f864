"""From two images to a transform, or a refusal."""

import dataclasses
import sys
import threading
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from networks import tiny_matcher
from rrl_match.registration.coarse import Hypothesis, distinct, fast_length, propose
from rrl_match.registration.fields import gradients
from rrl_match.registration.geometry import (
    apply,
    as_3x3,
    fit,
    fit_simplest,
    implausible,
    jacobian,
    shrinking,
    similarity,
    translation,
)
from rrl_match.registration.judge import corners, judge_at, patch_inside
from rrl_match.registration.refine import examine, match_blocks, prominence, refine
from rrl_match.registration.surfaces import adjust, lowest, standing_out
from rrl_match.registration.trust import Supported, Trial

from rrl_match import RRLMatcher, register
from rrl_match.registration import Search, Settings
from rrl_match.registration.images import Frame, prepare
from rrl_match.training.datasets import read_pairs

check = sys.modules[register.__module__].check
NEAR = Search(rotation=18, scale=(0.85, 1.2))


class EdgeMatcher:
    """Scores patches by how well their edges coincide; a stand-in for RRL-Net that needs no weights."""

    patch_size = 32
    threshold = 0.4

    def score(self, patches_a, patches_b):
        edges = [
            np.stack([_edges(p) for p in patches]) if len(patches) else patches for patches in (patches_a, patches_b)
        ]
        return np.array([max(0.0, (a * b).mean()) for a, b in zip(*edges, strict=True)], np.float32)

    def encode(self, patches, band):
        edges = np.array([_edges(p).ravel() for p in patches], np.float32).reshape(len(patches), self.patch_size**2)
        return EncodedEdges(patches, torch.from_numpy(edges))

    def score_features(self, features_a, features_b, index_pairs):
        rows_a, rows_b = np.asarray(index_pairs).T
        return self.score(features_a.patches[rows_a], features_b.patches[rows_b])


class EncodedEdges(NamedTuple):
    patches: np.ndarray
    descriptors: torch.Tensor

    def __len__(self):
        return len(self.patches)


class Forgetful(EdgeMatcher):
    """Weights without descriptors."""

    def encode(self, patches, band):
        return EncodedEdges(patches, torch.empty(len(patches), 0))


class FaintMatcher(Forgetful):
    """Scores all patches below its threshold, as a network does on sensors that it does not know."""

    def score(self, patches_a, patches_b):
        return 0.3 * super().score(patches_a, patches_b)


def _edges(patch):
    smooth = cv2.GaussianBlur(np.asarray(patch, np.float32), (0, 0), 1.0)
    strength = cv2.GaussianBlur(cv2.magnitude(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)), (0, 0), 1.5)
    return (strength - strength.mean()) / (strength.std() + 1e-6)


@pytest.fixture(scope="module")
def matcher():
    return EdgeMatcher()


def make_scene(seed, shape=(190, 220)):
    """uint8, blobs with edges in all directions."""
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    blobs = [cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (3, 7)]
    return sum((40 + 30 * k) * (blob > blob.mean()) for k, blob in enumerate(blobs)).astype(np.uint8) + 60


@pytest.fixture(scope="module")
def scene():
    return make_scene(0)


def moved(image, rotation=0.0, scale=1.0, shift=(0, 0), border=0):
    """Image with its contrast inverted under a similarity about its centre, and the true matrix (2, 3)."""
    h, w = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rotation, scale)
    matrix[:, 2] += shift
    there = cv2.warpAffine((230 - image * 0.8).astype(image.dtype), matrix, (w, h), borderValue=border)
    return there, matrix


def corner_error(matrix, truth, shape):
    h, w = shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]], float)
    estimated, true = (apply(as_3x3(m), corners) for m in (matrix, truth))
    return np.linalg.norm(estimated - true, axis=1).mean()


@pytest.mark.parametrize(("model", "bound"), [("similarity", 0.5), ("affine", 0.7), ("homography", 1.5)])
def test_small_displacement(matcher, scene, model, bound):
    there, truth = moved(scene, 7, 1.05, (4, -6))
    result = register(matcher, scene, there, model, search=NEAR)
    assert result.ok, result.reason
    assert result.reason == ""
    assert result.rejected is None
    assert result.matrix.shape == ((3, 3) if model == "homography" else (2, 3))
    assert corner_error(result.matrix, truth, scene.shape) < bound
    n = len(result.matches)
    assert result.keypoints_a.shape == result.keypoints_b.shape == (n, 2)
    assert result.inliers.shape == (n,)
    assert result.inliers.sum() >= 12
    assert 0.6 < result.matched_fraction <= 1
    error = np.linalg.norm(apply(as_3x3(truth), result.keypoints_a) - result.keypoints_b, axis=1)
    assert np.median(error) < 1


@pytest.mark.parametrize(("rotation", "scale"), [(130, 1.0), (-65, 0.7)])
def test_any_rotation_and_scale(matcher, scene, rotation, scale):
    there, truth = moved(scene, rotation, scale)
    result = register(matcher, scene, there)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, scene.shape) < 1.5


def test_search_bounds_what_is_found(matcher, scene):
    there, _ = moved(scene, 100)
    result = register(matcher, scene, there, search=NEAR)
    assert not result.ok
    assert result.matrix is None
    assert result.reason


def test_images_of_different_locations_are_refused(matcher, scene):
    result = register(matcher, scene, make_scene(5), search=NEAR)
    assert not result.ok
    assert result.matrix is None
    assert result.reason
    with pytest.raises(ValueError, match="no transform to warp by"):
        result.warp(scene, scene.shape)


def test_transform_that_leads_is_accepted_without_high_scores(scene):
    there, truth = moved(scene, 7, 1.05, (4, -6))
    result = register(FaintMatcher(), scene, there)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, scene.shape) < 0.7
    assert result.matched_fraction < 0.1
    assert result.inliers.sum() >= 10
    assert len(result.matches) <= 24, "the better half of 48 locations"
    recognised, _, _ = Settings().trust_weights
    alone = dataclasses.replace(Settings(), trust_weights=(recognised, 0.0, 0.0))
    assert not register(FaintMatcher(), scene, there, search=NEAR, settings=alone).ok


def test_transform_that_leads_is_refused_if_no_score_depends_on_it(scene):
    class Indifferent(EdgeMatcher):
        def score(self, patches_a, patches_b):
            return np.full(len(patches_a), 0.3, np.float32)

    result = register(Indifferent(), scene, moved(scene, 7)[0], search=NEAR)
    assert not result.ok
    assert "too few matches" in result.reason


def test_without_high_scores_images_of_different_locations_are_refused(scene):
    assert not register(FaintMatcher(), scene, make_scene(5), search=NEAR).ok


def test_same_bits_whatever_the_global_seed(matcher, scene):
    there, _ = moved(scene, 5)
    results = []
    for seed in (1, 99):
        cv2.setRNGSeed(seed)
        results.append(register(matcher, scene, there, search=NEAR))
    np.testing.assert_array_equal(results[0].matrix, results[1].matrix)
    np.testing.assert_array_equal(results[0].keypoints_b, results[1].keypoints_b)


def test_global_random_state_is_left_alone(matcher, scene):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    register(matcher, scene, moved(scene, 5)[0], search=NEAR)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_several_threads(matcher, scene):
    there, _ = moved(scene, 5)
    expected = register(matcher, scene, there, search=NEAR).matrix
    results = [None] * 3

    def work(k):
        results[k] = register(matcher, scene, there, search=NEAR).matrix

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_order_of_colours_does_not_matter(matcher, scene):
    colour = np.stack([scene, np.roll(scene, 3, 1), 255 - scene], 2)
    there, _ = moved(scene, 4)
    rgb, bgr = (register(matcher, image, there, search=NEAR) for image in (colour, colour[..., ::-1]))
    np.testing.assert_array_equal(rgb.matrix, bgr.matrix)


@pytest.mark.parametrize("border", [0, 255, "nan", "alpha", "mask"])
def test_borders_are_left_out(matcher, scene, border):
    """B is rotated within a larger frame; the frame's edges would be the strongest of all."""
    there, truth = moved(scene, 14)
    shown = moved(np.zeros_like(scene), 14)[0] > 0
    mask = None
    image_b = np.where(shown, there, 255 if border == 255 else 0)
    if border == "nan":
        image_b = np.where(shown, there, np.nan).astype(np.float32)
    elif border == "alpha":
        image_b = np.dstack([there, there, there, shown * np.uint8(255)]).astype(np.uint8)
    elif border == "mask":
        mask = shown
        image_b = np.where(shown, there, 120)
    result = register(matcher, scene, image_b if border in ("nan", "alpha") else image_b.astype(np.uint8), mask_b=mask)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, scene.shape) < 1.5
    x, y = result.keypoints_b.round().astype(int).T
    assert shown[y, x].all()


def test_found_borders():
    image = make_scene(3)
    assert prepare(image, None, None, "a").mask.all()
    image[:, :40] = 0
    image[100:110, 100:110] = 0  # inside the image, so that it is content
    mask = prepare(image, None, None, "a").mask
    assert not mask[:, :38].any()
    assert mask[:, 45:].all()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_range_is_that_of_what_is_shown(kind):
    """A frame with nothing around it, as a warped one has, would be left with a fifteenth of the contrast."""
    frame = np.zeros((100, 100), np.uint16)
    frame[20:80, 20:80] = np.linspace(29_000, 31_000, 3600).reshape(60, 60)
    for mask in (kind(frame > 0), None):
        prepared = prepare(frame, mask, None, "b")
        assert np.ptp(prepared.level(1.0).image[25:75, 25:75]) > 0.8
    assert np.isfinite(prepare(frame, kind(np.zeros_like(frame, bool)), None, "b").level(1.0).image).all()


def test_16_bit(matcher, scene):
    there, truth = moved(scene, 4)
    result = register(matcher, scene, there.astype(np.uint16) * 16 + 7000, search=NEAR)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, scene.shape) < 1


def test_large_image_is_matched_on_a_smaller_level(matcher):
    scene = make_scene(1, (700, 640))
    there, truth = moved(scene, 4)
    settings = dataclasses.replace(Settings(), fine_pixels=120_000)
    result = register(matcher, scene, there, search=NEAR, settings=settings)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, scene.shape) < 2


def test_rig(matcher):
    """No frame shows enough by itself, all of them do."""
    frames_a, frames_b = [], []
    for k in range(4):
        scene = make_scene(10 + k)
        there, truth = moved(scene, 5, shift=(3, 2))
        shown = np.zeros_like(scene)
        shown[(k // 2) * 90 : (k // 2) * 90 + 100, (k % 2) * 105 : (k % 2) * 105 + 115] = 1
        frames_a.append(np.where(shown > 0, scene, 120).astype(np.uint8))
        frames_b.append(there)
    masks = [(f != 120).astype(np.uint8) | cv2.dilate((f != 120).astype(np.uint8), np.ones((9, 9))) for f in frames_a]
    settings = dataclasses.replace(Settings(), min_overlap=0.1)
    result = register(matcher, frames_a, frames_b, "similarity", mask_a=masks, search=NEAR, settings=settings)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, (190, 220)) < 1.5


def test_list_of_one_is_the_same_as_one(matcher, scene):
    there, _ = moved(scene, 5)
    one, listed = register(matcher, scene, there, search=NEAR), register(matcher, [scene], [there], search=NEAR)
    np.testing.assert_array_equal(one.matrix, listed.matrix)


def test_warp_and_checkerboard(matcher, scene):
    there, _ = moved(scene, 6)
    result = register(matcher, scene, there, search=NEAR)
    warped = result.warp(scene, there.shape)
    assert warped.shape == there.shape
    inner = np.s_[50:-50, 50:-50]
    assert np.corrcoef(warped[inner].ravel(), there[inner].ravel())[0, 1] < -0.95, "contrast is inverted"
    board = result.checkerboard(scene, there.astype(np.uint16) * 100, squares=4)
    assert board.shape == (*there.shape, 3)
    assert board.dtype == np.uint8


def test_progress_bar(matcher, scene, capsys):
    register(matcher, scene, moved(scene, 5)[0], search=NEAR, progress=True)
    assert "registering" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["flat", "noise", "small", "masked", "thin"])
def test_nothing_to_match_is_refused(case):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (150, 160), dtype=np.uint8)
    image_a = {"flat": np.full((150, 160), 90, np.uint8), "small": noise[:63], "thin": noise[:66]}.get(case, noise)
    mask = np.zeros((150, 160), np.uint8) if case == "masked" else None
    image_b = rng.integers(0, 256, (150, 160), dtype=np.uint8)
    result = register(tiny_matcher(threshold=0.999), image_a, image_b, mask_a=mask, search=NEAR)
    assert not result.ok
    assert result.matrix is None
    assert result.reason


def test_overflow_of_the_matcher_is_a_refusal(scene):
    class Overflowing(EdgeMatcher):
        def score(self, patches_a, patches_b):
            raise ValueError("dtype float16 overflows with these weights on these patches")

    result = register(Overflowing(), scene, moved(scene, 5)[0], search=NEAR)
    assert not result.ok
    assert "float16" in result.reason


def test_another_default_device_changes_nothing(matcher, scene):
    with torch.device("meta"):
        assert register(matcher, scene, moved(scene, 5)[0], search=NEAR).ok


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "rigid"}, ValueError, "model must be one of"),
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
    ],
)
def test_mistakes_are_named(matcher, arguments, error, message):
    good = {"image_a": np.zeros((90, 90), np.uint8), "image_b": np.zeros((90, 90), np.uint8)}
    with pytest.raises(error, match=message):
        register(matcher, **{**good, **arguments})


@pytest.mark.parametrize("bounds", [{"rotation": -1}, {"rotation": 181}, {"scale": (2, 1)}, {"scale": (0, 1)}])
def test_search_that_holds_nothing(bounds):
    with pytest.raises(ValueError, match="must"):
        Search(**bounds)


def test_coarse_search_finds_the_similarity(scene):
    there, truth = moved(scene, 42, 0.9, (5, 3))
    frame = Frame(prepare(scene, None, None, "a"), prepare(there, None, None, "b"))
    found = propose([frame], [30.0, -42.0, 36.0, -36.0], [0.8, 0.9, 1.0], 5, Settings())
    assert corner_error(found[0].matrix, truth, scene.shape) < 5
    assert found[0].score == max(h.score for h in found)


def test_refinement_is_exact_and_homographies_are_fitted(scene):
    there, truth = moved(scene, 3, 1.02)
    frame = Frame(prepare(scene, None, None, "a"), prepare(there, None, None, "b"))
    rough = as_3x3(truth) @ np.array([[1, 0, 4], [0, 1, -3], [0, 0, 1.0]])
    for model, bound in (("similarity", 0.3), ("affine", 0.5), ("homography", 1.5)):
        refined = refine([frame], rough, model, Settings())
        assert corner_error(refined.matrix, truth, scene.shape) < bound
        assert refined.agreeing > 0.8
    assert refine([frame], np.array([[1.0, 0, 5000], [0, 1, 0], [0, 0, 1]]), "affine", Settings()) is None


def test_wrong_transforms_do_not_stay_where_they_are(scene):
    there, truth = moved(scene, 3, 1.02)
    frame = Frame(prepare(scene, None, None, "a"), prepare(there, None, None, "b"))
    right = examine([frame], as_3x3(truth), "affine", Settings())
    assert right.moved < 0.002
    assert right.agreeing > 0.9
    about = shrinking(1.0) @ similarity(5, 1)
    about[:2, 2] = [110, 95] - about[:2, :2] @ [110, 95]
    assert examine([frame], about @ as_3x3(truth), "affine", Settings()).moved > 0.008
    beyond = np.array([[1.0, 0, 5000], [0, 1, 0], [0, 0, 1]])
    assert examine([frame], beyond, "affine", Settings()).agreeing == 0


def test_recognised_locations(matcher, scene):
    frames = [Frame(prepare(s, None, None, "a"), prepare(s, None, None, "b")) for s in (scene, scene[::-1, ::-1])]
    points = [corners(f.a.level(1.0)[0], patch_inside(f.a.level(1.0)[1], 32), 20) for f in frames]

    def judged(matrix, matcher=matcher):
        return judge_at(matcher, frames, matrix, points, 40, Settings())

    right = judged(np.eye(3))
    assert right.mutual.mean() > 0.9
    assert right.recognised(5.0) == pytest.approx(right.mutual.sum() / (len(right.mutual) + 5))
    assert judged(translation(30, 9)).mutual.mean() < 0.3
    assert not judged(np.eye(3), Forgetful()).mutual.any()
    assert judged(translation(900, 0)).mutual.shape == (0,)


def trial_of(matcher, a, b, settings=Settings()):  # noqa: B008
    return Trial(matcher, [Frame(prepare(a, None, None, "a"), prepare(b, None, None, "b"))], "affine", settings)


def test_lead(matcher, scene):
    there, truth = moved(scene, 3, 1.02)
    trial = trial_of(matcher, scene, there)
    right = trial.candidate(Hypothesis(1.0, as_3x3(truth)))
    near, there = right.refined.matrix, translation(60, 0) @ right.refined.matrix
    much, little = 0.9 * right.agreement, 0.4 * right.agreement
    supports = 0.6 * right.support, 0.4 * right.support

    def lead(score, matrix, support):
        trial.supported = [Supported(Hypothesis(score, matrix), support)]
        return trial.lead(right)

    assert lead(much, near, supports[0]) == np.inf, "nothing elsewhere"
    assert lead(much, there, supports[1]) == np.inf, "without support"
    assert lead(little, there, supports[0]) == np.inf, "too little to matter"
    assert lead(much, there, supports[0]) == np.inf, "not trusted once it is refined"
    assert trial.trust(right, 1.6) > trial.settings.certain_trust
    assert lead(right.agreement / 1.6, there, supports[0]) == pytest.approx(1.6), "beyond doubt, so not refined"


def test_lead_over_a_transform_that_may_be_right_instead(matcher, scene):
    tiles = np.tile(scene[40:120, 40:120], (4, 5))
    trial = trial_of(matcher, tiles, tiles)
    right = trial.candidate(Hypothesis(1.0, np.eye(3)))
    trial.supported = [Supported(Hypothesis(0.9 * right.agreement, translation(80, 1)), right.support)]
    assert trial.lead(right) == pytest.approx(1 / 0.9)
    assert "texture repeats" in check(trial, right).registration.reason
    trial.supported = []
    assert check(trial, right).registration.ok


def test_trust_falls_with_all_that_speaks_against_a_transform(matcher, scene):
    there, truth = moved(scene, 3, 1.02)
    trial = trial_of(matcher, scene, there)
    refined = refine(trial.frames, as_3x3(truth), "affine", trial.settings)

    def odds(matcher=matcher, transform=refined, lead=2.0):
        trial.matcher = matcher
        return trial.trust(trial.weigh(transform), lead)

    assert odds() > 0
    assert odds(matcher=Forgetful()) < odds()
    assert odds(lead=1.2) < odds()
    assert odds(transform=refined._replace(matrix=translation(3, 0) @ refined.matrix)) < odds()
    assert odds(transform=refined._replace(moved=0.05)) == -np.inf


def test_repeated_texture_is_refused(matcher):
    tile = make_scene(2, (64, 64))
    texture = np.tile(tile, (5, 5))
    image_a, image_b = texture[:220, :220], moved(texture[32:252, 20:240], 0)[0]
    result = register(matcher, image_a, image_b)
    assert not result.ok
    assert "texture repeats" in result.reason


def test_right_transform_stands_out_in_its_surroundings(scene):
    there, truth = moved(scene, 3, 1.02)
    frame = Frame(prepare(scene, None, None, "a"), prepare(there, None, None, "b"))
    other = Frame(frame.a, prepare(make_scene(5), None, None, "b"))
    right = examine([frame], as_3x3(truth), "affine", Settings())
    assert prominence([frame], right, Settings()) > 3.5
    assert prominence([other], right, Settings()) < 2.5
    nowhere = right._replace(matrix=translation(1000, 0))
    assert prominence([frame], nowhere, Settings()) == 0


def test_prominence_falls_with_the_part_that_both_images_show(scene):
    there, truth = moved(scene, 3)
    settings, left = Settings(), np.zeros_like(scene)
    left[:, : scene.shape[1] // 2] = 1
    values = []
    for mask in (None, left):
        frame = Frame(prepare(scene, mask, None, "a"), prepare(there, None, None, "b"))
        values.append(prominence([frame], examine([frame], as_3x3(truth), "affine", settings), settings))
    assert 0 < values[1] < 0.8 * values[0]


def test_blocks_lie_where_both_images_show_something(scene):
    mask = np.zeros_like(scene)
    mask[:, :150] = 1
    frame = Frame(prepare(scene, mask, None, "a"), prepare(scene, None, None, "b"))
    blocks = match_blocks([frame], np.eye(3), 1.0, 5, 15, 8, Settings())[0]
    assert 0 < blocks.points[:, 0].max() < 150
    assert np.median(np.abs(blocks.matched - blocks.points)) < 0.05


def test_gradients_ignore_the_sign_of_contrast(scene):
    image = scene.astype(np.float32) / 255
    np.testing.assert_allclose(gradients(1 - image), gradients(image), atol=1e-5)


def test_hypotheses_that_are_alike_count_once():
    shifts = [0, 1, 30]
    found = [Hypothesis(k, np.array([[1, 0, x], [0, 1, 0], [0, 0, 1.0]])) for k, x in enumerate(shifts)]
    assert [h.score for h in distinct(found, (50, 50), 5.0, 9)] == [2, 1]
    assert len(distinct(found, (50, 50), 5.0, 1)) == 1


def test_minimum_between_pixels():
    x, y = np.meshgrid(np.arange(-3.0, 4), np.arange(-3.0, 4))
    truth = np.array([(0.3, -1.2), (0.0, 2.4), (-1.45, 0.1)])
    cost = np.stack([(x - u) ** 2 + 2 * (y - v) ** 2 for u, v in truth])
    offsets, inside = lowest(cost)
    np.testing.assert_allclose(offsets, truth, atol=1e-9)
    assert inside.tolist() == [True] * 3
    assert lowest((x + y)[None])[1].tolist() == [False]


def _surfaces_around(truth, centres, bends, reach=6):
    """Differences that bend as `bends` (N, 2, 2) say around where a transform takes the centres (N, 2)."""
    side = np.arange(-reach, reach + 1.0)
    offsets = np.stack(np.meshgrid(side, side), -1) - (apply(truth, centres) - centres)[:, None, None]
    return 0.1 + np.einsum("nyxi,nij,nyxj->nyx", offsets, bends, offsets)


@pytest.mark.parametrize("model", ["similarity", "affine", "homography"])
def test_edges_together_fix_a_transform(model):
    """No block has a minimum of its own: each lies along an edge and leaves one direction open."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 300, (60, 2))
    truth = translation(140, 130) @ similarity(0.5, 1.008) @ translation(-138, -131)
    if model != "similarity":
        truth = (
            translation(150, 0) @ np.array([[1.01, 0.004, 0], [0, 1, 0], [0, 0, 1.0]]) @ translation(-150, 0) @ truth
        )
    if model == "homography":
        truth = truth + np.array([[0, 0, 0], [0, 0, 0], [2e-5, -1e-5, 0]])
    across = np.stack([np.cos(angle := rng.uniform(0, np.pi, 60)), np.sin(angle)], 1)
    surfaces = _surfaces_around(truth, centres, across[:, :, None] * across[:, None])
    adjusted = adjust(np.eye(3), centres, surfaces, model, Settings())
    np.testing.assert_allclose(apply(adjusted, centres), apply(truth, centres), atol=0.05)
    if model == "similarity":
        np.testing.assert_allclose(adjusted[0, :2], adjusted[1, [1, 0]] * (1, -1), atol=1e-12)


def test_blocks_that_fit_elsewhere_do_not_pull():
    """A quarter of the blocks has its minimum 4 px off; an average of minima would be 1 px off."""
    centres = np.random.default_rng(1).uniform(0, 300, (60, 2))
    bends = np.broadcast_to(0.2 * np.eye(2), (60, 2, 2))
    surfaces = _surfaces_around(translation(1.5, -0.5), centres, bends)
    surfaces[::4] = _surfaces_around(translation(-2.5, -0.5), centres[::4], bends[::4])
    moved = apply(adjust(translation(1, 0), centres, surfaces, "affine", Settings()), centres) - centres
    assert np.abs(moved - (1.5, -0.5)).max() < 0.4


def test_standing_out():
    centres = np.zeros((40, 2))
    deep = _surfaces_around(np.eye(3), centres, np.broadcast_to(np.eye(2), (40, 2, 2)), 12)
    assert standing_out(deep, Settings()) > 4
    assert standing_out(np.roll(deep, 7, 1), Settings()) < 2
    assert standing_out(np.ones((40, 25, 25)), Settings()) == 0


@pytest.mark.parametrize("model", ["similarity", "affine", "homography"])
def test_surfaces_that_say_nothing_leave_a_transform(model):
    centres = np.random.default_rng(2).uniform(0, 300, (20, 2))
    start = translation(0.4, 0.3)
    for surfaces in (np.zeros((20, 13, 13)), np.ones((20, 13, 13)), np.full((20, 13, 13), -1e-8)):
        np.testing.assert_allclose(adjust(start, centres, surfaces, model, Settings()), start, atol=1e-9)
    noise = np.random.default_rng(3).uniform(0, 1, (20, 13, 13))
    assert np.isfinite(adjust(translation(40, 0), centres, noise, model, Settings())).all()


def test_fast_length():
    assert [fast_length(n) for n in (1, 7, 11, 13, 97, 101, 128)] == [1, 8, 12, 15, 100, 108, 128]


def test_jacobian_is_the_derivative():
    matrix = np.array([[1.1, 0.2, 5], [-0.1, 0.9, -3], [2e-4, -1e-4, 1]])
    points = np.array([(10.0, 20.0), (200.0, 50.0)])
    step = 1e-4
    columns = [(apply(matrix, points + step * e) - apply(matrix, points - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(jacobian(matrix, points), np.stack(columns, 2), atol=1e-6)


def test_shrinking_keeps_the_corner():
    """The corner of an image lies at -1/2 however large its pixels are."""
    points = np.array([[-0.5, -0.5], [0.5, 2.5]])
    np.testing.assert_allclose(apply(shrinking(2.0), points), [[-0.5, -0.5], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (similarity(70, 1.9), ""),
        (np.diag([1.0, 1.2, 1.0]), ""),
        (np.diag([0.01, 0.01, 1.0]), "scales by"),
        (np.diag([1.0, 2.5, 1.0]), "scales by"),
        (np.diag([-1.0, 1.0, 1.0]), "mirrors"),
        (np.full((3, 3), np.nan), "not finite"),
    ],
)
def test_implausible(matrix, reason):
    found = implausible(matrix, np.array([50.0, 60.0]))
    assert (reason in found) if reason else not found


@pytest.mark.parametrize("points", [np.zeros((20, 2)), np.outer(np.arange(20.0), [1, 2]), np.zeros((3, 2))])
@pytest.mark.parametrize("model", ["similarity", "affine", "homography"])
def test_fit_of_what_has_no_transform(points, model):
    """All at one location, on a line, or too few: nothing, or a transform that is finite, never an exception."""
    matrix = fit(points, points + 1, model, 3.0)
    assert matrix is None or np.isfinite(matrix).all()


@pytest.mark.parametrize(
    ("truth", "model", "expected"),
    [
        (similarity(20, 1.1), "affine", "similarity"),
        (similarity(20, 1.1), "homography", "similarity"),
        (np.diag([1.0, 1.05, 1.0]), "affine", "affine"),
        (np.diag([1.0, 1.05, 1.0]), "homography", "affine"),
        (np.array([[1, 0, 0], [0, 1, 0], [3e-4, 0, 1.0]]), "homography", "homography"),
    ],
)
def test_simplest_model_that_fits(truth, model, expected):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 300, (80, 2))
    matched = apply(truth, points) + rng.normal(0, 0.3, (80, 2))
    matrix, simplest = fit_simplest(points, matched, model, 3.0, 1.4)
    np.testing.assert_allclose(matrix, fit(points, matched, expected, 3.0), atol=1e-9)
    assert simplest == expected
    assert np.abs(apply(matrix, points) - apply(truth, points)).max() < 0.5


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
    move = cv2.getRotationMatrix2D((b.shape[1] / 2, b.shape[0] / 2), rotation, 1.06)
    result = register(matcher, a, cv2.warpAffine(b, move, b.shape[::-1]))
    assert result.ok, result.reason
    truth = as_3x3(move) @ as_3x3(pair.a_to_b)
    assert corner_error(result.matrix, truth, a.shape) < bound
    assert not register(matcher, a, other.image_b, search=NEAR).ok


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_refused_and_never_raises(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 256, (150, 140), dtype=np.uint8) for _ in range(2))
    if seed % 2:
        a, b = (cv2.GaussianBlur(image, (0, 0), 4) for image in (a, b))
    result = register(RRLMatcher.from_pretrained("vis-lwir", device="cpu"), a, b)
    assert not result.ok
    assert result.matrix is None
    assert result.reason
