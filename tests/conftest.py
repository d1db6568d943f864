from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch loads: with all cores' threads, workers slow each other down
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from networks import make_patches, make_small, spread_network

from rrl_match import RRLMatcher
from rrl_match.modeling import RRLNetConfig
from rrl_match.pretrained import ModelConfig, save_folder


@pytest.fixture(scope="session")
def shared():
    """The folder with data, benchmarks and reference outputs beside the checkout; for tests marked `shared`."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder shared is not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def patches_a():
    return make_patches(12, seed=1)


@pytest.fixture(scope="session")
def patches_b():
    return make_patches(12, seed=2)


@pytest.fixture(scope="module")
def a(patches_a):
    return patches_a[:5]


@pytest.fixture(scope="module")
def b(patches_b):
    return patches_b[:5]


@pytest.fixture
def benchmark_file(tmp_path, patches_a, patches_b):
    """A patch benchmark of two categories of six locations, as ``rrl_match.training.evaluation`` reads it."""
    path = tmp_path / "locations.npz"
    n = len(patches_a)
    pairs = [(k, k) for k in range(n)] + [(k, k ^ 1) for k in range(n)] + [(k, (k + 2) % n) for k in range(n)]
    np.savez(
        path,
        patches_a=patches_a,
        patches_b=patches_b,
        category=np.repeat(["forest", "harbour"], n // 2),
        pairs=np.array(pairs, np.int32),
        kind=np.repeat(["match", "random", "near"], n),
    )
    return path


@pytest.fixture(scope="module")
def one_thread():
    """Small training runs are faster with one thread, in particular beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def network():
    a, b = (torch.from_numpy(make_patches(8, seed)).unsqueeze(1) / 255 for seed in (3, 4))
    return spread_network(RRLNetConfig(descriptor_dim=16), a, b)


@pytest.fixture(scope="session")
def config(network):
    return ModelConfig(modalities=("vis", "nir"), threshold=0.5, network=network.config, dtype="float32")


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory, network, config):
    return save_folder(tmp_path_factory.mktemp("weights") / "random", network, config, "# A random network\n")


@pytest.fixture(scope="session")
def matcher(weights_folder):
    return RRLMatcher.from_pretrained(weights_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def small():
    return make_small()
