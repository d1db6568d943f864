"""Random values from the CPU to the training device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without waiting for the device to finish its work.

    Random values are drawn on the CPU, so that a seed gives the same ones on every device. Without pinned memory, each
    of the dozens of copies per step would stall a GPU.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
