"""Pairs of held-back images, which choose the checkpoint, and batch-norm statistics of averaged weights."""

import numpy as np
import pytest
import torch
from image_folder import image_pair, write_folder
from training_run import RECIPE, tiny_network

from rrl_match import DataError, RRLMatcher
from rrl_match.pretrained import ModelConfig
from rrl_match.training.batches import draw_batch
from rrl_match.training.datasets import PairSource, read_source
from rrl_match.training.norms import reestimate_norms
from rrl_match.training.sampling import PatchSampler
from rrl_match.training.validation import NEAR, ValidationScores, ValidationSet, balanced_threshold_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_source(write_folder(tmp_path_factory.mktemp("data") / "images", pairs=3, width=200, height=180))


def test_pairs_are_of_their_kind(source, monkeypatch):
    cut, seen = PatchSampler.cut, []

    def watched(self, image, centre):
        seen.append((image, centre))
        return cut(self, image, centre)

    monkeypatch.setattr(PatchSampler, "cut", watched)
    validation = ValidationSet(source, 64, CPU, locations=18, negatives=3)
    ((image, centre),) = seen
    assert validation.name == "images"
    assert len(validation.patches_a) == len(validation.patches_b) == len(image)
    assert image.bincount().max() <= 6
    rows = {kind: p.unbind(1) for kind, p in validation.pairs.items()}
    assert rows["match"][0].tolist() == rows["match"][1].tolist() == list(range(len(image)))
    a, b = rows["random"]
    assert (image[a] != image[b]).all()
    assert a.bincount().tolist() == [3] * len(image)
    a, b = rows["near"]
    assert len(a)
    assert (image[a] == image[b]).all()
    assert ((centre[a] - centre[b]).norm(dim=1) >= NEAR).all()
    for p in validation.pairs.values():
        assert len(p.unique(dim=0)) == len(p)


@pytest.mark.parametrize(("locations", "most"), [(3, 2), (1, 2), (9, 3)])
def test_locations_are_spread_over_the_images(source, locations, most):
    """At least two of each image, so that there are 'near' pairs."""
    validation = ValidationSet(source, 64, CPU, locations=locations)
    assert len(validation.patches_a) == 3 * most


def test_set_is_the_same_every_time(source):
    first, again = (ValidationSet(source, 64, CPU, locations=12) for _ in range(2))
    assert torch.equal(first.patches_a, again.patches_a)
    assert all(torch.equal(pairs, again.pairs[kind]) for kind, pairs in first.pairs.items())


def test_scores_are_those_that_users_get(source):
    validation = ValidationSet(source, 64, CPU, locations=9)
    network = tiny_network().eval()
    scores = validation.score(network, torch.float32)
    matcher = RRLMatcher(network, ModelConfig(("a", "b"), network=network.config), device="cpu", dtype="float32")
    for kind, pairs in validation.pairs.items():
        expected = matcher.score(validation.patches_a[pairs[:, 0]], validation.patches_b[pairs[:, 1]])
        np.testing.assert_allclose(getattr(scores, kind), expected, rtol=0, atol=1e-4)


def test_one_image_with_one_location_is_too_few():
    dot = np.full((120, 120), 90, np.uint8)
    dot[60, 60] = 255
    with pytest.raises(DataError, match="road: the held-back images have too few locations"):
        ValidationSet(PairSource("road", [image_pair(dot, dot)]), 64, CPU)


def test_scores_are_divided_by_kind():
    scores = ValidationScores(
        np.linspace(0.5, 1, 100, dtype=np.float32), np.zeros(50, np.float32), np.full(50, 0.9, np.float32)
    )
    assert scores.fpr95() == {"random": 0, "near": 100}
    one_image = ValidationScores(scores.match, np.empty(0, np.float32), scores.near)
    assert one_image.kinds() == ["near"]
    assert one_image.fpr95() == {"near": 100}


def test_threshold_is_balanced_over_all_sources_and_kinds():
    """Each source alone would have another threshold; together, it lies between 0.4 and 0.6."""

    def scores(match, random, near):
        return ValidationScores(*(np.array(part, np.float32) for part in (match, random, near)))

    first, second = scores([0.9, 0.6], [0.1], [0.2]), scores([0.8, 0.7], [0.4], [])
    assert balanced_threshold_of([first]) == pytest.approx(0.4)
    assert balanced_threshold_of([second]) == pytest.approx(0.55)
    assert balanced_threshold_of([first, second]) == pytest.approx(0.5)
    assert balanced_threshold_of({"x": first, "y": second}.values()) == pytest.approx(0.5)


def test_reestimated_norms_are_those_of_training_batches(source):
    """The plain mean over the batches, whatever the statistics were before."""
    sampler = PatchSampler([source], 64, CPU)
    networks = [tiny_network(), tiny_network()]
    with torch.no_grad():
        for value in networks[1].buffers():
            if value.is_floating_point():
                value.fill_(7.0)
    for network in networks:
        reestimate_norms(network, sampler, RECIPE, torch.float32, batches=3)
        assert not network.training
    for (name, value), other in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(value, other), name
    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    inputs = [draw_batch(sampler, RECIPE, RECIPE.training, generator).patches_a for generator in generators]
    unit = networks[0].encoder_a.stages[0].unit
    with torch.no_grad():
        means = torch.stack([unit.conv(patches).mean((0, 2, 3)) for patches in inputs])
    torch.testing.assert_close(unit.norm.running_mean, means.mean(0))
