import json
import shutil

import cv2
import pytest
from network_shapes import Shape, held_back_fpr95, main, measure


@pytest.fixture
def run(weights_folder, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(weights_folder, folder / "weights")
    lines = [
        {"step": 1, "phase": "training", "loss": 1.0},
        {"step": 2, "phase": "validation", "fpr95": 12.5},
        {"step": 2, "phase": "validation/one", "fpr95_random": 1.0},
        {"step": 2, "phase": "validation_average", "fpr95": 11.0},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_accuracy_is_that_of_the_weights_kept(run):
    assert held_back_fpr95(run) == 11.0


def test_measured_beside_a_baseline(run):
    (shape,) = measure([run], str(run / "weights"), [1, 4], "float32", 0.05)
    assert isinstance(shape, Shape)
    assert shape.name == "small"
    assert shape.parameters > 1000
    assert len(shape.times_as_fast) == 2
    assert min(shape.times_as_fast) > 0


def test_table_and_plot(run, tmp_path, capsys):
    plot = tmp_path / "shapes.png"
    options = ["--baseline", str(run / "weights"), "--batch-sizes", "2", "--seconds", "0.02", "--plot", str(plot)]
    main([str(run), *options])
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == 5
    assert row.startswith("| small | ")
    assert "| 11.0 |" in row
    assert cv2.imread(str(plot)) is not None
