"""Metrics of scores against labels. Pure functions on NumPy arrays; rates in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve


def fpr95(labels: ArrayLike, scores: ArrayLike) -> float:
    """False-positive rate at 95 % recall, interpolated on the ROC curve. All reported values use this definition.

    Args:
        labels: (N,), 1 for a match and 0 for none; both must occur.
        scores: (N,), higher means more similar.
    """
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores)
    return float(np.interp(0.95, true_positive_rate, false_positive_rate))


def fpr95_sorted_index(labels: ArrayLike, scores: ArrayLike) -> float:
    """False-positive rate at 95 % recall as HardNet's and HyNet's evaluation computes it.

    Pairs are sorted by score; those before the first one at which recall reaches 95 % count as accepted. There is no
    interpolation, and ties keep their order.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    ranked = labels[np.argsort(-scores, kind="stable")]
    accepted = int(np.argmax(np.cumsum(ranked) >= 0.95 * ranked.sum()))
    return float(np.sum(ranked[:accepted] == 0) / np.sum(ranked == 0))


def fdr95(labels: ArrayLike, scores: ArrayLike) -> float:
    """False-discovery rate at 95 % recall: the fraction of non-matches among the accepted pairs.

    Early HardNet code and the code of the authors of the VIS-NIR benchmark call this FPR95. It depends on how
    many non-matches there are for each match, so it is not comparable with :func:`fpr95`.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    ranked = labels[np.argsort(-scores, kind="stable")]
    accepted = int(np.argmax(np.cumsum(ranked) >= 0.95 * ranked.sum())) + 1
    return float(np.mean(ranked[:accepted] == 0))


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve, as a sum of steps."""
    return float(average_precision_score(labels, scores))


def balanced_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The score above which calling a pair a match gives the highest balanced accuracy.

    It lies half-way between two neighbouring scores, so that it does not coincide with that of a calibration pair.
    """
    false_positive_rate, true_positive_rate, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    # the first threshold is infinity, which accepts nothing
    best = 1 + int(np.argmax((true_positive_rate - false_positive_rate)[1:]))
    above = float(thresholds[best])
    below = float(thresholds[best + 1]) if best + 1 < len(thresholds) else above
    return float(np.clip((above + below) / 2, 0.0, 1.0))
