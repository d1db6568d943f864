"""Encoded patches, and the checks that keep those of different weights apart."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rrl_match.modeling import Band
from rrl_match.pretrained import stored_values


@dataclass(frozen=True, eq=False)
class Features:
    """Encoded patches of one band, from :meth:`RRLMatcher.encode`.

    They are on the device of the matcher, in its dtype: 127,000 values per patch, 254 kB in bfloat16.

    Attributes:
        band: "a" or "b".
        maps: the five maps of the encoder, (N, C, H, W) each.
        descriptors: (N, dim) float32 of unit length; dim is 0 if the weights have no descriptor heads.
        encoder: checksum of the encoder's weights, to refuse features of other weights.
    """

    band: Band
    maps: tuple[Tensor, ...]
    descriptors: Tensor
    encoder: int

    def __len__(self) -> int:
        return len(self.maps[0])

    def __repr__(self) -> str:
        dtype = str(self.maps[0].dtype).removeprefix("torch.")
        return f"Features({len(self)} patches of band {self.band!r}, {dtype} on {self.maps[0].device})"


def encoder_checksum(encoder: nn.Module) -> int:
    """CRC-32 of the stored values of an encoder, in float32."""
    total = 0
    for value in stored_values(encoder).values():
        total = zlib.crc32(value.detach().float().cpu().contiguous().numpy().tobytes(), total)
    return total


def check_features(features: object, band: Band, encoder: int, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what is not features of a band, from the encoder with this checksum, on this device, in this dtype.

    Raises:
        TypeError: not features of this band; `features_a` or `features_b` is named.
        ValueError: from another encoder, on another device, or in another dtype.
    """
    if not isinstance(features, Features) or features.band != band:
        kind = f"features of band {features.band!r}" if isinstance(features, Features) else type(features).__name__
        raise TypeError(f"features_{band} must come from encode(patches, {band!r}), got {kind}")
    own = features.maps[0]
    if features.encoder != encoder or (own.device, own.dtype) != (device, dtype):
        raise ValueError(
            f"features_{band} come from a matcher with other weights, dtype or device "
            f"({own.dtype} on {own.device}): encode the patches with this matcher"
        )
