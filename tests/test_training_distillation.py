"""A small network that learns from a trained one."""

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from image_folder import write_folder
from networks import spread_network
from training_run import NETWORK, RECIPE, make_trainer, replace

from rrl_match import RRLMatcher
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.training.batches import TrainingBatch
from rrl_match.training.datasets import read_source
from rrl_match.training.distillation import Distillation, StudentGraph, soft_score_loss
from rrl_match.training.recipe import LossWeights

pytestmark = pytest.mark.usefixtures("one_thread")

STUDENT = RRLNetConfig(
    encoder_channels=(4, 8, 8), metric_channels=(4, 8, 8), hidden=(8,), descriptor_dim=8, unshuffle=4
)
LITE = replace(RECIPE, network=STUDENT, losses=LossWeights(contrastive=0.5, teacher=1.0, teacher_descriptors=0.5))


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for a whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return [read_source(write_folder(tmp_path_factory.mktemp("data") / "images", pairs=4))]


def noise(n, seed):
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teacher():
    return spread_network(NETWORK, noise(16, 0), noise(16, 1))


def test_loss_is_lowest_at_the_teachers_scores():
    scores = torch.tensor([0.001, 0.3, 0.999])
    own = torch.logit(scores)
    at_teacher = soft_score_loss(own, scores)
    for shift in (-0.5, 0.5):
        assert soft_score_loss(own + shift, scores) > at_teacher
    even = soft_score_loss(torch.zeros(1), torch.tensor([0.5]))
    assert even.item() == pytest.approx(4 * math.log(2))  # the square of the temperature keeps gradients comparable


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_saturated_scores_give_a_finite_loss(score):
    assert torch.isfinite(soft_score_loss(torch.tensor([30.0, -30.0]), torch.full((2,), score)))


def test_student_comes_closer_to_its_teacher(teacher):
    torch.manual_seed(0)
    model = StudentGraph(RRLNet(STUDENT)).train()
    recipe = replace(LITE, training=replace(LITE.training, learning_rate=1e-2))
    phase = Distillation(recipe, recipe.training, model, teacher, torch.float32)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    batch = TrainingBatch(noise(12, 2), noise(12, 3), ~torch.eye(12, dtype=torch.bool))
    optimizer, history = phase.optimizer(), []
    for _ in range(40):
        terms = phase.step(model, batch, 0, torch.Generator().manual_seed(0))
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: term.item() for name, term in terms.items()})
    assert set(history[0]) == {"match", "teacher", "teacher_descriptors", "contrastive"}
    assert history[-1]["teacher"] < 0.95 * history[0]["teacher"]  # bounded below by the entropy of the soft scores
    assert history[-1]["teacher_descriptors"] < 0.8 * history[0]["teacher_descriptors"]
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_every_location_is_in_three_pairs(teacher):
    phase = Distillation(LITE, LITE.training, StudentGraph(RRLNet(STUDENT)), teacher, torch.float32)
    descriptors = torch.nn.functional.normalize(torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    negative = ~torch.eye(9, dtype=torch.bool)
    rows_a, rows_b = phase._pairs((descriptors[0], descriptors[1]), negative, torch.Generator().manual_seed(0)).unbind(
        1
    )
    assert rows_a[:9].tolist() == rows_b[:9].tolist() == list(range(9))
    assert len(rows_a) == 27
    assert negative[rows_a[9:], rows_b[9:]].all()


def test_run_ends_with_weights_of_the_recipes_shape(sources, teacher, tmp_path, patches_a, patches_b):
    folder = make_trainer(sources, tmp_path, LITE, start=None, teacher=teacher).train()
    matcher = RRLMatcher.from_pretrained(folder, device="cpu", dtype="float32")
    assert matcher.config.network == STUDENT
    assert ((matcher.score(patches_a, patches_b) >= 0) & (matcher.score(patches_a, patches_b) <= 1)).all()
    phases = {json.loads(line)["phase"] for line in (tmp_path / "log.jsonl").read_text().splitlines()}
    assert {"pretraining", "distillation", "validation"} <= phases


def test_interrupted_run_gives_the_same_weights(sources, teacher, tmp_path):
    whole = make_trainer(sources, tmp_path / "whole", LITE, start=None, teacher=teacher).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = make_trainer(sources, tmp_path / "parts", LITE, start=None, teacher=teacher)
    write, trainer_phases = trainer._write_checkpoint, trainer.phases
    assert [phase.name for phase in trainer_phases] == ["pretraining", "distillation"]

    class Interrupted(Exception):
        pass

    def interrupt(*args):
        write(*args)
        if trainer.done == 6:
            raise Interrupted

    trainer._write_checkpoint = interrupt
    with pytest.raises(Interrupted):
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    parts = make_trainer(sources, tmp_path / "parts", LITE, start=None, teacher=teacher).train()
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_teacher_and_recipe_go_together(sources, teacher, tmp_path):
    with pytest.raises(ValueError, match=r"teacher.*losses\.teacher"):
        make_trainer(sources, tmp_path, LITE, start=None)
    with pytest.raises(ValueError, match=r"teacher.*losses\.teacher"):
        make_trainer(sources, tmp_path, RECIPE, teacher=teacher)


def test_teacher_must_have_descriptors_of_the_students_length(sources, tmp_path):
    other = RRLNet(replace(NETWORK, descriptor_dim=4))
    with pytest.raises(ValueError, match=r"teacher.*descriptors of length 4.* 8"):
        make_trainer(sources, tmp_path, LITE, start=None, teacher=other)
