"""Distillation: a small RRL-Net learns the scores and descriptors of a trained one (Hinton et al., 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrl_match.inference import InferenceRRLNet
from rrl_match.modeling import RRLNet
from rrl_match.training.batches import TrainingBatch
from rrl_match.training.losses import contrastive_loss, matching_loss
from rrl_match.training.mining import mine_pairs
from rrl_match.training.network import Descriptors, PairUp, autocast, describe, take_rows
from rrl_match.training.phases import TrainingPhase
from rrl_match.training.recipe import Phase, Recipe

_TEMPERATURE = 2.0  # softens the teacher's scores, most of which are nearly 0 or 1


class StudentGraph(nn.Module):
    """The training graph of a student: an RRL-Net without decoders and auxiliary heads, which a teacher replaces."""

    def __init__(self, network: RRLNet) -> None:
        super().__init__()
        self.network = network

    def prune(self) -> RRLNet:
        """The network that is released."""
        return self.network

    def parts(self) -> list[nn.Module]:
        """Modules that are compiled one by one."""
        net = self.network
        return [net.encoder_a, net.encoder_b, *net.interactions, net.metric]

    def forward(
        self, patches_a: Tensor, patches_b: Tensor, pair_up: PairUp | None = None
    ) -> tuple[Tensor, Descriptors]:
        """Logits (P,) of the pairs that `pair_up` picks, and descriptors; as :meth:`TrainingRRLNet.forward`."""
        net = self.network
        maps_a, maps_b = net.encode(patches_a, "a"), net.encode(patches_b, "b")
        descriptors = describe(net, maps_a, maps_b)
        if pair_up is not None:
            rows_a, rows_b = pair_up(descriptors).unbind(1)
            maps_a, maps_b = [take_rows(m, rows_a) for m in maps_a], [take_rows(m, rows_b) for m in maps_b]
        return net.logits(maps_a, maps_b), descriptors


class Distillation(TrainingPhase):
    """Training by a teacher: its scores of matching, random and hard pairs, and its descriptors.

    Args:
        recipe, schedule, precision: as for the other phases.
        model: the student.
        teacher: a trained network with descriptors of the student's length; it encodes each location once.
    """

    name = "distillation"
    pairs_per_location = 3
    averaged = True
    validated = True

    def __init__(
        self, recipe: Recipe, schedule: Phase, model: StudentGraph, teacher: RRLNet, precision: torch.dtype
    ) -> None:
        super().__init__(recipe, schedule, model, model.network, precision)
        device = next(model.parameters()).device
        self.teacher = InferenceRRLNet(teacher, device, precision)

    def encoder_lr_scale(self) -> float:
        return self.recipe.encoder_lr_scale

    def step(self, model: nn.Module, batch: TrainingBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        maps_a, maps_b = self.teacher.encode(batch.patches_a, "a"), self.teacher.encode(batch.patches_b, "b")
        taught = self.teacher.describe(maps_a, "a"), self.teacher.describe(maps_b, "b")
        pairs = self._pairs(taught, batch.negative, generator)
        rows_a, rows_b = pairs.unbind(1)
        scores = self.teacher.score([m[rows_a] for m in maps_a], [m[rows_b] for m in maps_b])
        with autocast(batch.patches_a.device, self.precision):
            logits, descriptors = model(batch.patches_a, batch.patches_b, lambda _: pairs)
        labels = torch.zeros_like(scores)
        labels[: len(batch.negative)] = 1
        weights = self.recipe.losses
        terms = {
            "match": matching_loss(logits, labels, self.recipe.label_smoothing),
            "teacher": weights.teacher * soft_score_loss(logits, scores),
        }
        if descriptors:
            a, b = descriptors
            apart = (a - taught[0]).square().sum(1) + (b - taught[1]).square().sum(1)
            terms["teacher_descriptors"] = weights.teacher_descriptors * apart.mean()
            terms["contrastive"] = weights.contrastive * contrastive_loss(a, b, batch.negative, self.recipe.temperature)
        return terms

    def _pairs(self, descriptors: tuple[Tensor, Tensor], negative: Tensor, generator: torch.Generator) -> Tensor:
        """Index pairs (P, 2): all that match, a random negative of each location, and a hard one."""
        similarity = descriptors[0] @ descriptors[1].T
        random = mine_pairs(similarity, negative, 0.0, generator)
        hard = mine_pairs(similarity, negative, 1.0, generator)
        return torch.cat([random, hard[len(negative) :]])


def soft_score_loss(logits: Tensor, scores: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Cross-entropy of the student's logits (P,) against the teacher's scores (P,) in [0, 1], both softened."""
    wanted = torch.sigmoid(torch.logit(scores.float(), eps=1e-5) / temperature)
    return F.binary_cross_entropy_with_logits(logits.float() / temperature, wanted) * temperature**2
