"""Warped rasters: where they lie, and what they keep of A."""

import json

import cv2
import numpy as np
import pytest
from geotiffs import NORTH_UP, UTM, moved, read_back, texture, write

from rrl_match.cli.main import main
from rrl_match.io import warping
from rrl_match.io.images import decode, read_image
from rrl_match.io.rasters import opened, read_raster
from rrl_match.io.warping import warp_raster
from rrl_match.training.datasets import read_manifest
from rrl_match.transforms import Affine, Homography

rasterio = pytest.importorskip("rasterio")

BETWEEN_PIXELS = 700  # of 65535: how far OpenCV 4's interpolation, at 1/32 pixel, may be off


def shift(x, y):
    return Affine(np.array([[1.0, 0, x], [0, 1, y]]))


@pytest.fixture(params=["gdal", "opencv"])
def warp(request, monkeypatch):
    """`warp_raster` for affine transforms, and by the way that all others go."""
    if request.param == "opencv":
        monkeypatch.setattr("rrl_match.io.warping._by_gdal", warping._by_opencv)
    return warp_raster


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 7])
def test_warped_raster_has_the_grid_of_b_and_the_rest_of_a(warp, tmp_path, dtype, nodata):
    values = (texture(90, 110) * 200 + 20).astype(dtype)
    bands = np.stack([values, values[::-1], values[:, ::-1], values, values])
    bands[:, :10, :10] = 7
    a = read_raster(write(tmp_path / "a.tif", bands, nodata=nodata))
    b = read_raster(write(tmp_path / "b.tif", values[None, :80, :100], moved(300, 100)))
    warp(a.path, shift(-20, 5), b.grid, tmp_path / "warped.tif")
    warped, masks, facts = read_back(tmp_path / "warped.tif")
    assert warped.shape == (5, 80, 100)
    assert warped.dtype == dtype
    assert facts["transform"] == moved(300, 100)
    assert facts["crs"] == rasterio.CRS.from_string(UTM)
    shown = np.zeros((80, 100), bool)
    shown[5:, :90] = True  # of B, A begins 20 pixels left of it and 5 below
    if nodata is None:
        assert np.isnan(facts["nodata"]) if np.dtype(dtype).kind == "f" else facts["nodata"] is None
    else:
        assert facts["nodata"] == 7
    assert (masks == shown).all()
    np.testing.assert_array_equal(warped[:, 5:, :90], bands[:, :75, 20:])


def test_nodata_does_not_bleed(warp, tmp_path):
    """Half-way between a pixel with data and one without, only the data counts."""
    values = np.full((1, 80, 80), 100, np.int16)
    values[:, :, 40:] = -9999
    a = read_raster(write(tmp_path / "a.tif", values, nodata=-9999))
    warp(a.path, shift(0.25, 0), a.grid, tmp_path / "warped.tif")
    warped, masks, _ = read_back(tmp_path / "warped.tif")
    assert set(np.unique(warped)) == {-9999, 100}
    assert masks[0, :, :40].all()
    assert not masks[0, :, 41:].any()


def test_interpolated_data_is_never_nodata(warp, tmp_path):
    values = np.ones((1, 80, 80), np.uint8)
    values[0, :, 40:] = 11
    values[0, 0] = np.arange(80)  # so that they are no classes
    a = read_raster(write(tmp_path / "a.tif", values, nodata=6))
    warp(a.path, shift(0.5, 0), a.grid, tmp_path / "warped.tif")
    warped, masks, _ = read_back(tmp_path / "warped.tif")
    assert (np.abs(warped[0, 1:, 40].astype(int) - 6) == 1).all()  # the next value
    assert masks[0, 1:, 1:].all()


