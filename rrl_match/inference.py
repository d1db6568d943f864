"""A trained RRLNet -> the fast function for a device: folded norms, channels-last, reduced precision."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rrl_match.modeling import RRLNet
from rrl_match.modeling.blocks import ConvUnit


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:N' or a torch.device, got {device!r}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or CUDA device, got {device!r}: use device='auto'")
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ValueError(f"device {device!r} is not there, {count} CUDA devices are: use device='auto'")
        # the very device, so that a later torch.cuda.set_device does not part the patches from the weights
        chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" is the fastest that the device computes natively: bfloat16, else float16 on CUDA, else float32.

    Raises:
        ValueError: none of float32, bfloat16, float16.
    """
    if dtype == "auto":
        if device.type == "cuda":
            major, _ = torch.cuda.get_device_capability(device)
            return torch.bfloat16 if major >= 8 else torch.float16 if major >= 7 else torch.float32
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be 'auto', torch.float32, torch.bfloat16 or torch.float16, got {dtype!r}")
    return chosen


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; emulated, it is slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return any(bool(has.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # PyTorch before get_capabilities
    return bool(supported and supported())


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def mind_fork() -> None:
    """Compute with one thread in a forked child: it would wait for its parent's OpenMP threads for ever."""
    global _forked
    if _forked:
        torch.set_num_threads(1)
        _forked = False


class InferenceRRLNet(nn.Module):
    """An :class:`RRLNet` made ready to score: same results up to the rounding of `dtype`.

    Batch norms are folded into the convolutions before them, maps are channels-last in `dtype`; descriptors and the
    dense layers of the score stay in float32, where they cost nothing and keep close scores apart.
    """

    def __init__(self, network: RRLNet, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype
        folded = copy.deepcopy(network).eval().requires_grad_(False)
        for unit in folded.modules():
            if isinstance(unit, ConvUnit):
                unit.conv = fuse_conv_bn_eval(unit.conv, unit.norm)
                unit.norm = nn.Identity()  # type: ignore[assignment]
        self.network = folded.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, module in self.network.named_children():
            if name.startswith("descriptor"):
                module.float()
        self.network.metric.head.float()

    def encode(self, patches: Tensor, band: str) -> list[Tensor]:
        """Patches (N, 1, S, S) in [0, 1] of band "a" or "b" to its encoder's maps."""
        encoder = self.network.encoder_a if band == "a" else self.network.encoder_b
        with self._computing():
            # in float32, in which the finest differences of a 16-bit frame survive
            patches = self.network.prepare(patches.to(self.device, torch.float32))
            patches = patches.to(self.dtype).contiguous(memory_format=torch.channels_last)
            maps: list[Tensor] = encoder(patches)
            return maps

    def describe(self, maps: Sequence[Tensor], band: str) -> Tensor:
        """Maps of band "a" or "b" to descriptors (N, descriptor_dim), float32 of unit length."""
        if not self.network.config.descriptor_dim:
            return torch.empty(len(maps[-1]), 0, dtype=torch.float32, device=self.device)
        with self._computing():
            head = self.network.descriptor_a if band == "a" else self.network.descriptor_b
            descriptors: Tensor = head(maps[-1].float())
            return descriptors

    def relate(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of P pairs to scores (P,), float32.

        Raises:
            ValueError: float16 overflowed.
        """
        with self._computing():
            logits = self.network.metric.head(self.network.relate(maps_a, maps_b).float())
        if self.dtype == torch.float16 and not bool(torch.isfinite(logits).all()):
            raise ValueError("dtype float16 overflows with these weights on these patches: use dtype=torch.float32")
        return torch.sigmoid(logits)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients, whatever autocast the caller is in, and with threads that are there."""
        mind_fork()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield
