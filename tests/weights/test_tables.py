"""The pages show what ``weights/results`` holds."""

import json

import cv2
import pytest
import tables

from rrl_match.training.results import load_rows

RESULTS = sorted(tables.RESULTS.glob("*.json"))
RELEASED = sorted((tables.ROOT / "weights").glob("*/config.json"))


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(tables.ROOT)))
def test_tables_are_made_from_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert text == tables.rendered(text), "run python weights/tools/tables.py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_how_they_were_measured(path):
    saved = json.loads(path.read_text(encoding="utf-8"))
    rows = saved.pop("rows")
    assert rows
    assert {"version", "command", "machine", "date"} < set(saved)
    assert saved.get("commit") or saved["measured_at"]
    assert not any(word.startswith("/") for word in saved["command"].split())  # a path of the machine


@pytest.mark.parametrize("config", RELEASED, ids=lambda path: path.parent.name)
def test_released_weights_state_the_same_metrics(config):
    metrics = json.loads(config.read_text(encoding="utf-8"))["metrics"]["benchmark_fpr95"]
    name = config.parent.name
    rows = load_rows(tables.RESULTS / f"patches_{name}.json")
    for row in rows:
        by_kind = metrics.get(row["data"], metrics)  # of weights of one sensor, there is no level for the data
        assert by_kind[row["negatives"]][row["category"]] == row["FPR95"]


def test_page_is_one_page():
    assert len((tables.ROOT / "weights" / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_cells(monkeypatch):
    """By hand: cells of methods that were not measured are empty, fewer pairs are said."""
    rows = [
        {
            "data": "sea",
            "scene": "all",
            "method": "register",
            "weights": "universal",
            "pairs": 4,
            "auc10": 50,
            "refused": 1,
            "wrong": 0,
        },
        {
            "data": "sea",
            "scene": "all",
            "method": "sift",
            "weights": None,
            "pairs": 2,
            "auc10": 25.5,
            "refused": 0,
            "wrong": 1,
        },
        {
            "data": "wood",
            "scene": "all",
            "method": "sift",
            "weights": None,
            "pairs": 3,
            "auc10": 0,
            "refused": 0,
            "wrong": 3,
        },
    ]
    monkeypatch.setattr(tables, "results", lambda name: {"rows": rows})
    assert list(tables.registration()) == [
        "| AUC@10px / refused / wrong | pairs | `register`, `universal` | SIFT |",
        "| --- | ---: | ---: | ---: |",
        "| sea | 4 | 50.0 / 1 / 0 | 25.5 / 0 / 1 of 2 |",
        "| wood | 3 |  | 0.0 / 0 / 3 |",
    ]
    page = "before\n<!-- table: registration -->\nold\n<!-- end -->\nafter\n"
    assert tables.rendered(page).splitlines()[1:3] == ["<!-- table: registration -->", next(tables.registration())]
    assert tables.rendered(tables.rendered(page)) == tables.rendered(page)


def measured(method, weights, pairs, auc10, seconds):
    """Two sets of as many pairs."""
    common = {"scene": "all", "method": method, "weights": weights, "pairs": pairs, "refused": 1, "wrong": 0}
    return [{"data": data, **common, "auc10": auc10, "seconds": seconds} for data in ("sea", "wood")]


def test_methods_are_compared_on_the_same_pairs(monkeypatch, tmp_path):
    """ORB was measured on fewer, so that it is left out; the plot shows the others."""
    held = {
        "registration_register": [*measured("register", "universal", 5, 80, 2), *measured("sift", None, 5, 10, 0.3)],
        "registration_baselines": [*measured("orb", None, 1, 5, 0.1), *measured("elastix", None, 5, 30, 9)],
    }
    monkeypatch.setattr(tables, "results", lambda name: {"rows": held[name]})
    lines = list(tables.methods())
    assert lines[0] == "![AUC@10px over seconds a pair](../examples/images/speed_accuracy.png)"
    assert lines[2].startswith("10 test pairs")
    assert lines[-3:] == [
        "| `register`, `universal` | 80.0 / 2 / 0 | 2.0 |",
        "| SIFT | 10.0 / 2 / 0 | 0.3 |",
        "| elastix | 30.0 / 2 / 0 | 9.0 |",
    ]
    tables.draw(tmp_path / "plot.png")
    height, width = cv2.imread(str(tmp_path / "plot.png")).shape[:2]
    assert width > height > 300


def test_speeds(monkeypatch):
    rows = [
        {"weights": "universal", "dtype": "bfloat16", "call": "score", "size": 64, "seconds": 0.5},
        {"weights": "universal-lite", "dtype": "bfloat16", "call": "score", "size": 64, "seconds": 0.1},
        {"weights": "universal", "dtype": "bfloat16", "call": "register", "size": 1, "seconds": 2.0},
    ]
    machine = {"cpu": "Some CPU", "gpu": None, "threads": 1}
    monkeypatch.setattr(tables, "results", lambda name: {"machine": machine, "rows": rows})
    lines = list(tables.speed())
    assert lines[0].startswith("Some CPU, one thread, processor time")
    assert lines[-2:] == [
        "| `score`, batch size 64 | bfloat16 | 128 pairs/s | 640 pairs/s |",
        "| register | bfloat16 | 2.00 s |  |",
    ]


def test_calibration(monkeypatch, tmp_path):
    rows = [
        {"curve": "probability in use", "stated": 0.1, "true": 0.2, "calls": 30},
        {"curve": "probability in use", "stated": 0.9, "true": 0.9, "calls": 10},
        {"curve": "error", "calls": 12, "held": 0.88, "within a factor of 2": 0.5},
        {"source": "vis-nir", "kind": "plain", "stated": 2.0, "true": 1.0},
    ]
    monkeypatch.setattr(tables, "results", lambda name: {"rows": rows})
    text = " ".join(tables.calibration())
    assert "40 calls on" in text
    assert "of the probability is 0.07. In the 12 calls" in text
    assert (
        "other sources holds 88% of the overlap in the mean, and is within a factor of 2 of the true one in 50%."
        in text
    )
    tables.draw_calibration(tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 10


def test_what_was_not_measured_is_left_out(monkeypatch):
    monkeypatch.setattr(tables, "results", lambda name: {"rows": []})
    page = "before\n<!-- table: methods -->\n<!-- end -->\n<!-- table: speed -->\nold\n<!-- end -->\n"
    assert tables.rendered(page) == page.replace("old\n", "")


def test_plot_is_there_if_it_was_measured():
    assert tables.PLOT.is_file() == bool(tables.compared())
