"""Weights folders: name, path or Hub id -> verified files -> RRLNet, and back. The only user of the network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from rrl_match.errors import RRLMatchError, WeightsError, WeightsNotFoundError
from rrl_match.modeling import RRLNet, RRLNetConfig

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_LARGEST_HEADER = 1 << 20  # bytes of JSON that are parsed, of either file; RRL-Net's take 30 thousand
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
        """Read :meth:`to_json`'s text.

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
    """A JSON object; of two values under one name, nobody knows which was meant."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


def _network_config(values: Any) -> RRLNetConfig:
    """RRLNetConfig of parsed JSON; bounded, so that a wrong file cannot ask for a huge network."""
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
            raise ValueError(f"'network.{name}' is not a sensible size: {value!r}")
    shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    config = RRLNetConfig(**shape)
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


def bundled_names() -> list[str]:
    """Names of the weights that came with the wheel."""
    return sorted(_manifest())


def stored_scores(name: str) -> list[float] | None:
    """What bundled weights made of the selftest's pairs at release, in float32; None where that was not stored."""
    scores: list[float] | None = _manifest()[name].get("selftest")
    return scores


def find_folder(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder with the weights of a bundled name, a local path or a Hub repo id, in this order.

    Released files are compared with the manifest of their sha256 sums wherever they come from: the Hub's client
    does not look at what it downloads.

    Args:
        name_or_path: such as "vis-nir", "./my-weights" or "owner/name".
        revision, cache_dir, token, force_download, local_files_only: the Hub's own, see ``hf_hub_download``.

    Raises:
        TypeError: not a name or a path.
        ValueError: a revision of what does not come from the Hub.
        WeightsNotFoundError: there is nothing under this name, or the Hub cannot be reached.
        WeightsError: a released file has changed.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(
            f"name_or_path must be a bundled name, a folder or a Hub repo id, got {type(name_or_path).__name__}"
        )
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"revision must be a branch, a tag or a commit, got {type(revision).__name__}")
    name = os.fspath(name_or_path)
    manifest = _manifest()
    is_local = name in manifest or os.path.isdir(name)  # which says no to names that cannot be, too
    if is_local and revision is not None:
        raise ValueError(f"revision is for repos on the Hub, {name!r} is on this machine: leave it out")
    if name in manifest:
        folder = _weights_package() / name
        _verify(folder, manifest[name]["files"], "install rrl-match anew")
        return folder
    if is_local:
        return Path(name)
    known = ", ".join(manifest) or "none: rrl-match is not installed, only imported from a checkout"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise WeightsNotFoundError(
            f"{name!r} is neither weights that came with rrl-match ({known}) nor a folder: "
            'give one of these, the path of a folder, or a Hub repo id "owner/name"'
        )
    options = {
        "cache_dir": cache_dir,
        "token": token,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    folder = _download(name, revision, options)
    for released in manifest.values():
        if released["repo_id"].lower() == name.lower():
            _verify(
                folder,
                released["files"],
                "load it with force_download=True; another revision needs the rrl-match that it was released with",
            )
    return folder


def _download(repo_id: str, revision: str | None, options: dict[str, Any]) -> Path:
    """Config and weights of one commit of a Hub repo, in the Hub's cache."""
    unreachable = None
    try:
        if _has_commit(repo_id, revision, options):  # never changes: there is nothing to ask
            options = {**options, "local_files_only": True}
        elif not options["local_files_only"]:
            unreachable = _connection_error(repo_id, revision, options["token"])
            options = {**options, "local_files_only": unreachable is not None}
        config = Path(huggingface_hub.hf_hub_download(repo_id, CONFIG_FILE, revision=revision, **options))
        # The cache's folder is named by the commit: the weights must not come from a later one.
        weights = huggingface_hub.hf_hub_download(repo_id, WEIGHTS_FILE, revision=config.parent.name, **options)
    except Exception as error:  # the client's own, its HTTP library's, and those of the operating system
        where = f"revision {revision!r} of " if revision else ""
        cause = unreachable or error
        raise WeightsNotFoundError(
            f"could not load {where}{repo_id!r} from the Hugging Face Hub, and there is no such folder: "
            f"{_said(cause)}. Check the name, the token and the connection, or give a local folder"
        ) from cause
    with suppress(Exception):  # a model card is welcome, not needed
        huggingface_hub.hf_hub_download(repo_id, CARD_FILE, revision=config.parent.name, **options)
    return Path(weights).parent


def _has_commit(repo_id: str, revision: str | None, options: dict[str, Any]) -> bool:
    """Whether the revision is a commit whose files are in the cache, and may be taken from there."""
    if options["force_download"] or not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return False
    cached = (
        huggingface_hub.try_to_load_from_cache(repo_id, file, cache_dir=options["cache_dir"], revision=revision)
        for file in (CONFIG_FILE, WEIGHTS_FILE)
    )
    return all(isinstance(path, str) for path in cached)


def _connection_error(repo_id: str, revision: str | None, token: str | bool | None) -> Exception | None:
    """Why the Hub does not answer, or None where it does.

    Left to itself, the client retries for half a minute, or for as long as a busy server bids it wait, before it
    says so.
    """
    try:
        url = huggingface_hub.hf_hub_url(repo_id, CONFIG_FILE, revision=revision)
        huggingface_hub.get_hf_file_metadata(url, token=token)
    except HfHubHTTPError as error:  # it answers; what it says about the request, the download will hear again
        status = error.response.status_code if error.response is not None else 0
        return error if status >= 500 or status in (408, 429) else None
    except Exception as error:  # of whichever HTTP library the client uses
        return error
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _weights_package() -> Path:
    return Path(str(resources.files("rrl_match.weights")))


def _manifest() -> dict[str, Any]:
    """``{name: {"repo_id": ..., "files": {file: sha256}, "selftest": scores}}`` of the released weights."""
    try:
        text = (_weights_package() / "manifest.json").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):  # a checkout that was not installed: folders can still be loaded
        return {}
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def _verify(folder: Path, sums: dict[str, str], way_out: str) -> None:
    for file, expected in sums.items():
        path = folder / file
        if not path.is_file():
            raise WeightsNotFoundError(f"{path} is missing: {way_out}")
        digest = hashlib.sha256()
        with open(path, "rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise WeightsError(
                f"{path} is not the released file, its sha256 is {digest.hexdigest()}, expected {expected}: {way_out}"
            )


