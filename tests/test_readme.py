"""The code of the README runs as written, and its metrics are those of the weights."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_code_blocks_run(monkeypatch):
    """In their order, from a checkout, as a reader would paste them; then those of the examples' README."""
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}

    def run(text):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, "README", "exec"), names)

    run(README)
    assert names["scores"].shape == (100,)
    assert len(names["matches"]) > 20
    assert names["result"].ok
    assert names["aligned"].shape[:2] == names["image_b"].shape

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
    """Of README and of the card."""
    config = json.loads((ROOT / "weights" / name / "config.json").read_text(encoding="utf-8"))
    fpr95 = config["metrics"]["benchmark_fpr95"]
    random, near = (f"{fpr95[kind]['mean']:.2f}" for kind in ("random", "near"))
    row = next(line for line in README.splitlines() if line.startswith(f"| [`{name}`]"))
    assert f"| {random} / {near} |" in row
    card = (ROOT / "weights" / name / "README.md").read_text(encoding="utf-8")
    assert f"above {config['threshold']:.3f} " in card
    assert random in card
    assert near in card
