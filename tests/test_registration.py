"""From two pictures to a transform, or a refusal."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from networks import tiny_matcher

from rrl_match import Matches, Registration, RRLMatcher, register
from rrl_match.registration import _apply, _as_3x3, _doubts, _enlarged, _fit, _jacobian, _peaks, _Pictures, _Run, _shown
from rrl_match.training.datasets import hold_back, read_pairs

IMAGES = Path(__file__).resolve().parents[1] / "examples" / "images"


@pytest.fixture(scope="module")
def rendered():
    """Part of the visible NAIP image (H, W, 3), its near-infrared image (H, W), and the true matrix (2, 3)."""
    with open(IMAGES / "manifest.csv", newline="", encoding="utf-8") as manifest:
        row = next(csv.DictReader(manifest))
    truth = np.array([[float(row[f"m{i}{j}"]) for j in range(3)] for i in range(2)])
    visible = cv2.cvtColor(cv2.imread(str(IMAGES / row["image_a"])), cv2.COLOR_BGR2RGB)
    infrared = cv2.imread(str(IMAGES / row["image_b"]), cv2.IMREAD_GRAYSCALE)
    return visible[100:540, 100:560], infrared, np.hstack([truth[:, :2], truth @ np.array([[100], [100], [1.0]])])


@pytest.fixture(scope="module")
def vis_nir():
    return RRLMatcher.from_pretrained(device="cpu")


def corner_error(matrix, truth, shape):
    h, w = shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]], float)
    estimated, true = (_apply(_as_3x3(m), corners) for m in (matrix, truth))
    return np.linalg.norm(estimated - true, axis=1).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "bound"), [("similarity", 2), ("affine", 2), ("homography", 5)])
def test_rendered_pair_is_registered(vis_nir, rendered, model, bound):
    """The more freedom a model has, the more of the matches' noise it takes in, above all at the corners."""
    visible, infrared, truth = rendered
    result = register(vis_nir, visible, infrared, model)
    assert result.ok, result.reason
    assert result.reason == ""
    assert result.matrix.shape == ((3, 3) if model == "homography" else (2, 3))
    assert corner_error(result.matrix, truth, visible.shape) < bound
    n = len(result.matches)
    assert result.keypoints_a.shape == result.keypoints_b.shape == (n, 2)
    assert result.inliers.shape == (n,)
    assert result.support > 0.5


@pytest.mark.slow
def test_edges_do_not_undo_what_passed_the_checks(vis_nir, rendered, monkeypatch):
    """Here they would all agree to shrink the picture to a tenth."""

    def agreed(image_a, image_b, points, predicted, linear, radius):
        return np.einsum("nij,nj->ni", np.linalg.inv(linear), 0.1 * points - predicted), np.ones(len(points), bool)

    monkeypatch.setattr("rrl_match.registration.edge_offsets", agreed)
    visible, infrared, truth = rendered
    result = register(vis_nir, visible, infrared)
    assert result.ok, result.reason
    assert corner_error(result.matrix, truth, visible.shape) < 5
    assert result.inliers.sum() >= 12


@pytest.mark.slow
def test_same_pictures_same_transform(vis_nir, rendered):
    first, again = (register(vis_nir, rendered[0][:200, :240], rendered[1][:330, :370]) for _ in range(2))
    np.testing.assert_array_equal(again.matrix, first.matrix)


@pytest.mark.slow
def test_pictures_of_more_than_8_bit_and_a_large_turn(vis_nir, rendered):
    """Turned by 24 degrees, 14 bit: a later attempt of the search finds it."""
    visible, infrared, truth = rendered
    h, w = infrared.shape
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), -24, 1.0)
    turned = cv2.warpAffine(infrared, turn, (w, h))
    shown = cv2.warpAffine(np.ones_like(infrared), turn, (w, h))
    frame = turned.astype(np.uint16) * 16 + 7000
    expected = turn[:, :2] @ truth + np.array([[0, 0, turn[0, 2]], [0, 0, turn[1, 2]]])
    result = register(vis_nir, visible, frame, mask_b=shown)
    assert result.ok, result.reason
    assert corner_error(result.matrix, expected, visible.shape) < 3


@pytest.mark.slow
def test_pictures_of_different_places_are_refused(vis_nir, rendered):
    visible, infrared, _ = rendered
    result = register(vis_nir, visible, infrared[-300:, -300:][::-1], search=[(0, 1), (30, 1)])
    assert not result.ok
    assert result.reason


