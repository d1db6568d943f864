from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rrl_match import ModelConfig, RRLMatcher
from rrl_match.modeling import RRLNet, RRLNetConfig
from rrl_match.pretrained import save_folder


@pytest.fixture(scope="session")
def shared():
    """The data, benchmarks and reference outputs beside the checkout; goes with the marker of the same name."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder shared is not beside the checkout")
    return folder


def make_patches(count, seed):
    """Grainy pictures with a gradient, uint8 (count, 64, 64), every one different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (count, 8, 8)).repeat(8, 1).repeat(8, 2)
    return (coarse + rng.integers(0, 56, (count, 64, 64))).astype(np.uint8)


@pytest.fixture(scope="session")
def patches_a():
    return make_patches(12, seed=1)


@pytest.fixture(scope="session")
def patches_b():
    return make_patches(12, seed=2)


@pytest.fixture(scope="session")
def network():
    """A random RRLNet whose batch norms fit the patches above and whose scores spread over (0, 1)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = RRLNet(RRLNetConfig(descriptor_dim=16))
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain average of what is seen
        a, b = (torch.from_numpy(make_patches(8, seed)).unsqueeze(1) / 255 for seed in (3, 4))
        net.train()
        maps = net.encoder_a(a), net.encoder_b(b)
        net.relate(*maps)
        net.describe(*maps)
        net.eval().requires_grad_(False)
        logits = net.metric.head(net.relate(net.encoder_a(a), net.encoder_b(b)))
        last = net.metric.head[-2]
        scale = 1.5 / logits.std()
        last.bias.copy_((last.bias - logits.mean()) * scale)
        last.weight.mul_(scale)
        return net


@pytest.fixture(scope="session")
def config(network):
    return ModelConfig(modalities=("vis", "nir"), threshold=0.5, network=network.config, dtype="float32")


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory, network, config):
    return save_folder(tmp_path_factory.mktemp("weights") / "random", network, config, "# A random network\n")


@pytest.fixture(scope="session")
def matcher(weights_folder):
    return RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype="float32")
