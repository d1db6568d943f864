"""Pairs as cameras wrote them."""

import csv

import cv2
import numpy as np
import pytest

from rrl_match import RRLMatcher, register
from rrl_match.transforms import Homography


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("case", ["rig4k_01", "rig4k_02", "rig4k_03", "handheld_01", "handheld_02"])
def test_visible_beside_thermal(shared, case):
    """The visible image is four times as fine as the thermal one, or two and a half times, and shows more."""
    with open(shared / "field" / "cases.csv", newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["case"] == case)
    a, b = (cv2.imread(str(shared / "field" / row[k]), cv2.IMREAD_COLOR) for k in ("image_a", "image_b"))
    truth = Homography(np.array([float(row[f"m{i}{j}"]) for i in range(3) for j in range(3)]).reshape(3, 3))
    result = register(RRLMatcher.from_pretrained("universal", device="cpu"), a[..., ::-1], b[..., ::-1])
    assert result.ok, result.reason
    h, w = b.shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]], float)
    shown = truth.inverse()(corners)  # the part of A that B shows
    assert np.linalg.norm(result.transform(shown) - corners, axis=1).mean() < float(row["within"])
