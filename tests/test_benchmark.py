"""The benchmark example runs and reports what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark.py"
SMALL = "--batch-sizes 1 8 --seconds 0.01 --matrix 3 --match 4 --register 0 --dtypes float32 --device cpu"


@pytest.mark.slow
def test_benchmark_example(weights_folder, tmp_path):
    saved = tmp_path / "results.json"
    command = [sys.executable, SCRIPT, "--weights", str(weights_folder), *SMALL.split(), "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| float32 |") == 2
    results = json.loads(saved.read_text())
    assert [row["batch_size"] for row in results["score"]] == [1, 8]
    seconds = results["seconds"]
    assert seconds["import_to_first_score"] > seconds["first_score"] > 0
    assert {"score_matrix", "match"} <= set(seconds)
    assert "register" not in seconds
    assert results["peak_memory_mb"] > 0


def ratios_printed(weights_folder, *options):
    command = [sys.executable, SCRIPT, "--weights", str(weights_folder), *options, *SMALL.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line.split("|")[-2]) for line in done.stdout.splitlines() if line.startswith("| float32 |")]


@pytest.mark.slow
def test_two_sets_of_weights_compared(weights_folder):
    ratios = ratios_printed(weights_folder, "--against", str(weights_folder))
    assert len(ratios) == 4
    assert all(ratio > 0 for ratio in ratios)
