"""The fast functions against the network as it is written in rrl_match.modeling."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import make_patches, make_small

from rrl_match import RRLMatcher, inference
from rrl_match.inference import FusedConv, FusedMGLA, InferenceRRLNet, onednn_fuses, pool
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
@pytest.mark.parametrize("activation", [torch.nn.LeakyReLU(0.1), torch.nn.Sigmoid()])
@pytest.mark.parametrize("of_interaction", [True, False])
def test_convolution(packed, kernel_size, activation, of_interaction):
    unit = ConvUnit(3, 5, kernel_size, activation)
    unit.norm = torch.nn.Identity()
    x = channels_last(grid(2, 3, 8, 8))
    with torch.no_grad():
        expected = unit(x)
        if of_interaction:
            expected = expected.abs() if isinstance(activation, torch.nn.LeakyReLU) else 1 - expected
        fused = FusedConv(unit, 8, packed, of_interaction)
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
def test_scores_of_each_with_each(network, packed, monkeypatch, patches_a, patches_b):
    monkeypatch.setattr(inference, "onednn_fuses", lambda dtype: packed)
    fast = InferenceRRLNet(network, CPU, torch.float32)
    a, b = (torch.from_numpy(patches)[:, None] / 255 for patches in (patches_a[:3], patches_b[:2]))
    maps_a, maps_b = fast.encode(a, "a"), fast.encode(b, "b")
    matrix = fast.relate_all(maps_a, maps_b)
    for row in range(3):
        expected = network(a[row].expand(2, 1, 64, 64), b)
        torch.testing.assert_close(matrix[row], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(fast.relate([m[[row, row]] for m in maps_a], maps_b), expected, rtol=0, atol=1e-5)
    assert fast.relate_all([m[:0] for m in maps_a], maps_b).shape == (0, 2)
    for got, expected in zip(maps_a, network.encoder_a(a), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_onednn_that_does_not_work_is_not_used(monkeypatch):
    def broken(*args):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(inference, "_pack", broken)
    onednn_fuses.cache_clear()
    try:
        assert not onednn_fuses(torch.float32)
    finally:
        onednn_fuses.cache_clear()


MAPPED = """
import ctypes, sys
import torch
from rrl_match.inference import keep_freed_memory

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


# compiled

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")), reason="no C++ compiler"
)
quiet = pytest.mark.filterwarnings("ignore")  # the compiler's warnings about PyTorch's own code


def small_compiled():
    eager = make_small()
    return RRLMatcher(eager._network, eager.config, device="cpu", dtype="float32", optimize="compile")


@pytest.fixture(scope="module")
def compiled():
    return small_compiled()


@pytest.fixture(scope="module")
def pair():
    return make_patches(40, 9, 16), make_patches(40, 10, 16)


def uses_compiled_code(matcher):
    compiled = [matcher._inference._pairs, *matcher._inference._encoders.values()]
    return all(c._run is not None and c._run is not c._eager for c in compiled)


@pytest.mark.slow
@needs_compiler
@quiet
def test_compiled_scores_are_the_eager_ones(compiled, small, pair):
    torch._dynamo.utils.counters.clear()
    for count in (33, 1, 2, 7, 40, 39, 1, 5, 0, 16):
        some = [patches[:count] for patches in pair]
        np.testing.assert_allclose(compiled.score(*some), small.score(*some), atol=1e-4, rtol=0)
    np.testing.assert_allclose(compiled.score_matrix(*pair), small.score_matrix(*pair), atol=1e-4, rtol=0)
    assert compiled.match(*pair, 2, threshold=0).indices.tolist() == small.match(*pair, 2, threshold=0).indices.tolist()
    assert uses_compiled_code(compiled)
    # two encoders and what scores pairs, each for one row and for any other number of them
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


@pytest.mark.slow
@needs_compiler
@quiet
def test_compiled_in_threads(small, pair):
    """The first calls of all of them compile."""
    matcher = small_compiled()
    with ThreadPoolExecutor(4) as pool:
        for k, scores in enumerate(pool.map(lambda k: matcher.score(*(p[k:] for p in pair)), range(8))):
            np.testing.assert_allclose(scores, small.score(*(p[k:] for p in pair)), atol=1e-4, rtol=0)
    assert uses_compiled_code(matcher)


def score_into(pipe, matcher, pair):
    pipe.send(matcher.score(*pair))
    pipe.close()


@pytest.mark.slow
@needs_compiler
@quiet
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_compiled_in_a_worker(compiled, small, pair, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    expected = small.score(*pair)
    compiled.score(*pair)
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=score_into, args=(sender, compiled, pair), daemon=True)
    worker.start()
    sender.close()
    try:
        assert receiver.poll(100), "no scores from a worker"
        np.testing.assert_allclose(receiver.recv(), expected, atol=1e-4, rtol=0)
    finally:
        worker.kill()


def test_compile_survives_pickling(small, pair):
    matcher = small_compiled()
    for twin in (pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
        assert twin.optimize == "compile"


def test_eager_where_compiling_anew_fails(small, pair, monkeypatch, caplog):
    """As after too many changes of a global setting."""
    calls = []

    def compiled(module, **kwargs):
        def run(*inputs):
            calls.append(module)
            if calls.count(module) > 1:
                raise RuntimeError("recompile limit")
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    matcher = small_compiled()
    with caplog.at_level(logging.WARNING, "rrl_match"):
        for _ in range(3):
            np.testing.assert_allclose(matcher.score(*pair), small.score(*pair), atol=1e-4, rtol=0)
    assert [r.getMessage() for r in caplog.records] == ["optimize='compile' fell back to eager: recompile limit"] * 3
    assert len(calls) == 6


@pytest.mark.parametrize("where", ["torch.compile", "the first call"])
def test_eager_where_nothing_can_be_compiled(small, pair, monkeypatch, caplog, where):
    def fail(*args, **kwargs):
        raise RuntimeError("no working C++ compiler\n(a long story)")

    monkeypatch.setattr(torch, "compile", fail if where == "torch.compile" else lambda *args, **kwargs: fail)
    matcher = small_compiled()
    with caplog.at_level(logging.WARNING, "rrl_match"):
        for _ in range(2):
            np.testing.assert_array_equal(matcher.score(*pair), small.score(*pair))
    assert [r.getMessage() for r in caplog.records] == [
        "optimize='compile' fell back to eager: no working C++ compiler"
    ] * 3  # two encoders, and what scores pairs
