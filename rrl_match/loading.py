"""A trained network on a device: loaded from a folder, a bundled name or the Hub, saved, pickled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self, Unpack

from rrl_match import hub, pretrained
from rrl_match._process import limit_threads_after_fork
from rrl_match.batching import BatchedInference
from rrl_match.features import encoder_checksum
from rrl_match.hub import DEFAULT_WEIGHTS
from rrl_match.inference import InferenceRRLNet, choose_device, choose_dtype
from rrl_match.modeling import Band, RRLNet
from rrl_match.options import DownloadOptions, UploadOptions
from rrl_match.pretrained import ModelConfig


class LoadedNetwork:
    """What :class:`RRLMatcher` is made of and how it is loaded and saved; see there for the arguments."""

    def __init__(
        self,
        network: RRLNet,
        config: ModelConfig,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        card: str = "",
    ) -> None:
        if config.network != network.config:
            raise ValueError(
                f"config.network must be that of the network, {network.config}, got {config.network}: "
                "pass ModelConfig(..., network=network.config)"
            )
        self.config = config
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self._card = card
        self._has_descriptors = network.config.descriptor_dim > 0
        self._network = network  # as trained, for saving
        self._inference = BatchedInference(InferenceRRLNet(network, self.device, self.dtype))
        self._encoders: dict[Band, int] = {
            "a": encoder_checksum(network.encoder_a),
            "b": encoder_checksum(network.encoder_b),
        }

    def __reduce__(self) -> tuple[Callable[..., LoadedNetwork], tuple[object, ...]]:
        # As bytes: tensors would take one file descriptor each on their way to another process.
        weights = pretrained.to_bytes(self._network)
        options = {"device": str(self.device), "dtype": self.dtype, "card": self._card}
        return _unpickle, (type(self), weights, self.config, options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = DEFAULT_WEIGHTS,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        **download: Unpack[DownloadOptions],
    ) -> Self:
        """Load weights.

        Args:
            name_or_path: a bundled name such as "vis-nir" (part of the package, no download), a folder written by
                :meth:`save_pretrained`, or a Hugging Face Hub repo id "owner/name".
            revision: branch, tag or commit of a Hub repo.
            device, dtype: see the class.
            cache_dir, token, force_download, local_files_only: for the Hub, see ``huggingface_hub.hf_hub_download``.

        Raises:
            WeightsNotFoundError: there are no weights of this name, or the Hub cannot be reached.
            WeightsError: the files are truncated, changed, or of another network.
            ValueError: the device or dtype is unknown or not available.
        """
        limit_threads_after_fork()
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        folder = hub.find_folder(name_or_path, revision=revision, **download)
        network, config = pretrained.load_folder(folder)
        return cls(network, config, device=device, dtype=dtype, card=pretrained.read_card(folder))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``config.json``, ``model.safetensors`` and the model card; :meth:`from_pretrained` loads the folder."""
        return pretrained.save_folder(folder, self._network, self.config, self._card)

    def push_to_hub(self, repo_id: str, **upload: Unpack[UploadOptions]) -> str:
        """Upload the files of :meth:`save_pretrained` to the Hugging Face Hub, and return the URL of the commit.

        Args:
            repo_id: "owner/name"; the repo is created if it does not exist.
            revision, token, private, commit_message: as ``huggingface_hub.HfApi`` takes them.

        Raises:
            RRLMatchError: the Hub cannot be reached or refuses the files.
        """
        with tempfile.TemporaryDirectory() as folder:
            return hub.push_folder(self.save_pretrained(folder), repo_id, **upload)

    @property
    def modalities(self) -> tuple[str, str]:
        """Names of band A and band B. The order of the arguments matters: the encoders differ."""
        return self.config.modalities

    @property
    def threshold(self) -> float:
        """Score above which a pair counts as a match, calibrated on validation pairs."""
        return self.config.threshold

    @property
    def patch_size(self) -> int:
        """Height and width of the patches, in pixels."""
        return self.config.network.patch_size

    def __repr__(self) -> str:
        a, b = self.modalities
        return f"{type(self).__name__}({a!r}, {b!r}, device={str(self.device)!r}, dtype={self.dtype})"


def _unpickle(kind: type[LoadedNetwork], weights: bytes, config: ModelConfig, options: dict[str, Any]) -> LoadedNetwork:
    limit_threads_after_fork()
    return kind(pretrained.from_bytes(weights, config), config, **options)
