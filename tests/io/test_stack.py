"""Files put onto one of them as one file."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from geotiffs import NORTH_UP, UTM, moved, read_back, texture, write

from rrl_match import Registration
from rrl_match.errors import ImageError, MissingExtraError
from rrl_match.io import batch
from rrl_match.io.batch import Options
from rrl_match.io.images import Grid
from rrl_match.io.rasters import grid_of, opened
from rrl_match.io.stack import Layer, stack_files, write_stack
from rrl_match.registration import TiePoints
from rrl_match.transforms import Affine, Homography, compose, similarity

MATCHER = SimpleNamespace(modalities=("visible", "any"))
GRID = np.stack(np.meshgrid(np.linspace(5, 90, 5), np.linspace(5, 70, 5)), -1).reshape(-1, 2)
SHIFT = similarity(0, 1, (3, -2))


def bands(count=1, dtype=np.uint16, seed=0, scale=50_000):
    return np.stack([texture(80, 100, seed + k) * scale for k in range(count)]).astype(dtype)


@pytest.fixture
def files(tmp_path):
    """Three bands of 16 bit."""
    paths = [tmp_path / f"{name}.png" for name in ("blue", "red", "nir")]
    for k, path in enumerate(paths):
        cv2.imwrite(str(path), bands(seed=k)[0])
    return paths


def answering(monkeypatch, true, refused=(), needed=None):
    """`register` says what is true.

    Args:
        true: the transform of each file to the first.
        refused: pairs of files.
        needed: models that pairs needed; "similarity" for all others.
    """
    calls = iter([(a, b) for a in range(len(true)) for b in range(a + 1, len(true))])

    def register(*images, **options):
        a, b = next(calls)
        if (a, b) in refused:
            return Registration(reason="nothing agrees", tie_points=TiePoints())
        found = compose(true[a], true[b].inverse())
        moved_points = found(GRID)
        points = TiePoints(GRID, moved_points, np.ones(25, np.float32), np.zeros(25), np.arange(25) < 24)
        points.b[-1] += 40  # an outlier
        model = (needed or {}).get((a, b), "similarity")
        return Registration(found, model=model, tie_points=points, probability=0.9)

    monkeypatch.setattr(batch, "register", register)


def test_all_bands_lie_on_the_reference(monkeypatch, tmp_path, files):
    true = [similarity(), SHIFT, similarity(0, 1, (-4, 6))]
    answering(monkeypatch, true, refused=[(0, 2)])
    record = stack_files(MATCHER, files, 0, Options(model="similarity"), tmp_path / "stack.tif")
    assert record["out"] == str(tmp_path / "stack.tif")
    assert record["reference"] == str(files[0])
    for one, file, expected in zip(record["files"], files, true, strict=True):
        assert one["file"] == str(file)
        np.testing.assert_allclose(one["transform"]["matrix"], expected.matrix, atol=1e-9)
    assert [pair["ok"] for pair in record["pairs"]] == [True, False, True]
    assert record["pairs"][1]["reason"] == "nothing agrees"
    assert [pair.get("agrees") for pair in record["pairs"]] == [True, None, True]
    assert record["pairs"][0]["residual"] < 1e-9
    values, masks, facts = read_back(tmp_path / "stack.tif")
    assert facts["dtype"] == "uint16"
    np.testing.assert_array_equal(values[0], bands()[0])
    np.testing.assert_array_equal(values[1][:78, 3:], bands(seed=1)[0][2:, :97])
    np.testing.assert_array_equal(values[2][6:, :96], bands(seed=2)[0][:74, 4:])
    expected = np.zeros((80, 100), bool)
    expected[6:78, 3:96] = True
    np.testing.assert_array_equal(masks[0], expected)  # where all show something
    with opened(tmp_path / "stack.tif") as dataset:
        assert dataset.descriptions == ("blue", "red", "nir")


def test_a_band_that_cannot_be_registered_is_left_out(monkeypatch, tmp_path, files):
    answering(monkeypatch, [similarity(), SHIFT, similarity()], refused=[(0, 2), (1, 2)])
    record = stack_files(MATCHER, files, 0, Options(), tmp_path / "stack.tif")
    assert [one["transform"] is None for one in record["files"]] == [False, False, True]
    with opened(tmp_path / "stack.tif") as dataset:
        assert dataset.descriptions == ("blue", "red")
    answering(monkeypatch, [similarity()] * 3, refused=[(0, 2), (1, 2), (0, 1)])
    record = stack_files(MATCHER, files, 0, Options(), tmp_path / "none.tif")
    assert record["out"] is None
    assert not (tmp_path / "none.tif").exists()


@pytest.mark.parametrize("needed", ["similarity", "homography"])
def test_only_the_freedom_that_a_pair_needed_is_fitted(monkeypatch, tmp_path, files, needed):
    answering(monkeypatch, [similarity(), SHIFT, similarity()], needed={(0, 1): needed})
    record = stack_files(MATCHER, files, 0, Options(model="homography"), tmp_path / "stack.tif")
    assert [one["transform"]["kind"] for one in record["files"]] == ["translation", needed, needed]


def test_another_reference(monkeypatch, tmp_path, files):
    answering(monkeypatch, [similarity(), SHIFT, similarity()])
    record = stack_files(MATCHER, files, 1, Options(), tmp_path / "stack.tif")
    np.testing.assert_allclose(record["files"][0]["transform"]["matrix"], SHIFT.inverse().matrix, atol=1e-9)
    np.testing.assert_array_equal(read_back(tmp_path / "stack.tif")[0][1], bands(seed=1)[0])


def test_nothing_is_overwritten(tmp_path, files):
    with pytest.raises(ImageError, match=r"blue.png would be overwritten: choose another name with --out"):
        stack_files(MATCHER, files, 0, Options(), files[0])


def test_without_rasterio_the_extra_is_named(monkeypatch, tmp_path, files):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a stack is written by rasterio: pip install 'rrl-match\[geo\]'"):
        stack_files(MATCHER, files, 0, Options(), tmp_path / "stack.tif")


def test_georeference_types_and_nodata(tmp_path):
    a = write(tmp_path / "a.tif", bands(2), nodata=0)
    b = write(tmp_path / "b.tif", bands(1, np.float32, 5, 1.0), moved(10, 10))
    with opened(b, "r+") as dataset:
        dataset.descriptions = ("ndvi",)
    layers = [Layer(a, similarity()), Layer(b, Affine(similarity(0, 1, (10, 10)).full))]
    write_stack(layers, grid_of(a), tmp_path / "stack.tif")
    values, masks, facts = read_back(tmp_path / "stack.tif")
    assert facts["dtype"] == "float32"
    assert np.isnan(facts["nodata"])
    assert facts["transform"] == NORTH_UP
    assert facts["crs"].to_string() == UTM
    np.testing.assert_array_equal(np.isnan(values[:2]), bands(2) == 0)
    np.testing.assert_array_equal(values[:2][masks[:2]], bands(2)[masks[:2]])
    np.testing.assert_allclose(values[2][10:, 10:], bands(1, np.float32, 5, 1.0)[0][:70, :90], atol=1e-6)
    assert np.isnan(values[2][:10]).all()
    with opened(tmp_path / "stack.tif") as dataset:
        assert dataset.descriptions == ("a 1", "a 2", "ndvi")


@pytest.mark.parametrize("kind", [Affine, Homography])
def test_alpha_is_no_band(tmp_path, kind):
    colours = bands(4, np.uint8, 0, 250)
    colours[3] = 255
    colours[3, :, :50] = 0
    a = write(tmp_path / "a.tif", colours, alpha=True)
    b = write(tmp_path / "b.tif", bands(1, np.uint8, 9, 250))
    full = np.eye(3) + (0 if kind is Affine else 1e-12) * np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0]])
    write_stack([Layer(a, kind(full)), Layer(b, kind(full))], Grid((100, 80)), tmp_path / "stack.tif")
    values, masks, facts = read_back(tmp_path / "stack.tif")
    assert values.shape == (4, 80, 100)
    assert facts["dtype"] == "uint8"
    np.testing.assert_array_equal(values[3], bands(1, np.uint8, 9, 250)[0])
    np.testing.assert_array_equal(masks[0], colours[3] > 0)
    assert not values[:3, :, :50].any()
