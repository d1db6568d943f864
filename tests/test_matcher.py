from __future__ import annotations

import copy
import pickle
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from networks import make_patches, tiny_matcher, tiny_rrlnet

from rrl_match import Features, Near, RRLMatcher, inference
from rrl_match.batching import BatchedInference
from rrl_match.inference import InferenceRRLNet
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
KINDS = {"array": np.asarray, "tensor": torch.as_tensor}


@pytest.fixture
def tiny():
    """For tests that do not depend on the scores."""
    return tiny_matcher(descriptor_dim=4)


@pytest.fixture(scope="module")
def scores(matcher, a, b):
    return matcher.score(a, b)


@pytest.fixture(scope="module")
def matrix(matcher, a, patches_b):
    return matcher.score_matrix(a, patches_b[:7])


# score


def test_scores_are_those_of_the_network(network, scores, a, b):
    expected = network(*(torch.from_numpy(p)[:, None] / 255 for p in (a, b)))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_of_the_kind_of_the_patches(tiny, a, b, kind):
    result = tiny.score(KINDS[kind](a), KINDS[kind](b))
    assert isinstance(result, np.ndarray if kind == "array" else torch.Tensor)
    assert str(result.dtype).endswith("float32")
    assert result.shape == (5,)
    assert ((result >= 0) & (result <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_lists(tiny, a, b, kind):
    result = tiny.score([KINDS[kind](p) for p in a], tuple(KINDS[kind](p) for p in b))
    np.testing.assert_allclose(result, tiny.score(a, b), atol=1e-6)
    assert isinstance(result, np.ndarray if kind == "array" else torch.Tensor)


def test_rgb_with_the_colours_first(small):
    a, b = make_patches(5, 9, 16), make_patches(5, 10, 16)
    colours = np.stack([a, a[::-1], 255 - a], -1)
    expected = small.score(colours, b)
    np.testing.assert_array_equal(small.score(colours.transpose(0, 3, 1, 2), b), expected)
    tensors = torch.from_numpy(colours).permute(0, 3, 1, 2), torch.from_numpy(b)
    np.testing.assert_array_equal(small.score(*tensors), expected)
    assert not np.array_equal(small.score(a, b), expected)


def test_a_single_pair_gives_a_scalar(tiny, a, b):
    expected = tiny.score(a[:1], b[:1])
    score = tiny.score(a[0], b[0])
    assert isinstance(score, np.float32)
    assert score == pytest.approx(expected[0], abs=1e-6)
    tensor = tiny.score(torch.from_numpy(a[0]), torch.from_numpy(b[0]))
    assert tensor.shape == ()
    assert float(tensor) == pytest.approx(expected[0], abs=1e-6)
    assert tiny.score(a[:1], b[0]).shape == (1,)
    assert tiny.score([a[0]], [b[0]]).shape == (1,)


def test_order_is_kept(matcher, scores, a, b):
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(matcher.score(a[order], b[order]), scores[order], atol=1e-5)
    assert len(set(scores.round(3))) == 5


def test_order_of_the_bands_matters(matcher, scores, a, b):
    assert np.abs(matcher.score(b, a) - scores).max() > 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_is_near_float32(weights_folder, scores, a, b, dtype):
    matcher = RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype=dtype)
    result = matcher.score(a, b)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, scores, atol=0.15 if dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_results_lie_on_the_device_of_the_patches(weights_folder, scores, a, b, device):
    matcher = RRLMatcher.from_pretrained(weights_folder, device=device, dtype="float32")
    for other in {"cpu", device}:
        result = matcher.score(torch.as_tensor(a, device=other), torch.as_tensor(b, device=other))
        assert result.device.type == other
        np.testing.assert_allclose(result.cpu(), scores, atol=1e-2)
    np.testing.assert_allclose(matcher.score(a, b), scores, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_patches(tiny, kind):
    none = KINDS[kind](np.empty((0, 64, 64), np.uint8))
    some = KINDS[kind](np.zeros((3, 64, 64), np.uint8))
    assert tiny.score(none, none).shape == (0,)
    assert len(tiny.encode(none, "a")) == 0
    assert tiny.score_matrix(none, some).shape == (0, 3)
    assert tiny.score_matrix(some, none).shape == (3, 0)
    for pair in ((none, some), (some, none), (none, none)):
        for candidates in (None, 1, 16):
            matches = tiny.match(*pair, candidates=candidates)
            assert len(matches) == 0
            assert matches.indices.shape == (0, 2)
            assert isinstance(matches.indices, type(none))
            assert isinstance(matches.scores, type(none))


def test_empty_lists(tiny):
    assert tiny.score([], []).shape == (0,)
    assert len(tiny.match([], [])) == 0


def test_value_range_of_both_bands_and_of_each(tiny, a, b):
    expected = tiny.score(a, b)
    thermal = b.astype(np.uint16) * 4 + 27_000
    np.testing.assert_allclose(tiny.score(a, b, value_range=(0, 255)), expected, atol=1e-6)
    for band_a in (None, (0, 255)):
        got = tiny.score(a, thermal, value_range=(band_a, (27_000, 27_000 + 4 * 255)))
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("value_range", [5, "wide", (1, 2, 3), (None, 5), ((0, 1), (0, 1), (0, 1))])
def test_bad_value_range(tiny, a, b, value_range):
    with pytest.raises(TypeError, match="value_range"):
        tiny.score(a, b, value_range=value_range)


@pytest.mark.parametrize("change", ["NaN", "size", "kind", "range"])
@pytest.mark.parametrize("band", [0, 1])
def test_bad_patches_are_named(tiny, a, b, band, change):
    pair = [a.astype(np.float32) / 255, b.astype(np.float32) / 255]
    pair[band] = {
        "NaN": pair[band] * np.nan,
        "size": pair[band][:, :32],
        "kind": pair[band].astype(int),
        "range": pair[band] * 9,
    }[change]
    for call in (tiny.score, tiny.score_matrix, tiny.match):
        with pytest.raises((TypeError, ValueError), match=f"^patches_{'ab'[band]} "):
            call(*pair)


def test_lengths_that_differ(tiny, a, b):
    with pytest.raises(
        ValueError, match=r"patches_a and patches_b must have the same length, got 5 and 4.*score_matrix"
    ):
        tiny.score(a, b[:4])
    with pytest.raises(ValueError, match="same length, got 5 and 1"):
        tiny.score(a, b[0])


def test_arrays_and_tensors_do_not_mix(tiny, a, b):
    for call in (tiny.score, tiny.score_matrix, tiny.match):
        with pytest.raises(TypeError, match=r"patches_a and patches_b must both .*torch\.as_tensor"):
            call(a, torch.from_numpy(b))


def test_patches_are_not_modified(tiny, a, b):
    for kind in (np.copy, lambda p: torch.from_numpy(p / 255), lambda p: np.asfortranarray(p / 255)):
        pair = kind(a), kind(b)
        before = copy.deepcopy(pair)
        tiny.score(*pair)
        tiny.match(*pair, value_range=(0, 0.5) if pair[0].dtype != np.uint8 else None)
        for left, right in zip(pair, before, strict=True):
            np.testing.assert_array_equal(left, right)


def test_results_have_no_autograd_graph(tiny, a, b):
    pair = [torch.from_numpy(p / 255).float().requires_grad_() for p in (a, b)]
    results = [tiny.score(*pair), tiny.score_matrix(*pair), tiny.match(*pair, threshold=0).scores]
    results += tiny.encode(pair[0], "a").maps
    assert not any(r.requires_grad or r.grad_fn for r in results)
    assert pair[0].grad is None


@pytest.mark.parametrize("wrapper", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_any_grad_mode(tiny, a, b, wrapper):
    expected = tiny.score(a, b)
    with wrapper():
        np.testing.assert_array_equal(tiny.score(a, b), expected)


def test_autocast_of_the_caller_changes_nothing(tiny, a, b):
    colour = np.repeat(a[..., None], 3, -1) / 255 * np.array([0.9, 1.0, 0.8])

    def results():
        return (
            tiny.score(colour, b),
            tiny.score_matrix(colour, b),
            tiny.match(colour, b, candidates=2, threshold=0).indices,
        )

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_another_default_dtype_changes_nothing(tiny, a, b):
    colour = np.repeat(a[..., None], 3, -1)
    expected = tiny.score(colour, b), tiny.score_matrix(a, b)
    torch.set_default_dtype(torch.float64)
    try:
        results = tiny.score(colour, b), tiny.score_matrix(a, b)
    finally:
        torch.set_default_dtype(torch.float32)
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)


def test_another_default_device_changes_nothing(tiny, a, b):
    colour = np.repeat(a[..., None], 3, -1)
    expected = tiny.score(colour, b), tiny.score_matrix(a, b), tiny.match(a, b, candidates=2, threshold=0).indices
    with torch.device("meta"):
        results = tiny.score(colour, b), tiny.score_matrix(a, b), tiny.match(a, b, candidates=2, threshold=0).indices
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, want)


# features and matrix


def test_features(matcher, a):
    features = matcher.encode(a, "a", batch_size=2)
    assert len(features) == 5
    assert features.band == "a"
    assert [tuple(m.shape) for m in features.maps] == [(5, 16 << k, 64 >> k, 64 >> k) for k in range(5)]
    assert features.descriptors.dtype == torch.float32
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(5))
    assert repr(features) == "Features(5 patches of band 'a', float32 on cpu)"


