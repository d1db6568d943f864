"""Feature reconstruction: a decoder for each band, pruned after training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rrl_match.modeling.attention import MGLA
from rrl_match.modeling.blocks import ConvUnit


def upsample(x: Tensor) -> Tensor:
    """Twice the height and width, as TensorFlow 1 does it (the published code runs on it).

    Output pixel 2i is input i, 2i + 1 the mean of i and i + 1; the last one repeats.
    (N, C, H, W) to (N, C, 2H, 2W). PyTorch's own modes put pixel centres elsewhere.
    """
    for dim in (2, 3):
        last = x.narrow(dim, x.shape[dim] - 1, 1)
        following = torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), last], dim)
        x = torch.stack([x, (x + following) / 2], dim + 1).flatten(dim, dim + 1)
    return x


class DecoderStage(nn.Module):
    """A 3x3 unit, upsampling, MGLA: (N, in_channels, S, S) to (N, out_channels, 2S, 2S)."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.unit = ConvUnit(in_channels, out_channels, 3)
        self.attention = MGLA(out_channels, 2 * size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(upsample(self.unit(x)))
        return out


class Decoder(nn.Module):
    """The deepest map of one band's encoder to a reconstruction of the prepared patch.

    Args:
        encoder_channels: channels of the encoder's stages; the decoder has them in reverse order.
        size: height and width of the encoder's input.
        out_channels: channels of the encoder's input.
    """

    def __init__(self, encoder_channels: Sequence[int], size: int, out_channels: int = 1) -> None:
        super().__init__()
        channels = list(reversed(encoder_channels))
        smallest = size >> (len(channels) - 1)
        self.stages = nn.Sequential(
            *(DecoderStage(channels[k], channels[k + 1], smallest << k) for k in range(len(channels) - 1))
        )
        self.conv = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, deepest: Tensor) -> Tensor:
        """(N, encoder_channels[-1], s, s) to a reconstruction (N, out_channels, size, size) in [0, 1]."""
        return torch.sigmoid(self.conv(self.stages(deepest)))
