"""Weights that a run starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rrl_match.errors import DataError
from rrl_match.hub import find_folder
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import load_folder
from rrl_match.training.datasets import name_and_weight


def read_start(given: Sequence[str]) -> RRLNet | None:
    """The network to start from: that of one weights folder, or the weighted mean of several.

    Networks that were trained from the same weights on different data often lie in one basin of the loss, where their
    mean does what each of them does (model soups; Wortsman et al., ICML 2022). Batch-norm statistics are averaged,
    too, and adapt during the first steps.

    Args:
        given: names of bundled weights, folders or Hub repo ids, each as ``NAME`` or ``NAME=2.5``; none for `None`.

    Raises:
        DataError: a weight is not a positive number.
        WeightsError: weights do not exist or cannot be read.
        DataError: the networks have different shapes.
    """
    if not given:
        return None
    names, factors = zip(*(name_and_weight(text) for text in given), strict=True)
    networks = [load_folder(find_folder(name))[0] for name in names]
    mean = networks[0]
    for name, network in zip(names, networks, strict=True):
        if network.config != mean.config:
            raise DataError(f"the mean of {names[0]} and {name} does not exist: their networks have different shapes")
    states = [network.state_dict() for network in networks]
    fractions = torch.tensor(factors) / sum(factors)
    for key, value in states[0].items():
        if value.is_floating_point():
            stacked = torch.stack([state[key] for state in states], dim=-1)
            value.copy_((stacked * fractions).sum(-1))
    return mean
