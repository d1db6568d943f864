"""The unit that everything in RRL-Net is built from."""

from __future__ import annotations

from torch import nn


class ConvUnit(nn.Sequential):
    """``conv -> batch norm -> activation``, with a bias and 'same' padding.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        kernel_size: side of the square kernel, odd.
        activation: the module at the end; LeakyReLU(0.1) unless told.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    activation: nn.Module

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        # Keras' batch norm, which the authors used: its eps, and momentum 0.99 is PyTorch's 0.01.
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
        self.activation = nn.LeakyReLU(0.1) if activation is None else activation
