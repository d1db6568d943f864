"""The built distribution, used without the checkout and without network access."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCORE = """
import socket
def refuse(*args, **kwargs):
    raise OSError("no network in this test")
socket.socket.connect = refuse
import numpy as np
import rrl_match
assert {folder!r} in rrl_match.__file__, rrl_match.__file__
matcher = rrl_match.RRLMatcher.from_pretrained(dtype="float32")
patches = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
print(matcher.modalities, matcher.score(patches, patches).tolist())
"""


def copy_source(folder):
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that is built from it; of a copy, as two builds in one folder disturb each other."""
    folder, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source") / "rrl-match"
    copy_source(source)
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_wheel_carries_the_weights_and_the_types(distributions):
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    for file in ("config.json", "model.safetensors", "README.md"):
        assert f"rrl_match/weights/vis-nir/{file}" in names
    assert {"rrl_match/py.typed", "rrl_match/weights/manifest.json"} <= names
    assert "rrl_match/training/recipes/vis-nir.json" in names
    assert "rrl_match/training/recipes/universal.json" in names
    assert not [name for name in names if name.startswith(("tests/", "examples/", "weights/")) or "tools" in name]


@pytest.mark.slow
def test_sdist_carries_what_its_tests_need(distributions):
    with tarfile.open(distributions[0]) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    needed = [path for path in ROOT.glob("*.*") if path.is_file() and not path.name.startswith(".")]
    for folder in ("examples", "rrl_match", "tests", "weights"):
        needed += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in needed:
        relative = path.relative_to(ROOT).as_posix()
        if not relative.startswith("rrl_match/weights/"):  # a link to weights/, in a checkout
            assert relative in inside
    assert not [name for name in inside if name.startswith("rrl_match/weights")], "the weights come once"


@pytest.mark.slow
def test_index_page_has_no_relative_links(distributions):
    """They would lead nowhere, and images would be missing."""
    wheel = zipfile.ZipFile(distributions[1])
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    page = wheel.read(name).decode().partition("\n\n")[2]
    assert "## Install" in page
    assert len(re.findall(r"\]\(https?:", page)) > 1
    assert not re.findall(r"\]\((?!https?:|#).*?\)", page)


@pytest.mark.slow
def test_installed_wheel_scores_from_another_folder(distributions, tmp_path):
    venv = tmp_path / "venv"
    # With PYTHONPATH, pip could take the checkout for an installation and leave the wheel out.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(distributions[1])]
    subprocess.run(pip, check=True, env=environment)
    # The dependencies of this environment, but not an editable install in it, because its .pth files are not read.
    (next((venv / "lib").glob("python*")) / "site-packages" / "dependencies.pth").write_text(site.getsitepackages()[0])
    result = subprocess.run(
        [str(python), "-c", SCORE.format(folder=str(venv))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("('visible', 'other') [")


def test_editable_install_is_a_plain_path(tmp_path):
    """Type checkers read the path of a .pth file, but not what a finder maps."""
    if not (ROOT / "rrl_match" / "weights").is_symlink():
        pytest.skip("no checkout: the sdist has no link to the weights")
    pytest.importorskip("hatch_fancy_pypi_readme")
    copy_source(tmp_path / "source")
    code = "import sys; from hatchling import build; build.build_editable(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path / "source",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    (path,) = (name for name in wheel.namelist() if ".dist-info/" not in name)
    assert path.endswith(".pth")
    assert wheel.read(path).decode().strip() == str(tmp_path / "source")
    weights = tmp_path / "source" / "rrl_match" / "weights"
    assert (weights / "universal" / "model.safetensors").is_file()
