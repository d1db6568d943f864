"""Registrations that were written, applied to other files."""

import json

import cv2
import numpy as np
import pytest
from geotiffs import NORTH_UP, UTM, moved, read_back, texture, write

from rrl_match import DataError, ImageError
from rrl_match.cli.main import main
from rrl_match.io.apply import apply_to_image, read_registration
from rrl_match.io.rasters import grid_of, opened

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rasterio.warp")

SHIFT = [[1.0, 0, 20], [0, 1, 10]]  # of A's 200 x 160 pixels to B's 240 x 180


def written(folder, matrix=SHIFT, map_a=None, map_b=None, **changes):
    """A registration.json."""
    kind = "affine" if len(matrix) == 2 else "homography"
    record = {
        "ok": True,
        "reason": "",
        "transform": {"kind": kind, "matrix": matrix},
        "size_a": [200, 160],
        "size_b": [240, 180],
        "georeference_a": map_a,
        "georeference_b": map_b,
    }
    path = folder / "registration.json"
    path.write_text(json.dumps(record | changes))
    return path


def georeference(folder, transform):
    found = grid_of(write(folder / "map.tif", np.zeros((1, 64, 64), np.uint8), transform)).georeference
    return {"to_map": found.to_map.matrix.tolist(), "crs": found.crs}


@pytest.fixture
def maps(tmp_path):
    """Of A, 14 m off, and of B; pixels are 2 m."""
    return {"map_a": georeference(tmp_path, moved(13, 3)), "map_b": georeference(tmp_path, NORTH_UP)}


@pytest.mark.parametrize("scale", [1, 2])
def test_another_resolution_of_a_is_placed_by_its_size(tmp_path, scale):
    image = (texture(160, 200) * 255).astype(np.uint8)
    finer = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "red.png"), finer)
    assert main(["apply", str(written(tmp_path)), str(tmp_path / "red.png"), "--out", str(tmp_path / "out")]) == 0
    warped = cv2.imread(str(tmp_path / "out" / "red.png"), cv2.IMREAD_UNCHANGED)
    assert warped.shape == (180, 240)
    np.testing.assert_allclose(warped[12:165, 22:215], image[2:155, 2:195], atol=6)
    assert not warped[:9].any()


def test_rasters_are_placed_by_their_georeferences(tmp_path, maps):
    """A part of A at twice the resolution, on the map of A."""
    image = (texture(100, 120) * 60_000).astype(np.uint16)
    part = rasterio.Affine(1, 0, 500_026 + 40, 0, -1, 4_199_994 - 20)  # begins at pixel (20, 10) of A
    path = write(tmp_path / "part.tif", image[None], part)
    (tmp_path / "out").mkdir()
    out = apply_to_image(read_registration(written(tmp_path, **maps)), path, tmp_path / "out", "a")
    warped, masks, facts = read_back(out)
    assert facts["transform"].almost_equals(rasterio.Affine(1, 0, 500_000 + 80, 0, -1, 4_200_000 - 40))
    assert facts["crs"] == rasterio.CRS.from_string(UTM)
    np.testing.assert_array_equal(warped[0], image)
    assert masks.all()


