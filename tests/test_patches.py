from __future__ import annotations

import numpy as np
import pytest
import torch

from rrl_match import percentile_range
from rrl_match.patches import PatchSource

CPU = torch.device("cpu")
PLAIN = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
UNIT = PLAIN / 255.0  # float64 in [0, 1]


def read(patches, value_range=None):
    """Patches as the network gets them: (N, 64, 64) float32."""
    source = PatchSource(patches, "patches_a", 64, value_range)
    values = source.batch(0, len(source), CPU)
    assert values.dtype == torch.float32
    assert values.shape == (len(source), 1, 64, 64)
    return values[:, 0].numpy()


def strided(array):
    wide = np.zeros((6, 64, 130), array.dtype)
    wide[::2, :, 1:129:2] = array
    return wide[::2, :, 1:129:2]


def read_only(array):
    frozen = array.copy()
    frozen.setflags(write=False)
    return frozen


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


SAME = {
    "uint8": PLAIN,
    "uint16": PLAIN * np.uint16(257),
    "float32": UNIT.astype(np.float32),
    "float64": UNIT,
    "longdouble": UNIT.astype(np.longdouble),
    "big-endian uint16": (PLAIN * np.uint16(257)).astype(">u2"),
    "big-endian float32": UNIT.astype(">f4"),
    "big-endian float64": UNIT.astype(">f8"),
    "negative strides": np.ascontiguousarray(PLAIN[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "not contiguous": strided(PLAIN),
    "transposed": np.ascontiguousarray(PLAIN.transpose(2, 1, 0)).transpose(2, 1, 0),
    "Fortran order": np.asfortranarray(UNIT),
    "read-only": read_only(PLAIN),
    "unaligned": unaligned(PLAIN * np.uint16(257)),
    "(N, 1, 64, 64)": PLAIN[:, None],
    "(N, 64, 64, 1)": PLAIN[..., None],
    "list": list(PLAIN),
    "tuple": tuple(PLAIN),
    "list of (64, 64, 1)": list(PLAIN[..., None]),
    "list of (1, 64, 64)": list(PLAIN[:, None]),
    "list of several dtypes": [PLAIN[0], UNIT[1], PLAIN[2] * np.uint16(257)],
    "list of read-only": list(read_only(PLAIN)),
    "tensor uint8": torch.from_numpy(PLAIN),
    "tensor uint16": torch.from_numpy(PLAIN * np.uint16(257)),
    "tensor float32": torch.from_numpy(UNIT).float(),
    "tensor float64": torch.from_numpy(UNIT),
    "tensor with grad": torch.from_numpy(UNIT).float().requires_grad_(),
    "Parameter": torch.nn.Parameter(torch.from_numpy(UNIT).float()),
    "tensor not contiguous": torch.from_numpy(strided(PLAIN)),
    "tensor transposed": torch.from_numpy(PLAIN).mT.contiguous().mT,
    "tensor (N, 1, 64, 64)": torch.from_numpy(PLAIN)[:, None],
    "tensor channels-last": torch.from_numpy(PLAIN)[:, None].contiguous(memory_format=torch.channels_last),
    "tensor (N, 64, 64, 1)": torch.from_numpy(PLAIN)[..., None],
    "list of tensors": list(torch.from_numpy(PLAIN)),
    "tuple of tensors with grad": torch.from_numpy(UNIT).float().requires_grad_().unbind(),
    "grey as RGB, channels first": np.repeat(PLAIN[:, None], 3, 1),
    "tensor grey as RGB, channels first": torch.from_numpy(PLAIN)[:, None].expand(-1, 3, -1, -1),
    "grey as RGB": np.repeat(PLAIN[..., None], 3, -1),
    "tensor grey as RGB": torch.from_numpy(PLAIN)[..., None].expand(-1, -1, -1, 3),
}


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_gives_the_same_values(kind):
    np.testing.assert_allclose(read(SAME[kind]), UNIT, atol=1e-6)


@pytest.mark.parametrize(
    ("patches", "rounding"),
    [
        (UNIT.astype(np.float16), 2.5e-4),
        (UNIT.astype(">f2"), 2.5e-4),
        (torch.from_numpy(UNIT).half(), 2.5e-4),
        (torch.from_numpy(UNIT).bfloat16(), 2e-3),
    ],
    ids=["float16", "big-endian float16", "tensor float16", "tensor bfloat16"],
)
def test_half_precision_is_as_good_as_its_rounding(patches, rounding):
    np.testing.assert_allclose(read(patches), UNIT, atol=rounding)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_single_patch(shape, kind):
    np.testing.assert_allclose(read(kind(PLAIN[0].reshape(shape))), UNIT[:1], atol=1e-6)


def test_memory_map(tmp_path):
    PLAIN.tofile(tmp_path / "patches.raw")
    mapped = np.memmap(tmp_path / "patches.raw", np.uint8, mode="r", shape=PLAIN.shape)
    np.testing.assert_array_equal(read(mapped), read(PLAIN))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("single", [True, False])
def test_colour_is_rgb_by_bt601(kind, single):
    rgb = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = (0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]) / 255
    got = read(kind(rgb[0])) if single else read(kind(rgb))
    np.testing.assert_allclose(got, expected[:1] if single else expected, atol=1e-6)


def test_colour_in_a_list():
    pure = [np.full((64, 64, 3), colour, np.uint8) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    np.testing.assert_allclose(read(pure)[:, 0, 0], [0.299, 0.587, 0.114], atol=1e-6)


@pytest.mark.parametrize("empty", [[], (), np.empty((0, 64, 64)), torch.empty(0, 1, 64, 64), np.empty((0, 64, 64, 3))])
def test_no_patches(empty):
    assert read(empty).shape == (0, 64, 64)


def test_rounding_beyond_the_range_is_clipped():
    overshoot = np.full((64, 64), 1 + 1e-6)
    overshoot[0, 0] = -1e-6
    values = read(overshoot)
    assert values.min() == 0
    assert values.max() == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_value_range_scales_and_clips(dtype):
    patch = np.full((64, 64), 100, dtype)
    patch[0, :4] = [50, 75, 150, 200]
    values = read(patch, (75, 150))[0]
    np.testing.assert_allclose(values[0, :5], [0, 0, 1, 1, 1 / 3], atol=1e-6)


@pytest.mark.parametrize("value_range", [(-1, 1), [-1.0, 1.0], np.array([-1, 1]), torch.tensor([-1, 1])])
def test_value_range_of_signed_floats(value_range):
    np.testing.assert_allclose(read(UNIT * 2 - 1, value_range), UNIT, atol=1e-6)


def test_value_range_keeps_the_resolution_of_doubles():
    np.testing.assert_allclose(read(1e9 + UNIT, (1e9, 1e9 + 1)), UNIT, atol=1e-6)


@pytest.mark.parametrize(
    ("value_range", "error"),
    [
        ((1, 0), ValueError),
        ((3, 3), ValueError),
        ((0, float("nan")), ValueError),
        ((0, float("inf")), ValueError),
        (5, TypeError),
        ("ab", TypeError),
        ((0, 1, 2), TypeError),
        ((0, None), TypeError),
    ],
)
def test_bad_value_range(value_range, error):
    with pytest.raises(error, match=r"value_range.*patches_a"):
        read(PLAIN, value_range)


def with_value(value):
    patches = UNIT.astype(np.float32)
    patches[1, 5, 7] = value
    return patches


WRONG_SHAPE = {
    "32 px": (np.zeros((2, 32, 32), np.uint8), "extract_patches"),
    "one of 65 px": (np.zeros((65, 65), np.uint8), "extract_patches"),
    "whole image": (np.zeros((480, 640, 3), np.uint8), "extract_patches"),
    "64 x 32": (np.zeros((2, 64, 32), np.uint8), "extract_patches"),
    "none of 32 px": (np.zeros((0, 32, 32), np.uint8), "extract_patches"),
    "tensor of 63 px": (torch.zeros(2, 1, 63, 63), "extract_patches"),
    "list with 32 px": ([PLAIN[0], PLAIN[0, :32, :32]], r"\[1\] must.*extract_patches"),
    "RGBA, channels first": (np.zeros((2, 4, 64, 64), np.uint8), r"drop alpha, patches\[:, :3\]"),
    "list with RGB, channels first": ([torch.zeros(3, 64, 64)], r"\[0\] must.*stack patches"),
    "rank 0": (np.array(0.5), "stack patches"),
    "rank 1": (np.zeros(64), "stack patches"),
    "rank 5": (np.zeros((1, 1, 1, 64, 64)), "stack patches"),
    "list of batches": ([PLAIN, PLAIN], r"\[0\] must have shape"),
}


@pytest.mark.parametrize("case", WRONG_SHAPE)
def test_wrong_shape(case):
    patches, way_out = WRONG_SHAPE[case]
    with pytest.raises(ValueError, match=rf"^patches_a.*{way_out}"):
        read(patches)


WRONG_VALUES = {
    "NaN": (with_value(np.nan), None, "NaN.*nan_to_num"),
    "inf": (with_value(np.inf), None, "infinite.*nan_to_num"),
    "-inf": (with_value(-np.inf), None, "infinite.*nan_to_num"),
    "NaN with value_range": (with_value(np.nan), (0, 1), "NaN"),
    "NaN in float16": (with_value(np.nan).astype(np.float16), None, "NaN"),
    "NaN in double": (with_value(np.nan).astype(np.float64), None, "NaN"),
    "NaN in a tensor": (torch.from_numpy(with_value(np.nan)).bfloat16(), None, "NaN"),
    "NaN in a list": (list(with_value(np.nan)), None, r"\[1\] holds NaN"),
    "below 0": (with_value(-0.1), None, r"from -0\.1.*value_range"),
    "above 1": (with_value(1.1), None, r"to 1\.1.*value_range"),
    "float 0..255": (PLAIN.astype(np.float32), None, "to 255.*value_range"),
    "tensor 0..255": (torch.from_numpy(PLAIN).float(), None, "to 255.*value_range"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values(case):
    patches, value_range, message = WRONG_VALUES[case]
    with pytest.raises(ValueError, match=f"^patches_a.*{message}"):
        read(patches, value_range)


UINT8_OR_FLOAT = "must be uint8, uint16 or floating point, got.*value_range"
WRONG_KIND = {
    **{
        f"array {dtype}": (PLAIN.astype(dtype), UINT8_OR_FLOAT)
        for dtype in ("int8", "int16", "int32", "int64", "uint32", "uint64", "bool", "complex64", "object", "U1")
    },
    **{
        f"tensor {dtype}": (torch.from_numpy(PLAIN).to(dtype), UINT8_OR_FLOAT)
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64)
    },
    "structured": (np.zeros((2, 64, 64), [("grey", "u1")]), UINT8_OR_FLOAT),
    "string": ("patches.npy", "got str.*numpy.asarray"),
    "bytes": (b"\0" * 4096, "got bytes.*numpy.asarray"),
    "None": (None, "got NoneType.*numpy.asarray"),
    "number": (0.5, "got float.*numpy.asarray"),
    "dict": ({"a": PLAIN}, "got dict.*numpy.asarray"),
    "generator": ((p for p in PLAIN), "got generator.*numpy.asarray"),
    "nested lists": (PLAIN.tolist(), r"\[0\] must.*got list.*numpy.asarray"),
    "list with None": ([PLAIN[0], None], r"\[1\] must.*got NoneType"),
    "list with int32": ([PLAIN[0], PLAIN[0].astype(np.int32)], rf"\[1\] {UINT8_OR_FLOAT}"),
    "array then tensor": ([PLAIN[0], torch.from_numpy(PLAIN[1])], r"mixes.*patches_a\[1\]"),
    "tensor then array": ([torch.from_numpy(PLAIN[0]), PLAIN[1]], r"mixes.*patches_a\[1\]"),
    "masked array": (np.ma.masked_less(PLAIN, 9), r"masked.*\.filled"),
    "list of masked": ([np.ma.masked_less(PLAIN[0], 9)], r"\[0\] is a masked.*\.filled"),
    "sparse tensor": (torch.from_numpy(UNIT).to_sparse(), r"dense.*\.to_dense"),
    "meta tensor": (torch.empty(2, 64, 64, device="meta"), "dense tensor with values"),
}


@pytest.mark.parametrize("case", WRONG_KIND)
def test_wrong_kind(case):
    patches, message = WRONG_KIND[case]
    with pytest.raises(TypeError, match=f"^patches_a.*{message}"):
        read(patches)


# extract_patches


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_percentiles_of_a_narrow_frame_make_its_value_range(kind):
    frame = np.random.default_rng(0).permutation(np.repeat(np.arange(29000, 30000, dtype=np.uint16), 100))
    frame = frame.reshape(250, 400)
    frame[:2, :3] = 65535  # a hot spot smaller than the fraction that is clipped
    low, high = percentile_range(kind(frame), 1, 99)
    assert low == pytest.approx(29010, abs=1)
    assert high == pytest.approx(29990, abs=1)


@pytest.mark.parametrize("shape", [(1000, 1000), (1080, 1920)])
def test_percentiles_are_of_all_colours(shape):
    image = np.empty((*shape, 3), np.uint16)
    image[:] = (1000, 20_000, 50_000)
    assert percentile_range(image) == (1000, 50_000)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_percentiles_of_a_flat_image_are_a_valid_range(dtype):
    flat = np.full((64, 64), 200.7, dtype)
    value_range = percentile_range(flat)
    assert value_range[0] < value_range[1]
    assert read(flat, value_range).max() == 0


def test_percentiles_leave_out_values_that_are_not_finite():
    image = np.linspace(-25, 0, 10_000).reshape(100, 100)
    image[:20] = -np.inf
    image[90:] = np.nan
    assert percentile_range(image, 0, 100) == (image[20, 0], image[89, -1])
    assert percentile_range(torch.from_numpy(image).bfloat16(), 0, 100) == pytest.approx((-20, -2.5), rel=0.01)


@pytest.mark.parametrize(
    ("image", "low", "high", "error", "message"),
    [
        ([[1, 2]], 1, 99, TypeError, "image must be an array"),
        (np.zeros((4, 4), np.int32), 1, 99, TypeError, "int32"),
        (np.full((4, 4), np.nan), 1, 99, ValueError, "no finite value"),
        (np.zeros((0, 4), np.uint8), 1, 99, ValueError, "no finite value"),
        (np.zeros((4, 4), np.uint8), 99, 1, ValueError, "percentiles"),
        (np.zeros((4, 4), np.uint8), 0.5, 101, ValueError, "percentiles"),
        (np.zeros((4, 4), np.uint8), "1", 99, ValueError, "percentiles"),
        (np.ma.masked_less(np.zeros((4, 4)), 1), 1, 99, TypeError, r"masked array.*compressed"),
        (torch.zeros(4, 4).to_sparse(), 1, 99, TypeError, "image must be a dense tensor"),
    ],
)
def test_percentiles_of_bad_arguments(image, low, high, error, message):
    with pytest.raises(error, match=message):
        percentile_range(image, low, high)
