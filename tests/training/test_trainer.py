import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from image_folder import write_folder
from training_run import NETWORK, RECIPE, make_trainer, replace, tiny_network

from rrl_match import DataError, RRLMatcher, RRLMatchError
from rrl_match.pretrained import load_folder
from rrl_match.training import trainer as trainer_module
from rrl_match.training.datasets import PairSource, read_source
from rrl_match.training.mining import mine_pairs
from rrl_match.training.network import TrainingConfig
from rrl_match.training.phases import FullTraining, Pretraining
from rrl_match.training.recipe import Phase, Recipe, SyntheticBands
from rrl_match.training.validation import ValidationScores, ValidationSet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for a whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images", pairs=4)


@pytest.fixture(scope="module")
def sources(images):
    return [read_source(images)]


@pytest.fixture(scope="module")
def finished(sources, tmp_path_factory):
    """A run without interruption: its trainer and its folder."""
    out = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(sources, out)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer, out


def read_log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def curve(out):
    """The log without times."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(out)]


def assert_same_run(out, trainer, finished):
    assert curve(out) == curve(finished[1])
    for name, value in finished[0].model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    weights = [(folder / "weights" / "model.safetensors").read_bytes() for folder in (out, finished[1])]
    assert weights[0] == weights[1]


def train_until(trainer, step):
    """A run that is interrupted after so many steps."""
    draw, draws = trainer_module.draw_batch, iter(range(step))

    def draw_or_stop(*args):
        if next(draws, None) is None:
            raise KeyboardInterrupt
        return draw(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "draw_batch", draw_or_stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()


@pytest.mark.parametrize("step", [3, 5])
def test_interrupted_run_resumes_with_the_same_result(sources, finished, tmp_path, step):
    """During pretraining and at the start of the main phase; the killed process is in the middle of it."""
    train_until(make_trainer(sources, tmp_path), step)
    assert not (tmp_path / "weights").exists()
    trainer = make_trainer(sources, tmp_path)
    trainer.train()
    assert_same_run(tmp_path, trainer, finished)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from rrl_match.training.datasets import read_source
from rrl_match.training.run_folder import RunFolder
from training_run import make_trainer

torch.set_num_threads(1)
original = RunFolder.write_checkpoint
def write_and_die(self, state):
    original(self, state)
    if state["done"] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.write_checkpoint = write_and_die
make_trainer([read_source(sys.argv[1])], Path(sys.argv[2])).train()
"""


