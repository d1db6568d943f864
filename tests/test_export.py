import functools
import json
import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rrl_match.export
from rrl_match import RRLMatcher, __version__
from rrl_match.cli.main import main
from rrl_match.errors import ExportError
from rrl_match.export import BATCHES, BOUND, PARTS, export_onnx, export_torch, largest_deviation
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.pretrained import ModelConfig

MAPS = [f"map{k}" for k in range(5)]


def tiny_matcher(**config):
    """A matcher with a tiny network whose scores are spread out."""
    config = RRLNetConfig(encoder_channels=(2,) * 5, metric_channels=(3,) * 5, hidden=(6,), **config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = RRLNet(config)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        patches = torch.rand(2, 16, 1, 64, 64).mul(torch.rand(2, 16, 1, 1, 1)).flatten(0, 1)
        patches_a, patches_b = patches.split(16)
        logits = network.logits(network.encode(patches_a, "a"), network.encode(patches_b, "b"))
        last = network.metric.head[-2]
        last.weight.mul_(3 / logits.std())
    return RRLMatcher(network.eval(), ModelConfig(("vis", "nir"), 0.25, config), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def standardising():
    return tiny_matcher(descriptor_dim=3, standardise=True)


@pytest.fixture(scope="module")
def plain():
    return tiny_matcher()


@pytest.fixture
def folder(plain, tmp_path):
    return plain.save_pretrained(tmp_path / "weights")


def in_onnx_runtime(path):
    """Names of the inputs, names of the outputs, the metadata, and a function from arrays to arrays."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    assert {value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())} == {"batch"}

    def run(*arrays):
        return session.run(None, dict(zip(inputs, arrays, strict=True)))

    return inputs, outputs, session.get_modelmeta().custom_metadata_map, run


def in_torch(path):
    files = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning)  # PyTorch 2.4 of its own code
        module = torch.export.load(path, extra_files=files).module()

    def run(*arrays):
        result = module(*(torch.from_numpy(array) for array in arrays))
        return [value.numpy() for value in ((result,) if isinstance(result, torch.Tensor) else result)]

    return None, None, json.loads(files["metadata.json"]), run


@pytest.fixture(scope="module", params=["onnx", "torch"])
def exported(request, standardising, tmp_path_factory):
    """All parts of a network that standardises its patches and has descriptors, read back."""
    folder = tmp_path_factory.mktemp(request.param)
    export, read = {"onnx": (export_onnx, in_onnx_runtime), "torch": (export_torch, in_torch)}[request.param]
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
    written = export(standardising, folder)
    assert [part.path.stem for part in written] == list(PARTS)
    assert sorted(folder.iterdir()) == sorted(part.path for part in written)
    assert all(0 <= part.deviation <= BOUND for part in written)
    assert any(part.deviation for part in written)
    return {part.path.stem: read(part.path) for part in written}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 12, 100])
def test_exported_parts_agree_with_the_matcher(exported, standardising, patches_a, patches_b, count):
    rows = np.arange(count) % len(patches_a)
    patches_a, patches_b = patches_a[rows], patches_b[rows[::-1]]
    expected = standardising.score(patches_a, patches_b)
    assert count < 12 or np.ptp(expected) > 0.1
    floats = [patches[:, None] / np.float32(255) for patches in (patches_a, patches_b)]
    (scores,) = exported["scorer"][-1](*floats)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=BOUND)
    features = [exported[f"encoder_{band}"][-1](patches) for band, patches in zip("ab", floats, strict=True)]
    for (*maps, descriptors), band, patches in zip(features, "ab", (patches_a, patches_b), strict=True):
        of_matcher = standardising.encode(patches, band)
        assert len(maps) == 5
        for value, wanted in zip((*maps, descriptors), (*of_matcher.maps, of_matcher.descriptors), strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), rtol=0, atol=BOUND * max(1, wanted.abs().max().item()))
    (scores,) = exported["pair_scorer"][-1](*features[0][:5], *features[1][:5])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=BOUND)


@pytest.mark.slow
def test_metadata_of_exported_parts(exported):
    for name, (inputs, outputs, metadata, _) in exported.items():
        assert json.loads(metadata["modalities"]) == ["vis", "nir"]
        assert float(metadata["threshold"]) == 0.25
        assert (metadata["part"], metadata["patch_size"]) == (name, "64")
        assert (metadata["rrl_match"], metadata["torch"]) == (__version__, torch.__version__)
        if inputs is not None:  # ONNX
            maps = [f"{m}_{band}" for band in "ab" for m in MAPS]
            assert inputs == {"scorer": ["patches_a", "patches_b"], "pair_scorer": maps}.get(name, ["patches"])
            assert outputs == ([*MAPS, "descriptors"] if name.startswith("encoder") else ["scores"])


@pytest.mark.slow
def test_weights_without_descriptors(plain, patches_a, tmp_path):
    (encoder,) = export_torch(plain, tmp_path, ["encoder_b"])
    *_, run = in_torch(encoder.path)
    assert [value.shape for value in run(patches_a[:2, None] / np.float32(255))] == [
        (2, 2, 64 >> k, 64 >> k) for k in range(5)
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer PyTorch deprecates this exporter
def test_onnx_by_the_exporter_of_older_pytorch(plain, patches_a, patches_b, tmp_path, monkeypatch):
    monkeypatch.setattr(rrl_match.export, "BY_TORCHSCRIPT", True)
    if "dynamo" in rrl_match.export.inspect.signature(torch.onnx.export).parameters:
        monkeypatch.setattr(torch.onnx, "export", functools.partial(torch.onnx.export, dynamo=False))
    for written in export_onnx(plain, tmp_path):
        assert written.deviation <= BOUND
    *_, run = in_onnx_runtime(tmp_path / "scorer.onnx")
    (scores,) = run(*(patches[:, None] / np.float32(255) for patches in (patches_a, patches_b)))
    np.testing.assert_allclose(scores, plain.score(patches_a, patches_b), rtol=0, atol=BOUND)


@pytest.fixture
def no_tracing(monkeypatch):
    """Exports write files without a network in them, which saves some seconds each, and deviate by 1e-7."""
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch.export, "save", lambda _, path, **__: path.write_bytes(b"a new one"))
    monkeypatch.setattr(torch.export, "load", lambda _: SimpleNamespace(module=lambda: None))
    monkeypatch.setattr("rrl_match.export.largest_deviation", lambda *_: 1e-7)


@pytest.mark.parametrize("deviation", [1.5 * BOUND, float("nan")])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.usefixtures("no_tracing")
def test_a_file_that_deviates_is_not_kept(plain, tmp_path, monkeypatch, deviation, batch):
    (tmp_path / "scorer.pt2").write_bytes(b"an older one")
    monkeypatch.setattr(
        "rrl_match.export.largest_deviation", lambda *given: deviation if len(given[2][0]) == batch else 0.0
    )
    with pytest.raises(ExportError, match=rf"scorer.pt2 was not kept: it differs from PyTorch by {deviation:.2g}"):
        export_torch(plain, tmp_path, ["scorer"])
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.pt2"]
    assert (tmp_path / "scorer.pt2").read_bytes() == b"an older one"


@pytest.mark.usefixtures("no_tracing")
def test_failed_export_leaves_no_file(plain, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="no space left"):
        export_torch(plain, tmp_path, ["scorer"])
    assert list(tmp_path.iterdir()) == []


def test_deviation_sees_every_kind_of_difference():
    first, second = torch.linspace(-3, 4, 12).view(2, 6), torch.ones(2)

    def deviation(value):
        return largest_deviation(lambda x: (x, value), lambda x: (x, first), (second,))

    assert deviation(first) == 0
    assert deviation(first + 0.5) == pytest.approx(0.5 / 4)
    assert largest_deviation(lambda x: x + 0.5, lambda x: x, (second / 10,)) == pytest.approx(0.5), "at least of 1"
    for wrong in (first * float("nan"), first[:1], first.double()):
        assert np.isnan(deviation(wrong))


def test_unknown_part(plain, tmp_path):
    for parts in (["decoder"], "scorer"):
        with pytest.raises(ValueError, match="parts must be some of scorer, encoder_a, encoder_b, pair_scorer"):
            export_torch(plain, tmp_path, parts)


@pytest.mark.usefixtures("no_tracing")
def test_command(folder, tmp_path, capsys):
    assert main(["export", str(folder), str(tmp_path / "new" / "out"), "--format", "torch", "--parts", "scorer"]) == 0
    assert re.fullmatch(
        r"\S+scorer.pt2: differs from PyTorch by 1.0e-07, bound 1e-05, in batches of .*\n", capsys.readouterr().out
    )
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["scorer.pt2"]


def test_command_reports_mistakes(folder, tmp_path, monkeypatch, capsys):
    def refusal(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    with pytest.raises(SystemExit):
        main(["export", str(folder), str(tmp_path / "out"), "--parts", "decoder"])
    assert "--parts must be some of scorer, " in capsys.readouterr().err
    assert "'nothing'" in refusal("export", "nothing", tmp_path / "out")
    assert str(folder / "config.json") in refusal("export", folder, folder / "config.json", "--format", "torch")
    for extra in ("onnx", "onnxruntime", "onnxscript"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, extra, None)
            without.setattr(rrl_match.export, "BY_TORCHSCRIPT", False)
            assert f"needs {extra}: pip install 'rrl-match[onnx]'" in refusal("export", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
