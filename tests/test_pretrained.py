from __future__ import annotations

import hashlib
import json
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from networks import TINY
from safetensors.torch import load_file, save_file

from rrl_match import RRLMatcher, RRLMatchError, WeightsError, WeightsNotFoundError, hub, pretrained
from rrl_match.hub import bundled_names, find_folder
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig, load_folder, save_folder

NAME = "metric.head.2.weight"  # (2, 2)


@pytest.fixture
def folder(tmp_path):
    """A good weights folder of a tiny network, for a test to break."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RRLNet(TINY)
    config = ModelConfig(("vis", "nir"), network=TINY, dtype="float32")
    return save_folder(tmp_path / "weights", network, config, "# Tiny\n")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test in this file may ask the Hub."""
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("asked the Hub"))


def change_tensors(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    values.update(changes)
    (folder / "config.json").write_text(json.dumps(values))


def test_folder_is_in_the_layout_of_the_hub(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "# Tiny\n"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "rrl-net"
    network, config = load_folder(folder)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert config.modalities == ("vis", "nir")
    assert config.network == TINY
    assert RRLMatcher.from_pretrained(str(folder), device="cpu").modalities == ("vis", "nir")


def test_readme_is_not_needed(folder):
    (folder / "README.md").unlink()
    RRLMatcher.from_pretrained(folder, device="cpu")


def test_readme_of_another_encoding(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe caf\xe9")
    RRLMatcher.from_pretrained(folder, device="cpu")


def test_files_are_never_read_from_pickle(folder):
    class Exploit:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.safetensors.bin"):
        (folder / name).write_bytes(pickle.dumps(Exploit()))
    RRLMatcher.from_pretrained(folder, device="cpu")
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"has no model\.safetensors"):
        load_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsNotFoundError, match=rf"weights has no {name}: .*save_pretrained"):
        RRLMatcher.from_pretrained(folder)


def test_empty_folder(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"has no config\.json"):
        RRLMatcher.from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000, 0.5, -1])
def test_truncated_file(folder, length):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read as safetensors.*cut off.*download"):
        load_folder(folder)


@pytest.mark.parametrize(
    "content", [b"garbage" * 1000, b"\xff" * 4096, b"\0" * 4096, b"<!DOCTYPE html><html>404</html>"]
)
def test_garbage_for_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_folder(folder)


