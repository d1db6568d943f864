"""Image files: what is read of them, and which are refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rrl_match.errors import ImageError
from rrl_match.io.images import ORIENTATIONS, ImageFile, holds_classes, read_image, read_mask, with_mask
from rrl_match.io.rasters import read_raster
from rrl_match.transforms import Affine, compose

RNG = np.random.default_rng(0)
GREY = RNG.integers(1, 256, (70, 90), dtype=np.uint8)
RGB = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)


def encode(path, image):
    """RGB or RGBA."""
    image = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    assert cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize("by_rasterio", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_images_of_8_and_16_bit(tmp_path, image, dtype, suffix, by_rasterio):
    if by_rasterio:
        pytest.importorskip("rasterio")
    path = encode(tmp_path / f"image{suffix}", image.astype(dtype) * (np.iinfo(dtype).max // 255))
    read = read_raster(path) if by_rasterio else read_image(path)
    np.testing.assert_array_equal(read.pixels, image.astype(dtype) * (np.iinfo(dtype).max // 255))
    assert read.pixels.dtype == dtype
    assert read.mask is None
    assert read.size == (90, 70)
    assert read.reduction == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_the_mask(tmp_path, dtype):
    full = np.iinfo(dtype).max
    alpha = np.full(GREY.shape, full, dtype)
    alpha[:, :30] = 0
    read = read_image(encode(tmp_path / "image.png", np.dstack([RGB.astype(dtype), alpha])))
    np.testing.assert_array_equal(read.pixels, RGB)
    np.testing.assert_array_equal(read.mask, alpha > 0)


def test_fourth_band_that_is_not_alpha_is_not_a_mask(tmp_path):
    """Such as near infrared in a TIFF, after red, green and blue."""
    path = encode(tmp_path / "image.tif", np.dstack([RGB, GREY]))
    read = read_image(path)
    np.testing.assert_array_equal(read.pixels, RGB)
    assert read.mask is None
    np.testing.assert_array_equal(read_image(path, (4,)).pixels, GREY)


@pytest.mark.parametrize("by_rasterio", [False, True])
def test_floats_without_nan(tmp_path, by_rasterio):
    if by_rasterio:
        pytest.importorskip("rasterio")
    image = GREY.astype(np.float32) - 300
    image[:10] = np.nan
    image[10, 0] = -np.inf
    path = encode(tmp_path / "image.tif", image)
    read = read_raster(path) if by_rasterio else read_image(path)
    assert read.pixels.dtype == np.float32
    assert np.isfinite(read.pixels).all()
    np.testing.assert_array_equal(read.mask, np.isfinite(image))
    np.testing.assert_array_equal(read.pixels[read.mask], image[read.mask])


def rotated_jpeg(path, orientation):
    """GREY in a JPEG with an EXIF orientation."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation]) + b"\0\0\0\0\0\0\0"
    data = cv2.imencode(".jpg", GREY)[1].tobytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(data[:2] + segment + data[2:])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_rotated_upright_and_says_where_its_pixels_lie(tmp_path, orientation):
    path = rotated_jpeg(tmp_path / "image.jpg", orientation)
    read = read_image(path)
    stored = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    assert read.pixels.shape == ((90, 70) if orientation > 4 else (70, 90))
    columns, rows = read.to_stored([(3, 5), (60, 40)]).astype(int).T
    np.testing.assert_array_equal(read.pixels[[5, 40], [3, 60]], stored[rows, columns])
    assert ["EXIF" in note for note in read.notes] == [True] * (orientation > 1)


@pytest.mark.parametrize("appended", [b"", bytes(200_000)])
def test_jpeg_is_truncated_only_without_its_end(tmp_path, appended):
    """Its end lies before what cameras append, such as a thermal image; a thumbnail's end is not its own."""
    data = cv2.imencode(".jpg", RGB)[1].tobytes()
    thumbnail = b"\xff\xe2" + (12).to_bytes(2, "big") + b"\xff\xd8thumb\xd9\xff\xd9"
    data = data[:2] + thumbnail + data[2:]
    (tmp_path / "image.jpg").write_bytes(data + appended)
    assert read_image(tmp_path / "image.jpg").pixels.shape == RGB.shape
    (tmp_path / "image.jpg").write_bytes(data[:-2000] + appended)
    with pytest.raises(ImageError, match=r"image\.jpg is a truncated JPEG"):
        read_image(tmp_path / "image.jpg")


@pytest.mark.parametrize(("size", "problem"), [(0, "is empty, 0 bytes"), (3000, "is a truncated PNG")])
def test_broken_files_say_so(tmp_path, size, problem):
    path = encode(tmp_path / "image.png", RGB)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ImageError, match=problem):
        read_image(path)


TEMPERATURES = np.round(np.random.default_rng(1).random((40, 50)) * 30, 2).astype(np.float32)


