"""Scores stay the same with threads, processes, many calls, many patches and interruptions."""

from __future__ import annotations

import _thread
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import make_patches, make_small
from worker import score_into

import rrl_match
from rrl_match import RRLMatcher

THREADS, ROUNDS = 8, 5
MIB = 1 << 20

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.fixture(scope="module")
def pair():
    return make_patches(4, 9, 16), make_patches(4, 10, 16)


# the same scores


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_repeated_runs(weights_folder, a, b, dtype, device):
    expected = RRLMatcher.from_pretrained(weights_folder, device=device, dtype=dtype).score(a, b)
    for _ in range(2):
        matcher = RRLMatcher.from_pretrained(weights_folder, device=device, dtype=dtype)
        for _ in range(2):
            np.testing.assert_array_equal(matcher.score(a, b), expected)


# Measured on a CPU with AVX512-BF16: 5e-6 in float32 (blocking in the dense layers) and 1e-6 in bfloat16, whose
# convolutions do not depend on the batch. The bounds in score's docstring are for the CPU; CUDA chooses other kernels
# for other batch sizes, and TF32 if the caller allows it.
@pytest.mark.parametrize(
    ("device", "dtype", "bound"),
    [
        ("cpu", "float32", 1e-5),
        ("cpu", "bfloat16", 1e-3),
        pytest.param("cuda", "float32", 5e-3, marks=GPU.marks),
        pytest.param("cuda", "bfloat16", 5e-2, marks=GPU.marks),
    ],
)
def test_any_batch_size(weights_folder, patches_a, patches_b, device, dtype, bound):
    matcher = RRLMatcher.from_pretrained(weights_folder, device=device, dtype=dtype)
    a, b = patches_a[:6], patches_b[:6]
    together = matcher.score(a, b)
    for batch_size in (1, 2, 4, 1000):
        np.testing.assert_allclose(matcher.score(a, b, batch_size=batch_size), together, atol=bound, rtol=0)
    np.testing.assert_allclose(matcher.score(a[3], b[3]), together[3], atol=bound, rtol=0)


# threads and processes


def at_once(work):
    """Results of work(k) in THREADS threads that start together, ROUNDS times each."""
    start = threading.Barrier(THREADS)

    def run(k):
        start.wait(30)
        return [work(k) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_give_the_same_scores(weights_folder, a, b, dtype):
    """Bit for bit, on a network of the real size; the next test calls every method of a small one."""
    matcher = RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype=dtype)
    expected = [matcher.score(a[k % 5 :], b[k % 5 :]) for k in range(THREADS)]
    for k, results in enumerate(at_once(lambda k: matcher.score(a[k % 5 :], b[k % 5 :]))):
        for result in results:
            np.testing.assert_array_equal(result, expected[k])


def test_threads_on_every_method(small, pair):
    a, b = pair
    features = small.encode(a, "a"), small.encode(b, "b")
    methods = [
        lambda: small.score(a, b, batch_size=3),
        lambda: small.score(torch.from_numpy(a), torch.from_numpy(b)).numpy(),
        lambda: small.score_features(*features, [[0, 1], [3, 2]]),
        lambda: small.score_matrix(a, b),
        lambda: small.match(a, b, threshold=0).scores,
        lambda: small.encode(a, "a").maps[-1].numpy(),
        lambda: pickle.loads(pickle.dumps(small)).score(a, b),
        lambda: make_small().score(a, b),
    ]
    expected = [method() for method in methods]
    for shift in range(2):
        for k, results in enumerate(at_once(lambda k, shift=shift: methods[(k + shift) % len(methods)]())):
            for result in results:
                np.testing.assert_array_equal(result, expected[(k + shift) % len(methods)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "pickled into a fork", "fork after threads", "spawn"])
def test_worker_process(matcher, a, b, method):
    """PyTorch's threads run already, as in any program that scores before it starts workers."""
    expected = matcher.score(a, b)
    if method == "pickled into a fork":  # as a pool passes it to its workers
        matcher = pickle.dumps(matcher)
    start = "spawn" if method == "spawn" else "fork"
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=score_into, args=(sender, matcher, a, b), daemon=True)
    # These threads stay idle while the worker starts. One that is ending may hold the lock of MKL's memory manager, and
    # the worker would wait for it forever.
    pool = ThreadPoolExecutor(2)
    if method == "fork after threads":
        list(pool.map(matcher.score, [a, a], [b, b]))
    worker.start()
    sender.close()
    try:
        assert receiver.poll(60 if method == "spawn" else 20), f"no scores from a worker made by {method}"
        np.testing.assert_allclose(receiver.recv(), expected, atol=1e-5, rtol=0)
        worker.join(30)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        pool.shutdown()


# memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by Linux's means")
def test_memory_is_bounded(record_property):
    """Thousands of calls leak nothing. Of 25,000 pairs (two times 26 MB as float32), and of the longer side of a
    matrix (32 MB of features), memory holds one batch at a time.
    """
    script = Path(__file__).parent / "helpers" / "memory_use.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)
    record_property("growth in bytes", growth)
    assert growth["calls"] < 2 * MIB
    assert growth["pairs"] < 20 * MIB
    assert growth["matrix"] < 20 * MIB


# interruptions


def interrupted_at(step, call):
    """Interrupt a call before the `step`-th line that it runs in rrl_match; false if it ended before that."""
    package, lines = str(Path(rrl_match.__file__).parent), 0

    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            lines += 1
            if lines == step:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["score", "match", "score_features"])
def test_interrupted_anywhere(small, pair, method, record_property):
    """An interruption leaves the matcher intact and changes no setting of PyTorch; at every fifth line that runs."""
    a, b = pair
    features = small.encode(a, "a"), small.encode(b, "b")
    calls = {
        "score": lambda: small.score(a, b, batch_size=3),
        "match": lambda: small.match(a, b, candidates=2, threshold=0, batch_size=3).scores,
        "score_features": lambda: small.score_features(*features, [[0, 1], [2, 3], [3, 3]], batch_size=2),
    }
    call = calls[method]
    expected = call()
    step = 1
    while interrupted_at(step, call):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        if step % 25 == 1:  # not each time: damage would last until the next check
            np.testing.assert_array_equal(call(), expected)
        step += 5
    record_property("interruptions", step // 5)
    assert step > 100
    np.testing.assert_array_equal(call(), expected)


@pytest.fixture
def keyboard():
    """Handle SIGINT as in a terminal; shells start background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("progress", [False, True])
def test_interrupted_from_the_keyboard(small, pair, progress, capfd):
    a, b = pair
    expected = small.score(a, b)
    many = (np.broadcast_to(patches[:1], (10**6, 16, 16)) for patches in pair)  # would take a minute
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        small.score(*many, progress=progress)
    timer.join()
    np.testing.assert_array_equal(small.score(a, b), expected)
