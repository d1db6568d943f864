"""Rasters: what is read, upright and where."""

import numpy as np
import pytest
from geotiffs import NORTH_UP, UTM, moved, texture, write

from rrl_match import ImageError
from rrl_match.io import rasters
from rrl_match.io.rasters import (
    RasterParts,
    by_georeference,
    common_crs,
    common_views,
    georeference_of,
    map_offset,
    opened,
    read_raster,
)
from rrl_match.io.reprojection import converted, reprojected
from rrl_match.transforms import Affine, resizing, similarity

rasterio = pytest.importorskip("rasterio")


def test_large_raster_is_reduced(tmp_path, monkeypatch):
    """Each pixel that is read lies where `to_file` says, which a ramp of columns and rows shows."""
    monkeypatch.setattr(rasters, "MAX_PIXELS", 70 * 100)
    y, x = np.mgrid[:280, :400].astype(np.float32)
    a = read_raster(write(tmp_path / "a.tif", np.stack([x, y, x])))
    assert a.pixels.shape == (70, 100, 3)
    assert a.size == (400, 280)
    assert a.reduction == pytest.approx(4)
    points = np.stack(np.meshgrid(np.arange(100.0), np.arange(70.0)), 2).reshape(-1, 2)
    np.testing.assert_allclose(a.to_file(points), a.pixels[..., :2].reshape(-1, 2), atol=1e-3)


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
    with pytest.raises(ImageError, match=r"a.tif has 5 bands, not 6: choose others"):
        read_raster(path, (6,))
    assert (read_raster(write(tmp_path / "two.tif", bands[:2])).pixels == 1).all()
    with opened(path, "r+") as dataset:
        names = ("blue", "green", "red", "gray", "undefined")
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    assert read_raster(path).pixels[0, 0].tolist() == [3, 2, 1]


def test_palette_becomes_colours(tmp_path):
    classes = np.random.default_rng(0).integers(0, 3, (1, 64, 64)).astype(np.uint8)
    path = write(tmp_path / "a.tif", classes)
    colours = {0: (9, 8, 7, 255), 1: (200, 100, 0, 255), 2: (1, 2, 3, 255)}
    with opened(path, "r+") as dataset:
        dataset.write_colormap(1, colours)
    a = read_raster(path)
    assert a.pixels.shape == (64, 64, 3)
    assert tuple(a.pixels[0, 0]) == colours[classes[0, 0, 0]][:3]


def test_ground_control_points_alone_are_named(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, c * 2.0, r * -2.0) for r in (0, 63) for c in (0, 63)]
    path = write(tmp_path / "a.tif", np.zeros((1, 64, 64), np.uint8), None)
    with opened(path, "r+") as dataset:
        dataset.gcps = points, rasterio.CRS.from_string(UTM)
    a = read_raster(path)
    assert a.georeference is None
    assert "run gdalwarp" in a.notes[0]


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (np.zeros((1, 31, 80), np.uint8), "80 x 31 pixels, at least 32 x 32"),
        (np.zeros((1, 64, 64), np.complex64), "complex"),
        (np.full((1, 64, 64), np.nan, np.float32), "shows nothing"),
    ],
)
def test_rasters_that_cannot_be_used(tmp_path, bands, message):
    with pytest.raises(ImageError, match=message):
        read_raster(write(tmp_path / "a.tif", bands))


