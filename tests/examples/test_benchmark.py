"""The benchmark example runs and reports what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmark.py"
SMALL = "--batch-sizes 1 8 --seconds 0.01 --matrix 3 --match 4 --register 0 --dtypes float32 --device cpu"


@pytest.mark.slow
def test_benchmark_example(weights_folder, tmp_path):
    saved = tmp_path / "results.json"
    weights = [str(weights_folder), "vis-nir"]
    command = [sys.executable, SCRIPT, "--weights", *weights, *SMALL.split(), "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| float32 |") == 8
    results = json.loads(saved.read_text())
    calls = [
        ("score", 1),
        ("score", 8),
        ("score_matrix", 3),
        ("match", 4),
        ("import and first score", 1),
    ]
    expected = [(name, *call) for call in calls for name in weights]
    assert [(row["weights"], row["call"], row["size"]) for row in results["rows"]] == expected
    assert all(row["seconds"] > 0 for row in results["rows"])
    assert results["machine"]["torch"]
