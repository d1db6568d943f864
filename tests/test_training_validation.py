"""What checkpoints are chosen by: pairs of held-back pictures, and the norms of averaged weights."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from image_folder import write_folder
from training_run import RECIPE, make_trainer, replace, tiny_network

from rrl_match.training.datasets import PatchSampler, read_pairs
from rrl_match.training.validation import NEAR, ValidationScores, ValidationSet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return read_pairs(write_folder(tmp_path_factory.mktemp("pictures"), pairs=3, width=200, height=180))


def test_pairs_are_what_their_kind_says(pairs):
    sampler = PatchSampler(pairs, 64, torch.device("cpu"))
    cut, seen = sampler.cut, []

    def watched(picture, centre):
        seen.append((picture, centre))
        return cut(picture, centre)

    sampler.cut = watched
    validation = ValidationSet(sampler, places=6, negatives=3)
    ((picture, centre),) = seen
    assert len(validation.patches_a) == len(validation.patches_b) == len(picture)
    rows = {kind: p.unbind(1) for kind, p in validation.pairs.items()}
    assert rows["match"][0].tolist() == rows["match"][1].tolist() == list(range(len(picture)))
    a, b = rows["random"]
    assert (picture[a] != picture[b]).all()
    assert a.bincount().tolist() == [3] * len(picture)
    a, b = rows["near"]
    assert len(a)
    assert (picture[a] == picture[b]).all()
    assert ((centre[a] - centre[b]).norm(dim=1) >= NEAR).all()
    for p in validation.pairs.values():
        assert len(p.unique(dim=0)) == len(p)


def test_scores_are_told_apart_by_kind():
    scores = ValidationScores(
        np.linspace(0.5, 1, 100, dtype=np.float32), np.zeros(50, np.float32), np.full(50, 0.9, np.float32)
    )
    assert scores.fpr95("random") == 0
    assert scores.fpr95("near") == 100
    assert ValidationScores(*scores[:2], np.empty(0, np.float32)).kinds() == ["random"]


def test_settled_norms_are_those_of_training_batches(pairs, tmp_path):
    """The plain mean over these, whatever they were before."""
    trainer = make_trainer(pairs, tmp_path, replace(RECIPE, pretraining=None))
    networks = [tiny_network(), tiny_network()]
    with torch.no_grad():
        for value in networks[1].buffers():
            if value.is_floating_point():
                value.fill_(7.0)
    for network in networks:
        trainer._settle_norms(network, batches=3)
        assert not network.training
    for (name, value), other in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(value, other), name
    inputs = []
    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    for generator in generators:
        batch = trainer.sampler.draw(RECIPE.training.places, RECIPE.training.pictures, RECIPE.geometry, generator)
        inputs.append(trainer._patches(batch, generator)[0])
    unit = networks[0].encoder_a.stages[0].unit
    with torch.no_grad():
        means = torch.stack([unit.conv(patches).mean((0, 2, 3)) for patches in inputs])
    torch.testing.assert_close(unit.norm.running_mean, means.mean(0))
    AcceleratorState._reset_state(reset_partial_state=True)
