"""GeoTIFFs: what is read, and what the warped one keeps."""

import csv
import json

import cv2
import numpy as np
import pytest

from rrl_match.__main__ import main
from rrl_match.registration import raster
from rrl_match.registration.raster import common_views, read_raster, warp_raster
from rrl_match.registration.reading import apply, read_image

rasterio = pytest.importorskip("rasterio")

BETWEEN_PIXELS = 700  # of 65535: how far OpenCV 4's interpolation, at 1/32 pixel, may be off
NORTH_UP = rasterio.Affine(2, 0, 500_000, 0, -2, 4_200_000)
UTM = "EPSG:32611"


def moved(x, y, scale=1):
    """NORTH_UP from pixel (x, y) on, with pixels `scale` times as large."""
    return rasterio.Affine(2 * scale, 0, 500_000 + 2 * x, 0, -2 * scale, 4_200_000 - 2 * y)


def write(path, bands, transform=NORTH_UP, crs=UTM, alpha=False, **options):
    """A GeoTIFF of bands (C, H, W)."""
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype}
    options |= {} if transform is None else {"transform": transform, "crs": crs}
    with raster._opened(path, "w", driver="GTiff", **shape, **options) as dataset:
        dataset.write(bands)
        if alpha:
            names = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
            dataset.colorinterp = names
    return path


def read_back(path):
    """Bands (C, H, W), masks (C, H, W) bool, and the open-time facts."""
    with raster._opened(path) as dataset:
        return dataset.read(), dataset.read_masks() > 0, dataset.profile | {"colours": dataset.colorinterp}


def texture(height, width, seed=0):
    """(H, W) float64 in [0, 1], smooth enough to be interpolated."""
    noise = np.random.default_rng(seed).random((height // 8 + 2, width // 8 + 2))
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def shift(x, y):
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 7])
def test_warped_raster_has_the_grid_of_b_and_the_rest_of_a(tmp_path, dtype, nodata):
    values = (texture(90, 110) * 200 + 20).astype(dtype)
    bands = np.stack([values, values[::-1], values[:, ::-1], values, values])
    bands[:, :10, :10] = 7
    a = read_raster(write(tmp_path / "a.tif", bands, nodata=nodata))
    b = read_raster(write(tmp_path / "b.tif", values[None, :80, :100], moved(300, 100)))
    warp_raster(a, b, shift(-20, 5), tmp_path / "warped.tif")
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


def test_nodata_does_not_bleed(tmp_path):
    """Half-way between a pixel with data and one without, only the data counts."""
    values = np.full((1, 80, 80), 100, np.int16)
    values[:, :, 40:] = -9999
    a = read_raster(write(tmp_path / "a.tif", values, nodata=-9999))
    warp_raster(a, a, shift(0.25, 0), tmp_path / "warped.tif")
    warped, masks, _ = read_back(tmp_path / "warped.tif")
    assert set(np.unique(warped)) == {-9999, 100}
    assert masks[0, :, :40].all()
    assert not masks[0, :, 41:].any()


def test_interpolated_data_is_never_nodata(tmp_path):
    values = np.ones((1, 80, 80), np.uint8)
    values[0, :, 40:] = 11
    values[0, 0, 0] = 6
    a = read_raster(write(tmp_path / "a.tif", values, nodata=6))
    warp_raster(a, a, shift(0.5, 0), tmp_path / "warped.tif")
    warped, masks, _ = read_back(tmp_path / "warped.tif")
    assert (warped[0, 1:, 40] == 7).all()
    assert masks[0, 1:, 1:].all()


