"""The convolution unit used throughout RRL-Net."""

from __future__ import annotations

from torch import nn


class ConvUnit(nn.Sequential):
    """``conv -> batch norm -> activation``, with a bias and 'same' padding.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        kernel_size: side of the square kernel, odd.
        activation: the last module (default: LeakyReLU(0.1)).

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
        # The authors used Keras: its eps, and its momentum of 0.99, which is 0.01 in PyTorch.
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
        self.activation = nn.LeakyReLU(0.1) if activation is None else activation
