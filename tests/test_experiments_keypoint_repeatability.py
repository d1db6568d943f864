import cv2
import numpy as np
import pytest
from image_folder import textured, write_folder, write_manifest
from keypoint_repeatability import DETECTORS, _strongest, main, repeatability, table

from rrl_match.training.datasets import read_pairs


def measured(tmp_path, image_a, image_b, **row):
    cv2.imwrite(str(tmp_path / "a0.png"), image_a)
    cv2.imwrite(str(tmp_path / "b0.png"), image_b)
    return repeatability(read_pairs(write_manifest(tmp_path, [row])), (40,), margin=8)


def test_all_keypoints_of_the_same_image_repeat(tmp_path):
    image = textured(200, 180)
    result = measured(tmp_path, image, image)
    assert list(result) == [*DETECTORS, "grid"]
    for name in DETECTORS:
        metrics = result[name][40]
        assert 10 <= metrics["found"] <= 40
        assert metrics["repeated"] == 100
        assert metrics["chance"] < 10
    assert abs(result["grid"][40]["repeated"] - result["grid"][40]["chance"]) < 15


def test_keypoints_are_compared_at_their_true_location(tmp_path):
    """B is A shifted by (40, 20); the manifest has the right matrix or a wrong one."""
    large = textured(300, 280, corners=30)
    a, b = large[50:230, 50:250], large[30:210, 10:210]
    right = measured(tmp_path, a, b, m02=40, m12=20)
    wrong = measured(tmp_path, a, b, m02=0, m12=0)
    for name in ("FAST", "Harris", "least eigenvalue", "gradient"):
        assert right[name][40]["repeated"] > 90
        assert wrong[name][40]["repeated"] < 50


def test_strongest():
    mask = np.ones((50, 60), np.uint8)
    mask[:, :5] = 0
    found = np.array([(10, 10, 1), (12, 10, 3), (30, 20, 2), (3, 20, 9), (59.6, 49.7, 0.5)], np.float32)
    assert _strongest(found, mask, 9, 4).tolist() == [[12, 10], [30, 20], pytest.approx([59.6, 49.7])]
    assert _strongest(found, mask, 9, 1).tolist()[:3] == [[12, 10], [30, 20], [10, 10]]
    assert _strongest(found, mask, 2, 4).tolist() == [[12, 10], [30, 20]]
    assert _strongest(found[:0], mask, 2, 4).shape == (0, 2)


def test_images_without_keypoints(tmp_path):
    flat = np.full((180, 200), 90, np.uint8)
    result = measured(tmp_path, flat, flat)
    assert {name: row[40]["found"] for name, row in result.items() if name != "grid"} == dict.fromkeys(DETECTORS, 0)
    assert all(row[40]["repeated"] == 0 for name, row in result.items() if name != "grid")


def test_images_that_do_not_overlap(tmp_path):
    image = textured(200, 180)
    result = measured(tmp_path, image, image, m02=500)
    assert all(row[40] == {"found": 0, "repeated": 0, "chance": 0} for row in result.values())


def test_script_prints_a_table(tmp_path, capsys):
    data = write_folder(tmp_path / "images", pairs=3)
    arguments = ["--data", data, "--keypoints", 5, 9, "--images", 2, "--smooth", 1]
    main([str(argument) for argument in arguments])
    lines = capsys.readouterr().out.splitlines()
    assert "images, 2 image pairs of split train; within 3 px" in lines[0]
    assert len(lines) == 2 + 2 * (len(DETECTORS) + 1)


def test_table():
    lines = list(table({"Harris": {500: {"found": 499.6, "repeated": 12.34, "chance": 2.0}}}))
    assert lines[1].split() == ["Harris", "500", "500", "12.3", "2.0"]
