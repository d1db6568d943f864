"""The released weights, on real patches that they never saw."""

import functools
import subprocess
import sys

import numpy as np
import pytest

from rrl_match import RRLMatcher, percentile_range
from rrl_match.training.evaluation import Benchmark, evaluate, metrics_of

LOCATIONS = {"vis-nir": 800, "vis-lwir": 600, "optical-sar": 800}  # of each benchmark, for about 2,500 pairs


@pytest.fixture(scope="module")
def part_of(shared, tmp_path_factory):
    """A function that returns all pairs between a random part of the locations in a domain's benchmark."""

    @functools.cache
    def cut(domain):
        out = tmp_path_factory.mktemp("benchmarks")
        subprocess.run([sys.executable, shared / "benchmarks" / "make_patches.py", out, domain], check=True)
        whole = Benchmark.load(out / f"{domain}.npz")
        rows = np.sort(np.random.default_rng(0).permutation(len(whole.patches_a))[: LOCATIONS[domain]])
        inside = np.isin(whole.pairs, rows).all(axis=1)
        pairs = np.searchsorted(rows, whole.pairs[inside]).astype(np.int32)
        patches_a, patches_b, category = (x[rows] for x in (whole.patches_a, whole.patches_b, whole.category))
        return Benchmark(patches_a, patches_b, category, pairs, whole.kind[inside])

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
    part = part_of("vis-lwir")
    matcher = RRLMatcher.from_pretrained("vis-lwir", device="cpu", dtype="float32")
    rows_a, rows_b = np.random.default_rng(0).permutation(part.pairs)[:150].T
    patches_a, patches_b = part.patches_a[rows_a], part.patches_b[rows_b]
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
    part = part_of("optical-sar")
    matcher = RRLMatcher.from_pretrained("optical-sar", device="cpu")
    decibels = 20 * np.log10(np.maximum(part.patches_b, 1) / np.float32(255))
    features_a = matcher.encode(part.patches_a, "a")
    features_b = matcher.encode(decibels, "b", value_range=percentile_range(decibels))
    scores = matcher.score_features(features_a, features_b, part.pairs)
    result = metrics_of(part, scores)
    assert result["random"]["mean"]["FPR95"] < 10
    assert result["near"]["mean"]["FPR95"] < 15
