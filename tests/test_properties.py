"""Any input gives the scores of the same patches in their plain form, or an error that names the argument."""

from __future__ import annotations

import copy
import io
from collections import Counter
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import make_patches

from rrl_match import Near, extract_patches
from rrl_match.patches import BT601

SIZE = 16
PATCHES, JUNK, IMAGES = 1000, 800, 500  # inputs tried by each test


def tried(count):
    """Hypothesis with the same inputs in every run and no deadline, because machines may be busy."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


ARRAY_DTYPES = ["u1", "<u2", ">u2", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g"]
TENSOR_DTYPES = [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
FULL_RANGE = {"u1": 255, "u2": 65535}


@dataclass
class Form:
    """A way to pass patches, and the grey values in [0, 1] that it means, float64 (N, S, S); None if it is invalid."""

    patches: Any
    grey: Any
    value_range: Any = None


def grey_of(values, value_range, full_range):
    """The definition: float64 values (N, S, S) or (N, S, S, 3) to grey in [0, 1]."""
    low, high = value_range or (0, full_range)
    with np.errstate(over="ignore"):  # values far outside a narrow range
        grey = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    return grey @ np.array(BT601) if grey.ndim == 4 else grey


def strided(draw, array):
    """The same values in memory of another layout."""
    layout = draw(st.sampled_from(["plain", "Fortran", "reversed", "every second", "unaligned", "frozen", "axes"]))
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "reversed":
        return np.ascontiguousarray(array[:, ::-1, ::-1])[:, ::-1, ::-1]
    if layout == "every second":
        wide = np.zeros((2 * len(array), SIZE, 2 * SIZE + 1, *array.shape[3:]), array.dtype)
        wide[::2, :, 1::2] = array
        return wide[::2, :, 1::2]
    if layout == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
        return raw[1:].view(array.dtype).reshape(array.shape)
    if layout == "frozen":
        array = array.copy()
        array.setflags(write=False)
        return array
    if layout == "axes":
        return np.ascontiguousarray(array.swapaxes(0, 2)).swapaxes(0, 2)
    return array


def shaped(draw, values):
    """With the axis of length 1, or without it, where there may be one."""
    axis = draw(st.sampled_from([None, 1, 3])) if values.ndim == 3 else None
    return values if axis is None else values[:, None] if axis == 1 else values[..., None]


@st.composite
def good_forms(draw):
    """Patches in any form that the documentation allows."""
    n, as_tensor = draw(st.integers(0, 4)), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (n, SIZE, SIZE) + ((3,) if draw(st.booleans()) else ())
    dtype = draw(st.sampled_from(TENSOR_DTYPES if as_tensor else ARRAY_DTYPES))
    kind = str(dtype).replace("torch.uint8", "u1").replace("torch.uint16", "u2").lstrip("<>")
    if kind in FULL_RANGE:
        full_range = FULL_RANGE[kind]
        low, span = 0, full_range
    else:
        full_range = 1
        widest = 4 if "16" in kind or kind == "f2" else 30  # that the dtype can hold
        low, span = draw(st.sampled_from([(0, 1), (0, 1), (-1, 2), (0, 10.0**widest), (-(10.0**widest), 10.0**widest)]))
    values = low + span * rng.random(shape)
    if as_tensor:
        patches = torch.from_numpy(values).to(dtype)
        values = patches.double().numpy()
    else:
        patches = values.astype(dtype)
        values = patches.astype(np.float64)
    ends = sorted(draw(st.tuples(*[st.floats(low - span, low + 2 * span)] * 2)))
    value_range = None
    if (low, span) != (0, full_range) or draw(st.booleans()):
        value_range = (ends[0], ends[1]) if ends[0] < ends[1] else (low, low + span)
    grey = grey_of(values, value_range, full_range)
    if as_tensor:
        patches = shaped(draw, patches)
        layout = draw(st.sampled_from(["plain", "reversed axes", "grad", "parameter"]))
        if layout == "reversed axes":
            patches = patches.transpose(-1, -2).contiguous().transpose(-1, -2)
        elif patches.is_floating_point() and layout == "grad":
            patches.requires_grad_()
        elif patches.is_floating_point() and layout == "parameter":
            patches = torch.nn.Parameter(patches)
    else:
        patches = shaped(draw, strided(draw, patches))
    container = draw(st.sampled_from(["batch", "batch", "list", "tuple"]))
    if container != "batch":
        patches = (list if container == "list" else tuple)(patches)
    return Form(patches, grey, value_range)


WRONG_DTYPES = [
    "i1",
    "<i2",
    ">i4",
    "i8",
    "u4",
    "u8",
    "?",
    "c8",
    "O",
    "U1",
    "S1",
    "M8[s]",
    "m8[s]",
    "V4",
    [("grey", "u1")],
]
WRONG_SHAPES = [
    (),
    (SIZE,),
    (0,),
    (SIZE, SIZE + 1),
    (2, SIZE, SIZE - 1),
    (3, SIZE, SIZE + 1, 3),
    (2, SIZE, SIZE, 2),
    (2, SIZE, SIZE, 4),
    (1, 1, 1, SIZE, SIZE),
    (3, 0, SIZE),
    (2, 64, 64),
]
WRONG_THINGS = [
    None,
    5,
    0.5,
    "patches.npy",
    b"\0" * 256,
    {"patches": 1},
    {1, 2},
    range(3),
    object(),
    np.float32(0.5),
    np,
    np.ndarray,
    io.BytesIO(b"\0" * 256),
    memoryview(bytes(256)),
    bytearray(256),
    Ellipsis,
    lambda: None,
    [None],
    [[0.5]],
    ["a"],
    [[]],
    [{}],
]


def wrong_kinds(good):
    """Forms of two patches (2, S, S), float64 in [0, 1], that are refused; created for each call."""
    tensor = torch.from_numpy(good)
    return {
        "generator": lambda: (patch for patch in good),
        "iterator": lambda: iter(good),
        "map": lambda: map(np.asarray, good),
        "zip": lambda: zip(good, good, strict=True),
        "dict": lambda: dict(enumerate(good)),
        "nested lists": lambda: good.tolist(),
        "list of batches": lambda: [good, good],
        "mixed list": lambda: [good[0], tensor[1]],
        "mixed tuple": lambda: (tensor[0], good[1]),
        "list with None": lambda: [good[0], None],
        "objects in an array": lambda: np.array([*good, None], dtype=object),
        "masked": lambda: np.ma.masked_less(good, 0.5),
        "strings": lambda: np.full((2, SIZE, SIZE), "a"),
        "variable strings": lambda: np.full((2, SIZE, SIZE), "a", getattr(np.dtypes, "StringDType", lambda: "U1")()),
        "sparse": lambda: tensor.to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "complex": lambda: torch.complex(tensor, tensor),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "int tensor": lambda: tensor.long(),
        "bool tensor": lambda: tensor > 0.5,
        "four channels first": lambda: np.stack([good] * 4, 1),
        "list of RGB, channels first": lambda: [np.stack([patch] * 3) for patch in good],
    }


@st.composite
def bad_forms(draw):
    """Patches in a form that the documentation does not allow."""
    good = np.random.default_rng(draw(st.integers(0, 99))).random((2, SIZE, SIZE))
    what = draw(st.sampled_from(["dtype", "shape", "value", "range", "thing", "kind"]))
    if what == "dtype":
        return Form(np.zeros((2, SIZE, SIZE), draw(st.sampled_from(WRONG_DTYPES))), None)
    if what == "shape":
        patches = np.zeros(draw(st.sampled_from(WRONG_SHAPES)), draw(st.sampled_from(["u1", "f4"])))
        return Form(torch.from_numpy(patches) if draw(st.booleans()) else patches, None)
    if what == "thing":
        return Form(draw(st.sampled_from(WRONG_THINGS)), None)
    if what == "kind":
        kinds = wrong_kinds(good)
        return Form(kinds[draw(st.sampled_from(sorted(kinds)))](), None)
    dtype = draw(st.sampled_from(["<f4", ">f4", "f8", "f2"]))
    spot = tuple(draw(st.integers(0, k - 1)) for k in good.shape)
    if what == "value":
        good[spot] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        value_range = draw(st.sampled_from([None, (0, 1)]))
    else:
        good[spot] = draw(st.one_of(st.floats(1.01, 6e4), st.floats(-6e4, -0.01)))
        value_range = None
    patches = good.astype(dtype)
    container = draw(st.sampled_from([np.asarray, list, lambda p: torch.from_numpy(p.astype("=" + p.dtype.str[1:]))]))
    return Form(container(patches), None, value_range)


def score(matcher, form, other, band):
    """Scores of a form against plain patches of the other band, which are of its kind."""
    first = form.patches[0] if isinstance(form.patches, (list, tuple)) and form.patches else form.patches
    other = torch.from_numpy(other) if isinstance(first, torch.Tensor) else other
    pair = (form.patches, other) if band == "a" else (other, form.patches)
    ranges = (form.value_range, None) if band == "a" else (None, form.value_range)
    return matcher.score(*pair, value_range=ranges, batch_size=3)


def test_patches_in_any_form(small, record_property):
    outcomes = Counter()
    others = make_patches(4, 7, SIZE)

    @tried(PATCHES)
    @given(st.one_of(good_forms(), bad_forms()), st.sampled_from("ab"))
    def check(form, band):
        if form.grey is None:
            with pytest.raises((TypeError, ValueError), match=rf"\bpatches_{band}\b"):
                score(small, form, others[:2], band)
            outcomes["refused"] += 1
            return
        other = others[: len(form.grey)]
        expected = score(small, Form(form.grey.astype(np.float32), form.grey), other, band)
        got = score(small, form, other, band)
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
        outcomes["scored"] += 1

    check()
    record_property("inputs", dict(outcomes))
    assert outcomes.total() >= PATCHES
    assert min(outcomes.values()) > PATCHES / 4


def test_scores_of_the_plain_form_differ(small):
    """Otherwise the test above would not notice patches in the wrong order."""
    a, b = make_patches(4, 8, SIZE), make_patches(4, 7, SIZE)
    scores = small.score(a, b)
    assert np.ptp(scores) > 0.05
    assert np.abs(small.score(a[::-1], b) - scores).max() > 0.01


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_an_array(small):
    a, b = make_patches(2, 8, SIZE)
    assert small.score(np.asmatrix(a), [np.asmatrix(b)]) == pytest.approx(small.score(a, [b]), abs=1e-6)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.fractions(),
    st.dates(),
    st.lists(st.one_of(st.integers(-2, 9), st.floats(), st.none(), st.text(max_size=2)), max_size=3),
    st.tuples(st.floats(), st.floats()),
    st.tuples(st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0, 1))), st.none()),
    st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), max_size=4),
    st.lists(st.tuples(st.integers(), st.integers()), max_size=2),
    st.sampled_from(
        [
            np.float32(0.5),
            np.complex64(0.5),
            np.bool_(True),
            np.int8(3),
            np.array(0.5),
            np.array([0.2, 0.7]),
            np.array([[0, 1]], ">u2"),
            np.array([[0, 1]], dtype=object),
            np.array([[np.datetime64("2024-01-01")] * 2]),
            torch.tensor(0.5),
            torch.tensor(3),
            torch.tensor([[0, 1], [1, 0]]),
            torch.tensor([[0, 1]]).to_sparse(),
            torch.empty(1, 2, dtype=torch.int64, device="meta"),
            Fraction(1, 2),
            date(2024, 1, 1),
            object(),
            {},
            {"a": 1},
            int,
            10**400,
        ]
    ),
)


def test_anything_for_any_other_argument(small, record_property):
    """The error names the argument, and is a TypeError or ValueError."""
    a, b = make_patches(4, 7, SIZE), make_patches(4, 8, SIZE)
    features = small.encode(a, "a"), small.encode(b, "b")
    xy = np.array([(30, 20), (60, 20), (65, 20), (90, 20)])
    calls = {
        "batch_size": lambda value: small.score(a, b, batch_size=value),
        "value_range": lambda value: small.score(a, b, value_range=value),
        "candidates": lambda value: small.match(a, b, candidates=value).scores,
        "threshold": lambda value: small.match(a, b, threshold=value).scores,
        "near": lambda value: small.match(a, b, near=value).scores,
        "radius": lambda value: small.match(a, b, near=Near(value, xy, xy)).scores,
        "positions_b": lambda value: small.match(a, b, near=Near(9, xy, value)).scores,
        "index_pairs": lambda value: small.score_features(*features, value),
        "features_a": lambda value: small.score_features(value, features[1], [[0, 0]]),
        "band": lambda value: small.encode(a, value).descriptors,
    }
    outcomes = Counter()

    @tried(JUNK)
    @given(st.sampled_from(sorted(calls)), ANYTHING)
    def check(name, value):
        before = copy.deepcopy(value) if isinstance(value, (list, dict)) else value
        try:
            scores = torch.as_tensor(calls[name](value))
        except (TypeError, ValueError) as error:
            outcomes["refused" if name in str(error) else f"{name}: {error}"] += 1
        else:
            assert bool(torch.isfinite(scores).all())
            outcomes["taken"] += 1
        assert before is value or repr(before) == repr(value)

    check()
    record_property("inputs", dict(outcomes))
    assert set(outcomes) == {"refused", "taken"}
    assert outcomes.total() >= JUNK
    assert outcomes["taken"] > JUNK / 50
    np.testing.assert_allclose(small.score_features(*features, [[0, 0]]), small.score(a[:1], b[:1]), atol=1e-5, rtol=0)


@st.composite
def keypoints(draw):
    """Keypoints in any form, and as float64 (N, 2)."""
    points = draw(st.lists(st.tuples(*[st.floats(-30, 70, width=16)] * 2), max_size=5))
    plain = np.array(points, np.float64).reshape(-1, 2)
    lafs = np.concatenate([np.tile(np.eye(2), (len(plain), 1, 1)), plain[:, :, None]], 2)
    forms = {
        "list": points,
        "float16": plain.astype(np.float16),
        "big-endian": plain.astype(">f8"),
        "columns": np.asfortranarray(plain),
        "tensor": torch.from_numpy(plain),
        "LAFs": lafs,
        "batch of LAFs": torch.from_numpy(lafs)[None].float(),
        "KeyPoints": [cv2.KeyPoint(float(x), float(y), 3.0) for x, y in points],
    }
    return forms[draw(st.sampled_from(sorted(forms)))], plain


@st.composite
def images(draw):
    """An image in any form, and the plain one: contiguous, in native byte order, its floats float32."""
    h, w = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (h, w, *draw(st.sampled_from([(), (1,), (3,)])))
    dtype = draw(st.sampled_from(ARRAY_DTYPES))
    values = (rng.random(shape) * 250).astype(dtype)
    plain = np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="))
    layout = draw(st.sampled_from(["plain", "Fortran", "reversed", "frozen", "tensor"]))
    if layout == "Fortran":
        values = np.asfortranarray(values)
    elif layout == "reversed":
        values = np.ascontiguousarray(values[::-1, ::-1])[::-1, ::-1]
    elif layout == "frozen":
        values.setflags(write=False)
    elif layout == "tensor" and values.dtype.isnative and values.dtype.itemsize <= 8:
        values = torch.from_numpy(values)
    return values, plain


def test_images_and_keypoints_in_any_form(record_property):
    outcomes = Counter()

    @tried(IMAGES)
    @given(images(), keypoints(), st.sampled_from([2, SIZE, 64]))
    def check(image, points, size):
        expected, inside = extract_patches(image[1], points[1], size)
        patches, valid = extract_patches(image[0], points[0], size)
        assert isinstance(patches, torch.Tensor) == isinstance(image[0], torch.Tensor)
        np.testing.assert_array_equal(patches, expected)
        np.testing.assert_array_equal(valid, inside)
        outcomes["cut"] += 1

    check()
    record_property("inputs", dict(outcomes))
    assert outcomes["cut"] >= IMAGES


def test_anything_for_images_and_keypoints(record_property):
    image = make_patches(1, 7, 64)[0]
    outcomes = Counter()

    @tried(JUNK)
    @given(st.sampled_from(["image", "keypoints", "patch_size"]), st.one_of(ANYTHING, st.sampled_from(WRONG_THINGS)))
    def check(name, value):
        arguments = {"image": image, "keypoints": [(5.0, 6.0)], "patch_size": 16, name: value}
        try:
            patches, valid = extract_patches(**arguments)
        except (TypeError, ValueError) as error:
            outcomes["refused" if name in str(error) else f"{name}: {error}"] += 1
        else:
            assert len(patches) == len(valid)
            outcomes["taken"] += 1

    check()
    record_property("inputs", dict(outcomes))
    assert set(outcomes) == {"refused", "taken"}
    assert outcomes.total() >= JUNK
