"""Fast inference: a trained RRLNet prepared for one device and dtype.

The results are those of :mod:`rrl_match.modeling` up to rounding. Batch norms are folded into the convolutions,
activations are fused with them if oneDNN can do it, the reductions of MGLA are matrix products on views of
channels-last maps, and the input of each metric stage is written in place rather than concatenated.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rrl_match._process import keep_freed_memory, limit_threads_after_fork
from rrl_match.modeling import Band, RRLNet
from rrl_match.modeling.attention import MGLA
from rrl_match.modeling.blocks import ConvUnit
from rrl_match.modeling.encoder import ALFE
from rrl_match.modeling.interaction import FIL


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is CUDA if available, else the CPU.

    Raises:
        ValueError: the device is unknown or not available.
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
            found = f"{count} CUDA device{'' if count == 1 else 's'} found"
            raise ValueError(f"device {device!r} is not available ({found}): use device='auto'")
        # with an index, so that a later torch.cuda.set_device does not separate the patches from the weights
        chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name; "auto" is bfloat16 if native on the device, else float16 on CUDA, else float32.

    Raises:
        ValueError: not one of float32, bfloat16, float16.
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
    """Whether the CPU supports bfloat16 natively; emulated, it is slower than float32."""
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return any(bool(has.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # PyTorch before get_capabilities
    return bool(supported and supported())


def fold_norms(network: RRLNet) -> RRLNet:
    """A copy of a network for inference, with each batch norm folded into the convolution before it."""
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for unit in folded.modules():
        if isinstance(unit, ConvUnit):
            unit.conv = fuse_conv_bn_eval(unit.conv, unit.norm)
            unit.norm = nn.Identity()  # type: ignore[assignment]
    return folded


@functools.cache
def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolution with packed weights and a fused activation works on this CPU; tried once.

    PyTorch's compiler uses it, but it is not a public interface, and its arguments depend on the CPU.
    """
    numbers = torch.arange(6 * 4 * 9, device="cpu").sin()
    weight = numbers.view(6, 4, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    x = numbers[: 4 * 36].view(1, 4, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    bias = numbers[:6].to(dtype)
    expected = F.leaky_relu(F.conv2d(x.float(), weight.float(), bias.float(), padding=1), -0.1)
    try:
        got = _convolve_packed(x, _pack(weight, 1, 6), bias, 1, -0.1).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return got.shape == expected.shape and bool((got - expected).abs().max() < 0.1)


def _pack(weight: Tensor, padding: int, size: int) -> Tensor:
    # Without the input size, oneDNN guesses it, and packs again at each call if the guess was wrong.
    shape = [1, weight.shape[1], size, size]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, [padding] * 2, [1, 1], [1, 1], 1, shape)
    return packed


def _convolve_packed(x: Tensor, weight: Tensor, bias: Tensor, padding: int, slope: float | None) -> Tensor:
    activation, scalars = ("sigmoid", []) if slope is None else ("leaky_relu", [slope])
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [padding] * 2, [1, 1], [1, 1], 1, activation, scalars, ""
    )
    return y


