"""Export of a matcher's network as ONNX and ``torch.export`` files, each checked against PyTorch.

The parts, all float32, for any number N >= 1 of patches or pairs, where S is the patch size:

- ``scorer``: patches_a, patches_b (N, 1, S, S) in [0, 1] to scores (N,);
- ``encoder_a``, ``encoder_b``: patches (N, 1, S, S) in [0, 1] to the maps map0 ... map4, (N, C, H, W) each, and
  descriptors (N, D) of unit length if the weights have them;
- ``pair_scorer``: map0_a ... map4_a, map0_b ... map4_b of N pairs to scores (N,).

The conversion of patches to float32 in [0, 1] is not part of the files, see :mod:`rrl_match.patches`.
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
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrl_match._version import __version__
from rrl_match.errors import ExportError, MissingExtraError
from rrl_match.inference import fold_norms
from rrl_match.matcher import RRLMatcher
from rrl_match.modeling import Band, RRLNet

PARTS = ("scorer", "encoder_a", "encoder_b", "pair_scorer")
BATCHES = (1, 2, 7, 64)  # batch sizes that each file is checked with
BOUND = 1e-5  # largest difference from PyTorch, relative to the largest output value if that is above 1

Run: TypeAlias = Callable[..., "Tensor | Sequence[Tensor]"]

_OPSET = 18  # read by ONNX Runtime 1.18 and later
BY_TORCHSCRIPT = "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters  # PyTorch before 2.5


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: the file.
        deviation: largest difference from PyTorch over all outputs and :data:`BATCHES`, defined as for :data:`BOUND`.
    """

    path: Path
    deviation: float


def export_onnx(matcher: RRLMatcher, folder: str | os.PathLike[str], parts: Sequence[str] = PARTS) -> list[Exported]:
    """Write ``PART.onnx`` for each part, if ONNX Runtime computes the same with it as PyTorch.

    The ``metadata_props`` of a file hold the modalities (a JSON list), the threshold, the patch size, and the versions
    that wrote it.

    Args:
        matcher: on any device, of any dtype; the files are float32.
        folder: created if it does not exist; files of the same names are replaced.
        parts: some of :data:`PARTS`.

    Raises:
        MissingExtraError: the extra ``onnx`` is not installed.
        ValueError: unknown part.
        ExportError: a file differs from PyTorch by more than :data:`BOUND`; it is deleted.
    """
    onnx, onnxruntime = _extra("onnx"), _extra("onnxruntime")
    if not BY_TORCHSCRIPT:
        _extra("onnxscript")  # required by PyTorch's exporter

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

    return _export(matcher, Path(folder), parts, _Format(".onnx", write, read))


def export_torch(matcher: RRLMatcher, folder: str | os.PathLike[str], parts: Sequence[str] = PARTS) -> list[Exported]:
    """Write ``PART.pt2`` for each part, for ``torch.export.load``; otherwise as :func:`export_onnx`.

    Inputs are positional. The metadata are in the extra file ``metadata.json``.
    """

    def write(part: _Part, example: tuple[Tensor, ...], path: Path) -> None:
        program = torch.export.export(part, example, dynamic_shapes=_dynamic_shapes(part), strict=False)
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(_metadata(matcher, part))})

    def read(part: _Part, path: Path) -> Run:
        run: Run = torch.export.load(path).module()
        return run

    return _export(matcher, Path(folder), parts, _Format(".pt2", write, read))


class _Format(NamedTuple):
    suffix: str
    write: Callable[[_Part, tuple[Tensor, ...], Path], None]
    read: Callable[[_Part, Path], Run]


def _export(matcher: RRLMatcher, folder: Path, parts: Sequence[str], file_format: _Format) -> list[Exported]:
    """Write each part to a temporary file, compare it with the trained network, and move it to its path."""
    if isinstance(parts, str) or not set(parts) <= set(PARTS):
        raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {parts!r}")
    trained = copy.deepcopy(matcher._network).to("cpu", torch.float32).eval().requires_grad_(False)
    folded = fold_norms(trained)
    folder.mkdir(parents=True, exist_ok=True)
    exported = []
    for name in parts:
        part, reference, path = _part(folded, name), _part(trained, name), folder / (name + file_format.suffix)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary, torch.no_grad(), _quiet():
            unchecked = Path(temporary) / path.name
            file_format.write(part, _example(trained, name, batch=2), unchecked)
            run = file_format.read(part, unchecked)
            each = [largest_deviation(run, reference, _example(trained, name, batch)) for batch in BATCHES]
            deviation = float(np.max(each))  # NaN if any is, unlike Python's max
            if not deviation <= BOUND:
                raise ExportError(f"{path} was not kept: it differs from PyTorch by {deviation:.2g}, bound {BOUND:g}")
            os.replace(unchecked, path)
        exported.append(Exported(path, deviation))
    return exported