def test_alpha_is_the_mask_and_goes_along(warp, tmp_path):
    bands = np.stack([(texture(80, 90, k) * 255).astype(np.uint8) for k in range(4)])
    bands[3] = 255
    bands[3, :, :20] = 0
    a = read_raster(write(tmp_path / "a.tif", bands, alpha=True))
    assert a.pixels.shape == (80, 90, 3)
    assert (a.mask == (bands[3] > 0)).all()
    warp(a.path, shift(0, 10), a.grid, tmp_path / "warped.tif")
    warped, _, facts = read_back(tmp_path / "warped.tif")
    assert [colour.name for colour in facts["colours"]] == ["red", "green", "blue", "alpha"]
    assert not warped[3, :10].any()
    np.testing.assert_array_equal(warped[3, 10:], bands[3, :-10])
    np.testing.assert_array_equal(warped[:3, 10:, 20:], bands[:3, :-10, 20:])


def test_blocks_fit_together(tmp_path, monkeypatch):
    a = read_raster(write(tmp_path / "a.tif", (texture(200, 300) * 60_000).astype(np.uint16)[None]))
    matrix = np.array([[0.9, -0.2, 30], [0.15, 1.05, -10], [1e-4, -5e-5, 1]])
    warped = []
    for block in (1024, 64):
        monkeypatch.setattr(warping, "_BLOCK", block)
        warp_raster(a.path, Homography(matrix), a.grid, tmp_path / f"{block}.tif")
        warped.append(read_back(tmp_path / f"{block}.tif"))
    np.testing.assert_array_equal(warped[0][1], warped[1][1])
    np.testing.assert_allclose(warped[0][0], warped[1][0], atol=BETWEEN_PIXELS)
    inside = cv2.erode(warped[0][1][0].astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    expected = cv2.warpPerspective(a.pixels, matrix, (300, 200))
    np.testing.assert_allclose(warped[0][0][0][inside], expected[inside], atol=BETWEEN_PIXELS)


def test_finer_pixels_are_averaged(warp, tmp_path):
    """Stripes of one pixel, seen by pixels of ten, are grey."""
    stripes = np.zeros((1, 800, 800), np.uint8)
    stripes[:, :, ::2] = 200
    stripes[0, 0] = np.arange(800) % 200  # so that they are no classes
    a = read_raster(write(tmp_path / "a.tif", stripes))
    b = read_raster(write(tmp_path / "b.tif", np.zeros((1, 80, 80), np.uint8), moved(0, 0, 10)))
    warp(a.path, Affine(np.diag([0.1, 0.1, 1])), b.grid, tmp_path / "warped.tif")
    assert np.abs(read_back(tmp_path / "warped.tif")[0][0, 2:-2, 2:-2].astype(int) - 100).max() <= 2


def test_image_without_a_map_is_warped_onto_one(warp, tmp_path):
    image = (texture(80, 90) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.merge([image, image, image, np.full_like(image, 255)]))
    a = read_image(tmp_path / "a.png")
    b = read_raster(write(tmp_path / "b.tif", image[None]))
    warp(a.path, shift(3, 0), b.grid, tmp_path / "warped.tif")
    warped, masks, facts = read_back(tmp_path / "warped.tif")
    assert facts["transform"] == NORTH_UP
    np.testing.assert_array_equal(warped[:, :, 3:], np.stack([image] * 3)[:, :, :-3])
    assert not masks[:, :, :3].any()


def test_palette_is_kept(warp, tmp_path):
    classes = np.random.default_rng(0).integers(0, 3, (1, 64, 64)).astype(np.uint8)
    path = write(tmp_path / "a.tif", classes)
    colours = {0: (9, 8, 7, 255), 1: (200, 100, 0, 255), 2: (1, 2, 3, 255)}
    with opened(path, "r+") as dataset:
        dataset.write_colormap(1, colours)
    a = read_raster(path)
    assert a.pixels.shape == (64, 64, 3)
    assert tuple(a.pixels[0, 0]) == colours[classes[0, 0, 0]][:3]
    warp(a.path, shift(0.3, 0), a.grid, tmp_path / "warped.tif")
    warped = read_back(tmp_path / "warped.tif")[0]
    np.testing.assert_array_equal(warped, classes)  # nearest neighbours, no classes in between
    with opened(tmp_path / "warped.tif") as dataset:
        assert dataset.colormap(1)[1] == colours[1]


def test_flags_are_not_interpolated_beside_measurements(warp, tmp_path):
    """Three flags stay three; the band beside them is interpolated, unless the caller insists."""
    flags = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 3, (10, 10)), 8, 0), 8, 1)
    bands = np.stack([texture(80, 80) * 60_000, flags * 447]).astype(np.uint16)
    a = read_raster(write(tmp_path / "a.tif", bands), (1,))
    warp(a.path, shift(0.4, 0.3), a.grid, tmp_path / "warped.tif")
    warped, masks, _ = read_back(tmp_path / "warped.tif")
    assert set(np.unique(warped[1])) == {0, 447, 894}
    assert (warped[0] != bands[0])[masks[0]].mean() > 0.9
    warp(a.path, shift(0.4, 0.3), a.grid, tmp_path / "warped.tif", "bilinear")
    assert len(np.unique(read_back(tmp_path / "warped.tif")[0][1])) > 3
    warp(a.path, shift(0.4, 0.3), a.grid, tmp_path / "warped.tif", "nearest")
    warped, masks, _ = read_back(tmp_path / "warped.tif")
    np.testing.assert_array_equal(warped[:, masks[0]], bands[:, masks[0]])


