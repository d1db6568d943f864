"""ALFE (attention-based lightweight feature extraction): the encoder of one band."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rrl_match.modeling.attention import MGLA
from rrl_match.modeling.blocks import ConvUnit


class EncoderStage(nn.Sequential):
    """A 3x3 unit, 2x2 max pooling except in the first stage, then MGLA.

    Args:
        in_channels: channels of the previous stage's map.
        out_channels: channels of this stage's map.
        size: height and width of this stage's map.
        pool: whether the input is twice that size.

    Shape: (N, in_channels, size or 2 * size, same) to (N, out_channels, size, size).
    """

    unit: ConvUnit
    attention: MGLA

    def __init__(self, in_channels: int, out_channels: int, size: int, pool: bool) -> None:
        super().__init__()
        self.unit = ConvUnit(in_channels, out_channels, 3)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.attention = MGLA(out_channels, size)


class ALFE(nn.Module):
    """Attention-based lightweight feature extraction: one map per stage, each half the size of the previous one.

    Args:
        channels: channels of each stage.
        size: height and width of the input and of the first stage's map.
        in_channels: channels of the input.

    Shape: prepared patches (N, in_channels, size, size) to a list of maps (N, channels[k], size / 2**k, same).
    """

    def __init__(self, channels: Sequence[int], size: int, in_channels: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            EncoderStage(previous, out, size >> k, pool=k > 0)
            for k, (previous, out) in enumerate(zip([in_channels, *channels], channels, strict=False))
        )

    def forward(self, patches: Tensor) -> list[Tensor]:
        maps = []
        x = patches
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