class _Part(nn.Module):
    """The module in one file, with its name and the names of its inputs and outputs."""

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
    def __init__(self, network: RRLNet, band: Band) -> None:
        described = network.config.descriptor_dim > 0
        outputs = [*_map_names(network), "descriptors"] if described else _map_names(network)
        super().__init__(f"encoder_{band}", ["patches"], outputs)
        self.band, self.described = band, described
        other = "b" if band == "a" else "a"
        self.network = _without(network, f"encoder_{other}", f"descriptor_{other}", "interactions", "metric")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (patches,) = inputs
        maps = self.network.encode(patches, self.band)
        return (*maps, self.network.describe(maps, self.band)) if self.described else tuple(maps)


class _PairScorer(_Part):
    def __init__(self, network: RRLNet) -> None:
        super().__init__("pair_scorer", [f"{name}_{band}" for band in "ab" for name in _map_names(network)], ["scores"])
        self.network = _without(network, "descriptor", "encoder")

    def forward(self, *maps: Tensor) -> Tensor:
        half = len(maps) // 2
        return torch.sigmoid(self.network.logits(maps[:half], maps[half:]))


def _without(network: RRLNet, *prefixes: str) -> RRLNet:
    """A copy without the submodules that a part does not use, which torch.export would write nevertheless."""
    remaining = copy.deepcopy(network)
    for name, _ in network.named_children():
        if name.startswith(prefixes):
            delattr(remaining, name)
    return remaining


def _part(network: RRLNet, name: str) -> _Part:
    """The module of one of :data:`PARTS`, in evaluation mode."""
    if name == "encoder_a":
        part: _Part = _Encoder(network, "a")
    elif name == "encoder_b":
        part = _Encoder(network, "b")
    elif name == "scorer":
        part = _Scorer(network)
    else:
        part = _PairScorer(network)
    return part.eval()


def _map_names(network: RRLNet) -> list[str]:
    return [f"map{k}" for k in range(len(network.config.encoder_channels))]


def _example(network: RRLNet, name: str, batch: int) -> tuple[Tensor, ...]:
    """Inputs of a part: patches, blocks of grey with some noise, or their maps."""
    generator = torch.Generator().manual_seed(batch)
    size = network.config.patch_size
    blocks = F.interpolate(torch.rand(2 * batch, 1, 4, 4, generator=generator), size=size)
    noise = torch.rand(2 * batch, 1, size, size, generator=generator)
    patches_a, patches_b = (0.8 * blocks + 0.2 * noise).split(batch)
    if name == "scorer":
        return patches_a, patches_b
    if name == "pair_scorer":
        return (*network.encode(patches_a, "a"), *network.encode(patches_b, "b"))
    return (patches_a if name == "encoder_a" else patches_b,)


def largest_deviation(run: Run, reference: Run, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference from the outputs of the reference, as defined for :data:`BOUND`."""

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
    """The first axis of all inputs has the same variable length."""
    batch = torch.export.Dim("batch")
    return (({0: batch},) * len(part.inputs),)  # for the only argument of forward, a tuple


def _onnx_model(onnx: ModuleType, part: _Part, example: tuple[Tensor, ...]) -> Any:
    """ModelProto of a part, from the exporter that this version of PyTorch recommends."""
    export: Any = torch.onnx.export  # its signature differs between versions
    names = {"input_names": part.inputs, "output_names": part.outputs, "opset_version": _OPSET}
    if BY_TORCHSCRIPT:
        buffer = io.BytesIO()
        export(part, example, buffer, dynamic_axes={name: {0: "batch"} for name in part.inputs + part.outputs}, **names)
        return onnx.load_from_string(buffer.getvalue())
    program = export(part, example, dynamo=True, dynamic_shapes=_dynamic_shapes(part), verbose=False, **names)
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of PyTorch's exporters about their own code."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")  # warns that torchvision is missing
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            warnings.filterwarnings("ignore", "You are using `torch.load` with `weights_only=False`", FutureWarning)
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
        raise MissingExtraError(f"ONNX export needs {name}: pip install 'rrl-match[onnx]'") from error
