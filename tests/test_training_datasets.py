import cv2
import numpy as np
import pytest
import torch
from image_folder import COLUMNS, textured, write_folder, write_manifest

from rrl_match import DataError
from rrl_match.training.datasets import PatchSampler, PicturePair, Warp, find_places, hold_back, read_pairs
from rrl_match.training.recipe import Geometry

CPU = torch.device("cpu")
WIDE = Geometry(
    zoom=1.5, common_turn=45, place_jitter=20, share=1.0, turn=20, scale=1.3, aspect=1.1, shift=8, perspective=0.1
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def colour(grey):
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))


def picture_pair(image_a, image_b, a_to_b=None, name="p"):
    image_a = image_a if image_a.ndim == 3 else colour(image_a)
    return PicturePair(name, "s", image_a, image_b, np.eye(2, 3) if a_to_b is None else np.asarray(a_to_b, float))


def coordinates(width, height):
    """A picture whose colours are its own x and y, so that a patch tells where it was cut: RGB (x, y, 0)."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.dstack([x, y, np.zeros_like(x)])


# Reading


def test_pictures_are_read_as_the_manifest_says(tmp_path):
    folder = write_folder(tmp_path, pairs=2)
    cv2.imwrite(str(folder / "a1.png"), np.full((112, 112, 3), (10, 20, 30), np.uint8))  # OpenCV's order: BGR
    pairs = read_pairs(folder)
    assert [p.name for p in pairs] == ["p0", "p1"]
    assert [p.scene for p in pairs] == ["s", "s"]
    assert pairs[0].image_a.shape == (112, 112, 3)
    assert pairs[0].image_b.shape == (112, 112)
    assert pairs[0].image_a.dtype == pairs[0].image_b.dtype == np.uint8
    np.testing.assert_array_equal(pairs[0].image_a, colour(textured(112, 112, seed=0)))
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


def test_folder_without_manifest(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.csv is not there"):
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
    cv2.imwrite(str(folder / "small.png"), textured(112, 95))
    cv2.imwrite(str(folder / "deep.png"), textured(112, 112).astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "wide.png"), textured(120, 112))
    (folder / "noise.png").write_bytes(b"not a picture")
    (folder / "cut.png").write_bytes((folder / "a0.png").read_bytes()[:3000])
    cv2.imwrite(str(folder / "whole.jpg"), cv2.resize(textured(112, 112), (1120, 1120)), [cv2.IMWRITE_JPEG_QUALITY, 99])
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-70_000])
    return folder


@pytest.mark.parametrize("key", ["image_a", "image_b"])
@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("gone.png", "not there"),
        ("", "not there"),
        ("noise.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("cut.jpg", "cut off"),
        ("small.png", "112 x 95, too small"),
        ("deep.png", "uint16, not 8-bit"),
    ],
)
def test_unusable_picture_is_named_with_its_row(broken, key, file, problem):
    write_manifest(broken, [{}, {"pair": "bad", key: file}])
    with pytest.raises(DataError, match=rf"manifest\.csv, line 3 \(bad\): {key} .*{file}.*{problem}"):
        read_pairs(broken)


def test_whole_jpeg_is_read(broken):
    write_manifest(broken, [{"image_a": "whole.jpg", "image_b": "whole.jpg"}])
    assert read_pairs(broken)[0].image_b.shape == (1120, 1120)


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


def test_pictures_of_different_size_go_with_a_matrix(broken):
    write_manifest(broken, [{"image_b": "wide.png", "m02": "4"}])
    assert read_pairs(broken)[0].a_to_b.tolist() == [[1, 0, 4], [0, 1, 0]]


@pytest.mark.parametrize(("count", "every", "expected"), [(2, 8, 1), (9, 4, 2), (10, 4, 2), (46, 9, 5), (4, 1, 2)])
def test_whole_pictures_are_held_back(count, every, expected):
    picture = np.zeros((96, 96), np.uint8)
    pairs = [picture_pair(picture, picture, name=f"p{k % 2}") for k in range(count)]
    train, held_back = hold_back(pairs, every)
    assert len(held_back) == expected
    assert {id(p) for p in train} | {id(p) for p in held_back} == {id(p) for p in pairs}
    assert len(train) == count - expected


def test_one_picture_cannot_be_held_back():
    picture = np.zeros((96, 96), np.uint8)
    with pytest.raises(DataError, match="at least two"):
        hold_back([picture_pair(picture, picture)], 8)


# Places


def turned(degrees=8.0, scale=0.9, shift=(-3.0, 5.0), centre=(90.0, 80.0)):
    """a_to_b matrix that turns about `centre` of A."""
    matrix = cv2.getRotationMatrix2D(centre, degrees, scale)
    matrix[:, 2] += shift
    return matrix


@pytest.mark.parametrize("a_to_b", [np.eye(2, 3), turned()])
def test_a_patch_at_a_place_lies_inside_both_pictures(a_to_b):
    a = textured(180, 160, corners=60)
    pair = picture_pair(a, cv2.warpAffine(a, a_to_b, (180, 160)), a_to_b)
    places = find_places(pair, 64)
    assert len(places) > 5
    x, y = np.meshgrid([-32, 31], [-32, 31])
    corners = places[:, None] + np.stack([x, y], -1).reshape(-1, 2)
    in_a = (corners - a_to_b[:, 2]) @ np.linalg.inv(a_to_b[:, :2]).T
    for at in (corners, in_a):
        assert at.min() >= 0
        assert (at <= (179, 159)).all()


def test_places_are_spread_over_cells():
    a = textured(180, 160, corners=60)
    places = find_places(picture_pair(a, a), 64, spacing=12)
    cells = {(int(x) // 12, int(y) // 12) for x, y in places}
    assert len(cells) == len(places)


def test_corners_of_either_band_are_places():
    flat, dotted = np.full((120, 120), 90, np.uint8), np.full((120, 120), 90, np.uint8)
    dotted[61, 51] = 255
    for pair in (picture_pair(dotted, flat), picture_pair(flat, dotted)):
        places = find_places(pair, 64)
        assert places.tolist() == [[51, 61]]
    with pytest.raises(DataError, match="place"):
        PatchSampler([picture_pair(flat, flat)], 64, CPU)


def test_pictures_without_places_are_left_out():
    flat, a = np.full((120, 120), 90, np.uint8), textured(120, 120)
    sampler = PatchSampler([picture_pair(flat, flat, name="flat"), picture_pair(a, a, name="a")], 64, CPU)
    assert [p.name for p in sampler.pairs] == ["a"]
    batch = sampler.draw(4, 2, Geometry(), generator())
    assert batch.picture.tolist() == [0] * len(batch.picture)


# Cutting


def test_unchanged_patch_is_the_plain_crop():
    pairs = []
    for k, (w, h) in enumerate([(160, 120), (121, 143)]):
        a = np.random.default_rng(k).integers(0, 256, (h, w, 3), dtype=np.uint8)
        pairs.append(picture_pair(a, np.random.default_rng(9 + k).integers(0, 256, (h, w), dtype=np.uint8)))
    sampler = PatchSampler(pairs, 64, CPU)
    at = [(0, 32, 32), (0, 128, 88), (0, 77, 51), (1, 89, 111), (1, 40, 60)]
    batch = sampler.cut(torch.tensor([k for k, _, _ in at]), torch.tensor([[float(x), float(y)] for _, x, y in at]))
    assert batch.colour_a.shape == (5, 3, 64, 64)
    assert batch.patches_b.shape == (5, 1, 64, 64)
    for n, (k, x, y) in enumerate(at):
        window = slice(y - 32, y + 32), slice(x - 32, x + 32)
        expected_a = torch.from_numpy(pairs[k].image_a[window]).permute(2, 0, 1) / 255
        assert torch.equal(batch.colour_a[n], expected_a)
        assert torch.equal(batch.patches_b[n, 0], torch.from_numpy(pairs[k].image_b[window]) / 255)
    assert batch.picture.tolist() == [k for k, _, _ in at]


def test_band_a_is_taken_through_the_matrix():
    a_to_b = turned()
    a = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (160, 180, 3), dtype=np.uint8), (0, 0), 2)
    a = cv2.normalize(a, None, 0, 255, cv2.NORM_MINMAX)
    warped = cv2.warpAffine(a, a_to_b, (170, 150))
    pair = picture_pair(a, textured(170, 150, corners=60), a_to_b)
    sampler = PatchSampler([pair], 64, CPU)
    places = np.round(find_places(pair, 64)).astype(int)
    batch = sampler.cut(torch.zeros(len(places), dtype=torch.int64), torch.from_numpy(places).float())
    assert len(places) > 5
    for seen, (x, y) in zip(batch.colour_a, places, strict=True):
        expected = warped[y - 32 : y + 32, x - 32 : x + 32].transpose(2, 0, 1)
        np.testing.assert_allclose(255 * seen.numpy(), expected, rtol=0, atol=2.5)  # OpenCV rounds to 1/32 px
        assert np.abs(255 * seen.numpy() - expected).mean() < 0.6


def test_shift_moves_band_a_alone():
    pair = picture_pair(coordinates(160, 150), textured(160, 150))
    sampler = PatchSampler([pair], 64, CPU)
    one, eye, zero = torch.tensor([0]), torch.eye(2)[None], torch.zeros(1, 2)
    centre = torch.tensor([[80.0, 70.0]])
    plain = sampler.cut(one, centre)
    batch = sampler.cut(one, centre, Warp(zero, eye, eye, torch.tensor([[3.0, -2.5]]), zero))
    torch.testing.assert_close(batch.patches_b, plain.patches_b)
    offset = 255 * (batch.colour_a - plain.colour_a).mean((2, 3))
    torch.testing.assert_close(offset, torch.tensor([[3.0, -2.5, 0.0]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(batch.position, torch.tensor([[79.5, 69.5]]), rtol=0, atol=1e-3)


def test_relative_matrix_and_perspective_change_the_scale_of_band_a():
    pair = picture_pair(coordinates(200, 200), textured(200, 200))
    sampler = PatchSampler([pair], 64, CPU)
    one, eye, zero = torch.tensor([0]), torch.eye(2)[None], torch.zeros(1, 2)
    centre = torch.tensor([[100.0, 100.0]])
    x = 255 * sampler.cut(one, centre, Warp(zero, eye, torch.diag(torch.tensor([1.5, 1.0]))[None], zero, zero)).colour_a
    torch.testing.assert_close(x[0, 0].diff(dim=1), torch.full((64, 63), 1.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(x[0, 1].diff(dim=0), torch.full((63, 64), 1.0), rtol=0, atol=1e-3)
    tilted = 255 * sampler.cut(one, centre, Warp(zero, eye, eye, zero, torch.tensor([[0.1 / 32, 0.0]]))).colour_a[0, 1]
    down = tilted.diff(dim=0).mean(0)  # scale of each column: 1 / 0.9 at the left, 1 / 1.1 at the right
    assert float(down[0]) == pytest.approx(1 / 0.9, rel=0.01)
    assert float(down[-1]) == pytest.approx(1 / 1.1, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_both_bands_are_turned_alike(seed):
    a = textured(170, 160, seed=seed, corners=60)
    sampler = PatchSampler([picture_pair(a, a)], 64, CPU)
    geometry = Geometry(zoom=1.2, common_turn=10, place_jitter=3, share=0.0, turn=20, scale=1.5, shift=9)
    batch = sampler.draw(24, 1, geometry, generator(seed))
    torch.testing.assert_close(batch.colour_a[:, :1], batch.patches_b, rtol=0, atol=1e-3)


def test_flips_and_quarter_turns_are_all_eight():
    a = textured(160, 160, corners=60)
    sampler = PatchSampler([picture_pair(a, a)], 64, CPU)
    geometry = Geometry(place_jitter=0.0)
    seen = set()
    for seed in range(3):
        batch = sampler.draw(20, 1, geometry, generator(seed))
        centre = batch.position + 0.5
        plain = sampler.cut(batch.picture, centre).patches_b
        for patch, straight in zip(batch.patches_b[:, 0], plain[:, 0], strict=True):
            straight_ways = [torch.rot90(s, k) for s in (straight, straight.flip(1)) for k in range(4)]
            (way,) = [k for k, s in enumerate(straight_ways) if torch.allclose(s, patch, atol=1e-3)]
            seen.add(way)
    assert seen == set(range(8))


@pytest.mark.parametrize("band", ["a", "b"])
def test_changed_patches_never_leave_the_picture(band):
    """Where sampling left a picture it would repeat the border, and positions would no longer be linear."""
    w, h = 150, 140
    ramp, texture = coordinates(w, h), textured(w, h, corners=60)
    if band == "a":
        sampler = PatchSampler([picture_pair(ramp, texture)], 64, CPU)
        geometry = Geometry(**{**vars(WIDE), "perspective": 0.0})
    else:
        sampler = PatchSampler([picture_pair(texture, ramp[..., 0])], 64, CPU)
        geometry = WIDE
    slopes = []
    for seed in range(3):
        batch = sampler.draw(30, 1, geometry, generator(seed))
        at = 255 * (batch.colour_a[:, :2] if band == "a" else batch.patches_b)
        assert at.diff(n=2, dim=2).abs().max() < 2e-3
        assert at.diff(n=2, dim=3).abs().max() < 2e-3
        if band == "b":
            torch.testing.assert_close(at.mean((1, 2, 3)), batch.position[:, 0], rtol=0, atol=1e-2)
        slopes += at[:, 0, 0].diff(dim=1).mean(1).tolist()
    unchanged = [s == pytest.approx(1, abs=1e-3) for s in slopes]
    assert 0 < sum(unchanged) < len(unchanged)  # some were cut changed, some had to be cut as they are


def test_draw_depends_on_the_generators_state_alone():
    pairs = [picture_pair(textured(150, 140, seed=k, corners=40), textured(150, 140, seed=k)) for k in range(4)]
    sampler = PatchSampler(pairs, 64, CPU)
    torch.manual_seed(1)
    first = sampler.draw(10, 3, WIDE, generator(5))
    torch.manual_seed(2)
    again = sampler.draw(10, 3, WIDE, generator(5))
    other = sampler.draw(10, 3, WIDE, generator(6))
    for one, same in zip(first, again, strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first.patches_b[: len(other.patches_b)], other.patches_b[: len(first.patches_b)])


def test_draw_spreads_places_over_pictures():
    pairs = [picture_pair(textured(170, 160, seed=k, corners=60), textured(170, 160, seed=k)) for k in range(4)]
    sampler = PatchSampler(pairs, 64, CPU)
    batch = sampler.draw(10, 2, Geometry(), generator())
    pictures, counts = batch.picture.unique(return_counts=True)
    assert len(pictures) == 2
    assert counts.tolist() == [5, 5]
    _, counts = sampler.draw(10, 99, Geometry(), generator()).picture.unique(return_counts=True)
    assert sorted(counts.tolist()) == [1, 3, 3, 3]
    assert len(torch.unique(torch.cat([batch.picture[:, None], batch.position], 1), dim=0)) == 10
