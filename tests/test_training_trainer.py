import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from image_folder import write_folder
from training_run import NETWORK, RECIPE, make_trainer, replace, tiny_network

from rrl_match import DataError, RRLMatcher, RRLMatchError
from rrl_match.modeling import RRLNetConfig
from rrl_match.pretrained import load_folder
from rrl_match.training.datasets import read_pairs
from rrl_match.training.mining import mine_pairs
from rrl_match.training.recipe import Phase, Recipe
from rrl_match.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for a whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures"), pairs=4)


@pytest.fixture(scope="module")
def pairs(pictures):
    return read_pairs(pictures)


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory):
    """A run that nothing interrupted: its trainer and its folder."""
    out = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(pairs, out)
    trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer, out


def read_log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def curve(out):
    """The log without the time that steps took."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(out)]


def assert_same_run(out, trainer, finished):
    assert curve(out) == curve(finished[1])
    for name, value in finished[0].model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    weights = [(folder / "weights" / "model.safetensors").read_bytes() for folder in (out, finished[1])]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_interrupted_run_goes_on_as_if_it_had_not_been(pairs, finished, tmp_path, monkeypatch, step):
    """Before the first checkpoint, and in pretraining, at the start and in the midst of the main phase."""
    with monkeypatch.context() as patch:
        for name in ("_pretraining_step", "_training_step"):
            original = getattr(Trainer, name)

            def interrupted(self, *args, original=original):
                if self.done == step:
                    raise KeyboardInterrupt
                return original(self, *args)

            patch.setattr(Trainer, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(pairs, tmp_path).train()
    assert not (tmp_path / "weights").exists()
    trainer = make_trainer(pairs, tmp_path)
    trainer.train()
    assert_same_run(tmp_path, trainer, finished)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from rrl_match.training.datasets import read_pairs
from rrl_match.training.trainer import Trainer
from training_run import make_trainer

torch.set_num_threads(1)
original = Trainer._write_checkpoint
def write_and_die(self, *args):
    original(self, *args)
    if self.done == 6:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer._write_checkpoint = write_and_die
make_trainer(read_pairs(sys.argv[1]), Path(sys.argv[2])).train()
"""


