import json

import pytest
import torch

from rrl_match.training.run_folder import RunFolder


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_log_continues_after_the_last_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open_log(0)
    for step in range(1, 6):
        folder.log(step, "training", {"loss": 1.0, "seconds": 2.0})
    folder.close_log()
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 6, "pha')  # torn by an interruption
    folder = RunFolder(tmp_path)
    folder.open_log(3)
    assert steps(tmp_path) == [1, 2, 3]
    folder.log(4, "training", {"loss": 0.5})
    folder.close_log()
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_checkpoint({"seed": 0, "images": ["a"]}) is None
    folder.write_checkpoint({"seed": 0, "images": ["a"], "model": torch.zeros(2)})
    assert folder.read_checkpoint({"seed": 0, "images": ["a"]})["model"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="another seed and images: choose another folder"):
        folder.read_checkpoint({"seed": 1, "images": ["b"]})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_torn_checkpoint_leaves_the_previous_one(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_checkpoint({"seed": 0})

    def killed(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write_checkpoint({"seed": 1})
    assert folder.read_checkpoint({})["seed"] == 0


def test_only_the_main_process_writes(tmp_path):
    folder = RunFolder(tmp_path / "run", writable=False)
    folder.open_log(0)
    folder.log(1, "training", {"loss": 1.0})
    folder.write_text("recipe.json", "{}")
    folder.write_checkpoint({})
    folder.close_log()
    assert list((tmp_path / "run").iterdir()) == []