def test_no_descriptors_without_a_head(a):
    assert tiny_matcher().encode(a, "a").descriptors.shape == (5, 0)


def test_score_features_and_matrix_agree_with_score(matcher, scores, matrix, a, b, patches_b):
    features = matcher.encode(a, "a"), matcher.encode(patches_b[:7], "b")
    same = matcher.score_features(*features, [(n, n) for n in range(5)])
    np.testing.assert_allclose(same, scores, atol=1e-5)
    np.testing.assert_allclose(np.diag(matrix), scores, atol=1e-5)
    pairs = np.array([[4, 6], [0, 3], [0, 3], [2, 0]])
    np.testing.assert_allclose(matcher.score_features(*features, pairs), matrix[pairs[:, 0], pairs[:, 1]], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_of_features_and_matrix(tiny, a, patches_b, batch_size):
    patches_b = patches_b[:4]
    expected = np.stack([tiny.score(a, np.repeat(p[None], 5, 0)) for p in patches_b], 1)
    np.testing.assert_allclose(tiny.score_matrix(a, patches_b, batch_size=batch_size), expected, atol=1e-5)
    features = tiny.encode(a, "a", batch_size=batch_size), tiny.encode(patches_b, "b", batch_size=batch_size)
    pairs = np.argwhere(expected >= 0)
    got = tiny.score_features(*features, pairs, batch_size=batch_size)
    np.testing.assert_allclose(got, expected.ravel(), atol=1e-5)


PAIRS = {
    "list": [[0, 1], [2, 3]],
    "tuples": [(0, 1), (2, 3)],
    "int32": np.array([[0, 1], [2, 3]], np.int32),
    "uint64": np.array([[0, 1], [2, 3]], np.uint64),
    "big-endian": np.array([[0, 1], [2, 3]], ">i8"),
    "read-only view": np.broadcast_to(np.array([[0, 1], [2, 3]]), (1, 2, 2))[0],
    "tensor": torch.tensor([[0, 1], [2, 3]]),
    "uint8 tensor": torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_kinds_of_index_pairs(tiny, a, b, kind):
    features = tiny.encode(a, "a"), tiny.encode(b, "b")
    result = tiny.score_features(*features, PAIRS[kind])
    assert isinstance(result, torch.Tensor if "tensor" in kind else np.ndarray)
    np.testing.assert_allclose(result, tiny.score(a[[0, 2]], b[[1, 3]]), atol=1e-6)


@pytest.mark.parametrize("empty", [[], np.empty((0, 2), int), torch.empty(0, 2, dtype=torch.int64)])
def test_no_index_pairs(tiny, a, b, empty):
    assert tiny.score_features(tiny.encode(a, "a"), tiny.encode(b, "b"), empty).shape == (0,)
    assert len(tiny.match(a, b, index_pairs=empty)) == 0


@pytest.mark.parametrize(
    ("pairs", "error"),
    [
        ([[0.0, 1.0]], TypeError),
        ([[True, False]], TypeError),
        ([["0", "1"]], TypeError),
        ([[None, 1]], TypeError),
        ("pairs", TypeError),
        (torch.tensor([[0.0, 1.0]]), TypeError),
        ([0, 1], ValueError),
        ([[0, 1, 2]], ValueError),
        ([[[0, 1]]], ValueError),
        ([[0, 1], [2]], (TypeError, ValueError)),
        ([[5, 0]], ValueError),
        ([[0, 5]], ValueError),
        ([[-1, 0]], ValueError),
        ([[0, 2**40]], ValueError),
        (np.array([[0, 2**64 - 1]], np.uint64), ValueError),
        (torch.empty(1, 2, dtype=torch.int64, device="meta"), ValueError),
    ],
)
def test_bad_index_pairs(tiny, a, b, pairs, error):
    features = tiny.encode(a, "a"), tiny.encode(b, "b")
    with pytest.raises(error, match="index_pairs must"):
        tiny.score_features(*features, pairs)
    with pytest.raises(error, match="index_pairs must"):
        tiny.match(a, b, index_pairs=pairs)


def test_features_of_the_wrong_band(tiny, a, b):
    features_a, features_b = tiny.encode(a, "a"), tiny.encode(b, "b")
    with pytest.raises(TypeError, match=r"features_a must come from encode\(patches, 'a'\), got features of band 'b'"):
        tiny.score_features(features_b, features_a, [[0, 0]])
    with pytest.raises(TypeError, match=r"features_b must come from encode\(patches, 'b'\), got features of band 'a'"):
        tiny.score_features(features_a, features_a, [[0, 0]])
    with pytest.raises(TypeError, match=r"features_b must come from .*, got ndarray"):
        tiny.score_features(features_a, b, [[0, 0]])


def test_features_of_another_matcher(tiny, matcher, a, b):
    """Another network or dtype gives a clear error, not one from within PyTorch."""
    reduced = tiny_matcher(4, dtype="bfloat16")
    for other in (matcher, reduced):
        with pytest.raises((TypeError, ValueError), match="features_b"):
            tiny.score_features(tiny.encode(a[:1], "a"), other.encode(b[:1], "b"), [[0, 0]])


@pytest.mark.parametrize("band", ["c", "A", "vis", "", None, 0, ["a"], ("a",)])
def test_bad_band(tiny, a, band):
    with pytest.raises((TypeError, ValueError), match=r"band must be 'a' \(vis\) or 'b' \(nir\), got"):
        tiny.encode(a, band)


# match


def brute_force(matrix, mutual, threshold):
    found = []
    for row, values in enumerate(matrix):
        column = int(values.argmax())
        if values[column] > threshold and (not mutual or matrix[:, column].argmax() == row):
            found.append((row, column, pytest.approx(values[column], abs=1e-5)))
    return found


def as_list(matches):
    return [(*pair, score) for pair, score in zip(matches.indices.tolist(), matches.scores.tolist(), strict=True)]


@pytest.mark.parametrize(("mutual", "threshold"), [(True, 0.0), (False, 0.0), (True, 0.9), (False, None), (True, 1)])
def test_match_against_brute_force(matcher, matrix, a, patches_b, mutual, threshold):
    matches = matcher.match(a, patches_b[:7], candidates=None, mutual=mutual, threshold=threshold)
    expected = brute_force(matrix, mutual, matcher.threshold if threshold is None else threshold)
    assert as_list(matches) == expected
    assert matches.indices.dtype == np.int64
    assert matches.scores.dtype == np.float32


def test_match_of_tensors(matcher, matrix, a, patches_b):
    matches = matcher.match(torch.from_numpy(a), torch.from_numpy(patches_b[:7]), threshold=0)
    assert matches.indices.dtype == torch.int64
    assert matches.scores.dtype == torch.float32
    assert as_list(matches) == brute_force(matrix, True, 0)


def test_enough_candidates_are_all_pairs(matcher, matrix, a, patches_b):
    assert as_list(matcher.match(a, patches_b[:7], candidates=7, threshold=0)) == brute_force(matrix, True, 0)


def test_match_scores_only_what_the_descriptors_propose(matcher, matrix, a, patches_b):
    similarity = matcher.encode(a, "a").descriptors @ matcher.encode(patches_b[:7], "b").descriptors.T
    proposed = np.zeros_like(matrix, bool)
    for k in range(5):
        proposed[k, similarity[k].topk(2).indices] = True
    for k in range(7):
        proposed[similarity[:, k].topk(2).indices, k] = True
    matches = matcher.match(a, patches_b[:7], candidates=2, mutual=False, threshold=0)
    assert as_list(matches) == brute_force(np.where(proposed, matrix, 0), False, 0)


def test_match_scores_only_given_pairs(matcher, matrix, a, patches_b):
    pairs = [[4, 0], [0, 0], [0, 6], [4, 0], [2, 3]]  # one of them twice
    given = np.zeros_like(matrix)
    given[tuple(np.transpose(pairs))] = matrix[tuple(np.transpose(pairs))]
    for candidates in (16, 1, None):
        matches = matcher.match(a, patches_b[:7], candidates=candidates, threshold=0, index_pairs=pairs)
        assert as_list(matches) == brute_force(given, True, 0)


def test_match_without_descriptors(a, b):
    plain = tiny_matcher()
    with pytest.raises(ValueError, match=r"no descriptors.*pass index_pairs or near, or candidates=None"):
        plain.match(a, b, candidates=4)
    assert as_list(plain.match(a, b, candidates=5)) == as_list(plain.match(a, b, candidates=None))
    assert len(plain.match(a, b, candidates=1, index_pairs=[[0, 0]], threshold=0)) == 1


PREDICTED = np.array([(10, 10), (14, 10), (12, 12), (160, 10), (400, 400)])
POSITIONS = np.array([(12, 10), (11, 14), (160, 10), (161, 12), (13, 10), (9, 10), (200, 200)])
NEAR = Near(5, PREDICTED, POSITIONS)


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("candidates", [None, 7, 1])
def test_match_around_predicted_positions(matcher, matrix, a, patches_b, candidates, mutual):
    near = np.linalg.norm(PREDICTED[:, None] - POSITIONS, axis=2) <= 5
    assert near.sum(1).tolist() == [4, 4, 4, 2, 0]
    if candidates == 1:  # the descriptors choose among them, in both directions
        similarity = matcher.encode(a, "a").descriptors @ matcher.encode(patches_b[:7], "b").descriptors.T
        similarity = np.where(near, similarity, -2)
        near &= (similarity == similarity.max(1, keepdims=True)) | (similarity == similarity.max(0))
        assert 4 <= near.sum() < 10
    matches = matcher.match(a, patches_b[:7], candidates=candidates, mutual=mutual, threshold=0, near=NEAR)
    assert as_list(matches) == brute_force(np.where(near, matrix, 0), mutual, 0)


def test_predicted_positions_need_no_descriptors(a, patches_b):
    plain = tiny_matcher()
    wanted, got = (plain.match(a, patches_b[:7], candidates=k, mutual=False, threshold=0, near=NEAR) for k in (None, 1))
    assert as_list(got) == as_list(wanted)
    assert len(got) == 4


def test_kinds_of_predicted_positions(tiny, a, patches_b):
    expected = as_list(tiny.match(a, patches_b[:7], threshold=0, near=NEAR))
    keypoints = [cv2.KeyPoint(float(x), float(y), 31) for x, y in POSITIONS]
    for positions in (keypoints, torch.tensor(POSITIONS), POSITIONS.tolist()):
        matches = tiny.match(a, patches_b[:7], threshold=0, near=Near(5, PREDICTED, positions))
        assert as_list(matches) == expected
    assert len(tiny.match(a[:0], patches_b[:7], near=Near(5, np.empty((0, 2)), POSITIONS))) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"radius": 0}, ValueError, "^radius must be a positive number of pixels, got 0"),
        ({"radius": float("nan")}, ValueError, "^radius must"),
        ({"radius": "5"}, ValueError, "^radius must"),
        ({"radius": None}, ValueError, "^radius must"),
        ({"positions_b": POSITIONS[:, :1]}, ValueError, r"^positions_b must have shape \(N, 2\)"),
        ({"positions_a": PREDICTED * np.nan}, ValueError, "^positions_a holds NaN"),
        ({"positions_a": "here"}, TypeError, "^positions_a must be"),
        ({"positions_b": None}, TypeError, "^positions_b must be"),
    ],
)
def test_bad_near(change, error, message):
    with pytest.raises(error, match=message):
        Near(**{"radius": 5, "positions_a": PREDICTED, "positions_b": POSITIONS} | change)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"near": Near(5, PREDICTED[:3], POSITIONS)},
            ValueError,
            r"near\.positions_a must have one position for each of the 5 patches of A, got 3",
        ),
        (
            {"near": Near(5, PREDICTED, PREDICTED)},
            ValueError,
            r"near\.positions_b must have one position for each of the 7 patches of B, got 5",
        ),
        ({"near": (5, PREDICTED, POSITIONS)}, TypeError, r"near must be rrl_match\.Near.*got tuple"),
        ({"near": NEAR, "index_pairs": [[0, 0]]}, ValueError, "index_pairs and near both"),
    ],
)
def test_near_that_does_not_fit_the_patches(tiny, a, patches_b, options, error, message):
    for call in (
        tiny.match,
        lambda a, b, **near: tiny.match_features(tiny.encode(a, "a"), tiny.encode(b, "b"), **near),
    ):
        with pytest.raises(error, match=message):
            call(a, patches_b[:7], **options)


