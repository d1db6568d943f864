"""Statistics of batch norms for averaged weights."""

from __future__ import annotations

import torch
from torch import nn

from rrl_match.modeling import RRLNet
from rrl_match.training.batches import draw_batch
from rrl_match.training.network import autocast, describe, take_rows
from rrl_match.training.phases import pair_by_descriptors
from rrl_match.training.recipe import Recipe
from rrl_match.training.sampling import PatchSampler

BATCHES = 32


@torch.no_grad()
def reestimate_norms(
    network: RRLNet, sampler: PatchSampler, recipe: Recipe, precision: torch.dtype, batches: int = BATCHES
) -> None:
    """Recompute batch-norm statistics for averaged weights: averaged running statistics fit none of the networks.

    Args:
        network: is changed, and left in evaluation mode.
        sampler, recipe: of the training batches, which are the same every time.
        precision: of the forward pass.
        batches: how many.
    """
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
    network.train()
    for k in range(batches):
        generator = torch.Generator().manual_seed(k)
        batch = draw_batch(sampler, recipe, recipe.training, generator)
        with autocast(sampler.device, precision):
            maps_a, maps_b = network.encode(batch.patches_a, "a"), network.encode(batch.patches_b, "b")
            descriptors = describe(network, maps_a, maps_b)
            pairs = pair_by_descriptors(
                descriptors, batch.negative, recipe.hard_fraction(recipe.training.steps), generator
            )
            rows_a, rows_b = pairs.unbind(1)
            network.logits([take_rows(m, rows_a) for m in maps_a], [take_rows(m, rows_b) for m in maps_b])
    network.eval()
