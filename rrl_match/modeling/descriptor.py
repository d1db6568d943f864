"""A descriptor on top of an encoder, to shortlist candidates for the metric network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DescriptorHead(nn.Module):
    """The deepest map of an encoder as one vector of unit length. Not part of the paper.

    A linear projection, as in contrastive learning (Chen et al., SimCLR, ICML 2020), of the flattened map: flattening
    keeps the spatial layout, as the last layer of HardNet does (Mishchuk et al., NeurIPS 2017).

    Args:
        channels: channels of the deepest map.
        size: height and width of the deepest map.
        dim: length of the descriptor.

    Shape: (N, channels, size, size) to (N, dim), float32.
    """

    def __init__(self, channels: int, size: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
        self.projection = nn.Linear(channels * size * size, dim, bias=False)

    def forward(self, deepest: Tensor) -> Tensor:
        return F.normalize(self.projection(self.norm(deepest).flatten(1)).float())
