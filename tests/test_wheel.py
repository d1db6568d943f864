"""The built distribution, used without the checkout and without network access."""

import os
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
    assert "importable package" not in result.stdout + result.stderr, "setuptools warns of files in no package"
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
def test_sdist_carries_what_the_wheel_is_built_from(distributions):
    sdist, wheel = distributions
    with tarfile.open(sdist) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    for name in zipfile.ZipFile(wheel).namelist():
        if ".dist-info/" not in name:
            assert name in inside


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
    pytest.importorskip("setuptools", "77")
    copy_source(tmp_path / "source")
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
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
