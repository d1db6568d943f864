"""A matcher's network for other runtimes: ONNX and ``torch.export`` files, kept only if they compute what PyTorch does.

The parts, all float32 with any number N of patches or pairs from one on, S being the patch size:

- ``scorer``: patches_a, patches_b (N, 1, S, S) in [0, 1] to scores (N,);
- ``encoder_a``, ``encoder_b``: patches (N, 1, S, S) in [0, 1] to the maps map0 ... map4, (N, C, H, W) each, and
  descriptors (N, D) of unit length where the weights have them;
- ``pair_scorer``: map0_a ... map4_a, map0_b ... map4_b of N pairs to scores (N,).

What turns a user's patches into float32 in [0, 1] is :mod:`rrl_match.patches`, and is not part of the files.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrl_match._version import __version__
from rrl_match.errors import ExportError
from rrl_match.inference import fold_norms
from rrl_match.matcher import RRLMatcher
from rrl_match.modeling import RRLNet

PARTS = ("scorer", "encoder_a", "encoder_b", "pair_scorer")
BATCHES = (1, 2, 7, 64)  # that a file is tried with
BOUND = 1e-5  # on its difference from PyTorch, as a share of the output's largest value where that is above 1

Run: TypeAlias = Callable[..., "Tensor | Sequence[Tensor]"]

_OPSET = 18  # ONNX Runtime 1.18 and later read what comes of it
_BY_TORCHSCRIPT = "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters  # PyTorch before 2.5


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        deviation: its greatest difference from PyTorch over all outputs and :data:`BATCHES`, measured as
            :data:`BOUND` is.
    """

    path: Path
    deviation: float


def export_onnx(matcher: RRLMatcher, folder: str | os.PathLike[str], parts: Sequence[str] = PARTS) -> list[Exported]:
    """Write ``PART.onnx`` for each part, once ONNX Runtime computes with it what PyTorch does.

    Its ``metadata_props`` say the modalities (a JSON list), the threshold, the patch size, and the versions that
    wrote it.

    Args:
        matcher: on any device and in any dtype; what is written is float32.
        folder: made if it is not there; files of the same names are replaced.
        parts: some of :data:`PARTS`.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: no such part.
        ExportError: a file differs from PyTorch by more than :data:`BOUND`, and was not kept.
    """
    onnx, onnxruntime = _extra("onnx"), _extra("onnxruntime")
    if not _BY_TORCHSCRIPT:
        _extra("onnxscript")  # which PyTorch's exporter stands on

    def write(part: _Part, example: tuple[Tensor, ...], path: Path) -> None:
        model = _onnx_model(onnx, part, example)
        onnx.helper.set_model_props(model, _metadata(matcher, part))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)

    def read(part: _Part, path: Path) -> Run:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {name: value.numpy() for name, value in zip(part.inputs, inputs, strict=True)}
            return [torch.from_numpy(value) for value in session.run(part.outputs, feed)]

        return run

    return _export(matcher, Path(folder), parts, ".onnx", write, read)


def export_torch(matcher: RRLMatcher, folder: str | os.PathLike[str], parts: Sequence[str] = PARTS) -> list[Exported]:
    """Write ``PART.pt2`` for each part, for ``torch.export.load``; otherwise as :func:`export_onnx`.

    Inputs are positional; the metadata are the extra file ``metadata.json``.
    """

    def write(part: _Part, example: tuple[Tensor, ...], path: Path) -> None:
        program = torch.export.export(part, example, dynamic_shapes=_dynamic_shapes(part), strict=False)
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(_metadata(matcher, part))})

    def read(part: _Part, path: Path) -> Run:
        run: Run = torch.export.load(path).module()
        return run

    return _export(matcher, Path(folder), parts, ".pt2", write, read)


def _export(
    matcher: RRLMatcher,
    folder: Path,
    parts: Sequence[str],
    suffix: str,
    write: Callable[[_Part, tuple[Tensor, ...], Path], None],
    read: Callable[[_Part, Path], Run],
) -> list[Exported]:
    """Write each part beside its place, compare it with the network as trained, and move it in."""
    if isinstance(parts, str) or not set(parts) <= set(PARTS):
        raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {parts!r}")
    trained = copy.deepcopy(matcher._network).to("cpu", torch.float32).eval().requires_grad_(False)
    folded = fold_norms(trained)
    folder.mkdir(parents=True, exist_ok=True)
    exported = []
    for name in parts:
        part, reference, path = _part(folded, name), _part(trained, name), folder / (name + suffix)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as beside, torch.no_grad(), _quiet():
            unchecked = Path(beside) / path.name
            write(part, _example(trained, name, batch=2), unchecked)
            run = read(part, unchecked)
            each = [_deviation(run, reference, _example(trained, name, batch)) for batch in BATCHES]
            deviation = float(np.max(each))  # NaN if one is, which Python's max may lose
            if not deviation <= BOUND:
                raise ExportError(f"{path} was not kept: it is {deviation:.2g} off PyTorch, the bound is {BOUND:g}")
            os.replace(unchecked, path)
        exported.append(Exported(path, deviation))
    return exported


