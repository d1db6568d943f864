"""RRL-Net: two encoders, feature interaction and the metric network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rrl_match.modeling.descriptor import DescriptorHead
from rrl_match.modeling.encoder import ALFE
from rrl_match.modeling.interaction import FIL
from rrl_match.modeling.metric import MetricNetwork

Band: TypeAlias = Literal["a", "b"]


@dataclass(frozen=True)
class RRLNetConfig:
    """Shape of an :class:`RRLNet`; the defaults are those of the published network.

    Attributes:
        patch_size: height and width of the patches in pixels.
        encoder_channels: channels of each stage of the encoders.
        metric_channels: channels of each stage of the metric network.
        hidden: widths of the dense layers of the score head.
        descriptor_dim: length of the descriptors for shortlisting; 0 for none (as published).
        unshuffle: side of the square blocks of pixels that become channels before the first stage; 1, as published,
            leaves patches as they are, 2 halves the height and width of all maps.
        standardise: bring each patch to the same mean and contrast first, see :func:`standardise` (not in the paper).
    """

    patch_size: int = 64
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    metric_channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    hidden: tuple[int, ...] = (512, 256)
    descriptor_dim: int = 0
    unshuffle: int = 1
    standardise: bool = False

    @property
    def map_size(self) -> int:
        """Height and width of the first stage's maps; each further stage halves them."""
        return self.patch_size // self.unshuffle


class RRLNet(nn.Module):
    """Relational representation learning network, after post-pruning (MLPP).

    Band A (visible, optical) and band B (near infrared, thermal, radar) have separate encoders: ``net(a, b)`` differs
    from ``net(b, a)``.
    """

    def __init__(self, config: RRLNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RRLNetConfig()
        channels = config.encoder_channels
        self.encoder_a = ALFE(channels, config.map_size, config.unshuffle**2)
        self.encoder_b = ALFE(channels, config.map_size, config.unshuffle**2)
        self.interactions = nn.ModuleList(FIL(c) for c in channels)
        self.metric = MetricNetwork([2 * c for c in channels], config.metric_channels, config.hidden)
        if config.descriptor_dim:
            deepest = channels[-1], config.map_size >> (len(channels) - 1), config.descriptor_dim
            self.descriptor_a = DescriptorHead(*deepest)
            self.descriptor_b = DescriptorHead(*deepest)

    def prepare(self, patches: Tensor) -> Tensor:
        """Patches (N, 1, S, S) in [0, 1] as the encoders take them, (N, unshuffle**2, S / unshuffle, S / unshuffle)."""
        if self.config.standardise:
            patches = standardise(patches)
        return unshuffle(patches, self.config.unshuffle)

    def encode(self, patches: Tensor, band: Band) -> list[Tensor]:
        """Prepare and encode patches of one band.

        Args:
            patches: float (N, 1, S, S), values in [0, 1].
            band: "a" or "b".

        Returns:
            one map per stage, (N, encoder_channels[k], map_size >> k, map_size >> k).
        """
        encoder = self.encoder_a if band == "a" else self.encoder_b
        maps: list[Tensor] = encoder(self.prepare(patches))
        return maps

    def describe(self, maps: Sequence[Tensor], band: Band) -> Tensor:
        """Maps of one band to descriptors (N, descriptor_dim) of unit length, float32."""
        head = self.descriptor_a if band == "a" else self.descriptor_b
        descriptors: Tensor = head(maps[-1])
        return descriptors

    def logits(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of both bands, row n of A with row n of B, to logits (N,)."""
        private = [fil(a, b)[0] for fil, a, b in zip(self.interactions, maps_a, maps_b, strict=True)]
        logits: Tensor = self.metric.head(self.metric(private)[-1])
        return logits

    def forward(self, patches_a: Tensor, patches_b: Tensor) -> Tensor:
        """Score pairs of patches.

        Args:
            patches_a, patches_b: float (N, 1, S, S), values in [0, 1].

        Returns:
            (N,) scores in [0, 1]; near 1 if both patches show the same location.
        """
        return torch.sigmoid(self.logits(self.encode(patches_a, "a"), self.encode(patches_b, "b")))


def unshuffle(patches: Tensor, side: int) -> Tensor:
    """Square blocks of pixels to channels: (N, 1, S, S) to (N, side**2, S / side, S / side).

    As ``torch.nn.functional.pixel_unshuffle``, which leaves N = 0 patches as they are.
    """
    if side == 1:
        return patches
    blocks: Tensor = patches.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (N, 1, h, side, w, side)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def standardise(patches: Tensor) -> Tensor:
    """Shift and scale each patch (N, 1, S, S) to mean 0.5 and standard deviation 0.2, then clip to [0, 1].

    As HardNet's input (Mishchuk et al., 2017), but kept in the range of images. It cancels the gain and offset of the
    sensor, and so the value range that a 16-bit frame was mapped from, as long as the standard deviation stays well
    above 1e-4. A patch without contrast stays flat.
    """
    centred = patches - patches.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (0.5 + 0.2 * centred / (deviation + 1e-4)).clamp(0, 1)
