import dataclasses

import cv2
import numpy as np
import pytest
import torch
from image_folder import COLUMNS, colour, image_pair, textured, write_folder, write_manifest

from rrl_match import DataError
from rrl_match.training.datasets import (
    PairSource,
    check_sources,
    find_locations,
    footprint,
    hold_back,
    read_pairs,
    read_source,
)
from rrl_match.training.sampling import PatchSampler

# Reading


def test_images_are_read_as_the_manifest_says(tmp_path):
    folder = write_folder(tmp_path, pairs=2)
    cv2.imwrite(str(folder / "a1.png"), np.full((128, 128, 3), (10, 20, 30), np.uint8))  # OpenCV's order: BGR
    pairs = read_pairs(folder)
    assert [p.name for p in pairs] == ["p0", "p1"]
    assert [p.scene for p in pairs] == ["s", "s"]
    assert pairs[0].image_a.shape == (128, 128, 3)
    assert pairs[0].image_b.shape == (128, 128)
    assert pairs[0].image_a.dtype == pairs[0].image_b.dtype == np.uint8
    np.testing.assert_array_equal(pairs[0].image_a, colour(textured(128, 128, seed=0)))
    assert pairs[1].image_a[0, 0].tolist() == [30, 20, 10]
    np.testing.assert_array_equal(pairs[0].a_to_b, np.eye(2, 3))


def test_only_the_split_asked_for_is_read(tmp_path):
    folder = write_folder(tmp_path, pairs=1)
    write_manifest(
        folder, [{}, {"pair": "q", "split": "test"}, {"pair": "gone", "split": "other", "image_a": "no.png"}]
    )
    assert [p.name for p in read_pairs(folder)] == ["p0"]
    assert [p.name for p in read_pairs(folder, "test")] == ["q"]
    with pytest.raises(DataError, match=r"manifest\.csv.*'validation'"):
        read_pairs(folder, "validation")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_a": np.zeros((100, 100), np.uint8)},
            r"image_a must be an array, uint8 \(H, W, 3\), got uint8 \(100, 100\)",
        ),
        ({"image_a": np.zeros((100, 100, 3), np.float32)}, "image_a must .* got float32"),
        ({"image_b": np.zeros((100, 100, 3), np.uint8)}, r"image_b must be an array, uint8 \(H, W\), got"),
        ({"image_b": "b.png"}, "image_b must .* got str"),
        ({"a_to_b": np.eye(3)}, r"a_to_b must be an array, float64 \(2, 3\), got float64 \(3, 3\)"),
        ({"a_to_b": np.zeros((2, 3))}, "a_to_b cannot be inverted"),
    ],
)
def test_pair_that_cannot_be_trained_on_is_named(values, message):
    good = image_pair(textured(100, 100), textured(100, 100), name="one")
    with pytest.raises(DataError, match=f"pair 'one': {message}"):
        dataclasses.replace(good, **values)


def test_sources_are_checked():
    good = PairSource("road", [])
    check_sources([good, PairSource("field", [], 0.5)])
    with pytest.raises(TypeError, match="sources must have name, pairs and weight, got str: use read_source"):
        check_sources(["road"])
    with pytest.raises(ValueError, match="the weight of source 'sea' must be a positive number, got 0"):
        check_sources([good, PairSource("sea", [], 0)])
    with pytest.raises(ValueError, match="several sources are named road"):
        check_sources([good, good])


def test_folder_without_manifest(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.csv not found"):
        read_pairs(tmp_path)


def test_manifest_without_columns(tmp_path):
    (tmp_path / "manifest.csv").write_text("pair,split,image_a,m00,m01,m02,m10,m11\n")
    with pytest.raises(DataError, match=r"manifest\.csv lacks the columns image_b, m12, scene"):
        read_pairs(tmp_path)
    (tmp_path / "manifest.csv").write_text("")
    with pytest.raises(DataError, match="lacks the columns"):
        read_pairs(tmp_path)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("broken"), pairs=1)
    cv2.imwrite(str(folder / "small.png"), textured(128, 95))
    cv2.imwrite(str(folder / "deep.png"), textured(128, 128).astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "wide.png"), textured(136, 128))
    (folder / "noise.png").write_bytes(b"not an image")
    (folder / "cut.png").write_bytes((folder / "a0.png").read_bytes()[:3000])
    cv2.imwrite(str(folder / "whole.jpg"), cv2.resize(textured(128, 128), (1280, 1280)), [cv2.IMWRITE_JPEG_QUALITY, 99])
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-70_000])
    return folder