@pytest.mark.slow
def test_killed_process_leaves_a_run_that_goes_on(pictures, pairs, finished, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "helpers")}
    command = [sys.executable, "-c", KILLED, str(pictures), str(tmp_path)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    trainer = make_trainer(pairs, tmp_path)
    trainer.train()
    assert_same_run(tmp_path, trainer, finished)


def test_finished_run_is_not_trained_again(pairs, finished):
    trainer, out = finished
    before = read_log(out)
    again = make_trainer(pairs, out)
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
    validations = [r for r in records if r["phase"] == "validation"]
    assert [r["step"] for r in validations] == [6, 8]
    assert all(0 <= r[f"fpr95_{kind}"] <= 100 for r in validations for kind in ("random", "near"))


def test_curves_are_written_for_tensorboard(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert list(finished[1].glob("events.out.tfevents.*"))
    accumulator = EventAccumulator(str(finished[1]))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {"pretraining/loss", "training/match", "training/gradient_b", "validation/fpr95_near"} <= set(tags)
    assert [e.step for e in accumulator.Scalars("training/loss")] == [5, 6, 7, 8]


def test_released_folder_loads(finished, patches_a, patches_b):
    trainer, out = finished
    matcher = RRLMatcher.from_pretrained(out / "weights", device="cpu", dtype="float32")
    assert matcher.modalities == ("vis", "nir")
    assert 0 <= matcher.threshold <= 1
    assert matcher.config.network == NETWORK
    assert matcher.config.training["best_step"] == trainer.best["step"]
    assert set(matcher.config.metrics["held_back_fpr95"]) == {"random", "near"}
    scores = matcher.score(patches_a, patches_b)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert json.loads((out / "recipe.json").read_text()) == json.loads(RECIPE.to_json())


@pytest.mark.parametrize("change", ["recipe", "seed", "precision", "pictures"])
def test_folder_of_another_run_is_refused_and_left_alone(pairs, finished, change):
    _, out = finished
    before = {name: (out / name).read_bytes() for name in ("recipe.json", "log.jsonl", "checkpoint.pt")}
    recipe = replace(RECIPE, label_smoothing=0.1) if change == "recipe" else RECIPE
    pairs = pairs[::-1] if change == "pictures" else pairs
    precision = "bf16" if change == "precision" else "fp32"
    trainer = make_trainer(pairs, out, recipe, seed=int(change == "seed"), precision=precision)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt is of a run with another {change}:"):
        trainer.train()
    assert {name: (out / name).read_bytes() for name in before} == before


def test_seed_and_recipe_decide_what_comes_out(pairs, finished, tmp_path):
    other = make_trainer(pairs, tmp_path, seed=1)
    other.train()
    assert curve(tmp_path)[0] != curve(finished[1])[0]


def one_step(pairs, out, phase="training", **values):
    step = Phase(steps=1, places=4, pictures=2, learning_rate=1e-2, warmup=0)
    recipe = replace(RECIPE, training=step, pretraining=step if phase == "pretraining" else None, **values)
    trainer = make_trainer(pairs, out, recipe)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    if phase == "pretraining":  # the main phase would follow
        trainer.phases = trainer.phases[:1]
        trainer._release = lambda: None
    trainer.train()
    return {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("optimizer", ["adamw", "nadam"])
def test_a_step_changes_every_part(pairs, tmp_path, optimizer):
    changed = one_step(pairs, tmp_path, optimizer=optimizer)
    parts = {name.split(".")[1] if name.startswith("network") else name.split(".")[0] for name in changed}
    network = {"encoder_a", "encoder_b", "interactions", "metric", "descriptor_a", "descriptor_b"}
    assert parts == network | {"decoder_a", "decoder_b", "interaction_heads", "metric_heads"}
    assert "network.encoder_a.stages.0.unit.conv.weight" in changed


def test_encoders_may_be_frozen_in_the_main_phase(pairs, tmp_path):
    changed = one_step(pairs, tmp_path, encoder_learning_rate=0.0)
    assert changed
    assert not [name for name in changed if "encoder_" in name]


def test_pretraining_changes_encoders_and_descriptors_alone(pairs, tmp_path):
    changed = one_step(pairs, tmp_path, phase="pretraining", encoder_learning_rate=0.0)
    assert {name.split(".")[1] for name in changed} == {"encoder_a", "encoder_b", "descriptor_a", "descriptor_b"}


def test_published_losses_and_random_negatives(pairs, tmp_path):
    config = dataclasses.replace(NETWORK, descriptor_dim=0)
    training = replace(RECIPE.training, steps=1)
    recipe = Recipe.load("published")
    recipe = replace(recipe, training=training, held_back=2)
    folder = make_trainer(pairs, tmp_path, recipe, start=tiny_network(config)).train()
    assert "contrastive" not in read_log(tmp_path)[0]
    assert RRLMatcher.from_pretrained(folder, device="cpu").config.network == config


def test_loss_that_is_not_finite_stops_the_run(pairs, tmp_path, monkeypatch):
    def diverged(self, model, batch, generator):
        return {"contrastive": model(*self._patches(batch, generator))[0].sum() * torch.inf}

    monkeypatch.setattr(Trainer, "_pretraining_step", diverged)
    with pytest.raises(RRLMatchError, match=r"loss of step \d is not finite: .*contrastive"):
        make_trainer(pairs, tmp_path).train()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_best_weights_are_released_not_the_last(pairs, tmp_path, monkeypatch):
    """Validations come after steps 2 and 4 of the main phase; here the first is the better one."""
    seen = []

    def score(self, writer, label, network):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        scores.append(original(trainer.validation, network, torch.float32))
        monkeypatch.setattr(trainer.validation, "score", lambda *args: scores[-1])
        monkeypatch.setattr(type(scores[-1]), "fpr95", lambda self, kind: 10.0 * len(seen))
        hold(self, writer, label, network)

    scores = []
    trainer = make_trainer(pairs, tmp_path, replace(RECIPE, ema_decay=0.0, pretraining=None))
    original, hold = type(trainer.validation).score, Trainer._score_held_back
    monkeypatch.setattr(Trainer, "_score_held_back", score)
    folder = trainer.train()
    assert len(seen) == 2
    released = load_folder(folder)[0].state_dict()
    first, last = (s["metric.head.2.weight"].half().float() for s in seen)
    assert torch.equal(released["metric.head.2.weight"], first)
    assert not torch.equal(first, last)


def test_average_follows_the_weights(pairs, tmp_path, monkeypatch):
    """Of decay 0.5: after each step, half the old average and half the new weights; the first step copies."""
    trainer = make_trainer(pairs, tmp_path, replace(RECIPE, pretraining=None))
    history, expected = [], None
    checked = Trainer._checked

    def remember(self, loss, terms):
        history.append(self.model.network.metric.head[2].weight.detach().clone())
        return checked(self, loss, terms)

    monkeypatch.setattr(Trainer, "_checked", remember)
    trainer.train()
    for weight in [*history[1:], trainer.model.network.metric.head[2].weight.detach()]:
        expected = weight if expected is None else 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(trainer.average.module.metric.head[2].weight, expected)


@pytest.mark.parametrize("held_back", [2, 8])
def test_two_pictures_are_enough(pairs, tmp_path, held_back):
    """One to train on, and one to validate on, whose patches have no other picture to be told from."""
    folder = make_trainer(pairs[:2], tmp_path, replace(RECIPE, pretraining=None, held_back=held_back)).train()
    assert 0 <= RRLMatcher.from_pretrained(folder, device="cpu").threshold <= 1


def test_one_picture_is_too_few(pairs, tmp_path):
    with pytest.raises(DataError, match="two picture pairs"):
        make_trainer(pairs[:1], tmp_path)


@pytest.mark.parametrize("pretraining", [RECIPE.pretraining, None])
def test_recipe_that_needs_descriptors_refuses_weights_without(pairs, tmp_path, pretraining):
    start = tiny_network(dataclasses.replace(NETWORK, descriptor_dim=0))
    with pytest.raises(ValueError, match="descriptor"):
        make_trainer(pairs, tmp_path, replace(RECIPE, pretraining=pretraining), start=start)


def test_recipe_decides_whether_patches_are_standardised(pairs, tmp_path):
    start = tiny_network(NETWORK)
    trainer = make_trainer(pairs, tmp_path, replace(RECIPE, standardise=True), start=start)
    network = trainer.model.network
    assert network.config == dataclasses.replace(NETWORK, standardise=True)
    assert all(torch.equal(v, start.state_dict()[k]) for k, v in network.state_dict().items())
    assert RRLMatcher.from_pretrained(trainer.train()).config.network.standardise


@pytest.mark.parametrize("option", [{"precision": "fp16"}, {"device": "gpu"}])
def test_unknown_option_is_an_error(pairs, tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=name):
        make_trainer(pairs, tmp_path, **option)


def test_one_process_may_train_in_one_precision_after_the_other(pairs, tmp_path):
    recipe = replace(RECIPE, pretraining=None, training=replace(RECIPE.training, steps=1))
    for precision in ("fp32", "bf16"):
        folder = make_trainer(pairs, tmp_path / precision, recipe, precision=precision).train()
        assert folder.is_dir()


# Recipes


@pytest.mark.parametrize("name", ["published", "vis-nir", "vis-lwir", "optical-sar"])
def test_recipes_of_the_package_load(name, tmp_path):
    recipe = Recipe.load(name)
    assert recipe.modalities == tuple(["vis", "nir"] if name == "published" else name.split("-"))
    (tmp_path / "own.json").write_text(recipe.to_json(), encoding="utf-8")
    assert Recipe.load(tmp_path / "own.json") == recipe


def test_share_of_hard_negatives_grows_from_the_first_to_the_last_step():
    steps = RECIPE.training.steps
    recipe = replace(RECIPE, hard_negatives=(0.2, 0.8))
    shares = [recipe.hard_share(step) for step in range(steps)]
    assert shares == pytest.approx([0.2 + 0.6 * k / (steps - 1) for k in range(steps)])
    assert recipe.hard_share(steps) == pytest.approx(0.8)  # after the last step, when the norms are settled


def test_a_run_mines_by_the_step_of_the_whole_graph(pairs, tmp_path, monkeypatch):
    seen = []

    def mine(similarity, negative, hard_share, generator):
        seen.append(hard_share)
        return mine_pairs(similarity, negative, hard_share, generator)

    monkeypatch.setattr("rrl_match.training.trainer.mine_pairs", mine)
    make_trainer(pairs, tmp_path, replace(RECIPE, ema_decay=0.0, hard_negatives=(0.0, 0.6))).train()
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_published_recipe_is_the_published_one():
    recipe = Recipe.load("published")
    assert recipe.optimizer == "nadam"
    assert recipe.training.learning_rate == 2e-4
    assert recipe.pretraining is None
    assert recipe.hard_negatives == (0, 0)
    assert recipe.losses.metric_stages == recipe.losses.interaction == 1
    assert recipe.losses.pixel == 0.1
    assert recipe.descriptor_dim == RRLNetConfig().descriptor_dim == 0


MINIMAL = {
    "modalities": ["a", "b"],
    "summary": "",
    "training": {"steps": 1, "places": 2, "pictures": 2, "learning_rate": 1e-3},
}


def test_minimal_recipe_loads(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(MINIMAL))
    assert Recipe.load(str(tmp_path / "own.json")).training.warmup == 100


@pytest.mark.parametrize("name", ["nothing", "nothing.json", "../recipe", ""])
def test_unknown_recipe_is_named_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"no recipe .*optical-sar, published, vis-lwir, vis-nir"):
        Recipe.load(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"vis-nir"',
        json.dumps({k: v for k, v in MINIMAL.items() if k != "modalities"}),
        json.dumps({k: v for k, v in MINIMAL.items() if k != "training"}),
        json.dumps(MINIMAL | {"training": None}),
        json.dumps(MINIMAL | {"training": 3}),
        json.dumps(MINIMAL | {"training": {"steps": 1}}),
        json.dumps(MINIMAL | {"learning_rat": 1}),
        json.dumps(MINIMAL | {"geometry": {"zooom": 2}}),
        json.dumps(MINIMAL | {"optimizer": "sgd"}),
        json.dumps(MINIMAL | {"hard_negatives": [0, 0.5]}),
        json.dumps(MINIMAL | {"modalities": ["vis"]}),
        json.dumps(MINIMAL | {"modalities": "ab"}),
    ],
)
def test_unusable_recipe_is_named(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ValueError, match=r"own\.json"):
        Recipe.load(tmp_path / "own.json")


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd"},
        {"descriptor_dim": 0},
        {"modalities": ("vis",)},
        {"hard_negatives": 0.5},
        {"hard_negatives": (0.0, 1.5)},
        {"training": Phase(steps=0, places=4, pictures=2, learning_rate=1e-3)},
        {"training": Phase(steps=4, places=0, pictures=2, learning_rate=1e-3)},
    ],
)
def test_recipe_that_cannot_be_trained_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        replace(RECIPE, **values)
