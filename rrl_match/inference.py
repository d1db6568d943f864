"""A trained RRLNet -> the fast function for a device.

Computes what :mod:`rrl_match.modeling` does, up to rounding, with what costs time beyond the convolutions removed:
norms are folded, activations are part of the convolutions where oneDNN does that, MGLA's reductions are matrix
products on views of the channels-last maps, and what the metric network reads is written in its place at once.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rrl_match.modeling import RRLNet
from rrl_match.modeling.attention import MGLA
from rrl_match.modeling.blocks import ConvUnit
from rrl_match.modeling.encoder import ALFE
from rrl_match.modeling.interaction import FIL

OPTIMIZE = ("auto", "eager", "compile")

_logger = logging.getLogger(__name__)


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


def checked_optimize(optimize: str) -> str:
    """One of :data:`OPTIMIZE`.

    Raises:
        ValueError: none of them.
    """
    if not isinstance(optimize, str) or optimize not in OPTIMIZE:
        raise ValueError(f"optimize must be one of {', '.join(map(repr, OPTIMIZE))}, got {optimize!r}")
    return optimize


_forked = False  # and not yet minded
_is_child = False  # of a fork, for good


def _after_fork() -> None:
    global _forked, _is_child
    _forked = _is_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def mind_fork() -> None:
    """Compute with one thread in a forked child: it would wait for its parent's OpenMP threads for ever."""
    global _forked
    if _forked:
        torch.set_num_threads(1)
        _forked = False


def fold_norms(network: RRLNet) -> RRLNet:
    """A copy of a network, for inference, whose batch norms went into the convolutions before them."""
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for unit in folded.modules():
        if isinstance(unit, ConvUnit):
            unit.conv = fuse_conv_bn_eval(unit.conv, unit.norm)
            unit.norm = nn.Identity()  # type: ignore[assignment]
    return folded


@functools.cache
def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolution with packed weights and an activation works on this CPU, tried once.

    PyTorch's own compiler calls it, but it is no public interface, and what it takes depends on the CPU.
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
    # without the size oneDNN guesses, and packs once more at each call where it guessed wrong
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
    """A :class:`ConvUnit` with folded norm: convolution and activation, one oneDNN call where that works.

    Args:
        unit: with LeakyReLU or Sigmoid at its end.
        size: height and width of the maps it will see; others give the same, slower.
        packed: whether to let oneDNN pack the weights.
        of_interaction: give the absolute value of the LeakyReLU, or one minus the sigmoid.

    Shape: (N, in_channels, H, W) to (N, out_channels, H, W), channels-last.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, unit: ConvUnit, size: int, packed: bool, of_interaction: bool = False) -> None:
        super().__init__()
        self.slope = unit.activation.negative_slope if isinstance(unit.activation, nn.LeakyReLU) else None
        weight, bias = unit.conv.weight.detach(), unit.conv.bias.detach()  # type: ignore[union-attr]
        if of_interaction and self.slope is not None:
            self.slope = -self.slope  # |LeakyReLU(x)|: of negative x, the slope turns round
        elif of_interaction:
            weight, bias = -weight, -bias  # 1 - sigmoid(x) is sigmoid(-x)
        self.padding = unit.conv.kernel_size[0] // 2
        self.packed = _pack(weight, self.padding, size) if packed else None
        self.register_buffer("weight", None if packed else weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return _convolve_packed(x, self.packed, self.bias, self.padding, self.slope)
        y = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        return torch.sigmoid_(y) if self.slope is None else F.leaky_relu_(y, self.slope)


class FusedMGLA(nn.Module):
    """:class:`MGLA`, in place, its means and weighted sums as matrix products on views of a channels-last map.

    The three gates' 1-D convolutions are one banded matrix over channels, rows and columns.

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
        where = torch.softmax((pixels.view(n * h * w, c) @ self.channel_mean).view(n, 1, h * w), 2)
        channel_context = torch.bmm(where, pixels).view(n, c)
        where = torch.softmax(self.pixel_mean @ rows, 2)  # (N, 1, W * C)
        row_context = torch.bmm(rows, where.transpose(1, 2)).view(n, h)
        where = torch.softmax((self.pixel_mean @ lines).view(n, h * c), 1)
        column_context = torch.bmm(lines, where.view(n * h, c, 1)).view(n, h, w).sum(1)
        context = torch.cat([channel_context, row_context, column_context], 1)
        channels, of_rows, columns = torch.sigmoid(F.linear(context, self.bands, self.bias)).split([c, h, w], 1)
        rows.mul_((columns[:, :, None] * channels[:, None, :]).view(n, 1, w * c)).mul_(of_rows[:, :, None])
        return maps.permute(0, 3, 1, 2)


