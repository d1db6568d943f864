import numpy as np
import pytest

from rrl_match.training.metrics import auc, average_precision, balanced_threshold, fdr95, fpr95, fpr95_sorted_index


def ranked(order):
    """Labels and falling scores of a string such as "PNP": matches and non-matches, by falling score."""
    return np.array([c == "P" for c in order]).astype(int), np.linspace(1, 0, len(order))


@pytest.mark.parametrize(
    ("order", "fpr", "fpr_sorted", "fdr"),
    [
        ("PPNN", 0, 0, 0),
        ("NNPP", 1, 1, 0.5),
        ("PNNPNN", 0.5, 0.5, 0.5),
        ("NPN", 0.5, 0.5, 0.5),
        ("NNNP" + "N" * 297, 0.01, 0.01, 0.75),
        # Recall is exactly 95 % all along the five non-matches: the curve's last point there, or the first.
        ("P" * 19 + "NNNNN" + "P" + "NNNNN", 0.5, 0, 0),
        # The 39th of 40 matches is not among what the sorted index accepts, the non-matches before it are.
        ("P" * 37 + "NN" + "P" + "NN" + "PP" + "N" * 16, 0.2, 0.1, 2 / 40),
    ],
)
def test_rates_by_hand(order, fpr, fpr_sorted, fdr):
    labels, scores = ranked(order)
    assert fpr95(labels, scores) == pytest.approx(fpr)
    assert fpr95_sorted_index(labels, scores) == pytest.approx(fpr_sorted)
    assert fdr95(labels, scores) == pytest.approx(fdr)


def test_the_three_definitions_differ_where_non_matches_abound():
    labels, scores = ranked("P" * 18 + "N" * 8 + "P" + "NN" + "P" + "N" * 190)
    assert fpr95(labels, scores) == pytest.approx(10 / 200)
    assert fpr95_sorted_index(labels, scores) == pytest.approx(8 / 200)
    assert fdr95(labels, scores) == pytest.approx(8 / 27)


def test_ties_are_interpolated():
    # From recall 1/2 at no false positive to recall 1 at half of them: 0.95 is 90 % of the way.
    assert fpr95([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1]) == pytest.approx(0.45)
    assert fpr95([1, 0, 1, 0], [0.5] * 4) == pytest.approx(0.95)


def test_ties_fall_as_they_come_in_the_other_definitions():
    assert fpr95_sorted_index([1, 0], [0.5, 0.5]) == 0
    assert fpr95_sorted_index([0, 1], [0.5, 0.5]) == 1
    assert fdr95([1, 0], [0.5, 0.5]) == 0
    assert fdr95([0, 1], [0.5, 0.5]) == 0.5


@pytest.mark.parametrize("decimals", [1, 2, 8])
@pytest.mark.parametrize("seed", range(5))
def test_fpr95_is_the_interpolation_between_two_thresholds(seed, decimals):
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [33, 210])  # 95 % of 33 falls between two matches
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.15), 0, 1).round(decimals)
    order = rng.permutation(len(labels))
    last = (0.0, 0.0)
    for threshold in sorted(set(scores), reverse=True):
        accepted = scores >= threshold
        point = accepted[labels == 1].mean(), accepted[labels == 0].mean()
        if point[0] >= 0.95:
            break
        last = point
    expected = last[1] + (point[1] - last[1]) * (0.95 - last[0]) / (point[0] - last[0])
    assert fpr95(labels[order], scores[order].astype(np.float32)) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [fpr95, fpr95_sorted_index, fdr95, auc, average_precision])
def test_metrics_depend_on_the_order_of_scores_alone(metric):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.random(200)
    shuffled = rng.permutation(200)
    assert metric(labels[shuffled], scores[shuffled] ** 3) == pytest.approx(metric(labels, scores))
    assert 0 <= metric(labels, scores) <= 1
    assert metric(labels.tolist(), scores.tolist()) == metric(labels.astype(np.uint8), scores)


def test_area_under_the_curves_by_hand():
    assert auc(*ranked("PPNN")) == 1
    assert auc(*ranked("NNPP")) == 0
    assert auc(*ranked("PNPN")) == pytest.approx(0.75)
    assert auc([1, 0], [0.5, 0.5]) == 0.5
    assert average_precision(*ranked("PPNN")) == 1
    assert average_precision(*ranked("PNP")) == pytest.approx((1 + 2 / 3) / 2)


def test_threshold_lies_half_way_between_what_it_separates():
    assert balanced_threshold([1, 1, 0, 0], [0.9, 0.8, 0.4, 0.1]) == pytest.approx(0.6)


def test_threshold_weighs_both_kinds_alike():
    # Of 3 matches and 100 non-matches, losing one match costs more than 10 false alarms.
    labels = [1, 1, *[0] * 10, 1, *[0] * 90]
    scores = np.linspace(1, 0, 103)
    threshold = balanced_threshold(labels, scores)
    assert scores[13] < threshold < scores[12]


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.8, 0.9], [0.5] * 4, [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
def test_threshold_stays_in_the_unit_range(scores):
    assert 0 <= balanced_threshold([1, 1, 0, 0], scores) <= 1
