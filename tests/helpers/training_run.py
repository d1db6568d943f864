"""Training runs small enough for a test: few steps of a tiny network on tiny images."""

import dataclasses

import torch

from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.training.recipe import Geometry, LossWeights, Phase, Photometry, Recipe
from rrl_match.training.trainer import Trainer

NETWORK = RRLNetConfig(
    encoder_channels=(4, 4, 8, 8, 8), metric_channels=(4, 4, 8, 8, 8), hidden=(8, 8), descriptor_dim=8
)
RECIPE = Recipe(
    modalities=("vis", "nir"),
    summary="a test",
    pretraining=Phase(steps=4, batch_size=6, images_per_batch=2, learning_rate=1e-3, warmup=1),
    training=Phase(steps=4, batch_size=6, images_per_batch=2, learning_rate=1e-3, warmup=1),
    geometry=Geometry(probability=0.5, rotation=5, zoom=1.1),
    photometry=Photometry(gamma=1.5, noise=0.02, channel_mix=True),
    losses=LossWeights(contrastive=0.5),
    hard_negatives=(0.0, 0.5),
    ema_decay=0.5,
    descriptor_dim=NETWORK.descriptor_dim,
    val_fraction=0.5,
)


def replace(recipe, **values):
    return dataclasses.replace(recipe, **values)


def tiny_network(config=NETWORK):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RRLNet(config)


class SmallTrainer(Trainer):
    """Validates on few locations; otherwise most of a tiny run's time would go into validation."""

    validation_locations, norm_batches = 24, 4


def make_trainer(sources, out, recipe=RECIPE, **options):
    """Checkpoints are due after steps 3, 4 (the end of pretraining), 6 and 8."""
    defaults = {"precision": "fp32", "device": "cpu", "start": tiny_network(), "checkpoint_every": 3}
    return SmallTrainer(recipe, sources, out, **{**defaults, "validate_every": 2} | options)
