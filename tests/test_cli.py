import hashlib
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import typer.testing
from accelerate.state import AcceleratorState
from image_folder import write_folder
from training_run import RECIPE, tiny_network

from rrl_match import RRLMatcher
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig, save_folder
from rrl_match.training.__main__ import app, main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(RECIPE.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def start(tmp_path):
    network = tiny_network()
    config = ModelConfig(("vis", "nir"), network=network.config, dtype="float32")
    return save_folder(tmp_path / "start", network, config, "")


def run(*args):
    return typer.testing.CliRunner().invoke(app, [str(a) for a in args])


def test_training_ends_with_weights_that_evaluate_measures(tmp_path, recipe_file, start, benchmark_file):
    data, out = write_folder(tmp_path / "pictures"), tmp_path / "run"
    options = ["--precision", "fp32", "--device", "cpu", "--steps", 2, "--pretraining-steps", 1]
    result = run("train", "--data", data, "--out", out, "--recipe", recipe_file, "--start", start, *options)
    assert result.exit_code == 0, result.output
    assert f"weights: {out / 'weights'}" in result.output.replace("\n", "")
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["step"]) for r in records] == [
        ("pretraining", 1),
        ("training", 2),
        ("training", 3),
        ("validation", 3),
        ("validation_average", 3),
    ]
    config = RRLMatcher.from_pretrained(out / "weights").config
    assert config.training["data"] == "pictures: 2 picture pairs to train on, 2 held back"
    saved = tmp_path / "figures.json"
    how = ["--device", "cpu", "--dtype", "float32"]
    arguments = ["--benchmark", benchmark_file, *how, "--save", saved]
    result = run("evaluate", "--weights", out / "weights", *arguments)
    assert result.exit_code == 0, result.output
    assert "places.npz, torch.float32 on cpu" in result.output
    figures = json.loads(saved.read_text())
    assert list(figures) == ["random", "near"]
    for by_category in figures.values():
        assert list(by_category) == ["forest", "harbour", "mean"]
        for name, values in by_category.items():
            assert all(0 <= v <= 100 for v in values.values())
            line = f"  {name}".ljust(20) + "".join(f"{v:22.2f}" for v in values.values())
            assert line in result.output.splitlines()


def test_pretraining_can_be_left_out(tmp_path, recipe_file, start):
    data, out = write_folder(tmp_path / "pictures"), tmp_path / "run"
    options = ["--precision", "fp32", "--device", "cpu", "--steps", 1, "--pretraining-steps", 0]
    result = run("train", "--data", data, "--out", out, "--recipe", recipe_file, "--start", start, *options)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "recipe.json").read_text())["pretraining"] is None


def test_training_starts_from_weights_of_a_name(tmp_path, monkeypatch):
    class Recorder:
        def __init__(self, *args, start, **options):
            started.append(start)

        def train(self):
            return tmp_path

    started = []
    monkeypatch.setattr("rrl_match.training.trainer.Trainer", Recorder)
    data = write_folder(tmp_path / "pictures", pairs=1)
    result = run("train", "--data", data, "--out", tmp_path / "run", "--start", "vis-nir")
    assert not result.exception, failure(result)
    assert isinstance(started[0], RRLNet)


def failure(result):
    """What a user reads of a command that failed."""
    assert result.exit_code != 0
    return f"{result.output} {result.exception}"


def test_benchmark_that_is_broken_is_named(tmp_path, start, benchmark_file):
    broken = tmp_path / "broken.npz"
    for content in (None, b"not an archive", benchmark_file.read_bytes()[:1000]):
        if content:
            broken.write_bytes(content)
        result = run("evaluate", "--weights", start, "--benchmark", broken, "--device", "cpu")
        assert "broken.npz is not a patch benchmark" in failure(result)


def test_benchmark_whose_patches_have_another_size(tmp_path, start, benchmark_file):
    with np.load(benchmark_file) as arrays:
        np.savez(tmp_path / "small.npz", **{**arrays, "patches_a": arrays["patches_a"][:, :32, :32]})
    result = run("evaluate", "--weights", start, "--benchmark", tmp_path / "small.npz", "--device", "cpu")
    assert "(12, 32, 32)" in failure(result)


def test_weights_that_are_not_there_are_named(benchmark_file):
    assert "'no weights'" in failure(run("evaluate", "--weights", "no weights", "--benchmark", benchmark_file))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"--data": "nowhere"}, "manifest.csv is not there"),
        ({"--recipe": "nothing"}, "no recipe 'nothing'"),
        ({"--start": "no weights"}, "no weights"),
    ],
)
def test_train_says_what_is_wrong(tmp_path, options, problem):
    data = write_folder(tmp_path / "pictures")
    given = {"--data": data, "--out": tmp_path / "run", "--precision": "fp32", "--device": "cpu"} | options
    assert problem in failure(run("train", *(part for option in given.items() for part in option)))


def test_release_adds_weights_to_the_manifest(tmp_path, start):
    released = tmp_path / "released"
    figures = {"random": {"forest": {"FPR95": 1.234, "AUC": 99}, "mean": {"FPR95": 1.234, "AUC": 99}}}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    card = tmp_path / "card.md"
    card.write_text("written by hand", encoding="utf-8")
    for name in ("one", "other", "one"):
        result = run("release", start, released, name, "--figures", tmp_path / "figures.json", "--card", card)
        assert result.exit_code == 0, failure(result)
    manifest = json.loads((released / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest) == ["one", "other"]
    for file, digest in manifest["one"]["files"].items():
        assert hashlib.sha256((released / "one" / file).read_bytes()).hexdigest() == digest
    assert set(manifest["one"]["files"]) == {"config.json", "model.safetensors"}
    matcher = RRLMatcher.from_pretrained(released / "one", device="cpu")
    assert matcher.config.metrics["benchmark_fpr95"] == {"random": {"forest": 1.23, "mean": 1.23}}
    assert (released / "one" / "README.md").read_text(encoding="utf-8") == "written by hand"


def test_a_folder_that_is_not_there_is_told_in_a_line(tmp_path, monkeypatch, start, benchmark_file):
    figures = tmp_path / "nowhere" / "figures.json"
    arguments = ["evaluate", "--weights", start, "--benchmark", benchmark_file, "--device", "cpu", "--save", figures]
    monkeypatch.setattr(sys, "argv", ["rrl_match.training", *map(str, arguments)])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        main()


@pytest.mark.slow
def test_runs_as_a_module():
    command = [sys.executable, "-m", "rrl_match.training", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("train", "evaluate", "convert"):
        assert name in result.stdout