@pytest.mark.parametrize("case", ["flat", "noise", "small", "masked"])
def test_nothing_to_match_is_refused(small_matcher, case):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (150, 160), dtype=np.uint8)
    image_a = {"flat": np.full((150, 160), 90, np.uint8), "small": noise[:63]}.get(case, noise)
    mask = np.zeros((150, 160), np.uint8) if case == "masked" else None
    image_b = rng.integers(0, 256, (150, 160), dtype=np.uint8)
    result = register(small_matcher, image_a, image_b, mask_a=mask)
    assert not result.ok
    assert result.matrix is None
    assert result.reason
    assert len(result.matches) == len(result.keypoints_a) == len(result.inliers) == 0


def test_reason_is_that_of_the_last_step(small_matcher, monkeypatch):
    monkeypatch.setattr(_Run, "_first_pass", lambda *_: np.array([[1.0, 0, 5000], [0, 1, 0], [0, 0, 1]]))
    noise = np.random.default_rng(0).integers(0, 256, (150, 160), dtype=np.uint8)
    result = register(small_matcher, noise, noise)
    assert not result.ok
    assert "hardly overlap" in result.reason


def test_another_default_device_changes_nothing(small_matcher):
    noise = np.random.default_rng(0).integers(0, 256, (150, 160), dtype=np.uint8)
    with torch.device("meta"):
        assert register(small_matcher, noise, noise[::-1], search=[(0, 1)]).reason


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_range_is_that_of_what_is_shown(kind):
    """A frame with nothing around it, as a warped one has, would be left with a fifteenth of the contrast."""
    frame = np.zeros((100, 100), np.uint16)
    frame[20:80, 20:80] = np.linspace(29_000, 31_000, 3600).reshape(60, 60)
    pictures = _Pictures(frame, kind(frame > 0), None, "b")
    assert np.ptp(pictures.full[25:75, 25:75]) > 0.8
    assert pictures.mask.sum() == 3600
    assert np.isfinite(_Pictures(frame, kind(np.zeros_like(frame, bool)), None, "b").full).all()


@pytest.fixture(scope="module")
def small_matcher():
    return tiny_matcher(descriptor_dim=8, threshold=0.999)


def test_weights_without_descriptors_are_refused():
    with pytest.raises(ValueError, match="descriptors"):
        register(tiny_matcher(), np.zeros((90, 90), np.uint8), np.zeros((90, 90), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "rigid"}, ValueError, "model must be one of"),
        ({"image_a": [[1, 2]]}, TypeError, "image_a"),
        ({"image_b": np.full((90, 90), np.nan)}, ValueError, "image_b"),
        ({"image_b": np.zeros((0, 90), np.uint8)}, ValueError, "image_b"),
        ({"value_range": (9, 1)}, ValueError, "value_range for image_a"),
        ({"value_range": (None, (9, 1))}, ValueError, "value_range for image_b"),
        ({"value_range": 7}, TypeError, "value_range"),
        ({"mask_b": np.ones((3, 3))}, ValueError, r"mask_b must have the shape of image_b, \(90, 90\), got \(3, 3\)"),
        ({"mask_a": "all"}, ValueError, "mask_a must have the shape"),
        ({"search": None}, TypeError, "search must be pairs"),
        ({"search": [5]}, TypeError, "search must be pairs"),
        ({"search": [(0, 0)]}, ValueError, "search must be .* positive scale"),
        ({"search": [(np.nan, 1)]}, ValueError, "search must be .* finite"),
        ({"search": []}, ValueError, "search must be one or more"),
    ],
)
def test_mistakes_are_named(small_matcher, arguments, error, message):
    good = {"image_a": np.zeros((90, 90), np.uint8), "image_b": np.zeros((90, 90), np.uint8)}
    with pytest.raises(error, match=message):
        register(small_matcher, **{**good, **arguments})


def test_peak_between_steps():
    x, y = np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1])
    truth = np.array([(0.3, -0.2), (0.0, 0.4), (-0.45, 0.1)])
    surface = np.stack([5 - (x - u) ** 2 - 2 * (y - v) ** 2 for u, v in truth]).astype(np.float32)
    np.testing.assert_allclose(_peaks(surface), truth, atol=1e-5)
    border = np.zeros((1, 3, 3), np.float32)
    border[0, 1, 2] = 1
    assert (np.abs(_peaks(border)) <= 1.5).all()