def push_folder(
    folder: Path, repo_id: str, *, revision: str | None, token: str | bool | None, private: bool | None, message: str
) -> str:
    """Upload a weights folder, making repo and branch where they are not there. Returns the commit's address.

    Raises:
        RRLMatchError: the Hub cannot be reached, or does not take the files.
    """
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message))
    except Exception as error:  # the client's own, its HTTP library's, and those of the operating system
        raise RRLMatchError(
            f"could not upload to {repo_id!r} on the Hugging Face Hub: {_said(error)}. "
            "Check the name, that the token may write, and the connection"
        ) from error


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 4096


def save_folder(folder: str | os.PathLike[str], network: RRLNet, config: ModelConfig, card: str) -> Path:
    """Write a weights folder in the Hub's layout: ``config.json``, ``model.safetensors``, and ``README.md`` if given.

    The weights are written beside their place and moved in, so that a cut-off file is never left there.

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
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)  # safetensors makes it private
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


def _read_text(path: Path) -> str:
    if path.stat().st_size > _LARGEST_HEADER:
        raise ValueError(f"{path.stat().st_size} bytes are too many")
    return path.read_text(encoding="utf-8")


def _build(state: dict[str, Tensor], config: ModelConfig) -> RRLNet:
    """An RRL-Net with these values, whatever the caller's default device and dtype are."""
    with torch.device("meta"):
        network = RRLNet(config.network).float()
    network.to_empty(device="cpu")
    counters = {k: torch.zeros_like(v) for k, v in network.state_dict().items() if k not in state}
    network.load_state_dict(state | counters)
    return network.eval().requires_grad_(False)


def _read_weights(path: Path, expected: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Values of a safetensors file as float32, after its header has been compared with what is expected."""
    try:
        with open(path, "rb") as start:
            length = int.from_bytes(start.read(8), "little")
        size, largest = path.stat().st_size, 8 * sum(value.numel() for value in expected.values())  # in float64
        if length > _LARGEST_HEADER or size > largest + _LARGEST_HEADER:
            raise WeightsError(
                f"{path} cannot be read as safetensors of config.json's network: it has {size} bytes and a header of "
                f"{length}: {_REPAIR}"
            )
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(expected):
                missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
                found = [
                    _listed(verb, names) for verb, names in (("lacks", missing), ("has the unknown", extra)) if names
                ]
                raise WeightsError(f"{path} {', '.join(found)}: {_REPAIR}")
            for name, value in expected.items():
                piece = file.get_slice(name)
                if list(piece.get_shape()) != list(value.shape):
                    raise WeightsError(
                        f"{path}: {name} has shape {piece.get_shape()}, expected {list(value.shape)}: {_REPAIR}"
                    )
                if piece.get_dtype() != _DTYPES[dtype][1]:
                    raise WeightsError(f"{path}: {name} is {piece.get_dtype()}, config.json says {dtype}: {_REPAIR}")
            state = {name: file.get_tensor(name).float() for name in expected}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors, it may be cut off ({error}): {_REPAIR}") from error
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity: {_REPAIR}")
    return state


_REPAIR = "fetch the file anew (from the Hub with force_download=True), or save it with save_pretrained"


def _listed(verb: str, names: list[str]) -> str:
    return f"{verb} {names[0]} and {len(names) - 1} more" if len(names) > 1 else f"{verb} {names[0]}"