def set_item(key, value):
    return lambda state: state.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(NAME), rf"lacks {NAME}"),
        (lambda state: [state.pop(k) for k in list(state) if k.startswith("encoder_b")], r"lacks encoder_b.* more"),
        (set_item("extra.weight", torch.zeros(2)), r"has the unknown extra\.weight"),
        (set_item(NAME, torch.zeros(2, 3)), rf"{NAME} has shape \[2, 3\], expected \[2, 2\]"),
        (set_item(NAME, torch.zeros(4)), rf"{NAME} has shape \[4\], expected \[2, 2\]"),
        (set_item(NAME, torch.zeros(2, 2).half()), rf"{NAME} is F16, config\.json says float32"),
        (set_item(NAME, torch.zeros(2, 2, dtype=torch.int32)), rf"{NAME} is I32, config\.json says float32"),
        (set_item(NAME, torch.tensor([[1, 2], [3, torch.nan]])), rf"{NAME} holds NaN or infinity"),
        (set_item(NAME, torch.full((2, 2), -torch.inf)), rf"{NAME} holds NaN or infinity"),
    ],
)
def test_wrong_tensors(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{message}.*: download the file again"):
        load_folder(folder)


def test_no_tensors_at_all(folder):
    save_file({}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="lacks"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type"),
        ({"licence": "MIT"}, "unknown fields.*licence"),
        ({"modalities": "vis"}, "modalities"),
        ({"modalities": ["vis"]}, "modalities"),
        ({"modalities": ["vis", 5]}, "modalities"),
        ({"modalities": None}, "modalities"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"dtype": "float64"}, "dtype"),
        ({"dtype": None}, "dtype"),
        ({"dtype": ["float16"]}, "dtype"),
        ({"network": []}, "network"),
        ({"network": None}, "network"),
        ({"network": {"depth": 5}}, "unknown field 'depth'"),
        ({"network": {"patch_size": 10**9}}, "patch_size"),
        ({"network": {"patch_size": 4096}}, "RRL-Net"),
        ({"network": {"patch_size": 60}}, "RRL-Net"),
        ({"network": {"patch_size": 0}}, "RRL-Net"),
        ({"network": {"patch_size": -64}}, "patch_size"),
        ({"network": {"patch_size": 64.0}}, "patch_size"),
        ({"network": {"patch_size": True}}, "patch_size"),
        ({"network": {"patch_size": [64]}}, "patch_size"),
        ({"network": {"unshuffle": 0}}, "RRL-Net"),
        ({"network": {"unshuffle": 3}}, "RRL-Net"),
        ({"network": {"unshuffle": 8}}, "RRL-Net"),
        ({"network": {"encoder_channels": 16}}, "encoder_channels"),
        ({"network": {"encoder_channels": []}}, "encoder_channels"),
        ({"network": {"encoder_channels": [16, 32, 64, 128, 0]}}, "RRL-Net"),
        ({"network": {"encoder_channels": [16, 32, 64, 128, 10**8]}}, "encoder_channels"),
        ({"network": {"encoder_channels": [16, 32]}}, "RRL-Net"),
        ({"network": {"metric_channels": [2] * 9}}, "metric_channels"),
        ({"network": {"hidden": [0]}}, "RRL-Net"),
        ({"network": {"descriptor_dim": 10**7}}, "descriptor_dim"),
        ({"network": {"descriptor_dim": "16"}}, "descriptor_dim"),
    ],
)
def test_wrong_config(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(WeightsError, match=rf"config\.json is not an RRL-Net's config: .*{message}"):
        load_folder(folder)


@pytest.mark.parametrize("missing", ["model_type", "modalities"])
def test_config_without_a_field(folder, missing):
    values = json.loads((folder / "config.json").read_text())
    del values[missing]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=missing):
        load_folder(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"5", b'"rrl-net"', b"\xff\xfe\x00", b'{"model_type": "caf\xe9"}', b"[" * 200_000],
    ids=["empty", "cut off", "list", "null", "number", "string", "bytes", "not UTF-8", "deep"],
)
def test_config_that_is_not_a_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json is not an RRL-Net's config"):
        load_folder(folder)


@pytest.mark.parametrize(
    "network", [{}, {"encoder_channels": [4096] * 5, "metric_channels": [4096] * 5, "hidden": [4096] * 8}]
)
def test_config_of_another_network(folder, network):
    change_config(folder, network=network)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_folder(folder)


@pytest.mark.parametrize(
    "name",
    ["vis-xyz", "VIS-NIR", "", "./a/b", "../a", "/no/such/folder", "a/b/c", "a\\b", "vis nir", "C:\\a\\b", "~/a"],
)
def test_unknown_name_makes_no_request(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsNotFoundError, match=r"vis-nir.*nor a folder: give one of these") as error:
        RRLMatcher.from_pretrained(name)
    assert str(error.value).startswith(repr(name))


@pytest.mark.parametrize("name", [None, 5, b"vis-nir", ["vis-nir"]])
def test_name_of_another_type(name):
    with pytest.raises(TypeError, match="name_or_path"):
        RRLMatcher.from_pretrained(name)


def test_base_classes_of_the_errors():
    assert issubclass(WeightsError, RRLMatchError)
    assert issubclass(WeightsError, ValueError)
    assert issubclass(WeightsNotFoundError, WeightsError)
    assert issubclass(WeightsNotFoundError, FileNotFoundError)
    text = "some words"
    assert str(WeightsNotFoundError(text)) == text


def test_a_bad_device_is_found_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="device"):
        RRLMatcher.from_pretrained(tmp_path, device="gpu")


# released weights and their manifest


