"""Weights folders: ``config.json`` and ``model.safetensors`` <-> RRLNet."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from rrl_match.errors import WeightsError, WeightsNotFoundError
from rrl_match.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from rrl_match.modeling import RRLNet, RRLNetConfig

_LARGEST_HEADER = 1 << 20  # bytes of JSON that are parsed, of either file; those of RRL-Net have 30 thousand
_DTYPES = {"float16": (torch.float16, "F16"), "bfloat16": (torch.bfloat16, "BF16"), "float32": (torch.float32, "F32")}


@dataclass(frozen=True)
class ModelConfig:
    """The content of ``config.json``.

    Attributes:
        modalities: names of band A and band B, in the order of the arguments.
        threshold: score above which a pair counts as a match, in [0, 1].
        network: shape of the network.
        dtype: of the values in ``model.safetensors``: "float16", "bfloat16" or "float32".
        training: data, recipe and budget, for information.
        metrics: measured accuracy, for information.
    """

    modalities: tuple[str, str]
    threshold: float = 0.5
    network: RRLNetConfig = field(default_factory=RRLNetConfig)
    dtype: str = "float16"
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.modalities, tuple) or [type(name) for name in self.modalities] != [str, str]:
            raise ValueError(f"'modalities' must be two names, got {self.modalities!r}")
        if type(self.threshold) not in (int, float) or not 0 <= self.threshold <= 1:
            raise ValueError(f"'threshold' must be a number in [0, 1], got {self.threshold!r}")
        if not isinstance(self.dtype, str) or self.dtype not in _DTYPES:
            raise ValueError(f"'dtype' must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if not isinstance(self.training, dict) or not isinstance(self.metrics, dict):
            raise ValueError("'training' and 'metrics' must be objects")

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps({"model_type": "rrl-net", **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse the text of :meth:`to_json`.

        Raises:
            ValueError: not JSON, not an RRL-Net, or a field that is missing, unknown or out of range.
        """
        try:
            values = json.loads(text, object_pairs_hook=_without_duplicates)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(values, dict) or values.pop("model_type", None) != "rrl-net":
            raise ValueError("'model_type' is not 'rrl-net'")
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown or "modalities" not in values:
            raise ValueError(f"unknown fields {sorted(unknown)}" if unknown else "'modalities' is missing")
        if isinstance(values["modalities"], list):
            values["modalities"] = tuple(values["modalities"])
        return cls(**{**values, "network": _network_config(values.get("network", {}))})


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name given twice is ambiguous, and an error."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


def _network_config(values: Any) -> RRLNetConfig:
    """RRLNetConfig of parsed JSON; sizes are bounded, so that a wrong file cannot request a huge network."""
    if not isinstance(values, dict):
        raise ValueError(f"'network' must be an object, got {values!r}")
    known = {f.name: f.default for f in dataclasses.fields(RRLNetConfig)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"'network' has the unknown field {name!r}")
        if isinstance(known[name], bool):
            if not isinstance(value, bool):
                raise ValueError(f"'network.{name}' must be true or false: {value!r}")
            continue
        sizes = value if isinstance(known[name], tuple) else [value]
        if not isinstance(sizes, list) or not 1 <= len(sizes) <= 8 or not all(_is_size(n) for n in sizes):
            raise ValueError(f"'network.{name}' is not a valid size: {value!r}")
    shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    config = RRLNetConfig(**shape)
    stages = len(config.encoder_channels)
    if (
        len(config.metric_channels) != stages
        or min(config.encoder_channels + config.metric_channels + config.hidden) < 1
        or config.unshuffle < 1
        or config.patch_size < config.unshuffle * 2 ** (stages - 1)
        or config.patch_size % (config.unshuffle * 2 ** (stages - 1))
        or config.patch_size > 256
    ):
        raise ValueError(f"'network' does not describe an RRL-Net: {values!r}")
    return config


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 4096


