"""Documents that are read on GitHub and the Hub: their links and the files that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rrl_match import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(path for folder in ("examples", "rrl_match", "weights") for path in (ROOT / folder).rglob("*.md")),
]
CARDS = sorted((ROOT / "weights").glob("*/README.md"))


def anchors(page):
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_cards_are_complete(card):
    text = card.read_text(encoding="utf-8")
    found = re.findall(r"^## (.*)$", text, re.M)
    assert found == ["Input", "Training data and terms", "Training", "Accuracy", "Limits"]


def test_citation():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    licence = re.search(r'license = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == licence
    paper = citation["preferred-citation"]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["title"] in readme
    assert paper["url"] in readme


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_named_files_exist(name):
    for path in re.findall(r"`([\w./-]+/[\w./-]+|[\w-]+\.(?:md|toml))`", (ROOT / name).read_text(encoding="utf-8")):
        inside = [ROOT / path, ROOT / "rrl_match" / path]
        assert any(p.exists() for p in inside) or path == "model.safetensors", path
