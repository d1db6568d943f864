"""``rrl-match convert``: weights of the authors' Keras models."""

from __future__ import annotations

import argparse
from pathlib import Path

from rrl_match.cli.common import DONE, Subparsers, add_command, fraction, require_extra, write_line


def add_parser(subparsers: Subparsers) -> None:
    """Add ``convert``."""
    parser = add_command(subparsers, "convert", "convert one of the authors' Keras models to a weights folder")
    parser.add_argument("file", type=Path, help="HDF5 file, of the training or the test graph")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--modalities",
        nargs=2,
        default=("vis", "nir"),
        metavar=("A", "B"),
        help="names of the bands (default: vis nir)",
    )
    parser.add_argument("--threshold", type=fraction, default=0.5, help="score above which a pair counts as a match")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and print where the weights are."""
    require_extra("h5py", "sklearn")
    from rrl_match.pretrained import ModelConfig, save_folder
    from rrl_match.training.card import model_card
    from rrl_match.training.convert import load_keras_weights
    from rrl_match.training.network import TrainingRRLNet

    network = load_keras_weights(args.file)
    if isinstance(network, TrainingRRLNet):
        network = network.prune()
    training = {"data": "", "recipe": f"converted from {args.file.name}, trained with the authors' code"}
    config = ModelConfig(tuple(args.modalities), args.threshold, network.config, "float32", training)
    write_line(f"weights: {save_folder(args.out, network, config, model_card(config))}")
    return DONE
