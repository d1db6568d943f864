"""The benchmark example runs, and says what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_benchmark_example(weights_folder, tmp_path):
    script, saved = Path(__file__).parents[1] / "examples" / "benchmark.py", tmp_path / "figures.json"
    options = [
        "--seconds",
        "0.01",
        "--matrix",
        "3",
        "--places",
        "4",
        "--dtypes",
        "float32",
        "--save",
        str(saved),
    ]
    command = [sys.executable, script, "--weights", str(weights_folder), "--device", "cpu", "--markdown", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| float32 |") == 4
    figures = json.loads(saved.read_text())
    assert {row["batch"] for row in figures["speed"]} == {1, 8, 64, 512}
    assert figures["seconds"]["import_to_first_score"] > figures["seconds"]["first_score"] > 0
