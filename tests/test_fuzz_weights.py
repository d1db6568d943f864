"""Files from elsewhere: thousands of broken weights folders, each refused or read as what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_weights import COUNTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory as Linux does")


@pytest.fixture(scope="module")
def result():
    """In a process of its own, whose crash or hang is a failure here, and whose memory is not another test's."""
    script = Path(__file__).parent / "helpers" / "fuzz_weights.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_refused_or_read_as_what_it_says(result, record_property):
    record_property("inputs", result["outcomes"])
    assert result["wrong"] == []


def test_as_many_as_stated(result):
    tried = {way: sum(outcomes.values()) for way, outcomes in result["outcomes"].items()}
    assert {way: tried[way] for way in COUNTS} == COUNTS
    assert sum(tried.values()) > 3650


@pytest.mark.parametrize(
    "way", ["cut off", "longer", "length of the header", "absurd header", "absurd config", "a terabyte"]
)
def test_never_read(result, way):
    harmless = {"absurd header": 3, "absurd config": 1}.get(way, 0)  # much space or metadata, a tensor twice; digits
    assert result["outcomes"][way].get("loaded", 0) <= harmless


@pytest.mark.parametrize(("way", "least"), [("bits of the weights", 500), ("bytes of the config", 1), ("config", 20)])
def test_some_are_read(result, way, least):
    """A bit of a value flipped is another network, and a name changed another name: nothing shows that it is wrong."""
    assert result["outcomes"][way]["loaded"] >= least


def test_memory_is_bounded(result, record_property):
    record_property("growth in MiB", result["growth in MiB"])
    assert result["growth in MiB"] < 100
