"""Files for people and services, in which nothing else would notice a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rrl_match import __version__

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def parsed(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_citation():
    citation = parsed("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == re.search(r'license = "(.*)"', PYPROJECT)[1]
    paper = citation["preferred-citation"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["title"] in readme
    assert paper["url"] in readme


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_are_named_are_there(name):
    for path in re.findall(r"`([\w./-]+/[\w./-]+|[\w-]+\.(?:md|toml))`", (ROOT / name).read_text(encoding="utf-8")):
        inside = [ROOT / path, ROOT / "rrl_match" / path]
        assert any(p.exists() for p in inside) or path == "model.safetensors", path
