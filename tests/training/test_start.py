import dataclasses

import pytest
import torch
from training_run import NETWORK, tiny_network

from rrl_match import DataError, WeightsError
from rrl_match.pretrained import ModelConfig, save_folder
from rrl_match.training.start import read_start


@pytest.fixture
def folders(tmp_path):
    """Two weights folders of one shape, every value of the first 1 and of the second 4, and one of another shape."""
    saved = []
    for name, value, shape in (
        ("one", 1.0, NETWORK),
        ("four", 4.0, NETWORK),
        ("other", 1.0, dataclasses.replace(NETWORK, descriptor_dim=0)),
    ):
        network = tiny_network(shape)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.fill_(value)
        config = ModelConfig(("vis", "nir"), network=network.config, dtype="float32")
        saved.append(str(save_folder(tmp_path / name, network, config, "")))
    return saved


def values(network):
    return {float(x) for t in network.state_dict().values() if t.is_floating_point() for x in t.unique()}


def test_nothing_and_one_folder(folders):
    assert read_start([]) is None
    assert values(read_start(folders[:1])) == {1.0}


def test_mean_of_several_by_their_weights(folders):
    one, four, _ = folders
    assert values(read_start([one, four])) == {2.5}
    assert values(read_start([f"{one}=4", f"{four}=2"])) == {2.0}


def test_networks_of_different_shapes_have_no_mean(folders):
    with pytest.raises(ValueError, match="different shapes"):
        read_start([folders[0], folders[2]])


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "much"])
def test_weight_must_be_a_positive_number(folders, weight):
    with pytest.raises(DataError, match=f"must be a positive number, got '{weight}'"):
        read_start([f"{folders[0]}={weight}"])


def test_weights_must_exist(tmp_path):
    with pytest.raises(WeightsError):
        read_start([str(tmp_path / "nowhere")])
