"""A trained RRLNet -> the fast function for a device: folded norms, channels-last, reduced precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence

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
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there, {torch.cuda.device_count()} CUDA devices are: use device='auto'"
        )
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


class InferenceRRLNet(nn.Module):
    """An :class:`RRLNet` made ready to score: same results up to the rounding of `dtype`.

    Batch norms are folded into the convolutions before them, maps are channels-last in `dtype`; the dense
    layers of the score stay in float32, where they cost nothing and keep close scores apart.
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
        self.network.metric.head.float()

    @torch.no_grad()
    def encode(self, patches: Tensor, band: str) -> tuple[list[Tensor], Tensor]:
        """Patches (N, 1, S, S) of band "a" or "b" to its encoder's maps, and descriptors (N, descriptor_dim)."""
        net = self.network
        encoder = net.encoder_a if band == "a" else net.encoder_b
        maps = encoder(patches.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last))
        if not net.config.descriptor_dim:
            return maps, torch.empty(len(patches), 0, device=self.device)
        return maps, (net.descriptor_a if band == "a" else net.descriptor_b)(maps)

    @torch.no_grad()
    def relate(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of P pairs to scores (P,) float32."""
        net = self.network
        private = [fil(a, b)[0] for fil, a, b in zip(net.interactions, maps_a, maps_b, strict=True)]
        return torch.sigmoid(net.metric.head(net.metric(private)[-1].float()))