# match on features


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"candidates": 2},
        {"candidates": None, "mutual": False, "threshold": 0},
        {"index_pairs": [[0, 0], [2, 3], [4, 1]], "threshold": 0.1},
        {"near": NEAR, "threshold": 0},
        {"near": NEAR, "candidates": 1, "threshold": 0},
    ],
)
def test_match_features_is_match_on_encoded_patches(matcher, a, patches_b, options):
    features_a, features_b = matcher.encode(a, "a"), matcher.encode(patches_b[:7], "b")
    matches = matcher.match_features(features_a, features_b, **options)
    assert as_list(matches) == as_list(matcher.match(a, patches_b[:7], **options))
    assert isinstance(matches.indices, np.ndarray)
    assert matches.indices.dtype == np.int64
    assert matches.scores.dtype == np.float32


def test_match_features_of_no_patches(tiny, a, b):
    none, some = tiny.encode(a[:0], "a"), tiny.encode(b, "b")
    for candidates in (None, 1, 16):
        assert tiny.match_features(none, some, candidates=candidates).indices.shape == (0, 2)


def test_match_features_checks_the_features(tiny, a, b):
    features_a, features_b = tiny.encode(a, "a"), tiny.encode(b, "b")
    with pytest.raises(TypeError, match="features_a must come from encode"):
        tiny.match_features(features_b, features_a)
    with pytest.raises(ValueError, match="threshold must"):
        tiny.match_features(features_a, features_b, threshold=2)


