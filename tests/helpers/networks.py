"""Random patches, small networks for tests that do not depend on the values, and random ones whose scores spread."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from rrl_match import RRLMatcher
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.pretrained import ModelConfig


def make_patches(count, seed, size=64):
    """Blocks of grey with noise, uint8 (count, size, size), all different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (count, 8, 8)).repeat(size // 8, 1).repeat(size // 8, 2)
    return (coarse + rng.integers(0, 56, (count, size, size))).astype(np.uint8)


TINY = RRLNetConfig(encoder_channels=(2,) * 5, metric_channels=(2,) * 5, hidden=(2,))


def tiny_rrlnet(descriptor_dim: int = 0) -> RRLNet:
    """A network of 64 px patches with two channels in every stage, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RRLNet(dataclasses.replace(TINY, descriptor_dim=descriptor_dim)).eval()


def tiny_matcher(
    descriptor_dim: int = 0,
    threshold: float = 0.5,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
) -> RRLMatcher:
    """A matcher with a :func:`tiny_rrlnet`."""
    network = tiny_rrlnet(descriptor_dim)
    return RRLMatcher(network, ModelConfig(("vis", "nir"), threshold, network.config), device=device, dtype=dtype)


def spread_network(config: RRLNetConfig, patches_a: torch.Tensor, patches_b: torch.Tensor) -> RRLNet:
    """A random RRLNet whose batch norms fit patches (N, 1, S, S), and whose scores of them spread over (0, 1)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = RRLNet(config)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain average of all batches
        network.train()
        maps_a, maps_b = network.encode(patches_a, "a"), network.encode(patches_b, "b")
        network.logits(maps_a, maps_b)
        if config.descriptor_dim:
            network.describe(maps_a, "a"), network.describe(maps_b, "b")
        network.eval().requires_grad_(False)
        logits = network.logits(network.encode(patches_a, "a"), network.encode(patches_b, "b"))
        last = network.metric.head[-2]
        scale = 1.5 / logits.std()
        last.bias.copy_((last.bias - logits.mean()) * scale)
        last.weight.mul_(scale)
        return network


def make_small():
    """A matcher of 16 px patches, a hundred times as fast, whose scores still spread."""
    config = RRLNetConfig(16, encoder_channels=(4,) * 3, metric_channels=(4,) * 3, hidden=(8,), descriptor_dim=4)
    a, b = (torch.from_numpy(make_patches(64, seed, 16)).unsqueeze(1) / 255 for seed in (5, 6))
    network = spread_network(config, a, b)
    return RRLMatcher(network, ModelConfig(("vis", "nir"), 0.5, config), device="cpu", dtype="float32")