def test_alpha_is_the_mask_and_goes_along(tmp_path):
    bands = np.stack([(texture(80, 90, k) * 255).astype(np.uint8) for k in range(4)])
    bands[3] = 255
    bands[3, :, :20] = 0
    a = read_raster(write(tmp_path / "a.tif", bands, alpha=True))
    assert a.pixels.shape == (80, 90, 3)
    assert (a.mask == (bands[3] > 0)).all()
    warp_raster(a, a, shift(0, 10), tmp_path / "warped.tif")
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
        monkeypatch.setattr(raster, "BLOCK", block)
        warp_raster(a, a, matrix, tmp_path / f"{block}.tif")
        warped.append(read_back(tmp_path / f"{block}.tif"))
    np.testing.assert_array_equal(warped[0][1], warped[1][1])
    np.testing.assert_allclose(warped[0][0], warped[1][0], atol=BETWEEN_PIXELS)
    inside = cv2.erode(warped[0][1][0].astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    expected = cv2.warpPerspective(a.pixels, matrix, (300, 200))
    np.testing.assert_allclose(warped[0][0][0][inside], expected[inside], atol=BETWEEN_PIXELS)


def test_finer_pixels_are_averaged(tmp_path):
    """Stripes of one pixel, seen by pixels of ten, are grey."""
    stripes = np.zeros((1, 800, 800), np.uint8)
    stripes[:, :, ::2] = 200
    a = read_raster(write(tmp_path / "a.tif", stripes))
    b = read_raster(write(tmp_path / "b.tif", np.zeros((1, 80, 80), np.uint8), moved(0, 0, 10)))
    warp_raster(a, b, np.diag([0.1, 0.1, 1]), tmp_path / "warped.tif")
    assert np.abs(read_back(tmp_path / "warped.tif")[0][0, 2:-2, 2:-2].astype(int) - 100).max() <= 2


def test_image_without_a_map_is_warped_onto_one(tmp_path):
    image = (texture(80, 90) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.merge([image, image, image, np.full_like(image, 255)]))
    a = read_image(tmp_path / "a.png")
    b = read_raster(write(tmp_path / "b.tif", image[None]))
    warp_raster(a, b, shift(3, 0), tmp_path / "warped.tif")
    warped, masks, facts = read_back(tmp_path / "warped.tif")
    assert facts["transform"] == NORTH_UP
    np.testing.assert_array_equal(warped[:, :, 3:], np.stack([image] * 3)[:, :, :-3])
    assert not masks[:, :, :3].any()


def test_large_raster_is_reduced(tmp_path, monkeypatch):
    """Each pixel that is read lies where `to_file` says, which a ramp of columns and rows shows."""
    monkeypatch.setattr(raster, "MAX_PIXELS", 70 * 100)
    y, x = np.mgrid[:280, :400].astype(np.float32)
    a = read_raster(write(tmp_path / "a.tif", np.stack([x, y, x])))
    assert a.pixels.shape == (70, 100, 3)
    assert a.size == (400, 280)
    assert a.reduction == pytest.approx(4)
    points = np.stack(np.meshgrid(np.arange(100.0), np.arange(70.0)), 2).reshape(-1, 2)
    np.testing.assert_allclose(apply(a.to_file, points), a.pixels[..., :2].reshape(-1, 2), atol=1e-3)


def test_overlap_at_one_resolution(tmp_path):
    """B of 10 m covers the lower right quarter of A of 2 m."""
    write(tmp_path / "a.tif", np.zeros((1, 2000, 2000), np.uint8))
    corner = moved(1000, 1000, 5)
    write(tmp_path / "b.tif", np.zeros((1, 400, 400), np.uint8), corner)
    view_a, view_b = common_views(tmp_path / "a.tif", tmp_path / "b.tif")
    assert view_a == (850, 850, 1150, 1150, 230, 230)  # 1000 pixels and a margin of 15 %
    assert view_b == (0, 0, 230, 230, 230, 230)


def test_overlap_of_two_reference_systems(tmp_path):
    """UTM and degrees: pixels that are higher than wide on the ground become square."""
    from rasterio.warp import transform_bounds

    a = write(tmp_path / "a.tif", np.zeros((1, 1000, 1000), np.uint8))
    west, south, east, north = transform_bounds(UTM, "EPSG:4326", 500_000, 4_198_000, 502_000, 4_200_000)
    degrees = rasterio.Affine((east - west) / 500, 0, west, 0, (south - north) / 500, north)
    b = write(tmp_path / "b.tif", np.zeros((1, 500, 500), np.uint8), degrees, "EPSG:4326")
    view_a, view_b = common_views(a, b)
    assert view_a[:4] == (0, 0, 1000, 1000)
    assert view_b[:4] == (0, 0, 500, 500)
    assert view_a.columns == pytest.approx(500, abs=5)
    assert view_b.columns == pytest.approx(500, abs=5)


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (moved(5000, 0), UTM),
        (moved(190, 0), UTM),  # ten columns
        (NORTH_UP, None),
        (None, None),
        (NORTH_UP, "EPSG:32633"),
    ],
)
def test_no_overlap(tmp_path, transform, crs):
    a = write(tmp_path / "a.tif", np.zeros((1, 200, 200), np.uint8))
    b = write(tmp_path / "b.tif", np.zeros((1, 200, 200), np.uint8), transform, crs)
    assert common_views(a, b) is None