class _Part(nn.Module):
    """What goes into one file: its name, the names of its inputs and outputs, and a forward of one after the other."""

    def __init__(self, name: str, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.name, self.inputs, self.outputs = name, inputs, outputs


class _Scorer(_Part):
    def __init__(self, network: RRLNet) -> None:
        super().__init__("scorer", ["patches_a", "patches_b"], ["scores"])
        self.network = _without(network, "descriptor")

    def forward(self, *patches: Tensor) -> Tensor:
        scores: Tensor = self.network(*patches)
        return scores


class _Encoder(_Part):
    def __init__(self, network: RRLNet, band: str) -> None:
        outputs = _map_names(network)
        super().__init__(f"encoder_{band}", ["patches"], outputs)
        self.prepare = network.prepare
        self.encoder = getattr(network, f"encoder_{band}")
        self.describe = None
        if network.config.descriptor_dim:
            self.describe = getattr(network, f"descriptor_{band}")
            outputs.append("descriptors")

    def forward(self, *patches: Tensor) -> tuple[Tensor, ...]:
        maps = self.encoder(self.prepare(*patches))
        return (*maps, self.describe(maps[-1])) if self.describe else tuple(maps)


class _PairScorer(_Part):
    def __init__(self, network: RRLNet) -> None:
        super().__init__("pair_scorer", [f"{name}_{band}" for band in "ab" for name in _map_names(network)], ["scores"])
        self.network = _without(network, "descriptor", "encoder")

    def forward(self, *maps: Tensor) -> Tensor:
        half = len(maps) // 2
        deepest = self.network.relate(maps[:half], maps[half:])
        return torch.sigmoid(self.network.metric.head(deepest))


def _without(network: RRLNet, *prefixes: str) -> RRLNet:
    """A network less what a part has no use for, which torch.export would write all the same."""
    less = copy.deepcopy(network)
    for name, _ in network.named_children():
        if name.startswith(prefixes):
            delattr(less, name)
    return less


def _part(network: RRLNet, name: str) -> _Part:
    if name.startswith("encoder"):
        return _Encoder(network, name[-1]).eval()
    return (_Scorer if name == "scorer" else _PairScorer)(network).eval()


def _map_names(network: RRLNet) -> list[str]:
    return [f"map{k}" for k in range(len(network.config.encoder_channels))]


def _example(network: RRLNet, name: str, batch: int) -> tuple[Tensor, ...]:
    """Inputs of a part: patches, blocks of grey with some grain, or what the encoders make of them."""
    generator = torch.Generator().manual_seed(batch)
    size = network.config.patch_size
    blocks = F.interpolate(torch.rand(2 * batch, 1, 4, 4, generator=generator), size=size)
    grain = torch.rand(2 * batch, 1, size, size, generator=generator)
    patches_a, patches_b = (0.8 * blocks + 0.2 * grain).split(batch)
    if name == "scorer":
        return patches_a, patches_b
    if name == "pair_scorer":
        maps_a, maps_b = network.encoder_a(network.prepare(patches_a)), network.encoder_b(network.prepare(patches_b))
        return (*maps_a, *maps_b)
    return (patches_a if name == "encoder_a" else patches_b,)


def _deviation(run: Run, reference: _Part, inputs: tuple[Tensor, ...]) -> float:
    """Greatest difference of an output from the reference's, in units of its largest value where that is above 1."""

    def outputs(of: Run) -> Sequence[Tensor]:
        result = of(*inputs)
        return (result,) if isinstance(result, Tensor) else result

    worst = torch.zeros(())
    for got, expected in zip(outputs(run), outputs(reference), strict=True):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return float("nan")
        worst = torch.maximum(worst, (got - expected).abs().max() / expected.abs().max().clamp(min=1))  # keeps NaN
    return float(worst)


def _dynamic_shapes(part: _Part) -> tuple[Any, ...]:
    """The first axis of each input may vary, and is the same in all of them."""
    batch = torch.export.Dim("batch")
    return (({0: batch},) * len(part.inputs),)  # of forward's only argument, which takes them all


def _onnx_model(onnx: ModuleType, part: _Part, example: tuple[Tensor, ...]) -> Any:
    """ModelProto of a part, by the exporter that this PyTorch recommends."""
    export: Any = torch.onnx.export  # its signature changed too often for the type checker
    names = {"input_names": part.inputs, "output_names": part.outputs, "opset_version": _OPSET}
    if _BY_TORCHSCRIPT:
        buffer = io.BytesIO()
        export(part, example, buffer, dynamic_axes={name: {0: "batch"} for name in part.inputs + part.outputs}, **names)
        return onnx.load_from_string(buffer.getvalue())
    program = export(part, example, dynamo=True, dynamic_shapes=_dynamic_shapes(part), verbose=False, **names)
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters have to say about themselves."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")  # misses torchvision, each time
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)


def _metadata(matcher: RRLMatcher, part: _Part) -> dict[str, str]:
    return {
        "part": part.name,
        "modalities": json.dumps(matcher.modalities),
        "threshold": repr(matcher.threshold),
        "patch_size": str(matcher.patch_size),
        "rrl_match": __version__,
        "torch": torch.__version__,
    }


def _extra(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX export needs {name}: pip install 'rrl-match[onnx]'") from error