def save_folder(folder: str | os.PathLike[str], network: RRLNet, config: ModelConfig, card: str) -> Path:
    """Write a weights folder in the layout of a Hub repo: ``config.json``, ``model.safetensors``, ``README.md``.

    The weights are written to a temporary file that then replaces the old one, so that the folder never holds a
    truncated file. The model card is only written if not empty.

    Raises:
        WeightsError: a value is not finite in `config.dtype`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype, _ = _DTYPES[config.dtype]
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in stored_values(network).items()}
    too_large = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if too_large:
        raise WeightsError(f"values of {too_large[0]} are not finite in {config.dtype}; save with dtype float32")
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(state, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors makes the file private
    if card:
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return folder


def to_bytes(network: RRLNet) -> bytes:
    """All values of a network, float32."""
    return save({name: value.detach().float().cpu().contiguous() for name, value in stored_values(network).items()})


def from_bytes(weights: bytes, config: ModelConfig) -> RRLNet:
    """The network of :meth:`to_bytes`, in eval mode on the CPU."""
    return _build(load(weights), config)


def stored_values(network: nn.Module) -> dict[str, Tensor]:
    """The values stored in a weights file: all except the batch counters of the batch norms, which are not used."""
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def load_folder(folder: str | os.PathLike[str]) -> tuple[RRLNet, ModelConfig]:
    """Read a weights folder strictly: the names, shapes and dtypes must match, and all values must be finite.

    Returns:
        the network in eval mode, float32, on the CPU; and its config.

    Raises:
        WeightsNotFoundError: the folder or one of its two files does not exist.
        WeightsError: a file is truncated, or not that of an RRL-Net.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsNotFoundError(
                f"{folder} has no {name}: a weights folder holds {CONFIG_FILE} and {WEIGHTS_FILE}, "
                "as save_pretrained writes it"
            )
    try:
        config = ModelConfig.from_json(_read_text(folder / CONFIG_FILE))
    except ValueError as error:
        raise WeightsError(f"{folder / CONFIG_FILE} is not an RRL-Net's config: {error}: {_REPAIR}") from error
    with torch.device("meta"):
        expected = stored_values(RRLNet(config.network))
    return _build(_read_weights(folder / WEIGHTS_FILE, expected, config.dtype), config), config


def read_card(folder: Path) -> str:
    """The text of the model card; empty if there is none."""
    card = folder / CARD_FILE
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""


def _read_text(path: Path) -> str:
    if path.stat().st_size > _LARGEST_HEADER:
        raise ValueError(f"too large, {path.stat().st_size} bytes")
    return path.read_text(encoding="utf-8")


def _build(state: dict[str, Tensor], config: ModelConfig) -> RRLNet:
    """An RRL-Net with these values, independent of the caller's default device and dtype."""
    with torch.device("meta"):
        network = RRLNet(config.network).float()
    network.to_empty(device="cpu")
    counters = {k: torch.zeros_like(v) for k, v in network.state_dict().items() if k not in state}
    network.load_state_dict(state | counters)
    return network.eval().requires_grad_(False)


def _read_weights(path: Path, expected: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Values of a safetensors file as float32, read after its size and header were checked.

    Args:
        expected: names and shapes of the values.
        dtype: that ``config.json`` states.
    """
    try:
        _check_size(path, sum(value.numel() for value in expected.values()))
        with safe_open(path, framework="pt") as file:
            _check_header(path, file, expected, dtype)
            state = {name: file.get_tensor(name).float() for name in expected}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors, it may be cut off ({error}): {_REPAIR}") from error
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity: {_REPAIR}")
    return state


def _check_size(path: Path, values: int) -> None:
    """Refuse a file larger than this number of values in float64 needs, before its header is parsed."""
    with open(path, "rb") as start:
        length = int.from_bytes(start.read(8), "little")
    size = path.stat().st_size
    if length > _LARGEST_HEADER or size > 8 * values + _LARGEST_HEADER:
        raise WeightsError(
            f"{path} cannot be read as safetensors of the network in config.json: it has {size} bytes and a header of "
            f"{length}: {_REPAIR}"
        )


def _check_header(path: Path, file: Any, expected: dict[str, Tensor], dtype: str) -> None:
    names = set(file.keys())
    if names != set(expected):
        missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
        found = [_listed(verb, names) for verb, names in (("lacks", missing), ("has the unknown", extra)) if names]
        raise WeightsError(f"{path} {', '.join(found)}: {_REPAIR}")
    for name, value in expected.items():
        piece = file.get_slice(name)
        if list(piece.get_shape()) != list(value.shape):
            raise WeightsError(f"{path}: {name} has shape {piece.get_shape()}, expected {list(value.shape)}: {_REPAIR}")
        if piece.get_dtype() != _DTYPES[dtype][1]:
            raise WeightsError(f"{path}: {name} is {piece.get_dtype()}, config.json says {dtype}: {_REPAIR}")


_REPAIR = "download the file again (force_download=True), or save it with save_pretrained"


def _listed(verb: str, names: list[str]) -> str:
    return f"{verb} {names[0]} and {len(names) - 1} more" if len(names) > 1 else f"{verb} {names[0]}"
