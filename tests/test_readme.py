"""The READMEs' code runs as written and writes what it names, and their metrics are those of the weights."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from rrl_match.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")


def test_readme_is_one_page():
    """Of at most 900 words, comments, bars and arrows apart."""
    words = re.sub(r"<!--.*?-->", "", README).split()
    assert len([word for word in words if re.search(r"\w", word)]) <= 900


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A folder to work in that has the examples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    return tmp_path


@pytest.mark.slow
def test_code_blocks_run(checkout):
    """In their order, from a checkout, as a reader would paste them; then those of the examples' README."""
    names: dict[str, object] = {}

    def run(text):
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, "README", "exec"), names)

    run(README)
    assert names["result"].ok
    assert names["aligned"].shape[:2] == names["image_b"].shape
    for file, shown in (("aligned.png", "aligned"), ("checkerboard.png", "board"), ("matches.png", "lines")):
        written = cv2.cvtColor(cv2.imread(str(checkout / file)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(written, names[shown])
    assert len(names["matched_a"]) == len(names["matched_b"]) == len(names["matches"]) > 20
    far = np.linalg.norm(names["result"].transform(names["matched_a"]) - names["matched_b"], axis=1)
    assert np.mean(far < 3) > 0.3  # pixels; some partners are wrong
    assert names["scores"].shape == (100,)

    patches_a, patches_b = names["patches_a"][:20], names["patches_b"][:20]
    keypoints_b = [(10 * n, 0) for n in range(20)]
    names |= {"patches_a": patches_a, "patches_b": patches_b, "predicted": keypoints_b, "keypoints_b": keypoints_b}
    run(EXAMPLES)
    assert names["scores"].shape == (3,)


@pytest.mark.slow
def test_commands_run(checkout, capsys):
    """Of README, but for what installs packages; each writes what the page names."""
    (a, b), (c, d) = (["naip_visible", "naip_nir"], ["sentinel_optical", "sentinel_radar"])
    rows = [f"examples/images/{one}.jpg,examples/images/{other}.jpg" for one, other in ((a, b), (c, d))]
    (checkout / "pairs.csv").write_text("\n".join(["image_a,image_b", *rows]) + "\n", encoding="utf-8")
    commands = re.findall(r"^rrl-match (.*)$", README, re.M)
    assert [command.split()[0] for command in commands] == ["register", "register", "apply"]
    for command in commands:
        assert main(shlex.split(command, comments=True)) == 0, command
    for name in ("folder/report.html", "results/index.html", "aligned/naip_visible.png"):
        assert (checkout / name).is_file()
        assert name in README or name.startswith("aligned")


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