def test_match_features_with_a_progress_bar(tiny, a, b, capfd):
    features = tiny.encode(a, "a"), tiny.encode(b, "b")
    tiny.match_features(*features, candidates=None)
    assert capfd.readouterr() == ("", "")
    for candidates in (None, 1):
        tiny.match_features(*features, candidates=candidates, progress=True)
        assert "scoring" in capfd.readouterr().err


# wrong arguments


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 50, float("nan"), "0.5", [0.5], np.array([0.1, 0.9])])
def test_bad_threshold(tiny, a, b, threshold):
    with pytest.raises((TypeError, ValueError), match="threshold must"):
        tiny.match(a, b, threshold=threshold)


@pytest.mark.parametrize("candidates", [0, -1, 2.0, "16", [16], True])
def test_bad_candidates(tiny, a, b, candidates):
    with pytest.raises((TypeError, ValueError), match="candidates must be a positive integer, or None"):
        tiny.match(a, b, candidates=candidates)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "8", [8], True])
def test_bad_batch_size(tiny, a, b, batch_size):
    calls = [
        lambda: tiny.score(a, b, batch_size=batch_size),
        lambda: tiny.score(a[:0], b[:0], batch_size=batch_size),
        lambda: tiny.encode(a, "a", batch_size=batch_size),
        lambda: tiny.score_matrix(a, b, batch_size=batch_size),
        lambda: tiny.match(a, b, batch_size=batch_size),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="batch_size must be a positive integer or None"):
            call()