class FusedConv(nn.Module):
    """A convolution with its activation, in one oneDNN call if `packed`.

    Args:
        weight, bias: of the convolution, with 'same' padding.
        slope: negative slope of the LeakyReLU, or None for a sigmoid.
        size: height and width of the input maps; other sizes give the same results, more slowly.
        packed: have oneDNN pack the weights.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W), channels-last.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, slope: float | None, size: int, packed: bool) -> None:
        super().__init__()
        self.slope = slope
        self.padding = weight.shape[-1] // 2
        self.packed = _pack(weight, self.padding, size) if packed else None
        self.register_buffer("weight", None if packed else weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return _convolve_packed(x, self.packed, self.bias, self.padding, self.slope)
        y = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        return torch.sigmoid_(y) if self.slope is None else F.leaky_relu_(y, self.slope)


def fuse(unit: ConvUnit, size: int, packed: bool) -> FusedConv:
    """A unit with folded norm that ends with a LeakyReLU."""
    return FusedConv(*_weight_and_bias(unit), _slope(unit), size, packed)


def fuse_magnitude(unit: ConvUnit, size: int, packed: bool) -> FusedConv:
    """The absolute value of :func:`fuse`: |LeakyReLU(x)| is a LeakyReLU whose slope has the opposite sign."""
    return FusedConv(*_weight_and_bias(unit), -_slope(unit), size, packed)


def fuse_complement(unit: ConvUnit, size: int, packed: bool) -> FusedConv:
    """One minus a unit with folded norm that ends with a sigmoid: 1 - sigmoid(x) = sigmoid(-x)."""
    weight, bias = _weight_and_bias(unit)
    return FusedConv(-weight, -bias, None, size, packed)


def _weight_and_bias(unit: ConvUnit) -> tuple[Tensor, Tensor]:
    return unit.conv.weight.detach(), unit.conv.bias.detach()  # type: ignore[union-attr]


def _slope(unit: ConvUnit) -> float:
    slope: float = unit.activation.negative_slope  # type: ignore[assignment]
    return slope


class FusedMGLA(nn.Module):
    """:class:`MGLA` in place, with means and weighted sums as matrix products on views of a channels-last map.

    The 1-D convolutions of the three gates are one banded matrix over channels, rows and columns.

    Shape: (N, C, S, S) to the same.
    """

    bands: Tensor
    bias: Tensor
    channel_mean: Tensor
    pixel_mean: Tensor

    def __init__(self, attention: MGLA, channels: int, size: int) -> None:
        super().__init__()
        gates = attention.channel_gate, attention.row_gate, attention.column_gate
        blocks, biases = [], []
        for conv, length in zip((gate.conv for gate in gates), (channels, size, size), strict=True):
            unit_vectors = torch.eye(length, dtype=conv.weight.dtype, device=conv.weight.device)
            blocks.append(F.conv1d(unit_vectors[:, None], conv.weight, padding=conv.padding)[:, 0].T)
            biases.append(conv.bias.expand(length))  # type: ignore[union-attr]
        self.register_buffer("bands", torch.block_diag(*blocks))
        self.register_buffer("bias", torch.cat(biases))
        self.register_buffer("channel_mean", self.bias.new_full((channels, 1), 1 / channels))
        self.register_buffer("pixel_mean", self.bias.new_full((1, size), 1 / size))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        maps = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        pixels, rows, lines = maps.view(n, h * w, c), maps.view(n, h, w * c), maps.view(n * h, w, c)
        weights = torch.softmax((pixels.view(n * h * w, c) @ self.channel_mean).view(n, 1, h * w), 2)
        channel_context = torch.bmm(weights, pixels).view(n, c)
        weights = torch.softmax(self.pixel_mean @ rows, 2)  # (N, 1, W * C)
        row_context = torch.bmm(rows, weights.transpose(1, 2)).view(n, h)
        weights = torch.softmax((self.pixel_mean @ lines).view(n, h * c), 1)
        column_context = torch.bmm(weights.view(n * h, 1, c), lines.transpose(1, 2)).view(n, h, w).sum(1)
        context = torch.cat([channel_context, row_context, column_context], 1)
        gates = torch.sigmoid(F.linear(context, self.bands, self.bias))
        channel_gate, row_gate, column_gate = gates.split([c, h, w], 1)
        rows.mul_((column_gate[:, :, None] * channel_gate[:, None, :]).view(n, 1, w * c)).mul_(row_gate[:, :, None])
        return maps.permute(0, 3, 1, 2)


def pool(x: Tensor, out: Tensor | None = None) -> Tensor:
    """2x2 max pooling (N, C, H, W) to (N, C, H / 2, W / 2), optionally into part of another map.

    Twice as fast on CPUs as ``max_pool2d``, which also keeps the indices.
    """
    h, w = (length // 2 * 2 for length in x.shape[2:])
    halved = torch.maximum(x[:, :, 0:h:2], x[:, :, 1:h:2])
    columns = halved[..., 0:w:2], halved[..., 1:w:2]
    return torch.maximum(*columns) if out is None else torch.maximum(*columns, out=out)


class FusedEncoder(nn.Module):
    """:class:`ALFE`: prepared patches (N, 1, S, S) to its list of maps."""

    def __init__(self, encoder: ALFE, size: int, packed: bool) -> None:
        super().__init__()
        stages: Any = encoder.stages
        sizes = [size >> k for k in range(len(stages))]
        input_sizes = size, *sizes[:-1]  # each stage convolves before it pools
        self.convs = nn.ModuleList(fuse(stage.unit, s, packed) for stage, s in zip(stages, input_sizes, strict=True))
        self.attentions = nn.ModuleList(
            FusedMGLA(stage.attention, stage.unit.conv.out_channels, s) for stage, s in zip(stages, sizes, strict=True)
        )

    def forward(self, patches: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for conv, attention in zip(self.convs, self.attentions, strict=True):
            x = conv(maps[-1] if maps else patches)
            maps.append(attention(pool(x) if maps else x))
        return maps


class FusedFIL(nn.Module):
    """The factors of the private features of :class:`FIL`, |value * gate - value| = |value| * (1 - gate).

    Each factor depends on one patch only, so a pair costs one product per band.
    """

    def __init__(self, interaction: FIL, size: int, packed: bool) -> None:
        super().__init__()
        self.magnitude_a = fuse_magnitude(interaction.value_a, size, packed)
        self.complement_a = fuse_complement(interaction.gate_a, size, packed)
        self.magnitude_b = fuse_magnitude(interaction.value_b, size, packed)
        self.complement_b = fuse_complement(interaction.gate_b, size, packed)

    def forward(self, map_a: Tensor, map_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """|value| and 1 - gate of band A, then of band B, each in the shape of its map."""
        return self.magnitude_a(map_a), self.complement_a(map_a), self.magnitude_b(map_b), self.complement_b(map_b)


class FusedRelation(nn.Module):
    """FIL of all stages and the metric network, without its head."""

    def __init__(self, network: RRLNet, packed: bool) -> None:
        super().__init__()
        interactions: Any = network.interactions
        stages: Any = network.metric.stages
        sizes = [network.config.map_size >> k for k in range(len(stages))]
        self.interactions = nn.ModuleList(FusedFIL(fil, s, packed) for fil, s in zip(interactions, sizes, strict=True))
        self.stages = nn.ModuleList(
            nn.Sequential(*(fuse(unit, s, packed) for unit in stage)) for stage, s in zip(stages, sizes, strict=True)
        )

    def forward(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], all_pairs: bool = False) -> Tensor:
        """Maps of P pairs, or of N and M patches for all N * M pairs, to the deepest map (P, C, s, s)."""
        x: Tensor | None = None
        for interaction, stage, map_a, map_b in zip(self.interactions, self.stages, maps_a, maps_b, strict=True):
            factors = interaction(map_a, map_b)
            if all_pairs:
                factors = *(f[:, None] for f in factors[:2]), *(f[None] for f in factors[2:])
            x = stage(_metric_input(x, *factors))
        return x  # type: ignore[return-value]


def _metric_input(
    previous: Tensor | None, magnitude_a: Tensor, complement_a: Tensor, magnitude_b: Tensor, complement_b: Tensor
) -> Tensor:
    """The previous stage's map, pooled, and the private features of both bands, joined along the channels.

    Computed in place rather than concatenated. The factors are (P, C, H, W) for pairs, or (N, 1, C, H, W) of band A and
    (1, M, C, H, W) of band B for all P = N * M pairs.
    """
    c, h, w = magnitude_a.shape[-3:]
    pairs = [m if n == 1 else n for m, n in zip(magnitude_a.shape[:-3], magnitude_b.shape[:-3], strict=True)]
    own = 0 if previous is None else previous.shape[1]
    joined = torch.empty(
        (math.prod(pairs), own + 2 * c, h, w),
        dtype=magnitude_a.dtype,
        device=magnitude_a.device,
        memory_format=torch.channels_last,
    )
    private = joined[:, own:].unflatten(0, pairs)
    torch.mul(magnitude_a, complement_b, out=private.narrow(-3, 0, c))
    torch.mul(magnitude_b, complement_a, out=private.narrow(-3, c, c))
    if previous is not None:
        pool(previous, out=joined[:, :own])
    return joined


class InferenceRRLNet:
    """An :class:`RRLNet` ready to score on one device; the same results up to the rounding of `dtype`.

    Maps are channels-last in `dtype`. Descriptors and the dense layers of the score stay in float32, where they cost
    next to nothing and keep close scores apart.

    Args:
        network: copied, not changed.
    """

    def __init__(self, network: RRLNet, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.config = device, dtype, network.config
        if device.type == "cpu":
            keep_freed_memory()
        folded = fold_norms(network).to(device, torch.float32)
        self._prepare = folded.prepare
        self._head = copy.deepcopy(folded.metric.head)
        self._descriptors: dict[Band, nn.Module] = {}
        if self.config.descriptor_dim:
            self._descriptors = {"a": copy.deepcopy(folded.descriptor_a), "b": copy.deepcopy(folded.descriptor_b)}
        with self._computing():
            cast = folded.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            packed = device.type == "cpu" and onednn_fuses(dtype)
            size = self.config.map_size
            self._encoders: dict[Band, FusedEncoder] = {
                "a": FusedEncoder(cast.encoder_a, size, packed),
                "b": FusedEncoder(cast.encoder_b, size, packed),
            }
            self._relation = FusedRelation(cast, packed)

    def encode(self, patches: Tensor, band: Band) -> list[Tensor]:
        """Patches (N, 1, S, S) in [0, 1] of one band to the maps of its encoder."""
        with self._computing():
            # Prepared in float32, to keep the small differences of a 16-bit frame.
            patches = self._prepare(patches.to(self.device, torch.float32))
            maps: list[Tensor] = self._encoders[band](
                patches.to(self.dtype).contiguous(memory_format=torch.channels_last)
            )
            return maps

    def describe(self, maps: Sequence[Tensor], band: Band) -> Tensor:
        """Maps of one band to descriptors (N, descriptor_dim), float32 of unit length."""
        if not self.config.descriptor_dim:
            return torch.empty(len(maps[-1]), 0, dtype=torch.float32, device=self.device)
        with self._computing():
            descriptors: Tensor = self._descriptors[band](maps[-1].float())
            return descriptors

    def score(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of P pairs to scores (P,), float32; NaN where float16 overflowed."""
        with self._computing():
            return self._scores(self._relation(maps_a, maps_b))

    def score_all(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of N and M patches to the scores (N, M) of all pairs; otherwise as :meth:`score`.

        What depends on a single patch is computed once per patch rather than once per pair.
        """
        with self._computing():
            scores = self._scores(self._relation(maps_a, maps_b, all_pairs=True))
            return scores.view(len(maps_a[0]), len(maps_b[0]))

    def _scores(self, deepest: Tensor) -> Tensor:
        logits = self._head(deepest.float())
        if self.dtype == torch.float16:
            logits = torch.where(torch.isfinite(logits), logits, torch.nan)
        return torch.sigmoid(logits)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute without gradients and outside any autocast of the caller; safe in a forked child."""
        limit_threads_after_fork()
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            yield
