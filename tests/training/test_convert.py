import re

import h5py
import numpy as np
import pytest
import torch

from rrl_match import RRLMatcher, WeightsError
from rrl_match.cli.main import main
from rrl_match.modeling import RRLNet
from rrl_match.training.convert import load_keras_weights
from rrl_match.training.network import TrainingRRLNet

pytestmark = pytest.mark.shared

# Numbers of the layers that feed the score; the others belong to decoders and auxiliary heads.
KEPT = {
    "conv2d": {*range(1, 6), *range(11, 16), *range(21, 51)},
    "batch_normalization": {*range(1, 6), *range(10, 15), *range(19, 49)},
    "conv1d": {*range(1, 16), *range(28, 43)},
    "dense": {16, 17, 18},
}


def type_and_number(layer):
    """Type and number of a layer, such as ("conv2d", 11) of "conv2d_11_2"; number 0 if it has no values."""
    found = re.fullmatch(rf"({'|'.join(KEPT)})_(\d+)(_2)?", layer)
    return (found[1], int(found[2])) if found else (layer, 0)


def feeds_score(layer):
    kind, number = type_and_number(layer)
    return number in KEPT.get(kind, ())


@pytest.fixture(scope="module")
def train_file(shared):
    return shared / "reference" / "official_keras_train.hdf5"


