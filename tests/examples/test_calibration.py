import json

import calibration
import cv2
import numpy as np
import pytest
from calibration import Case, fit, least_squares, logistic, main
from scenes import make_scene


def test_logistic_regression_finds_the_odds_that_labels_were_drawn_with():
    random = np.random.default_rng(0)
    x = random.normal(size=(20000, 2))
    y = random.random(20000) < 1 / (1 + np.exp(-(x @ (2, -1) + 0.5)))
    np.testing.assert_allclose(logistic(x, y), (2, -1, 0.5), atol=0.08)


def test_linear_regression():
    x = np.random.default_rng(0).normal(size=(500, 3))
    np.testing.assert_allclose(least_squares(x, x @ (1, 0, -2) + 4), (1, 0, -2, 4), atol=0.02)


@pytest.mark.parametrize("kind", ["relief", "lens", "depths"])
def test_truth_of_bent_images(kind):
    scene = cv2.GaussianBlur(make_scene(0), (0, 0), 2)
    h, w = scene.shape
    bent = 2 * calibration.displacement(kind, (h, w), np.random.default_rng(3))
    bent = cv2.GaussianBlur(bent, (0, 0), 8)  # two depths: without the step
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    there = cv2.remap(scene, x + bent[..., 0], y + bent[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    case = Case(scene, there, None, np.eye(3), bent)
    points = np.stack([x[30:-30, 30:-30].ravel(), y[30:-30, 30:-30].ravel()], 1).astype(np.float64)
    at = case.truth(points).astype(np.float32)
    back = cv2.remap(there, at[:, 0], at[:, 1], cv2.INTER_LINEAR).ravel().astype(float)
    shown = scene[30:-30, 30:-30].ravel().astype(float)
    straight = there[30:-30, 30:-30].ravel().astype(float)
    assert np.abs(back - shown).mean() < 0.3 * np.abs(straight - shown).mean()


def rows(sources=("street", "field", "coast"), count=200):
    """Candidates whose odds are 8 x mutual - 4, and whose error is twice what their surroundings are off."""
    random = np.random.default_rng(1)
    for source in sources:
        for _ in range(count):
            mutual, off = random.random(), random.uniform(-1, 2)
            right = random.random() < 1 / (1 + np.exp(4 - 8 * mutual))
            errors = 2 * np.exp(off) * np.arange(1, 20) / 18
            row = {"mutual": mutual, "support": 0.0, "log ratio": 0.0, "peak": 0.0, "best": True, "ok": True}
            row |= {"median": 1.0 if right else 50.0, "radius": errors[17], "quantiles": errors.tolist()}
            row |= {"surroundings": off, "blocks": 0.0, "disagreeing": 0.0, "source": source, "kind": "plain"}
            yield row


def test_fit_and_its_curves():
    found = list(rows())
    fitted = fit(found)
    odds, *curve = [row for row in fitted if row.get("fit") == "log odds" or row.get("curve") == "probability"]
    assert odds["mutual"] == pytest.approx(8, abs=1.5)
    assert odds["bias"] == pytest.approx(-4, abs=1)
    assert all(abs(row["stated"] - row["true"]) < 0.15 for row in curve if row["calls"] > 30)
    assert sum(row["calls"] for row in curve) == len(found)
    error, held, *pairs = [row for row in fit(found) if "probability" not in row.get("curve", "") and row is not odds][
        1:
    ]
    assert error["surroundings"] == pytest.approx(1, abs=0.02)
    assert error["bias"] == pytest.approx(np.log(2), abs=0.05)
    assert held["held"] == pytest.approx(0.9, abs=0.03)
    assert held["within a factor of 2"] == 1
    assert len(pairs) == held["calls"] == sum(row["median"] == 1 for row in found)


def test_fit_from_files(tmp_path, capsys):
    (tmp_path / "calls.json").write_text(json.dumps({"rows": list(rows(count=40))}))
    main(["fit", str(tmp_path / "calls.json"), "--save", str(tmp_path / "fit.json")])
    saved = json.loads((tmp_path / "fit.json").read_text())["rows"]
    assert {"log odds", "log error"} <= {row.get("fit") for row in saved}
    assert "log error" in capsys.readouterr().out
