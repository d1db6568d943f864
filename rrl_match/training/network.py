"""The training graph: an RRL-Net with the parts that multi-loss post-pruning (MLPP) removes after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrl_match.modeling.metric import ScoreHead
from rrl_match.modeling.network import RRLNet
from rrl_match.training.decoder import Decoder
from rrl_match.training.heads import InteractionHead

Descriptors: TypeAlias = tuple[Tensor, Tensor] | None  # (N, dim) of both bands, if the network has heads for them
PairUp: TypeAlias = Callable[[Descriptors], Tensor]


@dataclass(frozen=True)
class TrainingConfig:
    """Which stages (1..5) have auxiliary heads; the defaults are those of the published code.

    Attributes:
        interaction_stages: stages whose common features are scored.
        metric_stages: stages of the metric network that are scored, besides the last.
        decoders: whether each band has a decoder that reconstructs its patches. Without them, a step takes about a
            sixth less time; for further training of weights that had them.
    """

    interaction_stages: tuple[int, ...] = (3, 4, 5)
    metric_stages: tuple[int, ...] = (3, 4)
    decoders: bool = True


class TrainingOutput(NamedTuple):
    """What the losses are computed from: P pairs of N patches of each band."""

    logits: Tensor  # (P,)
    metric_logits: dict[int, Tensor]  # by stage, (P,) each
    interaction_logits: dict[int, Tensor]  # by stage, (P,) each
    reconstructions: tuple[Tensor, Tensor] | None  # (N, 1, S, S) in [0, 1], of A and B as the encoders take them
    descriptors: Descriptors


class TrainingRRLNet(nn.Module):
    """An :class:`RRLNet` with decoders and auxiliary heads; :meth:`prune` returns the RRL-Net."""

    def __init__(self, network: RRLNet | None = None, config: TrainingConfig | None = None) -> None:
        super().__init__()
        self.network = network or RRLNet()
        self.config = config = config or TrainingConfig()
        net = self.network.config
        if config.decoders:
            self.decoder_a = Decoder(net.encoder_channels, net.map_size, net.unshuffle**2)
            self.decoder_b = Decoder(net.encoder_channels, net.map_size, net.unshuffle**2)
        self.interaction_heads = nn.ModuleDict(
            {str(k): InteractionHead(net.encoder_channels[k - 1], net.hidden) for k in config.interaction_stages}
        )
        self.metric_heads = nn.ModuleDict(
            {str(k): ScoreHead(net.metric_channels[k - 1], net.hidden) for k in config.metric_stages}
        )

    def prune(self) -> RRLNet:
        """The network to release: the trained module itself, without the rest (MLPP)."""
        return self.network

    def parts(self) -> list[nn.Module]:
        """Modules that are compiled one by one: all but the heads."""
        net = self.network
        decoders = [self.decoder_a, self.decoder_b] if self.config.decoders else []
        return [net.encoder_a, net.encoder_b, *net.interactions, net.metric, *decoders]

    def forward(self, patches_a: Tensor, patches_b: Tensor, pair_up: PairUp | None = None) -> TrainingOutput:
        """Everything the losses need. Each patch is encoded once, however many pairs it is in.

        Args:
            patches_a, patches_b: float (N, 1, S, S), values in [0, 1].
            pair_up: picks index_pairs (P, 2), rows of A and of B, from the descriptors (N, dim) of both
                bands; if not given, row n is paired with row n.
        """
        net = self.network
        maps_a, maps_b = net.encode(patches_a, "a"), net.encode(patches_b, "b")
        reconstructions = None
        if self.config.decoders:
            reconstructions = self.decoder_a(maps_a[-1]), self.decoder_b(maps_b[-1])
        descriptors = describe(net, maps_a, maps_b)
        if pair_up is not None:
            rows_a, rows_b = pair_up(descriptors).unbind(1)
            maps_a = [take_rows(m, rows_a) for m in maps_a]
            maps_b = [take_rows(m, rows_b) for m in maps_b]
        private, common = zip(
            *(fil(a, b) for fil, a, b in zip(net.interactions, maps_a, maps_b, strict=True)), strict=True
        )
        metric_maps = net.metric(private)
        return TrainingOutput(
            net.metric.head(metric_maps[-1]),
            {int(k): head(metric_maps[int(k) - 1]) for k, head in self.metric_heads.items()},
            {int(k): head(sum(common[int(k) - 1])) for k, head in self.interaction_heads.items()},
            reconstructions,
            descriptors,
        )


def describe(network: RRLNet, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Descriptors:
    """Descriptors of both bands; None if the network has no descriptor heads."""
    if not network.config.descriptor_dim:
        return None
    return network.describe(maps_a, "a"), network.describe(maps_b, "b")


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]`` of a map (N, C, H, W), channels-last.

    An embedding lookup, because the gradient of plain indexing is slower and, on a CPU, depends on the order in which
    threads add it up.
    """
    last = x.permute(0, 2, 3, 1)
    taken: Tensor = F.embedding(rows, last.flatten(1)).unflatten(1, last.shape[1:])
    return taken.permute(0, 3, 1, 2)


class ContrastivePretraining(nn.Module):
    """The encoders and descriptor heads of an RRL-Net alone: patches of both bands to descriptors (N, dim)."""

    def __init__(self, network: RRLNet) -> None:
        super().__init__()
        self.prepare = network.prepare
        self.encoder_a, self.encoder_b = network.encoder_a, network.encoder_b
        self.descriptor_a, self.descriptor_b = network.descriptor_a, network.descriptor_b

    def forward(self, patches_a: Tensor, patches_b: Tensor) -> tuple[Tensor, Tensor]:
        maps_a, maps_b = self.encoder_a(self.prepare(patches_a)), self.encoder_b(self.prepare(patches_b))
        return self.descriptor_a(maps_a[-1]), self.descriptor_b(maps_b[-1])


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """For forward passes in `precision`; nothing is cast if that is float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def set_norm_momentum(module: nn.Module, momentum: float) -> None:
    """Weight of a new batch in the running statistics of all batch norms; 0.01 as published."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = momentum
