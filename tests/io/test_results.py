"""What is written of a registration by a displacement field."""

import csv
import json

import numpy as np
import pytest
from geotiffs import NORTH_UP, moved, read_back, texture, write

from rrl_match.cli.main import main
from rrl_match.io.rasters import opened, read_raster
from rrl_match.io.results import FileRegistration
from rrl_match.registration import Registration, TiePoints
from rrl_match.transforms import Affine, DisplacementField

rasterio = pytest.importorskip("rasterio")

COEFFICIENTS = np.random.default_rng(3).normal(size=(5, 5, 2)) * 5
FIELD = DisplacementField(
    Affine([[1, 0.02, 20], [-0.02, 1, 14]]), COEFFICIENTS, Affine([[2 / 240, 0, 0], [0, 2 / 200, 0]])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A registration of two rasters, written, beside them."""
    folder = tmp_path_factory.mktemp("bent")
    image = (texture(160, 200) * 60000).astype(np.uint16)
    a = read_raster(write(folder / "a.tif", np.stack([image, image[::-1]]), moved(18, 12)))
    b = read_raster(write(folder / "b.tif", FIELD.warp(image, (200, 240))[None], NORTH_UP))
    x, y = np.meshgrid(np.linspace(0, 199, 16), np.linspace(0, 159, 16))
    points = np.stack([x.ravel(), y.ravel()], 1)
    count = len(points)
    ties = TiePoints(points, FIELD(points), np.ones(count, np.float32), np.zeros(count), np.ones(count, bool))
    found = FileRegistration(Registration(transform=FIELD, model="local", probability=1.0, tie_points=ties), a, b)
    names = {"image_a": "a.tif", "image_b": "b.tif", "modalities": ["a", "b"], "settings": {}}
    found.write(folder / "out", {**names, **found.describe()})
    return folder


def test_record(folder):
    record = json.loads((folder / "out" / "registration.json").read_text())
    assert record["model"] == "local"
    assert record["matrix"] is None
    points = np.random.default_rng(0).uniform(0, 150, (9, 2))
    np.testing.assert_allclose(DisplacementField.from_dict(record["transform"])(points), FIELD(points))


def test_warped_raster_is_a_bent(folder):
    warped, masks, _ = read_back(folder / "out" / "warped.tif")
    with opened(folder / "b.tif") as dataset:
        b = dataset.read(1)
    inner = masks[0] & (b > 0)
    assert inner.mean() > 0.5
    assert np.quantile(np.abs(warped[0].astype(float) - b)[inner], 0.99) < 600


def test_displacement_is_that_of_each_pixel_of_b(folder):
    moves, _, facts = read_back(folder / "out" / "displacement.tif")
    assert facts["transform"] == NORTH_UP
    assert moves.shape == (2, 200, 240)
    assert moves.dtype == np.float32
    in_b = np.array([[30.0, 40], [120, 100], [200, 150]])
    from_matrix = FIELD.base(FIELD.inverse()(in_b))
    for (x, y), start, end in zip(in_b.astype(int), from_matrix, in_b, strict=True):
        np.testing.assert_allclose(moves[:, y, x], end - start, atol=0.01)


def test_thin_plate_spline_of_the_control_points_is_the_field(folder):
    with opened(folder / "out" / "tie_points.vrt") as dataset:
        points, crs = dataset.gcps
        assert dataset.count == 2
    assert len(points) >= 200
    assert crs is not None
    x, y = np.random.default_rng(1).uniform((10, 10), (190, 150), (20, 2)).T
    with rasterio.transform.GCPTransformer(points, tps=True) as spline:
        east, north = spline.xy(y, x, offset="ul")
    to_pixels = read_raster(folder / "b.tif").georeference.to_map.inverse()
    there = to_pixels(np.stack([east, north], 1))
    np.testing.assert_allclose(there, FIELD(np.stack([x, y], 1) - 0.5), atol=0.2)


def test_points_are_taken_along(folder):
    (folder / "points.csv").write_text("x,y\n30,40\n120,90\n")
    record, out = folder / "out" / "registration.json", folder / "applied"
    assert main(["apply", str(record), str(folder / "points.csv"), "--out", str(out)]) == 0
    with (out / "points.csv").open() as file:
        found = [[float(row["x_b"]), float(row["y_b"])] for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, FIELD([[30, 40], [120, 90]]), atol=1e-4)


@pytest.mark.parametrize("which", ["a", "b"])
def test_another_band_is_bent_likewise(folder, which):
    record, out = folder / "out" / "registration.json", folder / f"on_{which}"
    assert main(["apply", str(record), str(folder / "a.tif"), "--grid", which, "--out", str(out)]) == 0
    warped, masks, _ = read_back(out / "a.tif")
    assert masks.any()
    if which == "b":
        np.testing.assert_array_equal(warped, read_back(folder / "out" / "warped.tif")[0])