def test_numpy_integers_are_accepted(tiny, a, b):
    expected = tiny.match(a, b, candidates=2, batch_size=3, threshold=0)
    got = tiny.match(a, b, candidates=np.int64(2), batch_size=np.int32(3), threshold=np.float64(0))
    assert as_list(got) == as_list(expected)


# batching


def replace_method(monkeypatch, name, function):
    """Have the network call function(method, ...) instead of its method(...)."""
    method = getattr(InferenceRRLNet, name)
    monkeypatch.setattr(InferenceRRLNet, name, lambda self, *args: function(partial(method, self), *args))


@pytest.mark.parametrize(("batch_size", "largest"), [(7, 7), (None, 16)])
def test_memory_depends_on_the_batch_not_on_the_number(tiny, monkeypatch, batch_size, largest):
    many = np.broadcast_to(np.zeros((64, 64), np.uint8), (70, 64, 64))
    sizes = []
    replace_method(monkeypatch, "encode", lambda encode, x, band: sizes.append(len(x)) or encode(x, band))
    replace_method(monkeypatch, "score", lambda score, x, y: sizes.append(len(x[0])) or score(x, y))
    replace_method(monkeypatch, "score_all", lambda all_, x, y: sizes.append(len(x[0]) * len(y[0])) or all_(x, y))
    assert tiny.score(many, many, batch_size=batch_size).shape == (70,)
    assert max(sizes) == largest
    assert sum(sizes) == 3 * 70
    for pair in ((many, many[:2]), (many[:2], many)):
        sizes.clear()
        tiny.score_matrix(*pair, batch_size=batch_size)
        assert max(sizes) == largest
        assert sum(sizes) == 70 + 2 + 70 * 2  # each patch once, each pair once


