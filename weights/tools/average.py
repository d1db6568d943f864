"""Write the weighted mean of several sets of weights as a weights folder of its own.

``python average.py OUT --weights universal=0.65 --weights vis-lwir=0.35 --data FOLDER`` averages the values, recomputes
the statistics of the batch norms on training batches and calibrates the threshold on held-back images. The card and the
config name the parts; the facts about the training are those of the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rrl_match.hub import find_folder
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig, load_folder, save_folder
from rrl_match.training.alignment import align
from rrl_match.training.card import calibrated_config, model_card
from rrl_match.training.datasets import Source, hold_back, name_and_weight, read_source
from rrl_match.training.norms import BATCHES, reestimate_norms
from rrl_match.training.recipe import Recipe
from rrl_match.training.sampling import PatchSampler
from rrl_match.training.start import read_start
from rrl_match.training.validation import MOST_LOCATIONS, ValidationSet


class Average(NamedTuple):
    """Averaged weights and their config."""

    network: RRLNet
    config: ModelConfig


def average(weights: Sequence[str], sources: Sequence[Source], recipe: Recipe, batches: int = BATCHES) -> Average:
    """The weighted mean of several sets of weights, with norms and a threshold of its own.

    Args:
        weights: names or folders, each as ``NAME`` or ``NAME=2.5``.
        sources: training images, registered as those that the weights were trained on.
        recipe: of the batches that the statistics of the norms are computed from.
        batches: how many of them.

    Raises:
        ValueError: the networks have different shapes, or no weights are given.
    """
    network = read_start(weights)
    if network is None:
        raise ValueError("give at least one set of weights")
    kept, held_back = zip(*(hold_back(source, recipe.val_fraction) for source in sources), strict=True)
    size, device = network.config.patch_size, torch.device("cpu")
    reestimate_norms(network, PatchSampler(kept, size, device), recipe, torch.bfloat16, batches)
    each = MOST_LOCATIONS // len(sources)
    validation = [ValidationSet(source, size, device, each) for source in held_back]
    scores = {source.name: source.score(network, torch.float32) for source in validation}
    training = {**load_folder(find_folder(name_and_weight(weights[0])[0]))[1].training, "average_of": list(weights)}
    return Average(network, calibrated_config(recipe.modalities, network.config, scores, training))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write averaged weights."""
    parser = argparse.ArgumentParser(description="Write the weighted mean of several sets of weights.")
    parser.add_argument("out", type=Path, help="weights folder to write")
    parser.add_argument("--weights", action="append", required=True, metavar="WEIGHTS[=WEIGHT]")
    parser.add_argument("--data", action="append", required=True, metavar="FOLDER[=WEIGHT]", help="as for training")
    parser.add_argument("--recipe", default="universal-continued", help="a recipe of the package, or a JSON file")
    parser.add_argument("--alignment", type=Path, metavar="FILE", help="alignment.json of a run on these sources")
    args = parser.parse_args(arguments)
    recipe = Recipe.load(args.recipe)
    sources = [read_source(folder) for folder in args.data]
    network, config = average(args.weights, align(sources, args.alignment) if recipe.align else sources, recipe)
    print(f"averaged: {save_folder(args.out, network, config, model_card(config))}")


if __name__ == "__main__":
    main()
