"""Files that GitHub reads: nothing else would notice a mistake in them before they are needed."""

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


@pytest.fixture(scope="module")
def versions():
    return parsed(".github/workflows/ci.yml")["jobs"]["versions"]["strategy"]["matrix"]["include"]


def test_python_versions_agree(versions):
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert [job["python"] for job in versions] == supported
    assert f'requires-python = ">={supported[0]}"' in PYPROJECT


def test_the_oldest_pytorch_is_tested_and_the_newest(versions):
    oldest = re.search(r'"torch>=([\d.]+)"', PYPROJECT)[1]
    assert {job["torch"] for job in versions} == {f"torch=={oldest}.*", "torch"}


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("opencv", {"opencv-python-headless<5", "opencv-python-headless>=5"}),
        ("hub", {"huggingface-hub<2", "huggingface-hub>=2"}),
    ],
)
def test_both_lines_of_a_dependency_are_tested(versions, column, wanted):
    assert {job[column] for job in versions} == wanted


def test_ci_runs_the_script_that_runs_here():
    steps = parsed(".github/workflows/ci.yml")["jobs"]["check"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_release_publishes_only_what_was_built_and_tested():
    jobs = parsed(".github/workflows/release.yml")["jobs"]
    commands = " ".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert commands.index("python -m build") < commands.index("twine check") < commands.index("pytest")
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == "pypi"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")


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