def test_jacobian_is_the_derivative():
    matrix = np.array([[1.1, 0.2, 5], [-0.1, 0.9, -3], [2e-4, -1e-4, 1]])
    points = np.array([(10.0, 20.0), (200.0, 50.0)])
    step = 1e-4
    columns = [(_apply(matrix, points + step * e) - _apply(matrix, points - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(_jacobian(matrix, points), np.stack(columns, 2), atol=1e-6)


EVERYWHERE = np.random.default_rng(0).uniform(0, 200, (40, 2))
SHRUNK = np.diag([0.01, 0.01, 1.0])
MIRRORED = np.diag([-1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("matrix", "inliers", "support", "reason"),
    [
        (np.eye(3), EVERYWHERE, 0.9, ""),
        (None, EVERYWHERE, 0.9, "too few matches"),
        (np.eye(3), EVERYWHERE[:8], 0.9, "too few matches"),
        (np.eye(3), EVERYWHERE, 0.2, "20% of the keypoints"),
        (SHRUNK, EVERYWHERE, 0.9, "implausible"),
        (MIRRORED, EVERYWHERE, 0.9, "implausible"),
        (np.diag([1.0, 2.5, 1.0]), EVERYWHERE, 0.9, "implausible"),
        (np.eye(3), EVERYWHERE / 10, 0.9, "small part"),
        (np.eye(3), EVERYWHERE * (1, 0.25), 0.9, "small part"),
        (np.eye(3), EVERYWHERE * (1, 0), 0.9, "on a line"),
    ],
)
def test_doubts(matrix, inliers, support, reason):
    found = _doubts(matrix, inliers, EVERYWHERE, support, (200, 200))
    assert (reason in found) if reason else not found


def test_shown():
    mask = np.ones((50, 80), np.uint8)
    mask[:, 40:] = 0
    places = np.array([[10.0, 10.0], [45.0, 10.0], [3.0, 10.0], [-5.0, 1.0], [39.4, 44.0]])
    assert _shown(mask, places, 5).tolist() == [True, False, False, False, True]


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("domain", "n", "bound"), [("vis-nir", 0, 3), ("vis-lwir", 0, 6), ("optical-sar", 1, 6)])
def test_real_pictures(shared, domain, n, bound):
    """A held-back training pair, whose bands are aligned to a few pixels themselves; and pictures of two places."""
    pairs = hold_back(read_pairs(shared / "data" / domain), 9)[1]
    pair, other = pairs[n], pairs[n + 1]
    matcher = RRLMatcher.from_pretrained(domain, device="cpu")
    a, b = pair.image_a, pair.image_b
    move = cv2.getRotationMatrix2D((b.shape[1] / 2, b.shape[0] / 2), 6, 1.06)
    result = register(matcher, a, cv2.warpAffine(b, move, b.shape[::-1]), "similarity", progress=True)
    assert result.ok, result.reason
    truth = move[:, :2] @ pair.a_to_b + np.array([[0, 0, move[0, 2]], [0, 0, move[1, 2]]])
    assert corner_error(result.matrix, truth, a.shape) < bound
    assert not register(matcher, a, other.image_b, search=[(0, 1)]).ok


def test_enlarging_keeps_the_corner():
    """The corner of a picture lies at -1/2 however large its pixels are."""
    points = np.array([[-0.5, -0.5], [0.0, 1.0]])
    none = Matches(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    small = Registration(np.array([[1.0, 0, 3], [0, 1, -2]]), True, "", points, points, none, np.ones(2, bool), 1.0)
    large = _enlarged(small, 2.0)
    assert large.keypoints_a.tolist() == large.keypoints_b.tolist() == [[-0.5, -0.5], [0.5, 2.5]]
    np.testing.assert_allclose(large.matrix, [[1, 0, 6], [0, 1, -4]])


@pytest.mark.parametrize("points", [np.zeros((20, 2)), np.outer(np.arange(20.0), [1, 2]), np.zeros((3, 2))])
@pytest.mark.parametrize("model", ["similarity", "affine", "homography"])
def test_fit_of_what_has_no_transform(points, model):
    """All in one place, on a line, or too few: nothing, or a transform that agrees, never an exception."""
    matrix, agree = _fit(points, points + 1, model, 3.0)
    assert agree.shape == (len(points),)
    assert matrix is None or np.isfinite(matrix).all()
