"""The metric network: from the private features of all stages to one logit per pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrl_match.modeling.blocks import ConvUnit


class ScoreHead(nn.Sequential):
    """Global average pool and three dense layers: a map (N, channels, H, W) to logits (N,)."""

    def __init__(self, channels: int, hidden: Sequence[int]) -> None:
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        for in_features, out_features in zip([channels, *hidden], hidden, strict=False):
            layers += [nn.Linear(in_features, out_features), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden[-1], 1), nn.Flatten(0))


class MetricNetwork(nn.Module):
    """Each stage: two 3x3 units on the previous stage's pooled map and this stage's private features.

    Args:
        private_channels: channels of the private features of each stage (both bands together).
        channels: output channels of each stage.
        hidden: widths of the dense layers before the last one.
    """

    def __init__(self, private_channels: Sequence[int], channels: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(ConvUnit(previous + private, out, 3), ConvUnit(out, out, 3))
            for previous, private, out in zip([0, *channels], private_channels, channels, strict=False)
        )
        self.head = ScoreHead(channels[-1], hidden)

    def forward(self, private_features: Sequence[Tensor]) -> list[Tensor]:
        """Private features (N, private_channels[k], S >> k, S >> k) to maps (N, channels[k], S >> k, S >> k).

        ``head`` maps the last of them to logits (N,).
        """
        first, *others = self.stages  # torch.export of PyTorch 2.4 cannot trace a slice of a ModuleList
        maps = [first(private_features[0])]
        for stage, private in zip(others, private_features[1:], strict=True):
            maps.append(stage(torch.cat([F.max_pool2d(maps[-1], 2), private], dim=1)))
        return maps
