import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from image_folder import write_folder
from training_run import RECIPE, tiny_network

from rrl_match import RRLMatcher
from rrl_match.cli import common
from rrl_match.cli.main import main
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig, save_folder
from rrl_match.training.evaluation import METRICS

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = ("--precision", "fp32", "--device", "cpu")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(RECIPE.to_json(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    network = tiny_network()
    config = ModelConfig(("vis", "nir"), network=network.config, dtype="float32")
    return save_folder(tmp_path_factory.mktemp("weights") / "start", network, config, "")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images")


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def mistake(capsys, *arguments):
    """What a call that must end with exit code 2 says last."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stopped:  # of argparse
        code = stopped.code
    assert code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()[-1]


def test_weights_trained_on_two_sources_are_evaluated(tmp_path, recipe_file, start, data, benchmark_file, capsys):
    more, out = write_folder(tmp_path / "more", seed=50), tmp_path / "run"
    options = [*FAST, "--steps", 2, "--pretraining-steps", 1, "--seed", 3, "--recipe", recipe_file, "--start", start]
    run("train", "--data", data, "--data", f"{more}=2", "--out", out, *options)
    assert capsys.readouterr().out == f"weights: {out / 'weights'}\n"
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    scored = [
        f"{label}{source}" for label in ("validation", "validation_average") for source in ("/images", "/more", "")
    ]
    assert [(r["phase"], r["step"]) for r in records] == [
        ("pretraining", 1),
        ("training", 2),
        ("training", 3),
        *((label, 3) for label in scored),
    ]
    config = RRLMatcher.from_pretrained(out / "weights").config
    assert config.training["data"] == "images, more: 4 image pairs to train on, 4 held back"
    assert config.training["seed"] == 3

    other = tmp_path / "other.npz"
    other.write_bytes(benchmark_file.read_bytes())
    saved = tmp_path / "metrics.json"
    benchmarks = ["--benchmark", benchmark_file, "--benchmark", other]
    how = ["--device", "cpu", "--dtype", "float32", "--save", saved]
    run("evaluate", "--weights", out / "weights", *benchmarks, *how)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("on locations.npz, torch.float32 on cpu; all metrics in percent")
    results = json.loads(saved.read_text())
    assert results["command"]
    metrics = {}
    for row in results["rows"]:
        assert row.pop("dtype") == "float32"
        by_kind = metrics.setdefault(row.pop("data"), {})
        by_kind.setdefault(row.pop("negatives"), {})[row.pop("category")] = row
    assert list(metrics) == ["locations", "other"]
    assert metrics["locations"] == metrics["other"]
    assert list(metrics["other"]) == ["random", "near"]
    for by_category in metrics["other"].values():
        assert list(by_category) == ["forest", "harbour", "mean"]
        for name, values in by_category.items():
            assert list(values) == list(METRICS)
            assert f"  {name}".ljust(20) + "".join(f"{v:22.2f}" for v in values.values()) in lines
    means = [f"{metrics['other'][kind]['mean']['FPR95']:.2f}" for kind in ("random", "near")]
    assert [line.split() for line in lines[-3:]] == [
        ["FPR95,", "mean", "random", "near"],
        ["locations", *means],
        ["other", *means],
    ]


class Recorder:
    """Stands in for the trainer."""

    calls = ()

    def __init__(self, recipe, sources, out, **options):
        self.calls.append((recipe, sources, out, options))

    def train(self):
        return "trained"


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr("rrl_match.training.trainer.Trainer", Recorder)
    monkeypatch.setattr(Recorder, "calls", [])
    return Recorder.calls


def test_arguments_reach_the_trainer(tmp_path, recorder, data, capsys):
    options = [
        "--recipe",
        "vis-nir",
        "--start",
        "vis-nir",
        "--checkpoint-every",
        7,
        "--validate-every",
        9,
        "--compile",
    ]
    run("train", "--data", f"{data}=0.5", "--out", tmp_path, *options)
    ((recipe, sources, out, given),) = recorder
    assert (recipe.modalities, out) == (("vis", "nir"), tmp_path)
    assert [(source.name, source.weight) for source in sources] == [("images", 0.5)]
    assert isinstance(given.pop("start"), RRLNet)
    assert given == {
        "seed": 0,
        "precision": "bf16",
        "device": "auto",
        "compile": True,
        "checkpoint_every": 7,
        "validate_every": 9,
    }
    assert capsys.readouterr().out == "weights: trained\n"


def test_defaults_are_the_universal_recipe_from_random_weights(tmp_path, recorder, data):
    run("train", "--data", data, "--out", tmp_path)
    ((recipe, _, _, given),) = recorder
    assert recipe.modalities == ("visible", "other")
    assert given["start"] is None


def test_steps_replace_those_of_the_recipe(tmp_path, recorder, data, recipe_file, capsys):
    arguments = ["train", "--data", data, "--out", tmp_path, "--recipe", recipe_file]
    run(*arguments, "--steps", 12, "--pretraining-steps", 5)
    run(*arguments, "--pretraining-steps", 0)
    first, second = (recipe for recipe, *_ in recorder)
    assert (first.training.steps, first.pretraining.steps) == (12, 5)
    assert (second.training.steps, second.pretraining) == (RECIPE.training.steps, None)
    capsys.readouterr()
    options = ["--recipe", "published", "--pretraining-steps", 5]
    assert "no pretraining" in mistake(capsys, "train", "--data", data, "--out", tmp_path, *options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", 0),
        ("--pretraining-steps", -1),
        ("--checkpoint-every", 0),
        ("--precision", "fp16"),
        ("--device", "gpu"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, data, option, value, capsys):
    assert f"argument {option}: " in mistake(capsys, "train", "--data", data, "--out", tmp_path, option, value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"--data": "nowhere"}, "manifest.csv not found"),
        ({"--recipe": "nothing"}, "no recipe 'nothing'"),
        ({"--start": "no weights"}, "no weights"),
    ],
)
def test_train_reports_mistakes(tmp_path, data, options, problem, capsys):
    given = {"--data": data, "--out": tmp_path / "run"} | options
    assert problem in mistake(capsys, "train", *FAST, *(part for option in given.items() for part in option))


def test_benchmark_that_is_broken_is_named_before_any_is_measured(tmp_path, start, benchmark_file, capsys):
    broken = tmp_path / "broken.npz"
    for content in (None, b"not an archive", benchmark_file.read_bytes()[:1000]):
        if content:
            broken.write_bytes(content)
        benchmarks = ["--benchmark", benchmark_file, "--benchmark", broken]
        said = mistake(capsys, "evaluate", "--weights", start, *benchmarks, "--device", "cpu")
        assert "broken.npz is not a patch benchmark" in said
        assert "pickle" not in said


def test_benchmark_whose_patches_have_another_size(tmp_path, start, benchmark_file, capsys):
    with np.load(benchmark_file) as arrays:
        np.savez(tmp_path / "small.npz", **{**arrays, "patches_a": arrays["patches_a"][:, :32, :32]})
    arguments = ["--weights", start, "--benchmark", tmp_path / "small.npz", "--device", "cpu"]
    assert "(12, 32, 32)" in mistake(capsys, "evaluate", *arguments)


def test_benchmarks_of_one_name_are_refused(tmp_path, start, benchmark_file, capsys):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "locations.npz").write_bytes(benchmark_file.read_bytes())
    benchmarks = [f"--benchmark={path}" for path in (benchmark_file, tmp_path / "x/locations.npz")]
    assert "different names" in mistake(capsys, "evaluate", "--weights", start, *benchmarks)


def test_metrics_cannot_be_saved_in_a_folder_that_does_not_exist(tmp_path, start, benchmark_file, capsys):
    arguments = ["--weights", start, "--benchmark", benchmark_file, "--save", tmp_path / "nowhere" / "m.json"]
    said = mistake(capsys, "evaluate", *arguments)
    assert "nowhere of --save does not exist" in said


def test_weights_that_do_not_exist_are_named(benchmark_file, capsys):
    assert "'no weights'" in mistake(capsys, "evaluate", "--weights", "no weights", "--benchmark", benchmark_file)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (("train", "--data", "x", "--out", "y"), "accelerate"),
        (("evaluate", "--benchmark", "x.npz"), "sklearn"),
        (("convert", "x.hdf5", "y"), "h5py"),
    ],
)
def test_missing_extra_is_named(monkeypatch, command, module, capsys):
    find = common.find_spec
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == module else find(name))
    assert f"needs {module}: pip install 'rrl-match[train]'" in mistake(capsys, *command)


@pytest.mark.parametrize("threshold", ["2", "high"])
def test_threshold_out_of_range(tmp_path, capsys, threshold):
    assert "argument --threshold" in mistake(capsys, "convert", "x.hdf5", tmp_path, "--threshold", threshold)