@pytest.mark.parametrize("shape", [(64, 2), (2, 64)])
def test_tiles_of_a_narrow_matrix_are_full(tiny, monkeypatch, shape):
    a, b = (np.zeros((count, 64, 64), np.uint8) for count in shape)
    tiles = []
    replace_method(monkeypatch, "score_all", lambda all_, x, y: tiles.append(len(x[0]) * len(y[0])) or all_(x, y))
    tiny.score_matrix(a, b)
    assert tiles == [16] * 8


@pytest.mark.parametrize("shape", [(50, 2), (2, 50)])
@pytest.mark.parametrize("method", ["score_matrix", "match"])
def test_all_pairs_keep_the_features_of_the_smaller_side(tiny, monkeypatch, method, shape):
    a, b = (np.zeros((count, 64, 64), np.uint8) for count in shape)
    encode, kept = BatchedInference.encode, []
    monkeypatch.setattr(
        BatchedInference, "encode", lambda self, source, *args: kept.append(len(source)) or encode(self, source, *args)
    )
    getattr(tiny, method)(a, b, **({} if method == "score_matrix" else {"candidates": None}))
    assert kept == [2]


# out of memory


def short_of_memory(most):
    """Runs out of memory beyond `most` rows."""

    def call(method, first, *rest):
        if len(first[0] if isinstance(first, list) else first) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return method(first, *rest)

    return call


