import json
import math

import numpy as np
import pytest
import torch
from baselines import BASELINES, HardNet, TwoChannel, evaluate_baseline, main, train_baseline
from image_folder import write_folder
from training_run import RECIPE

from rrl_match.training.datasets import read_source
from rrl_match.training.evaluation import Benchmark
from rrl_match.training.recipe import Phase

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH_SIZE, IMAGES = 16, 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), pairs=IMAGES)


def test_published_sizes():
    assert sum(p.numel() for p in HardNet().parameters()) == 1_334_560
    patches = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert TwoChannel()(patches, patches).shape == (3,)
    assert HardNet().eval()(patches).norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_hardest_negative_by_hand(monkeypatch):
    angles = {"a": [0.0, 90.0, 180.0], "b": [0.0, 60.0, 170.0]}
    a, b = (torch.tensor([(math.cos(math.radians(t)), math.sin(math.radians(t))) for t in angles[k]]) for k in "ab")
    baseline = HardNet()
    monkeypatch.setattr(HardNet, "forward", lambda self, patches: torch.cat([a, b]))
    negative = ~torch.eye(3, dtype=torch.bool)
    negative[0, 1] = negative[1, 0] = False  # too near each other to serve
    empty = torch.empty(3, 1, 64, 64)
    chord = lambda degrees: 2 * math.sin(math.radians(degrees) / 2)  # noqa: E731
    expected = [1 + chord(0) - chord(170), 1 + chord(30) - chord(80), 1 + chord(10) - chord(80)]
    expected = sum(max(0, e) for e in expected) / 3
    assert baseline.loss(empty, empty, negative, torch.Generator()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_seed_decides_what_comes_out(images, name):
    sources, phase = [read_source(images)], Phase(3, BATCH_SIZE, IMAGES, 1e-3)
    first, again, other = (train_baseline(name, sources, RECIPE, phase, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", BASELINES)
def test_overfits_one_batch(patches_a, patches_b, name):
    a, b = (torch.from_numpy(p)[:8, None] / 255 for p in (patches_a, patches_b))
    torch.manual_seed(0)
    baseline = BASELINES[name]().train()
    negative = ~torch.eye(8, dtype=torch.bool)
    optimizer = torch.optim.AdamW(baseline.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = baseline.loss(a, b, negative, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_script_prints_metrics(tmp_path, images, benchmark_file, capsys):
    options = ["--steps", 1, "--batch-size", 4, "--images-per-batch", 2, "--save", tmp_path / "metrics.json"]
    arguments = ["hardnet", "--data", images, "--benchmark", benchmark_file, "--device", "cpu", *options]
    main([str(argument) for argument in arguments])
    assert "hardnet on locations.npz" in capsys.readouterr().out
    assert 0 <= json.loads((tmp_path / "metrics.json").read_text())["random"]["mean"]["FPR95"] <= 100


def test_scores_are_those_of_the_pairs(patches_a, patches_b):
    pairs = np.array([(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)], np.int32)
    kind = np.array(["match"] * 3 + ["random"] * 3)
    given = Benchmark(patches_a, patches_a, np.array(["x"] * len(patches_a)), pairs, kind)
    assert (
        evaluate_baseline(HardNet().eval(), given)["random"]["mean"]["FPR95"] == 0
    )  # a patch is most similar to itself


def test_unknown_baseline(images):
    with pytest.raises(ValueError, match="2-channel, hardnet"):
        train_baseline("siamese", [read_source(images)], RECIPE, Phase(1, 2, 2, 1e-3))