@pytest.mark.parametrize("key", ["image_a", "image_b"])
@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("gone.png", "does not exist"),
        ("", "is a folder"),
        ("noise.png", "cannot be read"),
        ("cut.png", "truncated PNG"),
        ("cut.jpg", "truncated"),
        ("small.png", "128 x 95, too small"),
        ("deep.png", "uint16, not 8-bit"),
    ],
)
def test_unusable_image_is_named_with_its_row(broken, key, file, problem):
    write_manifest(broken, [{}, {"pair": "bad", key: file}])
    with pytest.raises(DataError, match=rf"manifest\.csv, line 3 \(bad\): {key} .*{file}.*{problem}"):
        read_pairs(broken)


def test_whole_jpeg_is_read(broken):
    write_manifest(broken, [{"image_a": "whole.jpg", "image_b": "whole.jpg"}])
    assert read_pairs(broken)[0].image_b.shape == (1280, 1280)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image_b": "wide.png"}, "differ in size.*identity"),
        ({"m02": "one"}, "not six numbers"),
        ({"m02": ""}, "not six numbers"),
        ({"m02": "nan"}, "cannot be inverted"),
        ({"m00": "0", "m11": "0"}, "cannot be inverted"),
    ],
)
def test_unusable_row_is_named(broken, row, problem):
    write_manifest(broken, [{}, {"pair": "bad"} | row])
    with pytest.raises(DataError, match=rf"line 3 \(bad\): .*{problem}"):
        read_pairs(broken)


@pytest.mark.parametrize("cells", [3, 4, 8])
def test_row_with_too_few_cells_is_named(broken, cells):
    row = ["bad", "train", "s", "a0.png", "b0.png", *"100010"][:cells]
    (broken / "manifest.csv").write_text(f"{','.join(COLUMNS)}\n{','.join(row)}\n")
    with pytest.raises(DataError, match=r"line 2 \(bad\)"):
        read_pairs(broken)


def test_images_of_different_size_need_a_matrix(broken):
    write_manifest(broken, [{"image_b": "wide.png", "m02": "4"}])
    assert read_pairs(broken)[0].a_to_b.tolist() == [[1, 0, 4], [0, 1, 0]]


def test_name_that_occurs_twice_is_named(tmp_path):
    """Names identify pairs in the checkpoint and in the alignment cache."""
    folder = write_folder(tmp_path, pairs=1)
    write_manifest(folder, [{}, {"split": "test"}])
    assert len(read_pairs(folder)) == 1
    write_manifest(folder, [{}, {"pair": "q"}, {}])
    with pytest.raises(DataError, match=r"manifest\.csv, line 4: there are two pairs 'p0'"):
        read_pairs(folder)


# Sources


def test_source_has_the_name_of_its_folder_and_a_weight(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "road", pairs=2)
    monkeypatch.chdir(folder)
    for given, weight in ((folder, 1), (str(folder), 1), (f"{folder}=2.5", 2.5), (".", 1), (".=0.5", 0.5)):
        source = read_source(given)
        assert (source.name, source.weight, len(source.pairs)) == ("road", weight, 2)


def test_folder_may_have_an_equals_sign(tmp_path):
    folder = write_folder(tmp_path / "height=3", pairs=1)
    assert (read_source(folder).name, read_source(folder).weight) == ("height=3", 1)
    assert (read_source(f"{folder}=2").name, read_source(f"{folder}=2").weight) == ("height=3", 2)


@pytest.mark.parametrize("weight", ["", "0", "-1", "nan", "inf", "much"])
def test_weight_that_is_no_positive_number_is_named(tmp_path, weight):
    folder = write_folder(tmp_path / "road", pairs=1)
    with pytest.raises(DataError, match=rf"weight of .*road must be a positive number, got '{weight}'"):
        read_source(f"{folder}={weight}")


# Validation images


def scenes(text):
    """A source whose k-th pair is of the scene that the k-th letter names."""
    image = np.zeros((96, 96), np.uint8)
    return PairSource("x", [image_pair(image, image, name=str(k), scene=s) for k, s in enumerate(text)], weight=3.0)


def held_back_rows(text, fraction):
    source = scenes(text)
    kept, validation = hold_back(source, fraction)
    assert kept.weight == validation.weight == 3.0
    assert kept.name == validation.name == "x"
    rows = [[int(pair.name) for pair in part.pairs] for part in (kept, validation)]
    assert sorted(rows[0] + rows[1]) == list(range(len(text)))
    assert rows[0] == sorted(rows[0])
    assert rows[1] == sorted(rows[1])
    return rows[1]


