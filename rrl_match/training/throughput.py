"""How well a run uses its device: floating-point operations per second, relative to plain matrix products."""

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
        pairs: patch pairs that a step trains on, over all processes.
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
        self._least_seconds = step_flops(model, batch_size, size) / matrix_rate(device, precision)

    def of(self, seconds: float) -> dict[str, str]:
        """Pairs per second, and the fraction of :func:`matrix_rate`, of a step that took `seconds`."""
        return {"pairs_s": f"{self._pairs / seconds:.0f}", "of_matrix_rate": f"{self._least_seconds / seconds:.0%}"}


def step_flops(model: nn.Module, batch_size: int, size: int) -> int:
    """Floating-point operations of a training step's matrix products and convolutions, without computing them.

    A multiply-add counts as two. The step is three times the forward pass, because the backward pass repeats each
    product once for the gradient of the input and once for that of the weights.

    Args:
        model: takes patches (N, 1, S, S) of both bands.
        batch_size: N locations, each in a matching pair and, if the model scores pairs, in a non-matching one.
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
    """Floating-point operations per second of a large square matrix product in `dtype`, the fastest of several.

    It is measured, so other processes lower it; it is not the vendor's specification.
    """
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return max(2 * n**3 / _seconds(a, b) for _ in range(5))


def _seconds(a: Tensor, b: Tensor) -> float:
    began = time.perf_counter()
    (a @ b)[0, 0].item()  # waits for the product
    return time.perf_counter() - began
