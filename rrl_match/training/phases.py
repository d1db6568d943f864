"""The two phases of training: what each trains, and what a step of it computes."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn

from rrl_match.modeling import RRLNet
from rrl_match.training.batches import TrainingBatch
from rrl_match.training.losses import PerceptualLoss, contrastive_loss, gradient_loss, matching_loss
from rrl_match.training.mining import mine_pairs
from rrl_match.training.network import (
    ContrastivePretraining,
    Descriptors,
    TrainingOutput,
    TrainingRRLNet,
    autocast,
)
from rrl_match.training.recipe import Phase, Recipe


class TrainingPhase(abc.ABC):
    """A schedule, the module that it trains, and the loss of a step.

    Args:
        recipe: of the run.
        schedule: steps, batch size and learning rate of this phase.
        model: what is trained; it takes patches of both bands.
        network: the RRL-Net inside.
        precision: of the forward pass; losses are computed in float32.
    """

    name: str
    averaged = False  # whether an average of the weights over the steps is kept
    validated = False  # whether the network can be validated in this phase

    def __init__(
        self, recipe: Recipe, schedule: Phase, model: nn.Module, network: RRLNet, precision: torch.dtype
    ) -> None:
        self.recipe, self.schedule, self.model, self.network = recipe, schedule, model, network
        self.precision = precision

    @abc.abstractmethod
    def step(self, model: nn.Module, batch: TrainingBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss.

        Args:
            model: :attr:`model`, as it is wrapped for several processes.
            batch: patches and negatives.
            step: of this phase, counted from 0.
            generator: a CPU generator, for mining.
        """

    def encoder_lr_scale(self) -> float:
        """Factor on the learning rate of the encoders."""
        return 1.0

    def optimizer(self) -> torch.optim.Optimizer:
        """One group for the encoders, one for the rest of the module."""
        recipe, rate = self.recipe, self.schedule.learning_rate
        encoders = list(nn.ModuleList([self.network.encoder_a, self.network.encoder_b]).parameters())
        of_encoders = {id(p) for p in encoders}
        groups: list[dict[str, Any]] = [
            {"params": encoders, "lr": rate * self.encoder_lr_scale()},
            {"params": [p for p in self.model.parameters() if id(p) not in of_encoders]},
        ]
        if recipe.optimizer == "nadam":
            return torch.optim.NAdam(groups, lr=rate, weight_decay=recipe.weight_decay)
        return torch.optim.AdamW(groups, lr=rate, weight_decay=recipe.weight_decay, fused=True)


class Pretraining(TrainingPhase):
    """Contrastive training of the encoders and descriptor heads."""

    name = "pretraining"

    def __init__(self, recipe: Recipe, schedule: Phase, network: RRLNet, precision: torch.dtype) -> None:
        super().__init__(recipe, schedule, ContrastivePretraining(network), network, precision)

    def step(self, model: nn.Module, batch: TrainingBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        with autocast(batch.patches_a.device, self.precision):
            descriptors_a, descriptors_b = model(batch.patches_a, batch.patches_b)
        return {"contrastive": contrastive_loss(descriptors_a, descriptors_b, batch.negative, self.recipe.temperature)}


class FullTraining(TrainingPhase):
    """Training of the whole graph: matching, auxiliary heads, reconstruction and descriptors."""

    name = "training"
    averaged = True
    validated = True

    def __init__(self, recipe: Recipe, schedule: Phase, model: TrainingRRLNet, precision: torch.dtype) -> None:
        super().__init__(recipe, schedule, model, model.network, precision)
        device = next(model.parameters()).device
        self.perceptual = PerceptualLoss().to(device) if recipe.losses.perceptual else None

    def encoder_lr_scale(self) -> float:
        return self.recipe.encoder_lr_scale

    def step(self, model: nn.Module, batch: TrainingBatch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        def pair_up(descriptors: Descriptors) -> Tensor:
            return pair_by_descriptors(descriptors, batch.negative, self.recipe.hard_fraction(step), generator)

        with autocast(batch.patches_a.device, self.precision):
            output: TrainingOutput = model(batch.patches_a, batch.patches_b, pair_up)
        return self._loss_terms(output, batch)

    def _loss_terms(self, output: TrainingOutput, batch: TrainingBatch) -> dict[str, Tensor]:
        """All terms, weighted; their sum is the loss."""
        weights, smoothing = self.recipe.losses, self.recipe.label_smoothing
        labels = torch.zeros(len(output.logits), device=output.logits.device)
        labels[: len(batch.negative)] = 1
        terms = {"match": matching_loss(output.logits, labels, smoothing)}
        for k, logits in output.metric_logits.items():
            terms[f"metric_{k}"] = weights.metric_stages * matching_loss(logits, labels, smoothing)
        for k, logits in output.interaction_logits.items():
            terms[f"interaction_{k}"] = weights.interaction * matching_loss(logits, labels, smoothing)
        if output.reconstructions:
            terms |= self._reconstruction_terms(output.reconstructions, batch)
        if output.descriptors and weights.contrastive:
            a, b = output.descriptors
            terms["contrastive"] = weights.contrastive * contrastive_loss(a, b, batch.negative, self.recipe.temperature)
        return terms

    def _reconstruction_terms(self, reconstructions: tuple[Tensor, Tensor], batch: TrainingBatch) -> dict[str, Tensor]:
        """How far the reconstructions are from the patches as the encoders take them, weighted."""
        weights, terms = self.recipe.losses, {}
        patches_of_bands = batch.patches_a, batch.patches_b
        for band, seen, patches in zip("ab", reconstructions, patches_of_bands, strict=True):
            wanted = self.network.prepare(patches)
            terms[f"pixel_{band}"] = weights.pixel * nn.functional.mse_loss(seen.float(), wanted)
            if self.perceptual:
                terms[f"perceptual_{band}"] = weights.perceptual * self.perceptual(seen, wanted)
            else:
                terms[f"gradient_{band}"] = weights.gradient * gradient_loss(seen, wanted)
        return terms


def pair_by_descriptors(
    descriptors: Descriptors, negative: Tensor, hard_fraction: float, generator: torch.Generator
) -> Tensor:
    """Index pairs (P, 2) that a step shows the metric network, see :func:`~rrl_match.training.mining.mine_pairs`."""
    if descriptors:
        similarity = descriptors[0] @ descriptors[1].T
    else:
        similarity = torch.zeros(negative.shape, device=negative.device)
    return mine_pairs(similarity, negative, hard_fraction, generator)