def georeferenced_pair(shared, folder, domain, pair):
    """A real pair as GeoTIFFs on one map: A of three bands, 14 m off and with a footprint; B a part of it."""
    rows = [row for split in ("train", "test") for row in read_manifest(shared / "data" / domain, split)]
    row = next(row for row in rows if row.name == pair)
    np.testing.assert_array_equal(row.a_to_b, np.eye(2, 3))
    a, b = decode(row.image_a, cv2.IMREAD_COLOR), decode(row.image_b, cv2.IMREAD_GRAYSCALE)
    bands = a.transpose(2, 0, 1).astype(np.uint16) * 37 + 100
    bands[:, :30] = 0
    write(folder / "a.tif", bands, moved(5, 5), nodata=0)  # which are 10 m
    write(folder / "b.tif", b[None, 12:, 7:], moved(7, 12))
    return bands


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "pair", "weights", "pixels", "similar"),
    [
        ("nir-naip", "east/2009_2009", "vis-nir", 5, 0.9),
        ("nir-swir-sentinel2", "nir/0008", "vis-nir", 5, 0.9),
        ("optical-sar", "sentinel/047", "optical-sar", 16, 0.6),  # of 1024; radar is registered less exactly
    ],
)
def test_real_rasters_lie_on_top_of_each_other(shared, tmp_path, capsys, domain, pair, weights, pixels, similar):
    bands = georeferenced_pair(shared, tmp_path, domain, pair)
    paths = [str(tmp_path / name) for name in ("a.tif", "b.tif")]
    options = ["--weights", weights, "--model", "similarity", "--out", str(tmp_path / "out")]
    assert main(["register", *paths, *options]) == 0
    record = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(record["map_offset"], [-10, 10], atol=4)
    a, b = (read_raster(tmp_path / name) for name in ("a.tif", "b.tif"))
    matrix = np.vstack([record["matrix"], [0, 0, 1]])
    size = np.array(a.size)
    corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) * (size - 1.0)
    on_map = b.georeference.to_map(Affine(matrix)(corners))
    truth = a.georeference.to_map(corners) + np.array([-10, 10])
    assert np.linalg.norm(on_map - truth, axis=1).max() < 2 * pixels  # of 2 m
    warped, masks, facts = read_back(tmp_path / "out" / "warped.tif")
    assert warped.dtype == np.uint16
    assert facts["nodata"] == 0
    assert facts["transform"] == moved(7, 12)
    expected = bands[:, 12:, 7:]
    inside = masks.all(0) & (expected > 0).all(0)
    assert inside.mean() > 0.8
    blurred = [cv2.GaussianBlur(band.astype(np.float32), (0, 0), 4)[inside] for band in (warped[0], expected[0])]
    assert np.corrcoef(*blurred)[0, 1] > similar