def test_run_of_a_killed_process_resumes(images, sources, finished, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "helpers")}
    command = [sys.executable, "-c", KILLED, str(images), str(tmp_path)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    trainer = make_trainer(sources, tmp_path)
    trainer.train()
    assert_same_run(tmp_path, trainer, finished)


def test_finished_run_is_not_trained_again(sources, finished):
    trainer, out = finished
    before = read_log(out)
    again = make_trainer(sources, out)
    assert again.train() == out / "weights"
    assert read_log(out) == before
    assert again.done == trainer.done == 8


def test_log_has_every_term(finished):
    records = read_log(finished[1])
    heads = [f"metric_{k}" for k in (3, 4)] + [f"interaction_{k}" for k in (3, 4, 5)]
    reconstruction = [f"{term}_{band}" for term in ("pixel", "gradient") for band in "ab"]
    terms = {
        "pretraining": ["contrastive"],
        "training": ["match", *heads, *reconstruction, "contrastive"],
    }
    for phase, expected in terms.items():
        steps = [r for r in records if r["phase"] == phase]
        assert [r["step"] for r in steps] == ([1, 2, 3, 4] if phase == "pretraining" else [5, 6, 7, 8])
        for record in steps:
            assert set(record) == {"step", "phase", "seconds", "loss", *expected}
            assert record["loss"] == pytest.approx(sum(record[t] for t in expected), abs=1e-4)
    for label in ("validation", "validation_average"):
        by_source, mean = ([r for r in records if r["phase"] == name] for name in (f"{label}/images", label))
        assert [r["step"] for r in by_source] == [r["step"] for r in mean] == [6, 8]
        for one, both in zip(by_source, mean, strict=True):
            assert set(one) == {"step", "phase", "fpr95_random", "fpr95_near"}
            expected = (one["fpr95_random"] + one["fpr95_near"]) / 2
            assert both == {"step": one["step"], "phase": label, "fpr95": pytest.approx(expected, abs=1e-3)}


def test_curves_are_written_for_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert list(finished[1].glob("events.out.tfevents.*"))
    accumulator = EventAccumulator(str(finished[1]))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {
        "pretraining/loss",
        "training/match",
        "training/gradient_b",
        "validation/fpr95",
        "validation/images/fpr95_near",
    } <= set(tags)
    assert [e.step for e in accumulator.Scalars("training/loss")] == [5, 6, 7, 8]


def test_released_folder_loads(finished, patches_a, patches_b):
    trainer, out = finished
    matcher = RRLMatcher.from_pretrained(out / "weights", device="cpu", dtype="float32")
    assert matcher.modalities == ("vis", "nir")
    assert 0 <= matcher.threshold <= 1
    assert matcher.config.network == NETWORK
    assert matcher.config.training["best_step"] == trainer.best["step"]
    assert matcher.config.training["data"] == "images: 2 image pairs to train on, 2 held back"
    assert set(matcher.config.metrics["held_back_fpr95"]["images"]) == {"random", "near"}
    threshold = matcher.config.metrics["threshold_by_source"]["images"]
    assert threshold == pytest.approx(matcher.threshold, abs=1e-4)  # as there is one source
    scores = matcher.score(patches_a, patches_b)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert json.loads((out / "recipe.json").read_text()) == json.loads(RECIPE.to_json())


@pytest.mark.parametrize("change", ["recipe", "seed", "precision", "images"])
def test_folder_of_another_run_is_refused_and_left_alone(sources, finished, change):
    _, out = finished
    before = {name: (out / name).read_bytes() for name in ("recipe.json", "log.jsonl", "checkpoint.pt")}
    recipe = replace(RECIPE, label_smoothing=0.1) if change == "recipe" else RECIPE
    if change == "images":
        sources = [PairSource("images", sources[0].pairs[::-1])]
    precision = "bf16" if change == "precision" else "fp32"
    trainer = make_trainer(sources, out, recipe, seed=int(change == "seed"), precision=precision)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt is of a run with another {change}:"):
        trainer.train()
    assert {name: (out / name).read_bytes() for name in before} == before


def test_seed_changes_the_run(sources, finished, tmp_path):
    train_until(make_trainer(sources, tmp_path, seed=1), 1)
    assert curve(tmp_path)[0] != curve(finished[1])[0]


def one_step(sources, out, phase="training", **values):
    step = Phase(steps=1, batch_size=4, images_per_batch=2, learning_rate=1e-2, warmup=0)
    recipe = replace(RECIPE, training=step, pretraining=step if phase == "pretraining" else None, **values)
    trainer = make_trainer(sources, out, recipe)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    if phase == "pretraining":  # without the main phase
        train_until(trainer, 1)
    else:
        trainer.train()
    return {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("optimizer", ["adamw", "nadam"])
def test_a_step_changes_every_part(sources, tmp_path, optimizer):
    changed = one_step(sources, tmp_path, optimizer=optimizer)
    parts = {name.split(".")[1] if name.startswith("network") else name.split(".")[0] for name in changed}
    network = {"encoder_a", "encoder_b", "interactions", "metric", "descriptor_a", "descriptor_b"}
    assert parts == network | {"decoder_a", "decoder_b", "interaction_heads", "metric_heads"}
    assert "network.encoder_a.stages.0.unit.conv.weight" in changed


def test_a_run_without_decoders(sources, tmp_path):
    changed = one_step(sources, tmp_path, heads=TrainingConfig(decoders=False))
    assert changed
    assert not [name for name in changed if "decoder" in name]
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    terms = set().union(*(line for line in logged if line["phase"] == "training"))
    assert "match" in terms
    assert not {"pixel_a", "gradient_a", "pixel_b", "gradient_b"} & terms


def test_encoders_may_be_frozen_in_the_main_phase(sources, tmp_path):
    changed = one_step(sources, tmp_path, encoder_lr_scale=0.0)
    assert changed
    assert not [name for name in changed if "encoder_" in name]


def test_pretraining_changes_encoders_and_descriptors_alone(sources, tmp_path):
    changed = one_step(sources, tmp_path, phase="pretraining", encoder_lr_scale=0.0)
    assert {name.split(".")[1] for name in changed} == {"encoder_a", "encoder_b", "descriptor_a", "descriptor_b"}


def test_published_losses_and_random_negatives(sources, tmp_path):
    config = dataclasses.replace(NETWORK, descriptor_dim=0)
    recipe = replace(Recipe.load("published"), training=replace(RECIPE.training, steps=1), val_fraction=0.5)
    folder = make_trainer(sources, tmp_path, recipe, start=tiny_network(config)).train()
    assert "contrastive" not in read_log(tmp_path)[0]
    assert RRLMatcher.from_pretrained(folder, device="cpu").config.network == config


def test_loss_that_is_not_finite_stops_the_run(sources, tmp_path, monkeypatch):
    def diverged(self, model, batch, step, generator):
        return {"contrastive": model(batch.patches_a, batch.patches_b)[0].sum() * torch.inf}

    monkeypatch.setattr(Pretraining, "step", diverged)
    with pytest.raises(RRLMatchError, match=r"loss of step \d is not finite: .*contrastive"):
        make_trainer(sources, tmp_path).train()
    assert not (tmp_path / "checkpoint.pt").exists()


def fixed_scores(fpr95):
    """Scores of 20 matches and 10 negatives of each kind, with this FPR95 in tenths."""
    match, negatives = np.full(20, 0.5, np.float32), np.full(10, 0.1, np.float32)
    negatives[:fpr95] = 0.9
    return ValidationScores(match, negatives, negatives)


def test_best_weights_are_saved_not_the_last(sources, tmp_path, monkeypatch):
    """Validation follows steps 2 and 4 of the main phase; here the first result is the better one."""
    seen = []

    def score(self, network, dtype):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return fixed_scores(len(seen))

    monkeypatch.setattr(ValidationSet, "score", score)
    trainer = make_trainer(sources, tmp_path, replace(RECIPE, ema_decay=0.0, pretraining=None))
    released = load_folder(trainer.train())[0].state_dict()
    assert len(seen) == 3  # the last for the threshold
    assert trainer.best["step"] == 2
    first, last = (s["metric.head.2.weight"].half().float() for s in seen[:2])
    assert torch.equal(released["metric.head.2.weight"], first)
    assert not torch.equal(first, last)


def test_average_follows_the_weights(sources, tmp_path, monkeypatch):
    """With decay 0.5, each step adds half of the new weights to half of the average; the first step copies them."""
    trainer = make_trainer(sources, tmp_path, replace(RECIPE, pretraining=None))
    history, expected = [], None
    step = FullTraining.step

    def remember(self, *args):
        history.append(self.network.metric.head[2].weight.detach().clone())
        return step(self, *args)

    monkeypatch.setattr(FullTraining, "step", remember)
    trainer.train()
    for weight in [*history[1:], trainer.model.network.metric.head[2].weight.detach()]:
        expected = weight if expected is None else 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(trainer.average.module.metric.head[2].weight, expected)


class Archive:
    """A source that is no folder, and reads its pairs when they are asked for."""

    name, weight = "images", 1.0

    def __init__(self, pairs):
        self._pairs = pairs

    @property
    def pairs(self):
        return tuple(self._pairs)


def test_any_object_with_name_pairs_and_weight_is_a_source(sources, finished, tmp_path):
    train_until(make_trainer([Archive(sources[0].pairs)], tmp_path), 2)
    assert curve(tmp_path) == curve(finished[1])[:2]


@pytest.mark.parametrize("val_fraction", [0.5, 0.1])
def test_two_images_are_enough(sources, tmp_path, val_fraction):
    """One to train on and one to validate on, without negatives from another image."""
    two = [PairSource("images", sources[0].pairs[:2])]
    folder = make_trainer(two, tmp_path, replace(RECIPE, pretraining=None, val_fraction=val_fraction)).train()
    assert 0 <= RRLMatcher.from_pretrained(folder, device="cpu").threshold <= 1


def test_one_image_is_too_few(sources, tmp_path):
    with pytest.raises(DataError, match="images: training needs at least two image pairs"):
        make_trainer([PairSource("images", sources[0].pairs[:1])], tmp_path)


@pytest.mark.parametrize("pretraining", [RECIPE.pretraining, None])
def test_recipe_that_needs_descriptors_refuses_weights_without(sources, tmp_path, pretraining):
    start = tiny_network(dataclasses.replace(NETWORK, descriptor_dim=0))
    with pytest.raises(ValueError, match="descriptor"):
        make_trainer(sources, tmp_path, replace(RECIPE, pretraining=pretraining), start=start)


def test_recipe_decides_whether_patches_are_standardised(sources, tmp_path):
    start = tiny_network(NETWORK)
    trainer = make_trainer(sources, tmp_path, replace(RECIPE, standardise=True), start=start)
    network = trainer.model.network
    assert network.config == dataclasses.replace(NETWORK, standardise=True)
    assert all(torch.equal(v, start.state_dict()[k]) for k, v in network.state_dict().items())
    assert RRLMatcher.from_pretrained(trainer.train()).config.network.standardise


@pytest.mark.parametrize("option", [{"precision": "fp16"}, {"device": "gpu"}])
def test_unknown_option_is_an_error(sources, tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=name):
        make_trainer(sources, tmp_path, **option)


def test_one_process_may_train_in_one_precision_after_the_other(sources, tmp_path):
    recipe = replace(RECIPE, pretraining=None, training=replace(RECIPE.training, steps=1))
    for precision in ("fp32", "bf16"):
        folder = make_trainer(sources, tmp_path / precision, recipe, precision=precision).train()
        assert folder.is_dir()


def test_hard_negatives_grow_with_the_steps_of_the_main_phase(sources, tmp_path, monkeypatch):
    seen = []

    def mine(similarity, negative, hard_fraction, generator):
        seen.append(hard_fraction)
        return mine_pairs(similarity, negative, hard_fraction, generator)

    monkeypatch.setattr("rrl_match.training.phases.mine_pairs", mine)
    recipe = replace(RECIPE, pretraining=None, ema_decay=0.0, hard_negatives=(0.0, 0.6))
    make_trainer(sources, tmp_path, recipe).train()
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.6])


