import json

import cv2
import numpy as np
import pytest
from image_folder import image_pair

from rrl_match.training import alignment
from rrl_match.training.alignment import align, edge_move
from rrl_match.training.datasets import PairSource

SIZE = 260


def scene(seed=0, size=SIZE + 60):
    """Polygons of different grey values on a bright ground: uint8 (size, size)."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size), 160, np.uint8)
    for _ in range(60):
        centre, points = rng.uniform(0, size, 2), rng.uniform(-35, 35, (4, 2))
        cv2.fillConvexPoly(image, cv2.convexHull((centre + points).astype(np.int32)), int(rng.integers(20, 250)))
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def displaced(dx, dy, seed=0):
    """B shows A's scene inverted and moved by (dx, dy) pixels, but the matrix is the identity."""
    whole = scene(seed)
    a = whole[30 : 30 + SIZE, 30 : 30 + SIZE]
    moved = cv2.warpAffine(whole, np.array([[1, 0, dx], [0, 1, dy]], float), whole.shape[::-1])
    return image_pair(a, 255 - moved[30 : 30 + SIZE, 30 : 30 + SIZE], name=f"{dx},{dy}")


@pytest.mark.parametrize("offset", [(3, 0), (0, -3), (2.5, 4), (-6, 5)])
def test_displaced_pair_is_registered(offset):
    (source,) = align([PairSource("x", [displaced(*offset)])])
    (pair,) = source.pairs
    centre = np.array([SIZE / 2, SIZE / 2])
    np.testing.assert_allclose(pair.a_to_b[:, :2] @ centre + pair.a_to_b[:, 2] - centre, offset, rtol=0, atol=0.5)
    np.testing.assert_allclose(pair.a_to_b[:, :2], np.eye(2), rtol=0, atol=0.01)


def test_distance_is_that_of_the_displacement():
    matrix, distance = edge_move(displaced(3, 4))
    assert distance == pytest.approx(5, abs=0.3)
    np.testing.assert_allclose(matrix[:, 2], (3, 4), rtol=0, atol=1.0)


@pytest.mark.parametrize("offset", [(0, 0), (0.5, -0.4)])
def test_aligned_pair_is_left_alone(offset):
    """Less than a pixel is within the error of the edges."""
    given = displaced(*offset)
    (source,) = align([PairSource("x", [given], weight=2.0)])
    assert (source.name, source.weight) == ("x", 2.0)
    np.testing.assert_array_equal(source.pairs[0].a_to_b, given.a_to_b)
    assert source.pairs[0].image_b is given.image_b


def test_unrelated_images_stay_as_they_are():
    pair = image_pair(scene(1, SIZE), scene(2, SIZE), name="unrelated")
    assert edge_move(pair)[1] == 0
    (source,) = align([PairSource("x", [pair])])
    np.testing.assert_array_equal(source.pairs[0].a_to_b, np.eye(2, 3))


@pytest.mark.parametrize("grey", [0, 90])
def test_images_without_edges_stay_as_they_are(grey):
    flat = np.full((120, 120), grey, np.uint8)
    for pair in (image_pair(flat, flat), image_pair(flat, scene(0, 120)), image_pair(scene(0, 120), flat)):
        matrix, distance = edge_move(pair)
        assert distance == 0
        np.testing.assert_array_equal(matrix, pair.a_to_b)


def test_pair_that_is_too_far_off_is_dropped(caplog):
    caplog.set_level("INFO")
    pairs = [displaced(0, 0), displaced(9.4, 9.4), displaced(4, 0)]
    (source,) = align([PairSource("road", pairs)])
    assert [pair.name for pair in source.pairs] == ["0,0", "4,0"]
    assert "road: of 3 pairs, 1 moved, 1 dropped" in caplog.text


def test_matrices_are_kept_in_the_cache(tmp_path, monkeypatch):
    moves = {"moved": 3.0, "aligned": 0.4, "far": 20.0}
    pairs = [image_pair(np.zeros((96, 96), np.uint8), np.zeros((96, 96), np.uint8), name=name) for name in moves]
    calls = []

    def found(pair):
        calls.append(pair.name)
        return np.array([[1.0, 0.0, moves[pair.name]], [0.0, 1.0, 1 / 3]]), moves[pair.name]

    monkeypatch.setattr(alignment, "edge_move", found)
    cache = tmp_path / "alignment.json"
    first = align([PairSource("x", pairs), PairSource("y", pairs[:1])], cache)
    assert calls == ["moved", "aligned", "far", "moved"]
    assert set(json.loads(cache.read_text())) == {"x/moved", "x/aligned", "x/far", "y/moved"}
    again = align([PairSource("x", pairs), PairSource("y", pairs[:1])], cache)
    assert len(calls) == 4
    for one, other in zip(first, again, strict=True):
        assert [p.name for p in one.pairs] == [p.name for p in other.pairs]
        for p, q in zip(one.pairs, other.pairs, strict=True):
            np.testing.assert_array_equal(p.a_to_b, q.a_to_b)  # to the last bit, as a resumed run needs
    assert [p.name for p in first[0].pairs] == ["moved", "aligned"]
    assert first[0].pairs[0].a_to_b[0, 2] == 3.0
    np.testing.assert_array_equal(first[0].pairs[1].a_to_b, np.eye(2, 3))
    assert [file.name for file in tmp_path.iterdir()] == ["alignment.json"]