@pytest.mark.parametrize(("grid", "size", "corner"), [("b", (240, 180), NORTH_UP), ("a", (200, 160), moved(20, 10))])
def test_grids(tmp_path, maps, grid, size, corner):
    image = (texture(160, 200) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", image[None], moved(13, 3))
    (tmp_path / "out").mkdir()
    out = apply_to_image(read_registration(written(tmp_path, **maps)), path, tmp_path / "out", grid)
    with opened(out) as dataset:
        assert (dataset.width, dataset.height) == size
        assert dataset.transform.almost_equals(corner)


def test_georeference_only(tmp_path, maps):
    image = (texture(160, 200) * 255).astype(np.uint8)
    path = write(tmp_path / "a.tif", np.stack([image, image]), moved(13, 3), nodata=7)
    record = written(tmp_path, **maps)
    assert main(["apply", str(record), str(path), "--georeference-only", "--out", str(tmp_path / "out")]) == 0
    bands, _, facts = read_back(tmp_path / "out" / "a.tif")
    np.testing.assert_array_equal(bands, np.stack([image, image]))
    assert facts["transform"].almost_equals(moved(20, 10))
    assert facts["nodata"] == 7


def test_georeference_only_of_a_homography_is_control_points(tmp_path, maps):
    matrix = [[1.0, 0, 20], [0, 1, 10], [1e-4, 0, 1]]
    path = write(tmp_path / "a.tif", np.zeros((1, 160, 200), np.uint8), moved(13, 3))
    record = written(tmp_path, matrix, **maps)
    assert main(["apply", str(record), str(path), "--georeference-only", "--out", str(tmp_path / "out")]) == 0
    with opened(tmp_path / "out" / "a.tif") as dataset:
        points, crs = dataset.gcps
    assert crs == rasterio.CRS.from_string(UTM)
    last = max(points, key=lambda point: (point.row, point.col))
    assert (last.col, last.row) == (200, 160)
    x, y = np.array([199.5 + 20, 159.5 + 10]) / (1 + 199.5e-4)
    np.testing.assert_allclose([last.x, last.y], [500_000 + 2 * (x + 0.5), 4_200_000 - 2 * (y + 0.5)])


def test_points(tmp_path, maps):
    (tmp_path / "trees.csv").write_text("id,x,y\noak,1,2\nelm,30.5,40\n")
    assert (
        main(["apply", str(written(tmp_path, **maps)), str(tmp_path / "trees.csv"), "--out", str(tmp_path / "o")]) == 0
    )
    assert (tmp_path / "o" / "trees.csv").read_text().splitlines() == [
        "id,x,y,x_b,y_b,map_x,map_y",
        "oak,1,2,21,12,500043,4199975",
        "elm,30.5,40,50.5,50,500102,4199899",
    ]


def test_points_and_temperatures_are_told_apart(tmp_path):
    """Both are tables; the decimal sign may be a comma."""
    (tmp_path / "trees.csv").write_text("id;x;y\noak;1,5;2\n")
    values = (texture(160, 200) * 30).round(1)
    np.savetxt(tmp_path / "thermal.csv", values, fmt="%.1f", delimiter=";")
    files = [str(tmp_path / name) for name in ("trees.csv", "thermal.csv")]
    assert main(["apply", str(written(tmp_path)), *files, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "trees.csv").read_text().splitlines()[1] == 'oak,"1,5",2,21.5,12'
    warped = cv2.imread(str(tmp_path / "out" / "thermal.tif"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(warped[20:150, 30:200], values[10:140, 10:180], atol=1e-4)


def test_nothing_is_written_if_a_file_is_missing(tmp_path, capsys):
    (tmp_path / "trees.csv").write_text("x,y\n1,2\n")
    files = [str(tmp_path / name) for name in ("trees.csv", "nothing.png")]
    with pytest.raises(SystemExit) as stopped:
        main(["apply", str(written(tmp_path)), *files, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "nothing.png does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_of_a_palette_are_not_interpolated(tmp_path):
    classes = np.random.default_rng(0).integers(0, 100, (160, 200)).astype(np.uint8)
    path = write(tmp_path / "cover.tif", classes[None], photometric="palette")
    with opened(path, "r+") as dataset:
        dataset.write_colormap(1, {k: (k, 255 - k, 7) for k in range(100)})
    record = written(tmp_path, [[1.0, 0, 20.4], [0, 1, 10.4]])
    assert main(["apply", str(record), str(path), "--out", str(tmp_path / "out")]) == 0
    found = read_back(tmp_path / "out" / "cover.tif")[0][0]
    np.testing.assert_array_equal(found[20:150, 30:200], classes[10:140, 10:180])


def test_georeference_only_of_a_photograph_that_lies_on_its_side(tmp_path, maps):
    """EXIF says to rotate it by 90 degrees; GDAL does not."""
    upright = (texture(160, 200) * 255).astype(np.uint8)
    data = cv2.imencode(".jpg", np.ascontiguousarray(np.rot90(upright)))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (tmp_path / "a.jpg").write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    record = written(tmp_path, **maps | {"map_a": None})
    assert (
        main(["apply", str(record), str(tmp_path / "a.jpg"), "--georeference-only", "--out", str(tmp_path / "o")]) == 0
    )
    with opened(tmp_path / "o" / "a.tif") as dataset:
        assert (dataset.width, dataset.height) == (160, 200)
        # its lower corners as it lies are those on the left of the upright image
        corners = np.array([[0, 200, 1], [160, 200, 1]]) @ np.array(dataset.transform).reshape(3, 3).T
    np.testing.assert_allclose(corners[:, :2], [[500_040, 4_199_980], [500_040, 4_199_660]])


@pytest.mark.parametrize("named", [False, True])
def test_shapes_in_longitude_and_latitude(tmp_path, maps, named):
    """As the standard has it, or as the file says; they stay what they are."""
    crs = "EPSG:32612" if named else "OGC:CRS84"
    before = rasterio.warp.transform(UTM, crs, [500_100], [4_199_900])
    shape = {"type": "Point", "coordinates": [before[0][0], before[1][0]]}
    feature = {"type": "Feature", "properties": {"bbox": 1, "coordinates": [1, 2]}, "bbox": [1], "geometry": shape}
    shapes = {"type": "FeatureCollection", "features": [feature, {"type": "Feature", "geometry": None}]}
    shapes |= {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32612"}}} if named else {}
    (tmp_path / "a.geojson").write_text(json.dumps(shapes))
    record = written(tmp_path, **maps)
    assert main(["apply", str(record), str(tmp_path / "a.geojson"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "a.geojson").read_text())
    assert found.get("crs") == shapes.get("crs")
    assert found["features"][0]["properties"] == feature["properties"]
    assert "bbox" not in found["features"][0]
    back = rasterio.warp.transform(crs, UTM, *([n] for n in found["features"][0]["geometry"]["coordinates"]))
    np.testing.assert_allclose(np.ravel(back), [500_114, 4_199_886], atol=0.01)


def test_shapes(tmp_path, maps):
    """Of A's map, 7 pixels off in x and in y: 14 m."""
    ring = [[500_100.0, 4_199_900.0], [500_110.0, 4_199_900.0], [500_100.0, 4_199_890.0, 5.0]]
    shapes = {"type": "Feature", "properties": {"name": "pond"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [shapes]}))
    record = written(tmp_path, **maps)
    assert main(["apply", str(record), str(tmp_path / "a.geojson"), "--out", str(tmp_path / "out")]) == 0
    (found,) = json.loads((tmp_path / "out" / "a.geojson").read_text())["features"]
    assert found["properties"] == {"name": "pond"}
    expected = [[x + 14, y - 14, *z] for x, y, *z in ring]
    for one, other in zip(found["geometry"]["coordinates"][0], expected, strict=True):
        np.testing.assert_allclose(one, other)


def test_mistakes(tmp_path, maps):
    refused = written(tmp_path, ok=False, reason="noise", transform=None)
    with pytest.raises(DataError, match="the pair was refused: noise"):
        read_registration(refused)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other\.json is no registration"):
        read_registration(tmp_path / "other.json")
    applied = read_registration(written(tmp_path))
    cv2.imwrite(str(tmp_path / "square.png"), np.zeros((100, 100), np.uint8))
    with pytest.raises(ImageError, match=r"square\.png is 100 x 100 pixels, of another shape than image A"):
        apply_to_image(applied, tmp_path / "square.png", tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((160, 200), np.uint8))
    with pytest.raises(ImageError, match=r"a\.png would be overwritten"):
        apply_to_image(applied, tmp_path / "a.png", tmp_path)
