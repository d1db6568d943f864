"""RRL-Net: wires the encoders, feature interaction and the metric network together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rrl_match.modeling.descriptor import DescriptorHead
from rrl_match.modeling.encoder import ALFE
from rrl_match.modeling.interaction import FIL
from rrl_match.modeling.metric import MetricNetwork


@dataclass(frozen=True)
class RRLNetConfig:
    """Shape of an :class:`RRLNet`; the defaults are the published network.

    Attributes:
        patch_size: height and width of the patches in pixels.
        encoder_channels: channels of each stage of the encoders.
        metric_channels: channels of each stage of the metric network.
        hidden: widths of the dense layers of the score head.
        descriptor_dim: length of the descriptors for shortlisting; 0, as published, for none.
        standardise: bring each patch to one mean and contrast first, see :func:`standardise`; not published.
    """

    patch_size: int = 64
    encoder_channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    metric_channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    hidden: tuple[int, ...] = (512, 256)
    descriptor_dim: int = 0
    standardise: bool = False


class RRLNet(nn.Module):
    """Relational representation learning network, as it is after post-pruning (MLPP).

    Band A (visible, optical) and band B (near infrared, thermal, radar) have encoders of their own, so
    ``net(a, b)`` is not ``net(b, a)``.
    """

    def __init__(self, config: RRLNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or RRLNetConfig()
        channels = config.encoder_channels
        self.encoder_a = ALFE(channels, config.patch_size)
        self.encoder_b = ALFE(channels, config.patch_size)
        self.interactions = nn.ModuleList(FIL(c) for c in channels)
        self.metric = MetricNetwork([2 * c for c in channels], config.metric_channels, config.hidden)
        if config.descriptor_dim:
            deepest = channels[-1], config.patch_size >> (len(channels) - 1), config.descriptor_dim
            self.descriptor_a = DescriptorHead(*deepest)
            self.descriptor_b = DescriptorHead(*deepest)

    def prepare(self, patches: Tensor) -> Tensor:
        """Patches (N, 1, S, S) of either band, float in [0, 1], as the encoders want them."""
        return standardise(patches) if self.config.standardise else patches

    def relate(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of both encoders, row n of A against row n of B, to the metric network's deepest map.

        ``metric.head`` turns it, (N, metric_channels[-1], s, s), into logits (N,).
        """
        private = [fil(a, b)[0] for fil, a, b in zip(self.interactions, maps_a, maps_b, strict=True)]
        deepest: Tensor = self.metric(private)[-1]
        return deepest

    def describe(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps of both encoders to descriptors (N, descriptor_dim) of unit length, float32."""
        return self.descriptor_a(maps_a[-1]), self.descriptor_b(maps_b[-1])

    def forward(self, patches_a: Tensor, patches_b: Tensor) -> Tensor:
        """Scores of pairs of patches.

        Args:
            patches_a, patches_b: float (N, 1, patch_size, patch_size), values in [0, 1].

        Returns:
            (N,) scores in [0, 1]; 1 where both show the same place.
        """
        deepest = self.relate(self.encoder_a(self.prepare(patches_a)), self.encoder_b(self.prepare(patches_b)))
        return torch.sigmoid(self.metric.head(deepest))


def standardise(patches: Tensor) -> Tensor:
    """Patches (N, 1, S, S) brought to mean 0.5 and standard deviation 0.2 each, then cut to [0, 1].

    As HardNet's input (Mishchuk et al., 2017), but kept in the range of pictures. Gain and offset of the sensor no
    longer matter, nor does the range that a 16-bit frame was mapped by, unless it leaves a patch a standard deviation
    near 1e-4; a patch without any contrast stays flat.
    """
    centred = patches - patches.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (0.5 + 0.2 * centred / (deviation + 1e-4)).clamp(0, 1)