@pytest.mark.parametrize("name", ["encode", "score", "score_all"])
@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_the_batch(tiny, monkeypatch, caplog, patches_a, patches_b, name, most):
    calls = [
        lambda: tiny.score(patches_a, patches_b),
        lambda: tiny.match(patches_a, patches_b, candidates=2, mutual=False, threshold=0).scores,
        lambda: tiny.score_matrix(patches_a, patches_b, batch_size=None if name == "encode" else most),
    ]
    expected = [call() for call in calls]
    replace_method(monkeypatch, name, short_of_memory(most))
    for call, scores in zip(calls, expected, strict=True):
        np.testing.assert_allclose(call(), scores, atol=1e-6)
    assert name == "score_all" or "out of memory with a batch of 12: continuing with 6" in caplog.text


def test_out_of_memory_with_a_single_pair(tiny, monkeypatch, a, b):
    replace_method(monkeypatch, "score", short_of_memory(0))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        tiny.score(a, b)


def test_overflow_of_float16_is_an_error(monkeypatch, a, b):
    reduced = tiny_matcher(4, dtype="float16")
    replace_method(monkeypatch, "score", lambda score, *maps: score(*maps) * torch.nan)
    for call in (reduced.score, lambda a, b: reduced.match(a, b, candidates=2)):
        with pytest.raises(ValueError, match=r"float16 overflows .* use dtype=torch\.float32"):
            call(a, b)


def test_overflow_in_the_descriptors_is_an_error(monkeypatch, a, b):
    reduced = tiny_matcher(4, dtype="float16")
    replace_method(monkeypatch, "encode", lambda encode, *args: [m + torch.inf for m in encode(*args)])
    with pytest.raises(ValueError, match="float16 overflows"):
        reduced.match(a, b, candidates=2)


def test_lists_are_converted_batch_by_batch(tiny, monkeypatch):
    sizes = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, *a, **k: sizes.append(len(parts)) or cat(parts, *a, **k))
    patches = [np.zeros((64, 64), np.uint8)] * 20
    tiny.score(patches, patches, batch_size=4)
    assert max(sizes) == 4