def test_file_that_is_not_a_raster(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_raster(tmp_path / "nothing.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ImageError, match="convert it to GeoTIFF"):
        read_raster(tmp_path / "text.tif")


COS, SIN = 2 * np.cos(0.3), 2 * np.sin(0.3)
TURNS = {  # of a map of 90 x 80 pixels: where the file's pixels lie, and how they lie
    "north up": (NORTH_UP, lambda bands: bands),
    "south up": (rasterio.Affine(2, 0, 500_000, 0, 2, 4_200_000 - 160), lambda bands: bands[:, ::-1]),
    "east up": (rasterio.Affine(0, -2, 500_180, -2, 0, 4_200_000), lambda bands: np.rot90(bands, 1, (1, 2))),
    "nearly north up": (rasterio.Affine(COS, -SIN, 500_000, -SIN, -COS, 4_200_000), lambda bands: bands),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rasters_are_read_upright(tmp_path, turn):
    """The file's pixels are laid so that its georeference shows the same map; `to_file` leads back to them."""
    transform, lay = TURNS[turn]
    north_up = np.stack([(texture(80, 90, k) * 255).astype(np.uint8) for k in range(3)])
    stored = np.ascontiguousarray(lay(north_up))
    a = read_raster(write(tmp_path / "a.tif", stored, transform))
    np.testing.assert_array_equal(a.pixels, np.moveaxis(north_up, 0, 2))
    columns, rows = a.to_file(np.array([(7.0, 12.0), (80, 70)])).round().astype(int).T
    np.testing.assert_array_equal(stored[:, rows, columns].T, a.pixels[[12, 70], [7, 80]])
    on_map = a.georeference.to_map(a.to_file((7, 12)))
    if turn != "nearly north up":
        np.testing.assert_allclose(on_map, (500_015, 4_199_975))


def test_georeferences_say_where_a_lies_in_b(tmp_path):
    """A, of half the pixels and south up, begins 10 pixels of B right of B and 20 below."""
    south_up = rasterio.Affine(4, 0, 500_020, 0, 4, 4_200_000 - 40 - 280)
    a = read_raster(write(tmp_path / "a.tif", np.zeros((1, 70, 70), np.uint8), south_up))
    b = read_raster(write(tmp_path / "b.tif", np.zeros((1, 200, 200), np.uint8)))
    np.testing.assert_allclose(by_georeference(a, b).full, [[2, 0, 10.5], [0, 2, 20.5], [0, 0, 1]], atol=1e-9)
    assert by_georeference(a, read_raster(write(tmp_path / "c.tif", np.zeros((1, 64, 64), np.uint8), None))) is None


def test_map_offset_of_two_reference_systems(tmp_path):
    """In units of B's map, UTM: A is in degrees, and its transform puts it 3 pixels of B too far to the east."""
    from rasterio.warp import transform_bounds

    b = read_raster(write(tmp_path / "b.tif", np.zeros((1, 200, 200), np.uint8)))
    west, south, east, north = transform_bounds(UTM, "EPSG:4326", 500_000, 4_199_600, 500_400, 4_200_000)
    degrees = rasterio.Affine((east - west) / 200, 0, west, 0, (south - north) / 200, north)
    a = read_raster(write(tmp_path / "a.tif", np.zeros((1, 200, 200), np.uint8), degrees, "EPSG:4326"))
    said = by_georeference(a, b)
    shifted = Affine(said.full + np.array([[0, 0, 3], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(map_offset(a, b, shifted), [6, 0], atol=0.01)


@pytest.mark.parametrize("turn", TURNS)
def test_parts_lie_where_they_say(tmp_path, monkeypatch, turn):
    """A raster that was read at half its resolution, and a part of it that was read at its own, however it lies."""
    transform, lay = TURNS[turn]
    monkeypatch.setattr(rasters, "MAX_PIXELS", 80 * 90 // 4)
    ramp = np.stack([np.tile(np.arange(90), (80, 1)), np.tile(np.arange(80)[:, None], (1, 90))] * 2)[:3]
    image = read_raster(write(tmp_path / "a.tif", np.ascontiguousarray(lay(ramp.astype(np.float32))), transform))
    parts = RasterParts(image, image.on)
    assert parts.finest == pytest.approx(0.5)
    part = parts(np.array([-5.0, 4.0]), np.array([20.0, 30.0]), 0.5)
    rows, columns = part.pixels.shape[:2]
    assert rows < 60
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    on_image = part.from_whole.inverse()(grid)
    values = part.pixels[..., :2].reshape(-1, 2)
    np.testing.assert_allclose(on_image, resizing(2)(values), atol=1e-4)


def test_parts_are_read_no_finer_than_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "MAX_PIXELS", 100 * 100)
    bands = np.zeros((1, 800, 800), np.float32)
    bands[:, :, 600:] = np.nan
    image = read_raster(write(tmp_path / "a.tif", bands))
    parts = RasterParts(image, image.on)
    half = parts(np.array([10.0, 20]), np.array([89.0, 99]), 0.25)
    assert half.pixels.shape == pytest.approx((320, 320), abs=6)
    assert half.mask[:, :200].all()
    assert not half.mask[:, -40:].any()
    assert parts(np.array([80.0, 0]), np.array([99.0, 99]), 0.25) is None, "no data"
    assert parts(np.array([0.0, 0]), np.array([2.0, 99]), 0.25) is None, "too narrow"


MERCATOR = "EPSG:3857"


def seen(x, y):
    """A smooth scene at places on the UTM map."""
    return 100 + 50 * np.sin(x / 310 + y / 540) + 40 * np.cos(y / 270 - x / 700)


def centres(transform, side):
    """Where the centres of pixels (2, side, side) lie on the map."""
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    return np.stack([transform.a * x + transform.c, transform.e * y + transform.f])


def two_systems(folder, side=500, pixel=30.0):
    """The same scene on UTM (B), and on web Mercator (A) over more than it, each sampled at its own pixels."""
    from rasterio.warp import transform

    b = rasterio.Affine(pixel, 0, 500_000, 0, -pixel, 5_000_000)
    write(folder / "b.tif", seen(*centres(b, side))[None].astype(np.float32), b, UTM)
    left, top = (one[0] for one in transform(UTM, MERCATOR, [500_000], [5_000_000]))
    a = rasterio.Affine(pixel * 1.4, 0, left - 900, 0, -pixel * 1.4, top + 1500)
    on_utm = np.array(transform(MERCATOR, UTM, *centres(a, side + 40).reshape(2, -1)))
    shown = seen(*on_utm).reshape(1, side + 40, side + 40)
    write(folder / "a.tif", shown.astype(np.float32), a, MERCATOR)
    return folder / "a.tif", folder / "b.tif"


def test_rasters_of_two_systems_come_onto_one_grid(tmp_path):
    """A shows, at each pixel that was read, what B's map has there; `to_file` leads to where the file shows it."""
    path_a, path_b = two_systems(tmp_path)
    crs = common_crs(path_a, path_b)
    assert rasterio.CRS.from_wkt(crs) == rasterio.CRS.from_string(UTM)
    views = common_views(path_a, path_b, crs)
    a, b = read_raster(path_a, view=views[0], crs=crs), read_raster(path_b, view=views[1])
    inside = np.stack(np.meshgrid(np.arange(40.0, 400, 20), np.arange(40.0, 400, 20)), -1).reshape(-1, 2)
    on_map = b.georeference.to_map(b.to_file(by_georeference(a, b)(inside)))
    shown = a.pixels[tuple(inside.astype(int).T[::-1])]
    np.testing.assert_allclose(shown, seen(*on_map.T), atol=0.5)
    on_mercator = converted(on_map, b.georeference.crs, a.georeference.crs)
    np.testing.assert_allclose(a.to_file(inside), a.georeference.to_map.inverse()(on_mercator), atol=0.01)
    np.testing.assert_allclose(a.to_file.inverse()(a.to_file(inside)), inside, atol=1e-4)
    offset = map_offset(a, b, a.to_file.inverse().between(similarity(), by_georeference(a, b)))
    np.testing.assert_allclose(offset, (0, 0), atol=0.2)


def test_parts_of_a_reprojected_raster(tmp_path, monkeypatch):
    path_a, path_b = two_systems(tmp_path)
    monkeypatch.setattr(rasters, "MAX_PIXELS", 250 * 250)
    crs = common_crs(path_a, path_b)
    a = read_raster(path_a, view=common_views(path_a, path_b, crs)[0], crs=crs)
    whole = a.on.to_grid.inverse()
    part = RasterParts(a, a.on)(np.array([50.0, 60]), np.array([120.0, 130]), 0.3)
    assert part.from_whole.scale((0, 0)) > 1.7
    inside = np.stack(np.meshgrid(np.arange(10.0, 100, 7), np.arange(10.0, 100, 7)), -1).reshape(-1, 2)
    with opened(path_a) as dataset, reprojected(dataset, crs) as warped:
        to_map = georeference_of(warped).to_map
    on_map = to_map(whole.inverse()(part.from_whole.inverse()(inside)))
    np.testing.assert_allclose(part.pixels[tuple(inside.astype(int).T[::-1])], seen(*on_map.T), atol=0.5)


def test_small_rasters_of_two_systems_need_no_reprojection(tmp_path):
    """An affine transform leads from one to the other to a twentieth of a pixel."""
    assert common_crs(*two_systems(tmp_path, side=40)) == ""
    south = write(tmp_path / "c.tif", np.zeros((1, 64, 64), np.uint8), NORTH_UP, "EPSG:32733")
    assert common_crs(south, tmp_path / "b.tif") == ""
