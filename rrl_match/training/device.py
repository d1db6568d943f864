"""What is drawn on the CPU, on its way to the training device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without waiting for what that still computes.

    Random values are drawn on the CPU, so that a seed means the same on every device; some dozens of them a step would
    each hold a GPU up if they came from memory that is not pinned.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