def test_progress_bar_only_when_asked_for(tiny, a, b, capfd):
    tiny.score(a, b)
    tiny.score_matrix(a, b)
    tiny.match(a, b)
    tiny.encode(a, "a")
    assert capfd.readouterr() == ("", "")
    tiny.score(a, b, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "scoring" in err
    assert "5/5" in err


# device, dtype


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu0", "", None, 1.5, "meta", "mps:9", ["cpu"]])
def test_bad_device(device):
    with pytest.raises((TypeError, ValueError), match="device"):
        tiny_matcher(4, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_no_cuda_device(device):
    with pytest.raises(ValueError, match=r"is not available \(0 CUDA devices found\): use device='auto'"):
        tiny_matcher(4, device=device)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_device(device):
    matcher = tiny_matcher(4, device=device)
    assert matcher.device == torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float64", torch.float64, "int8", torch.int8, "half precision", None, "cuda", 16])
def test_bad_dtype(dtype):
    with pytest.raises((TypeError, ValueError), match=r"dtype must be 'auto', torch\.float32.*got"):
        tiny_matcher(4, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16])
def test_dtype(a, dtype):
    matcher = tiny_matcher(4, dtype=dtype)
    assert matcher.dtype == getattr(torch, str(dtype).removeprefix("torch."))
    features = matcher.encode(a[:1], "a")
    assert {m.dtype for m in features.maps} == {matcher.dtype}
    assert features.descriptors.dtype == torch.float32


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_on_the_cpu(monkeypatch, has_bf16, dtype):
    monkeypatch.setattr(inference, "cpu_has_bf16", lambda: has_bf16)
    assert tiny_matcher(4, dtype="auto").dtype == dtype


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)],
)
def test_auto_dtype_on_cuda(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert inference.choose_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize("there", [True, False])
def test_auto_device(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert inference.choose_device("auto").type == ("cuda" if there else "cpu")


# the object


def test_attributes(matcher):
    assert matcher.modalities == ("vis", "nir")
    assert matcher.threshold == 0.5
    assert matcher.patch_size == 64
    assert repr(matcher) == "RRLMatcher('vis', 'nir', device='cpu', dtype=torch.float32)"


def test_config_of_another_network_is_refused(tiny):
    with pytest.raises(ValueError, match=r"config.network must be that of the network.*pass ModelConfig"):
        RRLMatcher(RRLNet(tiny.config.network), ModelConfig(("vis", "nir")), device="cpu")


def test_the_given_network_is_not_changed(tiny):
    network = RRLNet(tiny.config.network).train()
    before = copy.deepcopy(network.state_dict())
    RRLMatcher(network, tiny.config, device="cpu", dtype="bfloat16")
    assert network.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_network_in_training_mode_scores_as_in_eval_mode(tiny, a, b):
    expected = tiny.score(a, b)
    network = tiny_rrlnet(4).train()
    matcher = RRLMatcher(network, tiny.config, device="cpu", dtype="float32")
    np.testing.assert_array_equal(matcher.score(a, b), expected)


def test_pickle_and_copy(matcher, a, b):
    expected = matcher.score(a[:2], b[:2])
    for twin in (pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
        np.testing.assert_array_equal(twin.score(a[:2], b[:2]), expected)
        assert twin.config == matcher.config
        assert repr(twin) == repr(matcher)


def test_features_and_matches_pickle(tiny, a, b):
    features = pickle.loads(pickle.dumps(tiny.encode(a, "a")))
    assert isinstance(features, Features)
    np.testing.assert_array_equal(
        tiny.score_features(features, tiny.encode(b, "b"), [[0, 0]]), tiny.score(a[:1], b[:1])
    )
    matches = tiny.match(a, b, threshold=0)
    assert as_list(pickle.loads(pickle.dumps(matches))) == as_list(matches)


def test_features_outlive_pickling(tiny, a):
    features = tiny.encode(a, "a")
    copy = pickle.loads(pickle.dumps(tiny))
    np.testing.assert_array_equal(
        copy.score_features(features, copy.encode(a, "b"), [[0, 1]]), tiny.score(a[:1], a[1:2])
    )


def test_features_of_other_weights_are_refused(tiny, config, a):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = RRLMatcher(RRLNet(tiny.config.network), tiny.config, device="cpu", dtype=tiny.dtype)
    with pytest.raises(ValueError, match=r"features_b come from a matcher with other weights.*encode"):
        tiny.score_features(tiny.encode(a, "a"), other.encode(a, "b"), [[0, 0]])
