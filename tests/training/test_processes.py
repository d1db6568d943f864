"""Training by several processes, as on several GPUs or machines."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from image_folder import write_folder
from training_run import RECIPE, tiny_network

from rrl_match import RRLMatcher
from rrl_match.pretrained import ModelConfig, save_folder

HELPERS = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])

# Each process trains, then saves its weights and the locations that it drew.
WORKER = """
import sys
from pathlib import Path
import torch
from rrl_match.pretrained import load_folder
from rrl_match.training.datasets import read_source
from rrl_match.training.recipe import Recipe
from training_run import SmallTrainer

torch.set_num_threads(1)
recipe, data, start, out = sys.argv[1:]
trainer = SmallTrainer(
    Recipe.load(recipe), [read_source(data)], Path(out), precision="fp32", start=load_folder(start)[0],
    checkpoint_every=3, validate_every=2,
)
seen = []
draw = trainer.sampler.draw
def watched(*args):
    batch = draw(*args)
    seen.append(batch.position)
    return batch
trainer.sampler.draw = watched
trainer.train()
process = trainer.accelerator.process_index
torch.save({"model": trainer.model.state_dict(), "seen": seen[:8]}, Path(out) / f"process{process}.pt")
"""


def launch(folder, processes=2):
    """As ``torchrun`` does, on CPUs; Accelerate reads the environment that it sets. One process needs no launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    arguments = [folder / name for name in ("worker.py", "recipe.json", "images", "start", "run")]
    command = [sys.executable, *launcher, *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": HELPERS}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@pytest.fixture
def folder(tmp_path):
    network = tiny_network()
    save_folder(tmp_path / "start", network, ModelConfig(("vis", "nir"), network=network.config, dtype="float32"), "")
    (tmp_path / "recipe.json").write_text(RECIPE.to_json(), encoding="utf-8")
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    write_folder(tmp_path / "images")
    return tmp_path


@pytest.mark.slow
def test_two_processes_train_one_network(folder):
    result = launch(folder)
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(folder / "run" / f"process{k}.pt", weights_only=True) for k in (0, 1))
    parameters = dict(tiny_network().named_parameters())
    for name in parameters:  # batch-norm statistics differ between processes
        assert torch.equal(first["model"][f"network.{name}"], second["model"][f"network.{name}"]), name
    assert any(not torch.equal(first["model"][f"network.{name}"], value) for name, value in parameters.items())
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first["seen"], second["seen"], strict=True))
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if r["phase"] in ("pretraining", "training")] == list(range(1, 9))
    assert RRLMatcher.from_pretrained(folder / "run" / "weights", device="cpu").modalities == ("vis", "nir")

    # Both resume from the same checkpoint, which leaves nothing to do; another number of processes is another run.
    result = launch(folder)
    assert result.returncode == 0, result.stderr
    for k in (0, 1):
        again = torch.load(folder / "run" / f"process{k}.pt", weights_only=True)
        assert not again["seen"]
        assert all(
            torch.equal(again["model"][f"network.{name}"], first["model"][f"network.{name}"]) for name in parameters
        )
    result = launch(folder, processes=1)
    assert result.returncode != 0
    assert re.search("another.*processes", result.stderr)
