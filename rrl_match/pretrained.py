"""Weights folders: name, path or Hub id -> verified files -> RRLNet, and back. The only user of the network."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rrl_match.errors import WeightsError, WeightsNotFoundError
from rrl_match.modeling import RRLNet, RRLNetConfig

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_DTYPES = {"float16": (torch.float16, "F16"), "bfloat16": (torch.bfloat16, "BF16"), "float32": (torch.float32, "F32")}


@dataclass(frozen=True)
class ModelConfig:
    """What ``config.json`` says of released weights.

    Attributes:
        modalities: names of band A and band B, in the order of the arguments.
        threshold: score above which a pair is called a match, in [0, 1].
        network: shape of the network.
        dtype: of the values in ``model.safetensors``: "float16", "bfloat16" or "float32".
        training: data, recipe and budget, for people.
        metrics: measured figures, for people.
    """

    modalities: tuple[str, str]
    threshold: float = 0.5
    network: RRLNetConfig = field(default_factory=RRLNetConfig)
    dtype: str = "float16"
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps({"model_type": "rrl-net", **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read :meth:`to_json`'s text.

        Raises:
            ValueError: not JSON, not an RRL-Net, or a field that is missing, unknown or out of range.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("model_type", None) != "rrl-net":
            raise ValueError("'model_type' is not 'rrl-net'")
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown or "modalities" not in values:
            raise ValueError(f"unknown fields {sorted(unknown)}" if unknown else "'modalities' is missing")
        modalities = values["modalities"]
        if not (isinstance(modalities, list) and len(modalities) == 2 and all(isinstance(m, str) for m in modalities)):
            raise ValueError(f"'modalities' must be two names, got {modalities!r}")
        threshold = values.get("threshold", 0.5)
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise ValueError(f"'threshold' must be a number in [0, 1], got {threshold!r}")
        if values.get("dtype", "float16") not in _DTYPES:
            raise ValueError(f"'dtype' must be one of {', '.join(_DTYPES)}, got {values['dtype']!r}")
        network = _network_config(values.get("network", {}))
        return cls(**{**values, "modalities": tuple(modalities), "threshold": float(threshold), "network": network})


def _network_config(values: Any) -> RRLNetConfig:
    """RRLNetConfig of parsed JSON; bounded, so that a wrong file cannot ask for a huge network."""
    if not isinstance(values, dict):
        raise ValueError(f"'network' must be an object, got {values!r}")
    known = {f.name: f.default for f in dataclasses.fields(RRLNetConfig)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"'network' has the unknown field {name!r}")
        sizes = value if isinstance(known[name], tuple) else [value]
        if not (isinstance(sizes, list) and sizes and len(sizes) <= 8 and all(type(n) is int and 0 <= n <= 4096 for n in sizes)):
            raise ValueError(f"'network.{name}' is not a sensible size: {value!r}")
    config = RRLNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    stages = len(config.encoder_channels)
    if (
        len(config.metric_channels) != stages
        or min(config.encoder_channels + config.metric_channels + config.hidden) < 1
        or config.patch_size < 2 ** (stages - 1)
        or config.patch_size % 2 ** (stages - 1)
        or config.patch_size > 256
    ):
        raise ValueError(f"'network' does not describe an RRL-Net: {values!r}")
    return config


def save_folder(folder: str | os.PathLike[str], network: RRLNet, config: ModelConfig, card: str) -> Path:
    """Write a weights folder in the Hub's layout: ``config.json``, ``model.safetensors``, ``README.md``.

    Each file is complete or not there: it is written beside its place and moved in.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype, _ = _DTYPES[config.dtype]
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in _stored(network).items()}
    too_large = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if too_large:
        raise WeightsError(f"values of {too_large[0]} are not finite in {config.dtype}; save with dtype float32")
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(state, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def _stored(network: RRLNet) -> dict[str, Tensor]:
    """The values that a weights file holds: all but the batch norms' counters, which nothing reads."""
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def load_folder(folder: str | os.PathLike[str]) -> tuple[RRLNet, ModelConfig]:
    """Read a weights folder strictly: names, shapes, dtypes and finiteness of every value.

    Returns:
        the network in eval mode, float32, on the CPU; and its config.

    Raises:
        WeightsNotFoundError: the folder or one of its two files is not there.
        WeightsError: a file is cut off, or says something else than an RRL-Net's.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsNotFoundError(
                f"{folder} has no {name}: a weights folder holds {CONFIG_FILE} and {WEIGHTS_FILE}, as save_pretrained writes it"
            )
    try:
        config = ModelConfig.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{folder / CONFIG_FILE} is not an RRL-Net's config: {error}") from error
    with torch.device("meta"):
        network = RRLNet(config.network)
    state = _read_weights(folder / WEIGHTS_FILE, _stored(network), config.dtype)
    network.to_empty(device="cpu")
    counters = {k: torch.zeros_like(v) for k, v in network.state_dict().items() if k not in state}
    network.load_state_dict(state | counters)
    return network.eval().requires_grad_(False), config


def _read_weights(path: Path, expected: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Values of a safetensors file as float32, after its header has been compared with what is expected."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(expected):
                missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
                raise WeightsError(f"{path} {_listed('lacks', missing)}{_listed('has the unknown', extra)}: {_REPAIR}")
            for name, value in expected.items():
                piece = file.get_slice(name)
                if list(piece.get_shape()) != list(value.shape):
                    raise WeightsError(f"{path}: {name} has shape {piece.get_shape()}, expected {list(value.shape)}: {_REPAIR}")
                if piece.get_dtype() != _DTYPES[dtype][1]:
                    raise WeightsError(f"{path}: {name} is {piece.get_dtype()}, config.json says {dtype}: {_REPAIR}")
            state = {name: file.get_tensor(name).float() for name in expected}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors, it may be cut off ({error}): {_REPAIR}") from error
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity: {_REPAIR}")
    return state


_REPAIR = "fetch the file anew, or save it with save_pretrained"


def _listed(verb: str, names: list[str]) -> str:
    return f"{verb} {names[0]} and {len(names) - 1} more " if len(names) > 1 else f"{verb} {names[0]} " if names else ""
