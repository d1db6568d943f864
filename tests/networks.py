"""Small networks for whatever does not depend on what is computed, and random ones whose scores spread."""

from __future__ import annotations

import dataclasses

import torch

from rrl_match import ModelConfig, RRLMatcher
from rrl_match.modeling import RRLNet, RRLNetConfig

TINY = RRLNetConfig(encoder_channels=(2,) * 5, metric_channels=(2,) * 5, hidden=(2,))


def tiny_matcher(descriptor_dim: int = 0, threshold: float = 0.5) -> RRLMatcher:
    """Of 64 px patches and two channels, on the CPU in float32."""
    config = dataclasses.replace(TINY, descriptor_dim=descriptor_dim)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RRLNet(config).eval()
    return RRLMatcher(network, ModelConfig(("vis", "nir"), threshold, config), device="cpu", dtype="float32")


def spread_network(config: RRLNetConfig, patches_a: torch.Tensor, patches_b: torch.Tensor) -> RRLNet:
    """A random RRLNet whose batch norms fit patches (N, 1, S, S), and whose scores of them spread over (0, 1)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = RRLNet(config)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain average of what is seen
        network.train()
        maps = network.encoder_a(patches_a), network.encoder_b(patches_b)
        network.relate(*maps)
        if config.descriptor_dim:
            network.describe(*maps)
        network.eval().requires_grad_(False)
        logits = network.metric.head(network.relate(network.encoder_a(patches_a), network.encoder_b(patches_b)))
        last = network.metric.head[-2]
        scale = 1.5 / logits.std()
        last.bias.copy_((last.bias - logits.mean()) * scale)
        last.weight.mul_(scale)
        return network
