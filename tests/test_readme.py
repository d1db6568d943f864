"""The READMEs' code runs as written and writes what it names, and their metrics are those of the weights."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_code_blocks_run(monkeypatch, tmp_path):
    """In their order, from a checkout, as a reader would paste them; then those of the examples' README."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    names: dict[str, object] = {}

    def run(text):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, "README", "exec"), names)

    run(README)
    assert names["result"].ok
    assert names["aligned"].shape[:2] == names["image_b"].shape
    for file, shown in (("aligned.png", "aligned"), ("checkerboard.png", "board")):
        written = cv2.cvtColor(cv2.imread(str(tmp_path / file)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(written, names[shown])
    assert len(names["matched_a"]) == len(names["matched_b"]) == len(names["matches"]) > 20
    far = np.linalg.norm(names["result"].transform(names["matched_a"]) - names["matched_b"], axis=1)
    assert np.mean(far < 10) > 0.3  # pixels; keypoints of two bands seldom coincide, and some partners are wrong
    assert names["scores"].shape == (100,)

    patches_a, patches_b = names["patches_a"][:20], names["patches_b"][:20]
    keypoints_b = [(10 * n, 0) for n in range(20)]
    names |= {"patches_a": patches_a, "patches_b": patches_b, "predicted": keypoints_b, "keypoints_b": keypoints_b}
    run(EXAMPLES)
    assert names["scores"].shape == (3,)


OF_ANY_SENSOR = ["universal", "universal-lite"]
SPECIALISTS = sorted({path.parent.name for path in (ROOT / "weights").glob("*/config.json")} - set(OF_ANY_SENSOR))


@pytest.mark.parametrize("name", OF_ANY_SENSOR)
def test_metrics_by_sensor_are_those_of_the_weights(name):
    config = json.loads((ROOT / "weights" / name / "config.json").read_text(encoding="utf-8"))
    card = (ROOT / "weights" / name / "README.md").read_text(encoding="utf-8")
    assert f"above {config['threshold']:.3f} " in card
    assert len(config["metrics"]["benchmark_fpr95"]) == 15
    for benchmark, kinds in config["metrics"]["benchmark_fpr95"].items():
        assert f"| {benchmark} | {kinds['random']['mean']:.2f} / {kinds['near']['mean']:.2f} |" in card


@pytest.mark.parametrize("name", SPECIALISTS)
def test_metrics_are_those_of_the_weights(name):
    """Of the card; test_tables.py checks the pages."""
    config = json.loads((ROOT / "weights" / name / "config.json").read_text(encoding="utf-8"))
    fpr95 = config["metrics"]["benchmark_fpr95"]
    card = (ROOT / "weights" / name / "README.md").read_text(encoding="utf-8")
    assert f"above {config['threshold']:.3f} " in card
    assert f"{fpr95['random']['mean']:.2f}" in card
    assert f"{fpr95['near']['mean']:.2f}" in card