@pytest.fixture
def released(folder, tmp_path, monkeypatch):
    """A package of released weights with one name, "tiny"."""
    package = tmp_path / "package"
    shutil.copytree(folder, package / "tiny")
    sums = {
        name: hashlib.sha256((package / "tiny" / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }
    manifest = {"tiny": {"repo_id": "owner/tiny", "files": sums}}
    (package / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(hub.resources, "files", lambda _: package)
    return package


def test_released_weights_load_by_name(released):
    assert find_folder("tiny") == released / "tiny"
    assert bundled_names() == ["tiny"]
    RRLMatcher.from_pretrained("tiny", device="cpu")


def test_the_default_weights_are_bundled():
    assert hub.DEFAULT_WEIGHTS in bundled_names()


def test_a_bundled_name_comes_before_a_folder(released, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert find_folder("tiny") == released / "tiny"
    with pytest.raises(WeightsNotFoundError, match=r"has no config\.json"):
        RRLMatcher.from_pretrained("./tiny")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_changed_released_file(released, name):
    path = released / "tiny" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name} is not the released file.*sha256.*reinstall rrl-match"):
        RRLMatcher.from_pretrained("tiny")


def test_missing_released_file(released):
    (released / "tiny" / "model.safetensors").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"model\.safetensors is missing: reinstall rrl-match"):
        RRLMatcher.from_pretrained("tiny")


def test_changed_file_is_found_before_it_is_read(released, monkeypatch):
    (released / "tiny" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(pretrained, "load_folder", lambda folder: pytest.fail("read a changed file"))
    with pytest.raises(WeightsError):
        RRLMatcher.from_pretrained("tiny")


def test_weights_of_the_wheel_are_the_released_ones():
    names = bundled_names()
    assert "vis-nir" in names
    for name in names:
        network, config = load_folder(find_folder(name))
        assert len(config.modalities) == 2
        assert config.modalities == (("visible", "other") if name.startswith("universal") else tuple(name.split("-")))
        assert network.config.patch_size == 64


# save


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_round_trip_is_exact(tmp_path, folder, dtype):
    network, _ = load_folder(folder)
    config = ModelConfig(("optical", "sar"), 0.25, TINY, dtype, {"seed": 1}, {"fpr95": 0.5})
    first = save_folder(tmp_path / "first", network, config, "# Card é\n")
    second = RRLMatcher.from_pretrained(first, device="cpu", dtype="float32").save_pretrained(tmp_path / "second")
    assert second == tmp_path / "second"
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert load_folder(second)[1] == config


def test_round_trip_gives_the_same_scores(tmp_path, folder, patches_a, patches_b):
    network, _ = load_folder(folder)
    config = ModelConfig(("vis", "nir"), network=TINY, dtype="float16")
    first = RRLMatcher.from_pretrained(save_folder(tmp_path / "first", network, config, ""), device="cpu")
    second = RRLMatcher.from_pretrained(first.save_pretrained(tmp_path / "second"), device="cpu")
    np.testing.assert_array_equal(first.score(patches_a, patches_b), second.score(patches_a, patches_b))


def test_saving_does_not_depend_on_dtype_and_device(tmp_path, weights_folder):
    matcher = RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype="bfloat16")
    saved = matcher.save_pretrained(tmp_path)
    assert (saved / "model.safetensors").read_bytes() == (weights_folder / "model.safetensors").read_bytes()


def test_save_over_an_older_folder(folder, tmp_path):
    matcher = RRLMatcher.from_pretrained(folder, device="cpu")
    (folder / "model.safetensors").write_bytes(b"old")
    matcher.save_pretrained(folder)
    load_folder(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_save_in_new_folders(folder, tmp_path):
    matcher = RRLMatcher.from_pretrained(folder, device="cpu")
    load_folder(matcher.save_pretrained(str(tmp_path / "a" / "b")))


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_values_that_do_not_fit_the_dtype_are_not_saved(tmp_path, value):
    network = RRLNet(TINY)
    torch.nn.init.constant_(network.metric.head[2].weight, value)
    with pytest.raises(WeightsError, match=rf"{NAME} are not finite in float16"):
        save_folder(tmp_path, network, ModelConfig(("a", "b"), network=TINY), "")
    assert not (tmp_path / "model.safetensors").exists()


def test_push_to_hub(folder, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))

        def create_branch(self, repo_id, **options):
            calls.append(("branch", repo_id, options))

        def upload_folder(self, *, folder_path, **options):
            calls.append(("upload", sorted(p.name for p in folder_path.iterdir()), options))
            return "https://hub/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    matcher = RRLMatcher.from_pretrained(folder, device="cpu")
    assert matcher.push_to_hub("owner/name", token="t", private=True, revision="v2") == "https://hub/commit/1"
    assert calls == [
        ("token", "t"),
        ("create", "owner/name", {"private": True, "exist_ok": True}),
        ("branch", "owner/name", {"branch": "v2", "exist_ok": True}),
        (
            "upload",
            ["README.md", "config.json", "model.safetensors"],
            {"repo_id": "owner/name", "revision": "v2", "commit_message": "Upload RRL-Net weights"},
        ),
    ]