@pytest.mark.parametrize(
    ("text", "fraction", "expected"),
    [
        ("aa", 0.125, [0]),
        ("aa", 0.5, [0]),
        ("aaa", 0.125, [1]),
        ("a" * 8, 0.125, [3, 4]),  # two, because random negatives need two images
        ("a" * 20, 0.25, [7, 8, 9, 10, 11]),
        ("aaaabbbb", 0.25, [1, 5]),  # a block of each scene
        ("abababab", 0.25, [2, 3]),  # scenes that alternate: the middle of each
        ("aaaabb", 0.25, [1]),  # small scenes are trained on
        ("abc", 0.25, [1]),  # unless there are no others
        ("aabbcc", 0.34, [2, 3]),
    ],
)
def test_blocks_of_each_scene_are_held_back(text, fraction, expected):
    assert held_back_rows(text, fraction) == expected


@pytest.mark.parametrize("count", [9, 40, 101])
@pytest.mark.parametrize("fraction", [0.05, 0.125, 0.5])
def test_held_back_pairs_are_neighbours(count, fraction):
    """Neighbours may be frames of one video, so every n-th would have a near copy in training."""
    rows = held_back_rows("a" * count, fraction)
    assert rows == list(range(rows[0], rows[-1] + 1))
    assert len(rows) == max(2, round(fraction * count))


@pytest.mark.parametrize("text", ["", "a"])
def test_fewer_than_two_pairs_cannot_be_divided(text):
    with pytest.raises(DataError, match="x: training needs at least two"):
        hold_back(scenes(text), 0.125)


# Locations


def rotated(degrees=8.0, scale=0.9, shift=(-3.0, 5.0), centre=(90.0, 80.0)):
    """An a_to_b matrix that rotates about `centre` of A."""
    matrix = cv2.getRotationMatrix2D(centre, degrees, scale)
    matrix[:, 2] += shift
    return matrix


@pytest.mark.parametrize("a_to_b", [np.eye(2, 3), rotated()])
def test_a_patch_at_a_location_lies_inside_both_images(a_to_b):
    a = textured(180, 160, corners=60)
    pair = image_pair(a, cv2.warpAffine(a, a_to_b, (180, 160)), a_to_b)
    locations = find_locations(pair, 64)
    assert len(locations) > 5
    x, y = np.meshgrid([-32, 31], [-32, 31])
    corners = locations[:, None] + np.stack([x, y], -1).reshape(-1, 2)
    in_a = (corners - a_to_b[:, 2]) @ np.linalg.inv(a_to_b[:, :2]).T
    for at in (corners, in_a):
        assert at.min() >= 0
        assert (at <= (179, 159)).all()


def test_locations_are_spread_over_cells():
    a = textured(180, 160, corners=60)
    locations = find_locations(image_pair(a, a), 64, spacing=12)
    cells = {(int(x) // 12, int(y) // 12) for x, y in locations}
    assert len(cells) == len(locations)


def test_corners_of_either_band_are_locations():
    flat, dotted = np.full((120, 120), 90, np.uint8), np.full((120, 120), 90, np.uint8)
    dotted[61, 51] = 255
    for pair in (image_pair(dotted, flat), image_pair(flat, dotted)):
        locations = find_locations(pair, 64)
        assert locations.tolist() == [[51, 61]]
    with pytest.raises(DataError, match="road: no image has a location"):
        PatchSampler([PairSource("road", [image_pair(flat, flat)])], 64, torch.device("cpu"))


# Footprints


def test_footprint_leaves_out_a_black_border_and_its_rim():
    image = np.full((60, 80), 100, np.uint8)
    image[:, :20] = 0
    image[35:45, 40:50] = 0  # dark, but inside
    expected = np.ones_like(image)
    expected[:, :23] = 0
    np.testing.assert_array_equal(footprint(image), expected)
    np.testing.assert_array_equal(footprint(colour(image)), expected)


def test_black_in_one_channel_is_data():
    image = np.full((60, 80, 3), 100, np.uint8)
    image[:, :20, :2] = 0
    assert footprint(image).all()


@pytest.mark.parametrize("band", ["a", "b"])
def test_no_location_near_the_outside_of_a_footprint(band):
    full = textured(220, 200, corners=80)
    cropped = full.copy()
    cropped[:, :70] = 0
    a, b = (cropped, full) if band == "a" else (full, cropped)
    locations = find_locations(image_pair(a, b), 64)
    assert len(locations) > 5
    assert locations[:, 0].min() >= 70 + 3 + 32
    assert find_locations(image_pair(full, full), 64)[:, 0].min() < 70
