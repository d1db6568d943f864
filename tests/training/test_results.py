import json
import subprocess
import sys

import cv2
import pytest
import torch

from rrl_match import __version__
from rrl_match.training import results
from rrl_match.training.results import load_rows, save_results

ROWS = [{"data": "water", "value": 1.5, "weights": None}, {"data": "wood", "value": 2, "weights": "universal"}]


def test_rows_lie_beside_what_they_were_measured_with(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmark.py", "/data/vis-nir", "--pairs", "5", "../data"])
    save_results(tmp_path / "results.json", ROWS)
    text = (tmp_path / "results.json").read_text()
    saved = json.loads(text)
    assert load_rows(tmp_path / "results.json") == saved["rows"] == ROWS
    assert saved["version"] == __version__
    assert saved["command"] == "benchmark.py vis-nir --pairs 5 ../data"  # no folders of this machine
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["machine"]["opencv"] == cv2.__version__
    assert saved["machine"]["threads"] == torch.get_num_threads()
    assert len(saved["date"]) == len("2026-01-31")
    assert sum('"data"' in line for line in text.splitlines()) == 2  # one line each, for readable differences


def test_commit(tmp_path, monkeypatch):
    """That of the checkout, marked if its files are changed; results do not count."""

    def git(*arguments):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    save_results(tmp_path / "none.json", ROWS)
    assert json.loads((tmp_path / "none.json").read_text())["commit"] is None
    git("init")
    (tmp_path / "weights" / "results").mkdir(parents=True)
    for path in ("code.py", "weights/results/x.json"):
        (tmp_path / path).write_text("first")
    git("add", ".")
    git("commit", "-m", "first")
    for path, ending in (("weights/results/x.json", ""), ("code.py", "+")):
        (tmp_path / path).write_text("second")
        save_results(tmp_path / "some.json", ROWS)
        commit = json.loads((tmp_path / "some.json").read_text())["commit"]
        assert commit.rstrip("+") + ending == commit
        assert len(commit) >= 7


def test_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_results(tmp_path / "missing" / "results.json", ROWS)
