"""Untrusted files: each of thousands of broken weights folders is refused, or loaded exactly as its files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_weights import COUNTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory by Linux's means")


@pytest.fixture(scope="module")
def result():
    """Run in a process of its own: a crash or hang fails the test, and the memory of other tests does not count."""
    script = Path(__file__).parent / "helpers" / "fuzz_weights.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_refused_or_loaded_exactly(result, record_property):
    record_property("inputs", result["outcomes"])
    assert result["wrong"] == []


def test_number_of_inputs(result):
    tried = {way: sum(outcomes.values()) for way, outcomes in result["outcomes"].items()}
    assert {way: tried[way] for way in COUNTS} == COUNTS
    assert sum(tried.values()) > 3650


@pytest.mark.parametrize(
    "way", ["cut off", "longer", "length of the header", "absurd header", "absurd config", "a terabyte"]
)
def test_never_loaded(result, way):
    # Harmless are much white space or metadata, a repeated tensor, and a long number.
    harmless = {"absurd header": 3, "absurd config": 1}.get(way, 0)
    assert result["outcomes"][way].get("loaded", 0) <= harmless


@pytest.mark.parametrize(("way", "least"), [("bits of the weights", 500), ("bytes of the config", 1), ("config", 20)])
def test_some_are_loaded(result, way, least):
    """A flipped bit of a value or a changed name of a band leaves valid files: nothing shows that they are wrong."""
    assert result["outcomes"][way]["loaded"] >= least


def test_memory_is_bounded(result, record_property):
    record_property("growth in MiB", result["growth in MiB"])
    assert result["growth in MiB"] < 100
