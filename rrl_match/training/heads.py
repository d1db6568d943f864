"""Auxiliary heads, which score single stages during training and are pruned afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rrl_match.modeling.blocks import ConvUnit
from rrl_match.modeling.metric import ScoreHead


class InteractionHead(nn.Sequential):
    """Scores the common features of one FIL stage: (N, channels, S, S) to logits (N,)."""

    def __init__(self, channels: int, hidden: Sequence[int]) -> None:
        super().__init__(ConvUnit(channels, channels, 3), ConvUnit(channels, channels, 3), ScoreHead(channels, hidden))
