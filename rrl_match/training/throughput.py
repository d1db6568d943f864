"""How well a run uses its device: floating-point operations of a step against those of plain matrix products."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rrl_match.training.distillation import StudentGraph
from rrl_match.training.network import TrainingRRLNet


class StepRates:
    """Rates of the steps of a phase, for its progress bar.

    Args:
        model, batch_size, size: as :func:`step_flops` takes them.
        pairs: that a step shows to the losses, over all processes.
        device, precision: of the training.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        size: int,
        pairs: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self._pairs = pairs
        self._fastest = step_flops(model, batch_size, size) / matrix_rate(device, precision)

    def of(self, seconds: float) -> dict[str, str]:
        """Pairs per second, and the percentage of :func:`matrix_rate`, of a step that took so many seconds."""
        return {"pairs_s": f"{self._pairs / seconds:.0f}", "of_matrix_rate": f"{self._fastest / seconds:.0%}"}


def step_flops(model: nn.Module, batch_size: int, size: int) -> int:
    """Floating-point operations of a training step's products and convolutions, counted without computing any.

    The forward pass is counted, a multiply-add as two, and taken three times: the backward pass does each of its
    products for the input and for the weights.

    Args:
        model: takes patches of both bands, (N, 1, S, S), and pairs row n with row n, or as its third argument says.
        batch_size: N locations, each in one pair that matches and, where the model scores pairs, in one that does not.
        size: S, in pixels.
    """
    patches = torch.empty(batch_size, 1, size, size, device="meta")
    model = copy.deepcopy(model).to("meta")  # no values, and nothing compiled
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(model, (TrainingRRLNet, StudentGraph)):
            model(patches, patches, lambda _: torch.empty(2 * batch_size, 2, dtype=torch.int64, device="meta"))
        else:
            model(patches, patches)
    forward: int = counter.get_total_flops()
    return 3 * forward


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product in `dtype`, the fastest of several.

    Measured, so it includes the load by other processes; it is not the maker's specification.
    """
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return max(2 * n**3 / _seconds(a, b) for _ in range(5))


def _seconds(a: Tensor, b: Tensor) -> float:
    began = time.perf_counter()
    (a @ b)[0, 0].item()  # waits for the product
    return time.perf_counter() - began
