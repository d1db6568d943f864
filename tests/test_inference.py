"""The fast inference network against rrl_match.modeling."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from networks import spread_network

from rrl_match import inference
from rrl_match.inference import (
    FusedMGLA,
    InferenceRRLNet,
    fuse,
    fuse_complement,
    fuse_magnitude,
    onednn_fuses,
    pool,
)
from rrl_match.modeling import RRLNetConfig
from rrl_match.modeling.attention import MGLA
from rrl_match.modeling.blocks import ConvUnit

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["oneDNN", "plain"])
def packed(request):
    if request.param and not onednn_fuses(torch.float32):
        pytest.skip("oneDNN's fused convolution does not work here")
    return request.param


def grid(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


# the parts


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    ("make", "activation", "after"),
    [
        (fuse, torch.nn.LeakyReLU(0.1), lambda y: y),
        (fuse_magnitude, torch.nn.LeakyReLU(0.1), torch.abs),
        (fuse_complement, torch.nn.Sigmoid(), lambda y: 1 - y),
    ],
)
def test_convolution(packed, kernel_size, make, activation, after):
    unit = ConvUnit(3, 5, kernel_size, activation)
    unit.norm = torch.nn.Identity()
    x = channels_last(grid(2, 3, 8, 8))
    with torch.no_grad():
        expected = after(unit(x))
        fused = make(unit, 8, packed)
        torch.testing.assert_close(fused(x), expected, rtol=0, atol=1e-6)
        assert fused(x[:0]).shape == (0, 5, 8, 8)


@pytest.mark.parametrize(("channels", "size"), [(16, 64), (4, 16), (256, 4), (2, 4), (1, 8)])
@torch.no_grad()
def test_attention(channels, size):
    attention, x = MGLA(channels, size), grid(3, channels, size, size)
    expected = attention(x)
    torch.testing.assert_close(FusedMGLA(attention, channels, size)(channels_last(x)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [8, 5])
def test_pooling(size):
    x = channels_last(grid(2, 3, size, size))
    expected = F.max_pool2d(x, 2)
    torch.testing.assert_close(pool(x), expected, rtol=0, atol=0)
    whole = channels_last(torch.zeros(2, 5, size // 2, size // 2))
    pool(x, out=whole[:, 1:4])
    torch.testing.assert_close(whole, F.pad(expected, (0, 0, 0, 0, 1, 1)), rtol=0, atol=0)


# the whole


@torch.no_grad()
def test_scores_of_all_pairs(network, packed, monkeypatch, patches_a, patches_b):
    monkeypatch.setattr(inference, "onednn_fuses", lambda dtype: packed)
    fast = InferenceRRLNet(network, CPU, torch.float32)
    a, b = (torch.from_numpy(patches)[:, None] / 255 for patches in (patches_a[:3], patches_b[:2]))
    maps_a, maps_b = fast.encode(a, "a"), fast.encode(b, "b")
    matrix = fast.score_all(maps_a, maps_b)
    for row in range(3):
        expected = network(a[row].expand(2, 1, 64, 64), b)
        torch.testing.assert_close(matrix[row], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(fast.score([m[[row, row]] for m in maps_a], maps_b), expected, rtol=0, atol=1e-5)
    assert fast.score_all([m[:0] for m in maps_a], maps_b).shape == (0, 2)
    for got, expected in zip(maps_a, network.encode(a, "a"), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_unshuffled_network_scores_the_same(patches_a, patches_b):
    shape = {"encoder_channels": (4, 8, 8), "metric_channels": (4, 8, 8), "hidden": (8,), "unshuffle": 4}
    a, b = (torch.from_numpy(patches)[:12, None] / 255 for patches in (patches_a, patches_b))
    network = spread_network(RRLNetConfig(**shape), a, b)
    inference = InferenceRRLNet(network, CPU, torch.float32)
    scores = inference.score(inference.encode(a, "a"), inference.encode(b, "b"))
    torch.testing.assert_close(scores, network(a, b), rtol=0, atol=1e-5)
    assert len(inference.encode(a[:0], "a")[0]) == 0


def test_onednn_that_does_not_work_is_not_used(monkeypatch):
    """These operators are no public part of PyTorch."""
    monkeypatch.setattr(torch, "ops", SimpleNamespace())
    onednn_fuses.cache_clear()
    try:
        assert not onednn_fuses(torch.float32)
    finally:
        onednn_fuses.cache_clear()


MAPPED = """
import ctypes, sys
import torch
from rrl_match._process import keep_freed_memory

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Counts = type("Counts", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in NAMES]})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Counts
if sys.argv[1:]:
    keep_freed_memory()
before = mallinfo().hblkhd  # bytes mapped for large blocks, each of which is given back once freed
block = torch.empty(20 << 20, dtype=torch.uint8)
print(mallinfo().hblkhd - before)
"""


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.33"), reason="not glibc, or one without mallinfo2")
def test_freed_memory_is_kept_for_the_next_batch():
    run = [sys.executable, "-c", MAPPED]
    kept, given_back = (
        int(subprocess.run([*run, *how], capture_output=True, text=True, check=True).stdout) for how in (["kept"], [])
    )
    assert kept == 0
    assert given_back >= 20 << 20
