"""The released weights, on real patches that they never saw."""

import subprocess
import sys

import numpy as np
import pytest

from rrl_match import RRLMatcher, percentile_range
from rrl_match.training.evaluation import Benchmark, evaluate, metrics_of

PAIRS = 6_000  # of each benchmark, to take a quarter of a minute


@pytest.fixture(scope="module")
def part_of(shared, tmp_path_factory):
    """A random part of a domain's benchmark."""

    def cut(domain, pairs=PAIRS):
        out = tmp_path_factory.mktemp("benchmarks")
        subprocess.run([sys.executable, shared / "benchmarks" / "make_patches.py", out, domain], check=True)
        whole = Benchmark.load(out / f"{domain}.npz")
        rows = np.random.default_rng(0).permutation(len(whole.pairs))[:pairs]
        return Benchmark(whole.patches_a, whole.patches_b, whole.category, whole.pairs[rows], whole.kind[rows])

    return cut


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("domain", "random", "near"), [("vis-nir", 3, 5), ("vis-lwir", 3, 4), ("optical-sar", 8, 13)])
def test_weights_on_the_benchmark(part_of, domain, random, near):
    result = evaluate(RRLMatcher.from_pretrained(domain, device="cpu"), part_of(domain))
    assert result["random"]["mean"]["FPR95"] < random
    assert result["near"]["mean"]["FPR95"] < near


@pytest.mark.shared
@pytest.mark.slow
def test_thermal_frames_of_16_bit(part_of):
    """A narrow range within 16 bits: given, found by percentiles, or not given."""
    part = part_of("vis-lwir", 300)
    matcher = RRLMatcher.from_pretrained("vis-lwir", device="cpu", dtype="float32")
    patches_a, patches_b = part.patches_a[part.pairs[:, 0]], part.patches_b[part.pairs[:, 1]]
    frame = patches_b.astype(np.uint16) * 4 + 29_000
    expected = matcher.score(patches_a, patches_b)
    assert np.ptp(expected) > 0.9
    given = matcher.score(patches_a, frame, value_range=(None, (29_000, 29_000 + 4 * 255)))
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-3)
    found = matcher.score(patches_a, frame, value_range=(None, percentile_range(frame)))
    not_given = matcher.score(patches_a, frame)
    for scores in (found, not_given):
        assert np.mean((scores > matcher.threshold) == (expected > matcher.threshold)) > 0.98


@pytest.mark.shared
@pytest.mark.slow
def test_radar_in_decibels(part_of):
    """Amplitudes of the benchmark in decibels: a little worse."""
    part = part_of("optical-sar", 3000)
    matcher = RRLMatcher.from_pretrained("optical-sar", device="cpu")
    patches_a, patches_b = part.patches_a[part.pairs[:, 0]], part.patches_b[part.pairs[:, 1]]
    decibels = 20 * np.log10(np.maximum(patches_b, 1) / np.float32(255))
    scores = matcher.score(patches_a, decibels, value_range=(None, percentile_range(decibels)))
    result = metrics_of(part, scores)
    assert result["random"]["mean"]["FPR95"] < 10
    assert result["near"]["mean"]["FPR95"] < 15
