"""MGLA: multi-dimensional global-to-local attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def local_kernel_size(length: int) -> int:
    """Kernel size of the 1-D convolution along an axis of ``length`` entries: odd, growing with log2(length).

    After ECA-Net's adaptive kernel (Wang et al., CVPR 2020): 4 -> 1; 8, 16, 32, 64 -> 3; 128, 256 -> 5.
    """
    size = math.floor((math.log2(length) + 1) / 2)
    return size if size % 2 else size + 1


class AxisGate(nn.Module):
    """Global context, then local dependency, along one axis of a map.

    Args:
        length: number of entries along the axis.

    Shape: a map with the axis moved to the front and the rest flattened, (N, length, P), to gates (N, length) in
    (0, 1).
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        kernel_size = local_kernel_size(length)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        # (N, P): how much each position on the other two axes counts
        weights = torch.softmax(x.mean(dim=1), dim=1, dtype=torch.float32)
        context = torch.einsum("nlp,np->nl", x, weights.to(x.dtype))
        gates: Tensor = torch.sigmoid(self.conv(context.unsqueeze(1))).squeeze(1)
        return gates


class MGLA(nn.Module):
    """Multi-dimensional global-to-local attention: a gate along channels, one along rows, one along columns.

    The kernels of the gates depend on the map's size, so a trained RRL-Net takes patches of one size only.

    Args:
        channels: channels of the map.
        size: height and width of the map, in pixels.

    Shape: (N, channels, size, size) to the same.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channel_gate = AxisGate(channels)
        self.row_gate = AxisGate(size)
        self.column_gate = AxisGate(size)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.channel_gate(x.flatten(2))
        rows = self.row_gate(x.permute(0, 2, 3, 1).flatten(2))
        columns = self.column_gate(x.permute(0, 3, 2, 1).flatten(2))
        gates: Tensor = channels[:, :, None, None] * (rows[:, None, :, None] * columns[:, None, None, :])
        return x * gates