@pytest.mark.parametrize(
    ("delimiter", "decimal", "head"),
    [(",", ".", ""), (";", ",", "\ufeffFile:;x.jpg\nMax;31,5\n\n"), ("\t", ".", "Emissivity\t0.95\n"), (";", ".", "")],
)
def test_tables_of_temperatures_are_images(tmp_path, delimiter, decimal, head):
    """As a thermal camera's program exports them, in any country."""
    lines = (delimiter.join(f"{t:.2f}".replace(".", decimal) for t in row) + delimiter for row in TEMPERATURES)
    (tmp_path / "t.csv").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    read = read_image(tmp_path / "t.csv")
    np.testing.assert_array_equal(read.pixels, TEMPERATURES)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays_are_images(tmp_path, dtype):
    np.save(tmp_path / "t.npy", TEMPERATURES.astype(dtype))
    np.testing.assert_array_equal(read_image(tmp_path / "t.npy").pixels, TEMPERATURES.astype(dtype))


def test_files_without_numbers_are_no_images(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nc,d\n")
    (tmp_path / "t.npy").write_text("no array")
    np.save(tmp_path / "vector.npy", np.zeros(9))
    for name, message in (("t.csv", "no table"), ("t.npy", "no array"), ("vector.npy", r"got float64 \(9,\)")):
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)


@pytest.mark.parametrize("by_rasterio", [False, True])
def test_pages_are_named(tmp_path, by_rasterio):
    if by_rasterio:
        pytest.importorskip("rasterio")
    cv2.imwritemulti(str(tmp_path / "pages.tif"), [GREY, 255 - GREY, GREY])
    read = (read_raster if by_rasterio else read_image)(tmp_path / "pages.tif")
    np.testing.assert_array_equal(read.pixels, GREY)
    assert any("has 3 pages, the first was read" in note for note in read.notes)


def test_another_page_is_read_by_its_name(tmp_path):
    pytest.importorskip("rasterio")
    cv2.imwritemulti(str(tmp_path / "pages.tif"), [GREY, 255 - GREY])
    np.testing.assert_array_equal(read_raster(Path(f"GTIFF_DIR:2:{tmp_path}/pages.tif")).pixels, 255 - GREY)


@pytest.mark.parametrize("value", [-3.4028234663852886e38, 1.7e308, -np.inf])
def test_fill_values_of_floats_are_no_data(tmp_path, value):
    """Without a nodata tag, and without a warning of NumPy."""
    rasterio = pytest.importorskip("rasterio")
    image = GREY.astype(np.float64)
    image[:10] = value
    shape = {"width": 90, "height": 70, "count": 1, "dtype": "float64"}
    with rasterio.open(tmp_path / "image.tif", "w", transform=rasterio.Affine.scale(2, -2), **shape) as dataset:
        dataset.write(image, 1)
    read = read_raster(tmp_path / "image.tif")
    assert np.ptp(read.pixels) < 256
    np.testing.assert_array_equal(read.mask, np.abs(image) < 300)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_image_lies_where_it_says(orientation):
    y, x = np.mgrid[:30, :40]
    turned = orientation.turn(np.dstack([x, y]))
    height, width = turned.shape[:2]
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    np.testing.assert_allclose(orientation.back(40, 30)(here), turned.reshape(-1, 2))


def test_mask_of_a_part_that_was_turned_and_reduced():
    """The mask is of the file; what was read of it is a quarter, turned."""
    y, x = np.mgrid[:200, :300]
    shown = (x > 150) & (y < 60)
    turn = ORIENTATIONS[-1]
    to_file = Affine(compose(turn.back(75, 50), Affine(np.diag([4.0, 4, 1]))).full)
    image = ImageFile("a.png", (300, 200), np.zeros((75, 50), np.uint8), None, to_file)
    mask = with_mask(image, shown, "mask.png").mask
    np.testing.assert_array_equal(mask, turn.turn(shown[::4, ::4]))


@pytest.mark.parametrize(
    ("band", "name", "classes"),
    [
        (np.arange(100).reshape(10, 10) % 3, "", True),
        (np.arange(100).reshape(10, 10), "", False),
        (np.arange(100).reshape(10, 10), "QA_PIXEL", True),
        (np.arange(100).reshape(10, 10), "SCL", True),
        (np.arange(100).reshape(10, 10), "land_cover", True),
        (np.arange(100).reshape(10, 10), "aqua", False),
        (np.arange(100).reshape(10, 10) % 3.0, "flags", False),
        (np.arange(100).reshape(10, 10) > 3, "", True),
    ],
)
def test_classes_and_flags_are_recognised(band, name, classes):
    assert holds_classes(band, name) == classes


def test_mask_file_is_shown_where_any_colour_is_not_zero(tmp_path):
    image = np.zeros((70, 90, 3), np.uint8)
    image[:20, :, 1] = 1
    np.testing.assert_array_equal(read_mask(encode(tmp_path / "mask.png", image)), image[..., 1] > 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GREY[:31], "90 x 31 pixels, at least 32 x 32 are needed"),
        (np.dstack([RGB, np.zeros_like(GREY)]), "shows nothing"),
    ],
)
def test_images_that_cannot_be_used(tmp_path, image, message):
    with pytest.raises(ImageError, match=message):
        read_image(encode(tmp_path / "a.png", image))
