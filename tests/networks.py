"""Small networks for whatever does not depend on what is computed, and random ones whose scores spread."""

from __future__ import annotations

import torch

from rrl_match.modeling import RRLNet, RRLNetConfig


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
