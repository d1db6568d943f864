import pytest
from image_folder import write_folder
from left_out_sources import FLOOR, main, selection_score

from rrl_match.training.results import load_rows


def both(random, near):
    return {"random": random, "near": near}


def test_selection_score_by_hand():
    rates = {
        "known": {"one": both(1, 4), "two": both(8, 8)},  # 2 and 8: 4
        "thermal": {"three": both(9, 9)},
        "radar": {"four": both(0.0, 0.0)},  # counts as the floor
    }
    score = selection_score(rates)
    assert score["known"] == pytest.approx(4)
    assert score["left out"] == pytest.approx((9 * FLOOR) ** 0.5)
    assert score["score"] == pytest.approx(4**0.4 * (9 * FLOOR) ** 0.3)


def test_script_measures_held_back_and_left_out_images(tmp_path, weights_folder, capsys):
    known, other = (write_folder(tmp_path / name, pairs=4, seed=k) for k, name in enumerate(("known", "other")))
    saved = tmp_path / "rates.json"
    main(
        [
            *("--weights", str(weights_folder), "--known", str(known), "--left-out", f"thermal={other}"),
            *("--locations", "8", "--dtype", "float32", "--save", str(saved)),
        ]
    )
    *measured, score = load_rows(saved)
    assert [(row["group"], row["data"]) for row in measured] == [("known", "known"), ("thermal", "other")]
    kinds = ("random", "near")  # one held-back image has no random negatives
    rates = {row["group"]: {row["data"]: {k: row[k] for k in kinds if k in row}} for row in measured}
    assert score.pop("weights") == str(weights_folder)
    assert score == pytest.approx(selection_score(rates), rel=0.02)  # of rounded rates
    assert f"score {score['score']:.3f}" in capsys.readouterr().out


def test_a_group_needs_a_name(tmp_path):
    with pytest.raises(SystemExit):
        main(["--weights", "x", "--known", str(tmp_path), "--left-out", str(tmp_path)])
