"""What a training step sees: patches of both bands, augmented, and which pairs of them are negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rrl_match.training.augment import augment, mixed_grey
from rrl_match.training.device import to_device
from rrl_match.training.mining import negative_mask
from rrl_match.training.recipe import Phase, Recipe
from rrl_match.training.sampling import PatchBatch, PatchSampler
from rrl_match.training.synthetic import synthetic_band


class TrainingBatch(NamedTuple):
    """Patches of N locations; row n of A matches row n of B."""

    patches_a: Tensor  # (N, 1, S, S) float in [0, 1]
    patches_b: Tensor  # (N, 1, S, S) float in [0, 1]
    negative: Tensor  # (N, N) bool, row of A and column of B that surely do not match


def draw_batch(sampler: PatchSampler, recipe: Recipe, phase: Phase, generator: torch.Generator) -> TrainingBatch:
    """A batch that depends on the state of `generator`, a CPU generator, alone."""
    batch = sampler.draw(phase, recipe.geometry, generator)
    grey_a = mixed_grey(batch.colour_a, recipe.photometry, generator)
    grey_b = batch.patches_b
    if recipe.synthetic.probability_a or recipe.synthetic.probability_b:
        grey_a, grey_b = _with_synthetic_bands(sampler, batch, (grey_a, grey_b), recipe, generator)
    return TrainingBatch(
        augment(grey_a, recipe.photometry, generator),
        augment(grey_b, recipe.photometry, generator),
        negative_mask(batch.group, batch.image, batch.position, recipe.negative_distance),
    )


def _with_synthetic_bands(
    sampler: PatchSampler,
    batch: PatchBatch,
    patches: tuple[Tensor, Tensor],
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Patches (N, 1, S, S) of both bands, one of them replaced by a synthetic one in some groups."""
    grey_a, grey_b = (grey.clone() for grey in patches)
    groups = int(batch.group.max()) + 1
    for group, draw in enumerate(torch.rand(groups, generator=generator).tolist()):
        if draw >= recipe.synthetic.probability_a + recipe.synthetic.probability_b:
            continue
        rows = to_device(torch.nonzero(batch.group.cpu() == group)[:, 0], grey_a.device)
        if not len(rows):
            continue
        if draw < recipe.synthetic.probability_b:
            grey_b[rows] = synthetic_band(sampler.colour_at_b(batch, rows), generator)
        else:
            grey = sampler.grey_at_a(batch, rows)
            grey_a[rows] = synthetic_band(grey.expand(-1, 3, -1, -1), generator)
    return grey_a, grey_b
