"""The benchmark example runs and reports what it should."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from networks import tiny_matcher

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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no OpenVINO")
def test_comparison_of_runtimes(tmp_path):
    folder = tiny_matcher().save_pretrained(tmp_path)
    options = "--runtimes --batch-sizes 1 9 --seconds 0.01 --matrix 0 --match 0"
    command = [sys.executable, SCRIPT, "--weights", str(folder), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| (?:float32|bfloat16) \| [19] \| [\d.]+ \| [\d.]+ \|$", done.stdout, re.MULTILINE)) == 4
