"""FIL (feature interaction learning): common and private features of the two bands."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrl_match.modeling.blocks import ConvUnit


class FIL(nn.Module):
    """Feature interaction learning of one stage.

    Each band's values pass the other band's gates: what passes is *common*, what is lost is *private*.

    Args:
        channels: channels of each band's map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value_a = ConvUnit(channels, channels, 1)
        self.gate_a = ConvUnit(channels, channels, 1, activation=nn.Sigmoid())
        self.value_b = ConvUnit(channels, channels, 1)
        self.gate_b = ConvUnit(channels, channels, 1, activation=nn.Sigmoid())

    def forward(self, map_a: Tensor, map_b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute private and common features.

        Args:
            map_a, map_b: (N, channels, H, W).

        Returns:
            private features (N, 2 * channels, H, W), band A's then band B's, non-negative; and the common features
            (N, channels, H, W) of A and of B, used in training only.
        """
        value_a, value_b = self.value_a(map_a), self.value_b(map_b)
        common_a = value_a * self.gate_b(map_b)
        common_b = value_b * self.gate_a(map_a)
        private = torch.cat([(common_a - value_a).abs(), (common_b - value_b).abs()], dim=1)
        return private, (common_a, common_b)