@pytest.fixture(scope="module")
def recorded(shared):
    with np.load(shared / "reference" / "official_keras_io.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def inputs(recorded):
    return [torch.from_numpy(recorded[f"patches_{band}"])[:, None] / 255 for band in "ab"]


@pytest.fixture(scope="module")
def graph_file(train_file, tmp_path_factory):
    """A test-graph file as a user's own training writes it: fewer layers, and more content besides the weights."""
    path = tmp_path_factory.mktemp("keras") / "graph.hdf5"
    with h5py.File(train_file) as source, h5py.File(path, "w") as target:
        layers = [name.decode() for name in source["model_weights"].attrs["layer_names"]]
        kept = [name for name in layers if feeds_score(name) or name.startswith("input")]
        group = target.create_group("model_weights")
        group.attrs["layer_names"] = np.array(kept, "S")
        for name in kept:
            source.copy(source["model_weights"][name], group, name)
        target.attrs["model_config"] = b'{"class_name": "Model"}'
        target.create_group("optimizer_weights").create_dataset("training/Nadam/iterations:0", data=7)
    return path


@pytest.fixture
def linked(train_file, tmp_path):
    """A copy of the training graph's file that may be changed layer by layer."""
    path = tmp_path / "changed.hdf5"
    with h5py.File(train_file) as source, h5py.File(path, "w") as target:
        group = target.create_group("model_weights")
        for name in source["model_weights"]:
            group[name] = h5py.ExternalLink(str(train_file), f"/model_weights/{name}")
    return path


def put_layer(path, layer, **values):
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        if layer in group:
            del group[layer]
        new = group.create_group(layer)
        new.attrs["weight_names"] = np.array([f"{layer}/{name}:0" for name in values], "S")
        for name, value in values.items():
            new[f"{layer}/{name}:0"] = value


def test_training_graph_computes_what_was_recorded(train_file, recorded, inputs):
    model = load_keras_weights(train_file)
    assert isinstance(model, TrainingRRLNet)
    assert not model.training
    with torch.no_grad():
        output = model(*inputs)
    scores = {"score": output.logits, "match5": output.logits}
    scores |= {f"match{k}": logits for k, logits in output.metric_logits.items()}
    scores |= {f"interaction{k}": logits for k, logits in output.interaction_logits.items()}
    assert len(scores) == 7
    for name, logits in scores.items():
        tolerance = 1e-4 if name == "score" else 1e-3
        np.testing.assert_allclose(torch.sigmoid(logits).numpy(), recorded[name], rtol=0, atol=tolerance, err_msg=name)
    for band, seen in zip("ab", output.reconstructions, strict=True):
        np.testing.assert_allclose(seen[:, 0].numpy(), recorded[f"reconstruction_{band}"], rtol=0, atol=1e-5)


def test_test_graph_computes_the_same_scores(graph_file, train_file, recorded, inputs):
    network = load_keras_weights(graph_file)
    assert isinstance(network, RRLNet)
    assert not network.training
    with torch.no_grad():
        scores = network(*inputs)
        assert torch.equal(scores, load_keras_weights(train_file).prune()(*inputs))
    np.testing.assert_allclose(scores.numpy(), recorded["score"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("layer", ["conv2d_3", "conv2d_10", "conv1d_28_2", "batch_normalization_15_2", "dense_18"])
def test_missing_layer_is_named(linked, layer):
    with h5py.File(linked, "r+") as file:
        del file["model_weights"][layer]
    kind, number = type_and_number(layer)
    with pytest.raises(WeightsError, match=f"lacks {kind}_{number}/"):
        load_keras_weights(linked)


def test_extra_layer_is_named(linked):
    put_layer(linked, "dense_19", kernel=np.zeros((256, 1), np.float32))
    with pytest.raises(WeightsError, match="dense_19/kernel"):
        load_keras_weights(linked)


@pytest.mark.parametrize("shape", [(3, 3, 1, 8), (3, 3, 16, 1), (1, 16), ()])
def test_misshapen_value_is_named(linked, shape):
    put_layer(linked, "conv2d_1", kernel=np.zeros(shape, np.float32), bias=np.zeros(16, np.float32))
    with pytest.raises(WeightsError, match="conv2d_1/kernel"):
        load_keras_weights(linked)


def test_listed_value_that_is_missing_is_named(linked):
    put_layer(linked, "conv2d_1", kernel=np.zeros((3, 3, 1, 16), np.float32), bias=np.zeros(16, np.float32))
    with h5py.File(linked, "r+") as file:
        del file["model_weights/conv2d_1/conv2d_1/bias:0"]
    with pytest.raises(WeightsError, match="conv2d_1/bias"):
        load_keras_weights(linked)


@pytest.mark.parametrize("content", [None, b"", b"not an HDF5 file" * 100])
def test_file_that_is_not_hdf5(tmp_path, content):
    path = tmp_path / "file.hdf5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"file\.hdf5.*HDF5"):
        load_keras_weights(path)


def test_truncated_file(train_file, tmp_path):
    path = tmp_path / "cut.hdf5"
    with open(train_file, "rb") as file:
        path.write_bytes(file.read(100_000))
    with pytest.raises(WeightsError, match=r"cut\.hdf5"):
        load_keras_weights(path)


def test_file_without_a_weights_group(tmp_path):
    path = tmp_path / "weights_only.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("conv2d_1")
    with pytest.raises(WeightsError, match="model_weights"):
        load_keras_weights(path)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_command_writes_a_folder_that_loads(train_file, recorded, tmp_path, capsys):
    folder = tmp_path / "converted"
    options = ["--modalities", "optical", "sar", "--threshold", "0.25"]
    assert run("convert", train_file, folder, *options) == 0
    assert capsys.readouterr().out == f"weights: {folder}\n"
    matcher = RRLMatcher.from_pretrained(folder, device="cpu", dtype="float32")
    assert matcher.modalities == ("optical", "sar")
    assert matcher.threshold == 0.25
    scores = matcher.score(recorded["patches_a"], recorded["patches_b"])
    np.testing.assert_allclose(scores, recorded["score"], rtol=0, atol=1e-4)
    assert "optical against sar" in (folder / "README.md").read_text(encoding="utf-8")


def test_command_refuses_a_threshold_that_would_not_load(graph_file, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("convert", graph_file, tmp_path / "out", "--threshold", "2")
    assert "--threshold: must lie in [0, 1], got 2" in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()