def pool(x: Tensor, out: Tensor | None = None) -> Tensor:
    """2x2 max pooling (N, C, H, W) to (N, C, H / 2, W / 2), optionally into a part of another map.

    ``max_pool2d`` keeps the indices, too, and takes twice as long on CPUs.
    """
    h, w = (length // 2 * 2 for length in x.shape[2:])
    halved = torch.maximum(x[:, :, 0:h:2], x[:, :, 1:h:2])
    columns = halved[..., 0:w:2], halved[..., 1:w:2]
    return torch.maximum(*columns) if out is None else torch.maximum(*columns, out=out)


class FusedEncoder(nn.Module):
    """:class:`ALFE`: patches (N, 1, S, S) to its list of maps."""

    def __init__(self, encoder: ALFE, patch_size: int, packed: bool) -> None:
        super().__init__()
        stages: Any = encoder.stages
        sizes = [patch_size >> k for k in range(len(stages))]
        # the convolution comes before the pooling
        before = patch_size, *sizes[:-1]
        self.convs = nn.ModuleList(FusedConv(stage.unit, s, packed) for stage, s in zip(stages, before, strict=True))
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
    """The factors of :class:`FIL`'s private features, |value * gate - value| = |value| * (1 - gate).

    Those of a patch are the same in all its pairs, and a pair costs one product a band.
    """

    def __init__(self, interaction: FIL, size: int, packed: bool) -> None:
        super().__init__()
        self.value_a = FusedConv(interaction.value_a, size, packed, of_interaction=True)
        self.rest_a = FusedConv(interaction.gate_a, size, packed, of_interaction=True)
        self.value_b = FusedConv(interaction.value_b, size, packed, of_interaction=True)
        self.rest_b = FusedConv(interaction.gate_b, size, packed, of_interaction=True)

    def forward(self, map_a: Tensor, map_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Band A's |value| and 1 - gate, then band B's, each of its map's shape."""
        return self.value_a(map_a), self.rest_a(map_a), self.value_b(map_b), self.rest_b(map_b)


class FusedRelation(nn.Module):
    """FIL of all stages and the metric network, without its head."""

    def __init__(self, network: RRLNet, packed: bool) -> None:
        super().__init__()
        interactions: Any = network.interactions
        stages: Any = network.metric.stages
        sizes = [network.config.patch_size >> k for k in range(len(stages))]
        self.interactions = nn.ModuleList(FusedFIL(fil, s, packed) for fil, s in zip(interactions, sizes, strict=True))
        self.stages = nn.ModuleList(
            nn.Sequential(*(FusedConv(unit, s, packed) for unit in stage))
            for stage, s in zip(stages, sizes, strict=True)
        )

    def forward(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], of_all: bool = False) -> Tensor:
        """Maps of P pairs, or of N and M patches that make P = N * M, to the deepest map (P, C, s, s)."""
        x: Tensor | None = None
        for interaction, stage, a, b in zip(self.interactions, self.stages, maps_a, maps_b, strict=True):
            value_a, rest_a, value_b, rest_b = interaction(a, b)
            if of_all:
                value_a, rest_a, value_b, rest_b = value_a[:, None], rest_a[:, None], value_b[None], rest_b[None]
            if torch.compiler.is_compiling():  # which does by itself what is done below
                private = value_a * rest_b, value_b * rest_a
                x = stage(torch.cat(private if x is None else (pool(x), *private), 1))
                continue
            c, h, w = value_a.shape[-3:]
            pairs = torch.broadcast_shapes(value_a.shape[:-3], value_b.shape[:-3])
            own = 0 if x is None else x.shape[1]
            # what would be concatenated is computed in its place
            joined = torch.empty(
                (math.prod(pairs), own + 2 * c, h, w),
                dtype=value_a.dtype,
                device=value_a.device,
                memory_format=torch.channels_last,
            )
            by_pair = joined[:, own:].unflatten(0, pairs)
            torch.mul(value_a, rest_b, out=by_pair.narrow(-3, 0, c))
            torch.mul(value_b, rest_a, out=by_pair.narrow(-3, c, c))
            if x is not None:
                pool(x, out=joined[:, :own])
            x = stage(joined)
        return x  # type: ignore[return-value]


class Compiled:
    """A module compiled at its first call, for any batch size: one graph for one row, one for all other numbers.

    Safe to call from several threads. Where it cannot be compiled (no C++ compiler, for one), and in a forked child,
    whose compiled code would wait for its parent's OpenMP threads, `eager` computes instead.

    Args:
        module: to compile; rows are the first axis of all its inputs.
        eager: computes the same.
    """

    def __init__(self, module: nn.Module, eager: Callable[..., Any]) -> None:
        self._module, self._eager = module, eager
        self._run: Callable[..., Any] | None = None
        self._compiled: set[bool] = set()  # for one row, for more
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        first = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
        single = len(first) == 1
        if _is_child or not len(first) or self._run is self._eager:
            return self._eager(*inputs)
        # two threads would compile the same
        with nullcontext() if single in self._compiled else self._lock:
            try:
                if self._run is None:
                    self._run = torch.compile(self._module, fullgraph=True, dynamic=True, options={"freezing": True})
                result = self._run(*inputs)  # also compiles anew where settings have changed
                self._compiled.add(single)
                return result
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                _logger.warning("optimize='compile' fell back to eager: %s", str(error).strip().split("\n")[0])
                self._run = self._eager
        return self._eager(*inputs)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a batch frees for the next, up to 62 MB, as it does in programs with large arrays.

    It gives freed memory back beyond twice the largest block that was freed so far, up to 32 MB; zeroed anew at each
    batch, that memory took a tenth of the time. Other allocators are not affected.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


class InferenceRRLNet:
    """An :class:`RRLNet` made ready to score: same results up to the rounding of `dtype`.

    Maps are channels-last in `dtype`; descriptors and the dense layers of the score stay in float32, where they cost
    nothing and keep close scores apart.

    Args:
        network: left alone.
        optimize: "eager", "compile", or "auto", which is "eager".
    """

    def __init__(self, network: RRLNet, device: torch.device, dtype: torch.dtype, optimize: str = "auto") -> None:
        self.device, self.dtype, self.config = device, dtype, network.config
        if device.type == "cpu":
            keep_freed_memory()
        folded = fold_norms(network).to(device, torch.float32)
        self._prepare = folded.prepare
        self._head = copy.deepcopy(folded.metric.head)
        self._descriptors = {
            band: copy.deepcopy(getattr(folded, f"descriptor_{band}")) for band in "ab" if self.config.descriptor_dim
        }
        folded = folded.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with self._computing():
            packed = device.type == "cpu" and onednn_fuses(dtype)
            self._relation = FusedRelation(folded, packed)
            self._encoders: dict[str, Callable[[Tensor], list[Tensor]]] = {
                band: FusedEncoder(getattr(folded, f"encoder_{band}"), self.config.patch_size, packed) for band in "ab"
            }
            self._pairs: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] = self._relation
            if optimize == "compile":  # which packs the weights itself
                self._pairs = Compiled(FusedRelation(folded, packed=False), self._pairs)
                for band, eager in self._encoders.items():
                    plain = FusedEncoder(getattr(folded, f"encoder_{band}"), self.config.patch_size, packed=False)
                    self._encoders[band] = Compiled(plain, eager)

    def encode(self, patches: Tensor, band: str) -> list[Tensor]:
        """Patches (N, 1, S, S) in [0, 1] of band "a" or "b" to its encoder's maps."""
        with self._computing():
            # in float32, in which the finest differences of a 16-bit frame survive
            patches = self._prepare(patches.to(self.device, torch.float32))
            return self._encoders[band](patches.to(self.dtype).contiguous(memory_format=torch.channels_last))

    def describe(self, maps: Sequence[Tensor], band: str) -> Tensor:
        """Maps of band "a" or "b" to descriptors (N, descriptor_dim), float32 of unit length."""
        if not self.config.descriptor_dim:
            return torch.empty(len(maps[-1]), 0, dtype=torch.float32, device=self.device)
        with self._computing():
            descriptors: Tensor = self._descriptors[band](maps[-1].float())
            return descriptors

    def relate(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of P pairs to scores (P,), float32; NaN where float16 overflowed."""
        with self._computing():
            return self._scores(self._pairs(maps_a, maps_b))

    def relate_all(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """Maps of N and M patches to the scores (N, M) of each with each; otherwise as :meth:`relate`.

        What depends on one patch alone is computed once for it, instead of once for each pair.
        """
        with self._computing():
            scores = self._scores(self._relation(maps_a, maps_b, of_all=True))
            return scores.view(len(maps_a[0]), len(maps_b[0]))

    def _scores(self, deepest: Tensor) -> Tensor:
        logits = self._head(deepest.float())
        if self.dtype == torch.float16:
            logits = torch.where(torch.isfinite(logits), logits, torch.nan)
        return torch.sigmoid(logits)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Without gradients, whatever autocast the caller is in, and with threads that are there."""
        mind_fork()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield
