import json
import math

import numpy as np
import pytest
import torch
import typer.testing
from image_folder import write_folder
from training_run import RECIPE

from rrl_match.training.__main__ import app
from rrl_match.training.datasets import read_pairs
from rrl_match.training.evaluation import Benchmark
from rrl_match.training.recipe import Phase
from rrl_match.training.rivals import RIVALS, HardNet, TwoChannel, evaluate_rival, train_rival

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES, PICTURES = 16, 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures"), pairs=PICTURES)


def test_published_sizes():
    assert sum(p.numel() for p in HardNet().parameters()) == 1_334_560
    patches = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert TwoChannel()(patches, patches).shape == (3,)
    assert HardNet().eval()(patches).norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_hardest_negative_by_hand(monkeypatch):
    angles = {"a": [0.0, 90.0, 180.0], "b": [0.0, 60.0, 170.0]}
    a, b = (torch.tensor([(math.cos(math.radians(t)), math.sin(math.radians(t))) for t in angles[k]]) for k in "ab")
    rival = HardNet()
    monkeypatch.setattr(HardNet, "forward", lambda self, patches: torch.cat([a, b]))
    negative = ~torch.eye(3, dtype=torch.bool)
    negative[0, 1] = negative[1, 0] = False  # too near each other to serve
    empty = torch.empty(3, 1, 64, 64)
    chord = lambda degrees: 2 * math.sin(math.radians(degrees) / 2)  # noqa: E731
    expected = [1 + chord(0) - chord(170), 1 + chord(30) - chord(80), 1 + chord(10) - chord(80)]
    expected = sum(max(0, e) for e in expected) / 3
    assert rival.loss(empty, empty, negative, torch.Generator()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RIVALS)
def test_seed_decides_what_comes_out(pictures, name):
    pairs, phase = read_pairs(pictures), Phase(3, PLACES, PICTURES, 1e-3)
    first, again, other = (train_rival(name, pairs, RECIPE, phase, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", RIVALS)
def test_overfits_one_batch(patches_a, patches_b, name):
    a, b = (torch.from_numpy(p)[:8, None] / 255 for p in (patches_a, patches_b))
    torch.manual_seed(0)
    rival = RIVALS[name]().train()
    negative = ~torch.eye(8, dtype=torch.bool)
    optimizer = torch.optim.AdamW(rival.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = rival.loss(a, b, negative, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_command_prints_figures(tmp_path, pictures, benchmark_file):
    options = ["--steps", 1, "--places", 4, "--pictures", 2, "--save", tmp_path / "figures.json"]
    arguments = ["rival", "hardnet", "--data", pictures, "--benchmark", benchmark_file, *options]
    result = typer.testing.CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "hardnet on places.npz" in result.output
    assert 0 <= json.loads((tmp_path / "figures.json").read_text())["random"]["mean"]["FPR95"] <= 100


def test_scores_are_those_of_the_pairs(patches_a, patches_b):
    pairs = np.array([(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)], np.int32)
    kind = np.array(["match"] * 3 + ["random"] * 3)
    given = Benchmark(patches_a, patches_a, np.array(["x"] * len(patches_a)), pairs, kind)
    assert evaluate_rival(HardNet().eval(), given)["random"]["mean"]["FPR95"] == 0  # a patch is most like itself


def test_unknown_rival(pictures):
    with pytest.raises(ValueError, match="2-channel, hardnet"):
        train_rival("siamese", read_pairs(pictures), RECIPE, Phase(1, 2, 2, 1e-3))
