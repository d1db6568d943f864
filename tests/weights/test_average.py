"""The maintainers' script that averages weights."""

import dataclasses

import pytest
import torch
from average import average, main
from image_folder import write_folder
from torch import nn
from training_run import RECIPE, tiny_network

from rrl_match import RRLMatcher
from rrl_match.pretrained import ModelConfig, load_folder, save_folder
from rrl_match.training.datasets import read_source


@pytest.fixture
def parts(tmp_path):
    """Two weights folders; every convolution of the second is three times that of the first."""
    folders = []
    for name, factor in (("one", 1.0), ("three", 3.0)):
        network = tiny_network()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.mul_(factor)
        config = ModelConfig(("vis", "nir"), network=network.config, dtype="float32", training={"data": name})
        folders.append(str(save_folder(tmp_path / name, network, config, "")))
    return folders


@pytest.fixture
def images(tmp_path):
    return write_folder(tmp_path / "images", pairs=4)


def test_values_are_averaged_and_norms_recomputed(parts, images):
    one, three = parts
    network, config = average([one, f"{three}=3"], [read_source(images)], RECIPE, batches=2)
    first = tiny_network()
    for key, value in first.state_dict().items():
        if key.endswith("running_mean"):
            assert not torch.equal(network.state_dict()[key], value)
    conv, mean = (next(m for m in n.modules() if isinstance(m, nn.Conv2d)) for n in (first, network))
    torch.testing.assert_close(mean.weight, 2.5 * conv.weight)
    assert config.training == {"data": "one", "average_of": [one, f"{three}=3"]}
    assert set(config.metrics["held_back_fpr95"]) == {"images"}
    assert not network.training


def test_script_writes_a_folder_that_loads(tmp_path, parts, images, capsys):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(dataclasses.replace(RECIPE, modalities=("a", "b")).to_json(), encoding="utf-8")
    out = tmp_path / "out"
    main([str(out), "--weights", parts[0], "--weights", parts[1], "--data", str(images), "--recipe", str(recipe)])
    assert capsys.readouterr().out == f"averaged: {out}\n"
    matcher = RRLMatcher.from_pretrained(out, device="cpu", dtype="float32")
    assert matcher.modalities == ("a", "b")
    assert load_folder(out)[1].training["average_of"] == parts
    assert "average_of" in (out / "README.md").read_text(encoding="utf-8")


def test_no_weights():
    with pytest.raises(ValueError, match="at least one"):
        average([], [], RECIPE)
