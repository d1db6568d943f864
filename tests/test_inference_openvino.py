"""runtime="openvino" against runtime="torch"."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from networks import make_patches, spread_network

from rrl_match import RRLMatcher
from rrl_match.inference_openvino import OpenVINORRLNet
from rrl_match.modeling import RRLNetConfig

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no OpenVINO")


def in_openvino(matcher):
    return RRLMatcher(matcher._network, matcher.config, device="cpu", dtype=matcher.dtype, runtime="openvino")


@pytest.fixture(scope="module")
def pair():
    return make_patches(19, 9, 16), make_patches(19, 10, 16)


@pytest.fixture(scope="module")
def fast(small):
    return in_openvino(small)


@needs_openvino
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_the_full_network(weights_folder, matcher, patches_a, patches_b, dtype):
    fast = RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype=dtype, runtime="openvino")
    a, b = patches_a[:9], patches_b[:9]  # scored as eight and one
    scores, alone = fast.score(a, b), fast.score(a[:1], b[:1])
    bound, bound_of_batch = (1e-5, 1e-5) if dtype == "float32" else (0.15, 1e-3)
    np.testing.assert_allclose(scores, matcher.score(a, b), atol=bound, rtol=0)
    np.testing.assert_allclose(alone, scores[:1], atol=bound_of_batch, rtol=0)


@needs_openvino
@pytest.mark.parametrize("count", [0, 1, 7, 8, 19])
def test_any_number_of_pairs(small, fast, pair, count):
    a, b = (patches[:count] for patches in pair)
    np.testing.assert_allclose(fast.score(a, b), small.score(a, b), atol=1e-5, rtol=0)
    np.testing.assert_allclose(fast.score(a, b, batch_size=3), small.score(a, b), atol=1e-5, rtol=0)


@needs_openvino
def test_every_method(small, fast, pair):
    a, b = pair[0], pair[1][:11]
    np.testing.assert_allclose(fast.score_matrix(a, b), small.score_matrix(a, b), atol=1e-5, rtol=0)
    assert fast.score(torch.from_numpy(a[0]), torch.from_numpy(b[0])).shape == ()
    for candidates in (None, 3):
        matches, expected = (matcher.match(a, b, candidates=candidates, threshold=0.1) for matcher in (fast, small))
        np.testing.assert_array_equal(matches.indices, expected.indices)
        np.testing.assert_allclose(matches.scores, expected.scores, atol=1e-5, rtol=0)


@needs_openvino
def test_features_of_one_runtime_are_scored_by_the_other(small, fast, pair):
    features = [
        matcher.encode(patches, band) for matcher in (fast, small) for patches, band in zip(pair, "ab", strict=True)
    ]
    for own, expected in zip(features[:2], features[2:], strict=True):
        for x, y in zip((*own.maps, own.descriptors), (*expected.maps, expected.descriptors), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
            assert x.stride() == y.stride()
    pairs = [(0, 1), (18, 3), (5, 5)]
    expected = small.score_features(*features[2:], pairs)
    for matcher, a, b in ((fast, 0, 1), (fast, 2, 3), (fast, 0, 3), (small, 0, 1)):
        scores = matcher.score_features(features[a], features[b], pairs)
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)


@needs_openvino
@torch.no_grad()
def test_other_shapes_of_the_network(patches_a, patches_b):
    shape = {"encoder_channels": (4, 8, 8), "metric_channels": (4, 8, 12), "hidden": (8,), "unshuffle": 4}
    a, b = (torch.from_numpy(patches)[:12, None] / 255 for patches in (patches_a, patches_b))
    network = spread_network(RRLNetConfig(**shape, standardise=True), a, b)
    fast = OpenVINORRLNet(network, torch.device("cpu"), torch.float32)
    scores = fast.score(fast.encode(a, "a"), fast.encode(b, "b"))
    torch.testing.assert_close(scores, network(a, b), rtol=0, atol=1e-5)


@needs_openvino
def test_threads_give_the_same_scores(small, pair):
    fast = in_openvino(small)  # nothing is compiled yet
    expected = in_openvino(small).score(*pair)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: fast.score(*pair), range(16)):
            np.testing.assert_array_equal(scores, expected)


def score_into(pipe, matcher, pair):
    pipe.send((pickle.loads(matcher) if isinstance(matcher, bytes) else matcher).score(*pair))
    pipe.close()


@needs_openvino
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.parametrize("pickled", [False, True])
def test_forked_worker(fast, pair, pickled):
    expected = fast.score(*pair)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    matcher = pickle.dumps(fast) if pickled else fast
    worker = context.Process(target=score_into, args=(sender, matcher, pair), daemon=True)
    worker.start()
    sender.close()
    try:
        assert receiver.poll(30), "no scores from the worker"
        np.testing.assert_allclose(receiver.recv(), expected, atol=1e-5, rtol=0)
    finally:
        worker.kill()


@needs_openvino
def test_pickled_and_saved(small, fast, pair, tmp_path):
    copy = pickle.loads(pickle.dumps(fast))
    assert copy.runtime == "openvino"
    np.testing.assert_array_equal(copy.score(*pair), fast.score(*pair))
    assert RRLMatcher.from_pretrained(fast.save_pretrained(tmp_path), device="cpu").runtime == "torch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "onnx"}, "runtime must be 'torch' or 'openvino', got 'onnx'"),
        (
            {"runtime": "openvino", "dtype": "float16"},
            "on the CPU in float32 or bfloat16, got .* torch.float16",
        ),
    ],
)
def test_what_does_not_go_together(weights_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        RRLMatcher.from_pretrained(weights_folder, **arguments)


def test_cuda_is_refused(small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"computes on the CPU .* got device cuda:0"):
        RRLMatcher(small._network, small.config, device="cuda:0", dtype="float32", runtime="openvino")


def test_missing_package(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'rrl-match\[openvino\]'"):
        in_openvino(small)


WATCH = """
import json, os, sys, threading
import numpy, torch
from rrl_match import RRLMatcher

def state():
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [torch.get_num_threads(), threading.active_count(), dict(os.environ), affinity]

connections = []
sys.addaudithook(lambda event, args: connections.append(event) if event.startswith("socket.") else None)
before = state()
matcher = RRLMatcher.from_pretrained(sys.argv[1], device="cpu", runtime="openvino")
matcher.score(*numpy.zeros((2, 64, 64), numpy.uint8))
print(json.dumps([before == state(), connections, "openvino" in sys.modules, "openvino_telemetry" in sys.modules]))
"""


@needs_openvino
def test_it_reports_nothing_and_changes_no_setting(weights_folder, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    environment.pop("CI", None)  # where OpenVINO would not report anyway
    command = [sys.executable, "-c", WATCH, str(weights_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, [], True, False]
    assert done.stderr == ""
    assert list(tmp_path.rglob("openvino*")) == []
