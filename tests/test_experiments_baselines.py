import json
import math
import shutil

import cv2
import numpy as np
import pytest
import torch
from baselines import TRAINED, HardNet, Sift, TwoChannel, evaluate_baseline, main, train_baseline
from image_folder import write_folder
from networks import make_patches
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
    negative[0, 1] = negative[1, 0] = False  # too near each other to be negatives
    empty = torch.empty(3, 1, 64, 64)
    chord = lambda degrees: 2 * math.sin(math.radians(degrees) / 2)  # noqa: E731
    expected = [1 + chord(0) - chord(170), 1 + chord(30) - chord(80), 1 + chord(10) - chord(80)]
    expected = sum(max(0, e) for e in expected) / 3
    assert baseline.loss(empty, empty, negative, torch.Generator()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_seed_determines_the_weights(images, name):
    sources, phase = [read_source(images)], Phase(3, BATCH_SIZE, IMAGES, 1e-3)
    first, again, other = (train_baseline(name, sources, RECIPE, phase, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", TRAINED)
def test_overfits_one_batch(patches_a, patches_b, name):
    a, b = (torch.from_numpy(p)[:8, None] / 255 for p in (patches_a, patches_b))
    torch.manual_seed(0)
    baseline = TRAINED[name]().train()
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
    assert "hardnet on locations" in capsys.readouterr().out
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= saved["hardnet"]["locations"]["random"]["mean"]["FPR95"] <= 100


def test_script_compares_sift_with_weights(tmp_path, benchmark_file, weights_folder, capsys):
    """In one command, as the table of weights/README.md has them."""
    for name in ("first", "second"):
        shutil.copy(benchmark_file, tmp_path / f"{name}.npz")
    files = ["--benchmark", tmp_path / "first.npz", "--benchmark", tmp_path / "second.npz"]
    options = [
        "--weights",
        weights_folder,
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--save",
        tmp_path / "metrics.json",
    ]
    main([str(argument) for argument in ("sift", *files, *options)])
    saved = json.loads((tmp_path / "metrics.json").read_text())
    columns = [[saved[name]["second"][kind]["mean"]["FPR95"] for kind in ("random", "near")] for name in saved]
    cells = " | ".join(f"{random:.2f} / {near:.2f}" for random, near in columns)
    printed = capsys.readouterr().out.splitlines()
    assert list(saved) == ["sift", str(weights_folder)]
    assert printed[-4] == f"| test patches, random / near | sift | {weights_folder} |"
    assert printed[-1] == f"| second | {cells} |"


def test_a_network_needs_training_images(benchmark_file, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["hardnet", "--benchmark", str(benchmark_file)])
    assert "give --data" in capsys.readouterr().err


def test_sift_by_hand():
    """Descriptors of OpenCV itself, and their Euclidean distance."""
    patches = make_patches(3, seed=1)
    _, first = cv2.SIFT.create().compute(patches[0], [cv2.KeyPoint(32, 32, 10, 0)])
    _, second = cv2.SIFT.create().compute(patches[1], [cv2.KeyPoint(32, 32, 10, 0)])
    tensor = torch.from_numpy(patches)[:, None] / 255
    scores = Sift().score(tensor, tensor, torch.tensor([(0, 0), (0, 1), (2, 2)]))
    assert scores.tolist() == [0, pytest.approx(-np.linalg.norm(first - second)), 0]
    assert Sift().score(tensor[:0], tensor, torch.empty(0, 2, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("baseline", [HardNet().eval(), Sift()], ids=["hardnet", "sift"])
def test_a_patch_is_most_similar_to_itself(patches_a, baseline):
    pairs = np.array([(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)], np.int32)
    kind = np.array(["match"] * 3 + ["random"] * 3)
    benchmark = Benchmark(patches_a, patches_a, np.array(["x"] * len(patches_a)), pairs, kind)
    assert evaluate_baseline(baseline, benchmark, "cpu")["random"]["mean"]["FPR95"] == 0


def test_unknown_baseline(images):
    with pytest.raises(ValueError, match="2-channel, hardnet"):
        train_baseline("siamese", [read_source(images)], RECIPE, Phase(1, 2, 2, 1e-3))