def test_bands(tmp_path):
    bands = np.stack([np.full((64, 64), k, np.uint8) for k in range(1, 6)])
    path = write(tmp_path / "a.tif", bands)
    assert read_raster(path).pixels[0, 0].tolist() == [1, 2, 3]
    assert read_raster(path, (4,)).pixels.shape == (64, 64)
    assert read_raster(path, (5, 3, 2)).pixels[0, 0].tolist() == [5, 3, 2]
    with pytest.raises(ValueError, match=r"a.tif has 5 bands, not 6: choose others"):
        read_raster(path, (6,))
    assert (read_raster(write(tmp_path / "two.tif", bands[:2])).pixels == 1).all()
    with raster._opened(path, "r+") as dataset:
        names = ("blue", "green", "red", "gray", "undefined")
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    assert read_raster(path).pixels[0, 0].tolist() == [3, 2, 1]


def test_palette_becomes_colours_and_is_kept(tmp_path):
    classes = np.random.default_rng(0).integers(0, 3, (1, 64, 64)).astype(np.uint8)
    path = write(tmp_path / "a.tif", classes)
    colours = {0: (9, 8, 7, 255), 1: (200, 100, 0, 255), 2: (1, 2, 3, 255)}
    with raster._opened(path, "r+") as dataset:
        dataset.write_colormap(1, colours)
    a = read_raster(path)
    assert a.pixels.shape == (64, 64, 3)
    assert tuple(a.pixels[0, 0]) == colours[classes[0, 0, 0]][:3]
    warp_raster(a, a, shift(0.3, 0), tmp_path / "warped.tif")
    warped = read_back(tmp_path / "warped.tif")[0]
    np.testing.assert_array_equal(warped, classes)  # nearest neighbours, no classes in between
    with raster._opened(tmp_path / "warped.tif") as dataset:
        assert dataset.colormap(1)[1] == colours[1]


def test_ground_control_points_alone_are_named(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, c * 2.0, r * -2.0) for r in (0, 63) for c in (0, 63)]
    path = write(tmp_path / "a.tif", np.zeros((1, 64, 64), np.uint8), None)
    with raster._opened(path, "r+") as dataset:
        dataset.gcps = points, rasterio.CRS.from_string(UTM)
    a = read_raster(path)
    assert a.georeference is None
    assert "run gdalwarp" in a.note


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (np.zeros((1, 63, 80), np.uint8), "80 x 63 pixels, at least 64 x 64"),
        (np.zeros((1, 64, 64), np.complex64), "complex"),
        (np.full((1, 64, 64), np.nan, np.float32), "shows nothing"),
    ],
)
def test_rasters_that_cannot_be_used(tmp_path, bands, message):
    with pytest.raises(ValueError, match=message):
        read_raster(write(tmp_path / "a.tif", bands))


def test_file_that_is_not_a_raster(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_raster(tmp_path / "nothing.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ValueError, match="convert it to GeoTIFF"):
        read_raster(tmp_path / "text.tif")


def georeferenced_pair(shared, folder, domain, pair):
    """A real pair as GeoTIFFs on one map: A of three bands, 14 m off and with a footprint; B a part of it."""
    with (shared / "data" / domain / "manifest.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["pair"] == pair)
    assert [row[key] for key in ("m00", "m01", "m02", "m10", "m11", "m12")] == ["1", "0", "0", "0", "1", "0"]
    a = cv2.imread(str(shared / "data" / domain / row["image_a"]))[..., ::-1]
    b = cv2.imread(str(shared / "data" / domain / row["image_b"]), cv2.IMREAD_GRAYSCALE)
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
        ("optical-sar", "sentinel/213", "optical-sar", 16, 0.6),  # of 1024; radar is registered less exactly
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
    on_map = apply(b.georeference.to_map, apply(matrix, corners))
    truth = apply(a.georeference.to_map, corners) + np.array([-10, 10])
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
