"""Conversion of models that the authors' Keras code saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from rrl_match.errors import WeightsError
from rrl_match.modeling.blocks import ConvUnit
from rrl_match.modeling.network import RRLNet
from rrl_match.training.network import TrainingRRLNet

# What Keras calls the values of a layer, and what PyTorch does.
_DENSE = {"kernel": "weight", "bias": "bias"}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}  # Keras puts output channels last


def read_keras_file(path: str | Path) -> dict[str, np.ndarray]:
    """Values of a file that Keras 2's ``model.save`` wrote, by name, such as ``conv2d_7/kernel``.

    The architecture and the optimizer's state in the file are ignored.

    Raises:
        WeightsError: not an HDF5 file, not a whole model, or a name that occurs twice.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read as an HDF5 file: {error}") from error
    with file:
        if "model_weights" not in file:
            raise WeightsError(f"{path} has no group 'model_weights': save the whole model with Keras' model.save()")
        values = {}
        for group in file["model_weights"].values():
            for name in group.attrs.get("weight_names", ()):
                name = name.decode() if isinstance(name, bytes) else name
                if name.removesuffix(":0") in values:
                    raise WeightsError(f"{path} holds {name} twice; it is not an RRL-Net as the authors' code saves it")
                if name in group:
                    values[name.removesuffix(":0")] = np.asarray(group[name])
    return values


def _layers(network: TrainingRRLNet, training: bool) -> Iterator[tuple[str, int, nn.Module]]:
    """(Keras layer type, number, our module) for every layer with values, as the authors' code numbers them.

    Keras numbers the layers of each type in the order in which they were created. A test-graph file keeps the numbers
    of the training graph.

    Args:
        network: whose modules are numbered.
        training: include the layers that only the training graph has.
    """
    counts = {"conv2d": 0, "batch_normalization": 0, "conv1d": 0, "dense": 0}

    def numbered(kind: str, module: nn.Module, kept: bool = True) -> Iterator[tuple[str, int, nn.Module]]:
        counts[kind] += 1
        if kept or training:
            yield kind, counts[kind], module

    def conv_unit(unit: Any, kept: bool = True) -> Iterator[tuple[str, int, nn.Module]]:
        yield from numbered("conv2d", unit.conv, kept)
        yield from numbered("batch_normalization", unit.norm, kept)

    def coder_stage(stage: Any, kept: bool = True) -> Iterator[tuple[str, int, nn.Module]]:
        yield from conv_unit(stage.unit, kept)
        for gate in (stage.attention.channel_gate, stage.attention.row_gate, stage.attention.column_gate):
            yield from numbered("conv1d", gate.conv, kept)

    net = network.network
    for encoder, decoder in ((net.encoder_a, network.decoder_a), (net.encoder_b, network.decoder_b)):
        for encoder_stage in encoder.stages:
            yield from coder_stage(encoder_stage)
        for decoder_stage in decoder.stages:
            yield from coder_stage(decoder_stage, kept=False)
        yield from numbered("conv2d", decoder.conv, kept=False)
    fil: Any
    for fil in net.interactions:
        for unit in (fil.value_a, fil.gate_a, fil.value_b, fil.gate_b):
            yield from conv_unit(unit)
    for metric_stage in net.metric.stages:
        for unit in metric_stage.children():
            yield from conv_unit(unit)
    for interaction_head in network.interaction_heads.values():
        for unit in interaction_head.children():
            if isinstance(unit, ConvUnit):
                yield from conv_unit(unit, kept=False)
    for head in (*network.interaction_heads.values(), *network.metric_heads.values()):
        for linear in _linear_layers(head):
            yield from numbered("dense", linear, kept=False)
    for linear in _linear_layers(net.metric.head):
        yield from numbered("dense", linear)


def _linear_layers(head: nn.Module) -> list[nn.Module]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def load_keras_weights(path: str | Path) -> TrainingRRLNet | RRLNet:
    """Read a file that the authors' code saved, training graph or test graph.

    Every value in the file is used exactly once, and every value of the network comes from the file;
    anything else is an error.

    Returns:
        a :class:`TrainingRRLNet` for a training graph, an :class:`RRLNet` for a test graph; in eval mode.

    Raises:
        WeightsError: naming the first layer that is missing, left over or has another shape.
    """
    values = read_keras_file(path)
    network = TrainingRRLNet()
    layers = {name.partition("/")[0] for name in values}
    training = not layers <= {f"{kind}_{number}" for kind, number, _ in _layers(network, training=False)}
    given: set[int] = set()  # ids of the tensors that received values
    for kind, number, module in _layers(network, training):
        for keras_name, name in (_NORM if isinstance(module, nn.BatchNorm2d) else _DENSE).items():
            key, target = f"{kind}_{number}/{keras_name}", getattr(module, name)
            if key not in values:
                raise WeightsError(f"{path} lacks {key}; it is not an RRL-Net as the authors' code saves it")
            value = values.pop(key)
            if value.ndim not in _AXES or value.transpose(_AXES[value.ndim]).shape != tuple(target.shape):
                raise WeightsError(f"{path}: {key} has shape {value.shape}, which does not fit {tuple(target.shape)}")
            target.data.copy_(torch.from_numpy(value.transpose(_AXES[value.ndim]).astype(np.float32)))
            given.add(id(target))
    if values:
        raise WeightsError(f"{path} holds {len(values)} values that RRL-Net does not have, such as {min(values)}")
    kept: TrainingRRLNet | RRLNet = network if training else network.prune()
    for name, target in kept.state_dict(keep_vars=True).items():
        if id(target) not in given and not name.endswith("num_batches_tracked"):
            raise WeightsError(f"{path} gives no value for {name}")
    return kept.eval()
