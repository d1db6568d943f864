"""The released weights, on real patches that they never saw."""

import subprocess
import sys

import numpy as np
import pytest

from rrl_match import RRLMatcher
from rrl_match.training.evaluation import Benchmark, evaluate

FIFTH = 5  # of the benchmark's pairs, which takes less than a minute


@pytest.mark.shared
@pytest.mark.slow
def test_vis_nir_weights_on_the_benchmark(shared, tmp_path):
    subprocess.run([sys.executable, shared / "benchmarks" / "make_patches.py", tmp_path, "vis-nir"], check=True)
    whole = Benchmark.load(tmp_path / "vis-nir.npz")
    rows = np.random.default_rng(0).permutation(len(whole.pairs))[: len(whole.pairs) // FIFTH]
    part = Benchmark(whole.patches_a, whole.patches_b, whole.category, whole.pairs[rows], whole.kind[rows])
    result = evaluate(RRLMatcher.from_pretrained("vis-nir", device="cpu"), part)
    assert result["random"]["mean"]["FPR95"] < 4
    assert result["near"]["mean"]["FPR95"] < 9