# Several sources


@pytest.fixture(scope="module")
def two_sources(sources, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("data") / "more", pairs=4, seed=50)
    return [*sources, read_source(f"{folder}=2")]


MIXED = replace(
    RECIPE,
    pretraining=None,
    training=replace(RECIPE.training, sources_per_batch=2),
    geometry=replace(RECIPE.geometry, shared_orientation=True),
    synthetic=SyntheticBands(probability_b=0.5, probability_a=0.3),
    align=True,
)


@pytest.fixture(scope="module")
def mixed(two_sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed")
    trainer = make_trainer(two_sources, out, MIXED)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer, out


def test_each_source_has_its_own_line_and_the_mean_counts(mixed):
    trainer, out = mixed
    records = [r for r in read_log(out) if r["phase"].startswith("validation") and r["step"] == 4]
    for label in ("validation", "validation_average"):
        by_source = {
            r["phase"]: (r["fpr95_random"] + r["fpr95_near"]) / 2 for r in records if f"{label}/" in r["phase"]
        }
        assert set(by_source) == {f"{label}/images", f"{label}/more"}
        (mean,) = (r["fpr95"] for r in records if r["phase"] == label)
        assert mean == pytest.approx(sum(by_source.values()) / 2, abs=1e-3)
    assert set(trainer.best["by_source"]) == {"images", "more"}
    config = RRLMatcher.from_pretrained(out / "weights", device="cpu").config
    assert config.training["data"] == "images, more: 4 image pairs to train on, 4 held back"
    assert set(config.metrics["held_back_fpr95"]) == set(config.metrics["threshold_by_source"]) == {"images", "more"}
    card = (out / "weights" / "README.md").read_text(encoding="utf-8")
    assert "- images: " in card
    assert "- more: " in card


def test_the_mean_over_sources_picks_the_weights(two_sources, tmp_path, monkeypatch):
    """After step 2, FPR95 is 10 and 50 %, after step 4, 40 and 10 %: the sum decides, not the first source."""
    results = {"images": [1, 4, 4], "more": [5, 1, 1]}
    monkeypatch.setattr(ValidationSet, "score", lambda self, *_: fixed_scores(results[self.name].pop(0)))
    trainer = make_trainer(two_sources, tmp_path, replace(MIXED, ema_decay=0.0, align=False))
    trainer.train()
    assert trainer.best["step"] == 4
    assert trainer.best["by_source"] == {"images": 40, "more": 10}
    assert trainer.best["fpr95"] == 25


def test_interrupted_run_of_several_sources_resumes_with_the_same_result(two_sources, mixed, tmp_path, monkeypatch):
    train_until(make_trainer(two_sources, tmp_path, MIXED), 3)
    monkeypatch.setattr("rrl_match.training.alignment.edge_move", None)  # not called: the matrices are in the cache
    trainer = make_trainer(two_sources, tmp_path, MIXED)
    trainer.train()
    assert_same_run(tmp_path, trainer, mixed)


def test_two_sources_of_one_name_are_refused(sources, tmp_path):
    with pytest.raises(ValueError, match="several sources are named images"):
        make_trainer([*sources, *sources], tmp_path)


def test_checkpoint_has_the_documented_keys(finished):
    """Runs in progress depend on these names."""
    state = torch.load(finished[1] / "checkpoint.pt", weights_only=True)
    assert set(state) == {
        *("phase", "done", "seconds", "recipe", "seed", "precision", "processes", "images"),
        *("model", "average", "optimizer", "schedule", "best"),
    }
    assert set(state["best"]) == {"fpr95", "by_source", "step", "network"}
    assert set(state["images"]) == {"train", "held_back"}
