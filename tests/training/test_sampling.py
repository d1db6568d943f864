import cv2
import numpy as np
import pytest
import torch
from image_folder import image_pair, textured

from rrl_match import DataError
from rrl_match.training.batches import draw_batch
from rrl_match.training.datasets import PairSource, find_locations
from rrl_match.training.recipe import Geometry, Phase, Recipe, SyntheticBands
from rrl_match.training.sampling import PatchSampler, Warp, draw_warp

CPU = torch.device("cpu")
WIDE = Geometry(
    zoom=1.3,
    common_rotation=30,
    location_jitter=10,
    probability=1.0,
    rotation=10,
    scale=1.1,
    aspect=1.05,
    shift=4,
    perspective=0.05,
)
PLAIN = Geometry(flips_and_right_angles=False, location_jitter=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampler_of(*pairs):
    return PatchSampler([PairSource("x", pairs)], 64, CPU)


def phase(batch_size, images, sources=1):
    return Phase(1, batch_size, images, 1e-3, sources_per_batch=sources)


def coordinates(width, height):
    """An image whose colours are its own x and y, so that a patch shows where it was cut: RGB (x, y, 128)."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.dstack([x, y, np.full_like(x, 128)])


def rotated(degrees=8.0, scale=0.9, shift=(-3.0, 5.0), centre=(90.0, 80.0)):
    """An a_to_b matrix that rotates about `centre` of A."""
    matrix = cv2.getRotationMatrix2D(centre, degrees, scale)
    matrix[:, 2] += shift
    return matrix


# Cutting


def test_unchanged_patch_is_the_plain_crop():
    pairs = []
    for k, (w, h) in enumerate([(160, 120), (121, 143)]):
        a = np.random.default_rng(k).integers(0, 256, (h, w, 3), dtype=np.uint8)
        pairs.append(image_pair(a, np.random.default_rng(9 + k).integers(0, 256, (h, w), dtype=np.uint8)))
    sampler = sampler_of(*pairs)
    at = [(0, 32, 32), (0, 128, 88), (0, 77, 51), (1, 89, 111), (1, 40, 60)]
    batch = sampler.cut(torch.tensor([k for k, _, _ in at]), torch.tensor([[float(x), float(y)] for _, x, y in at]))
    assert batch.colour_a.shape == (5, 3, 64, 64)
    assert batch.patches_b.shape == (5, 1, 64, 64)
    for n, (k, x, y) in enumerate(at):
        window = slice(y - 32, y + 32), slice(x - 32, x + 32)
        expected_a = torch.from_numpy(pairs[k].image_a[window]).permute(2, 0, 1) / 255
        assert torch.equal(batch.colour_a[n], expected_a)
        assert torch.equal(batch.patches_b[n, 0], torch.from_numpy(pairs[k].image_b[window]) / 255)
    assert batch.image.tolist() == [k for k, _, _ in at]


def test_band_a_is_taken_through_the_matrix():
    a_to_b = rotated()
    a = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (160, 180, 3), dtype=np.uint8), (0, 0), 2)
    a = cv2.normalize(a, None, 0, 255, cv2.NORM_MINMAX)
    warped = cv2.warpAffine(a, a_to_b, (170, 150))
    pair = image_pair(a, textured(170, 150, corners=60), a_to_b)
    sampler = sampler_of(pair)
    locations = np.round(find_locations(pair, 64)).astype(int)
    batch = sampler.cut(torch.zeros(len(locations), dtype=torch.int64), torch.from_numpy(locations).float())
    assert len(locations) > 5
    for seen, (x, y) in zip(batch.colour_a, locations, strict=True):
        expected = warped[y - 32 : y + 32, x - 32 : x + 32].transpose(2, 0, 1)
        np.testing.assert_allclose(255 * seen.numpy(), expected, rtol=0, atol=2.5)  # OpenCV rounds to 1/32 px
        assert np.abs(255 * seen.numpy() - expected).mean() < 0.6


def test_shift_moves_band_a_alone():
    pair = image_pair(coordinates(160, 150), textured(160, 150))
    sampler = sampler_of(pair)
    one, eye, zero = torch.tensor([0]), torch.eye(2)[None], torch.zeros(1, 2)
    centre = torch.tensor([[80.0, 70.0]])
    plain = sampler.cut(one, centre)
    batch = sampler.cut(one, centre, Warp(zero, eye, eye, torch.tensor([[3.0, -2.5]]), zero))
    torch.testing.assert_close(batch.patches_b, plain.patches_b)
    offset = 255 * (batch.colour_a - plain.colour_a).mean((2, 3))
    torch.testing.assert_close(offset, torch.tensor([[3.0, -2.5, 0.0]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(batch.position, torch.tensor([[79.5, 69.5]]), rtol=0, atol=1e-3)


def test_relative_matrix_and_perspective_change_the_scale_of_band_a():
    pair = image_pair(coordinates(200, 200), textured(200, 200))
    sampler = sampler_of(pair)
    one, eye, zero = torch.tensor([0]), torch.eye(2)[None], torch.zeros(1, 2)
    centre = torch.tensor([[100.0, 100.0]])
    x = 255 * sampler.cut(one, centre, Warp(zero, eye, torch.diag(torch.tensor([1.5, 1.0]))[None], zero, zero)).colour_a
    torch.testing.assert_close(x[0, 0].diff(dim=1), torch.full((64, 63), 1.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(x[0, 1].diff(dim=0), torch.full((63, 64), 1.0), rtol=0, atol=1e-3)
    tilted = 255 * sampler.cut(one, centre, Warp(zero, eye, eye, zero, torch.tensor([[0.1 / 32, 0.0]]))).colour_a[0, 1]
    down = tilted.diff(dim=0).mean(0)  # scale of each column: 1 / 0.9 at the left, 1 / 1.1 at the right
    assert float(down[0]) == pytest.approx(1 / 0.9, rel=0.01)
    assert float(down[-1]) == pytest.approx(1 / 1.1, rel=0.01)


# Drawing


@pytest.mark.parametrize("seed", range(3))
def test_common_changes_are_the_same_for_both_bands(seed):
    a = textured(200, 190, seed=seed, corners=60)
    geometry = Geometry(
        zoom=1.2, common_rotation=10, location_jitter=3, probability=0.0, rotation=20, scale=1.5, shift=9
    )
    batch = sampler_of(image_pair(a, a)).draw(phase(24, 1), geometry, generator(seed))
    torch.testing.assert_close(batch.colour_a[:, :1], batch.patches_b, rtol=0, atol=1e-3)


def orientations(batch, sampler):
    """Which of the eight flips and right angles each patch was cut with; there must be no other change."""
    plain = sampler.cut(batch.image, batch.position + 0.5).patches_b
    for patch, straight in zip(batch.patches_b[:, 0], plain[:, 0], strict=True):
        ways = [torch.rot90(s, k) for s in (straight, straight.flip(1)) for k in range(4)]
        (way,) = [k for k, s in enumerate(ways) if torch.allclose(s, patch, atol=1e-3)]
        yield way


def test_flips_and_right_angles_are_all_eight():
    a = textured(160, 160, corners=60)
    sampler = sampler_of(image_pair(a, a))
    seen = set()
    for seed in range(3):
        seen |= set(orientations(sampler.draw(phase(20, 1), Geometry(location_jitter=0.0), generator(seed)), sampler))
    assert seen == set(range(8))


def test_shared_orientation_is_one_per_group():
    pairs = [image_pair(*[textured(160, 160, seed=k, corners=60)] * 2) for k in (0, 1)]
    sampler = PatchSampler([PairSource(str(k), [pair]) for k, pair in enumerate(pairs)], 64, CPU)
    geometry = Geometry(location_jitter=0.0, shared_orientation=True)
    seen, different = set(), 0
    for seed in range(12):
        batch = sampler.draw(phase(12, 2, sources=2), geometry, generator(seed))
        ways = torch.tensor(list(orientations(batch, sampler)))
        by_group = [set(ways[batch.group == k].tolist()) for k in (0, 1)]
        assert [len(ways) for ways in by_group] == [1, 1]
        seen |= by_group[0] | by_group[1]
        different += by_group[0] != by_group[1]
    assert len(seen) > 5
    assert different > 6


@pytest.mark.parametrize("shared", [True, False])
def test_shared_orientation_includes_rotation_and_zoom(shared):
    geometry = Geometry(common_rotation=30, zoom=1.5, shared_orientation=shared, probability=1.0, rotation=10)
    warp = draw_warp(20, geometry, generator())
    assert warp.common.shape == (20, 2, 2)
    assert len(warp.common.unique(dim=0)) == (1 if shared else 20)
    assert len(warp.relative.unique(dim=0)) == len(warp.jitter.unique(dim=0)) == 20  # these are never shared
    zoom = torch.linalg.det(warp.common).abs().sqrt()
    assert ((zoom >= 1 / 1.5 - 1e-4) & (zoom <= 1.5 + 1e-4)).all()


@pytest.mark.parametrize("band", ["a", "b"])
def test_changed_patches_never_leave_the_image(band):
    """Outside the image, sampling would repeat the border, and positions would no longer be linear."""
    w, h = 210, 200
    ramp, texture = coordinates(w, h), textured(w, h, corners=60)
    ramp[..., :2] += 4  # not black at the border
    geometry = Geometry(**{**vars(WIDE), "perspective": 0.0, "location_jitter": 25})
    pair = image_pair(ramp, texture) if band == "a" else image_pair(texture, ramp[..., 0])
    sampler = sampler_of(pair)
    for seed in range(3):
        batch = sampler.draw(phase(30, 1), geometry, generator(seed))
        at = 255 * (batch.colour_a[:, :2] if band == "a" else batch.patches_b)
        assert at.diff(n=2, dim=2).abs().max() < 2e-3
        assert at.diff(n=2, dim=3).abs().max() < 2e-3
        if band == "b":
            torch.testing.assert_close(at.mean((1, 2, 3)), batch.position[:, 0] + 4, rtol=0, atol=1e-2)


def test_patches_that_do_not_fit_are_dropped_not_cut_unchanged():
    """An unchanged patch would be recognised by its sharpness."""
    a = textured(170, 160, corners=60)
    sampler = sampler_of(image_pair(a, a))
    geometry = Geometry(zoom=1.0, flips_and_right_angles=False, common_rotation=0, probability=1.0, scale=1.4)
    centre = sampler.locations[0]
    image = torch.zeros(len(centre), dtype=torch.int64)
    warp = draw_warp(len(centre), geometry, generator())
    assert 0 < sampler.fits(image, centre, warp).sum() < len(centre)
    batch = sampler.draw(phase(8, 1), geometry, generator())
    scale = torch.linalg.det((batch.grid_a[..., [1, 64]] - batch.grid_a[..., :1]).double()).abs().sqrt()
    assert len(scale) == 8
    assert ((scale - 1).abs() > 1e-3).all()
    assert scale.max() > 1.1


@pytest.mark.parametrize("band", ["a", "b"])
def test_no_patch_has_black_from_outside_a_footprint(band):
    """Each image shows a rotated square on black, as an orthorectified scene does."""
    full = textured(320, 320, corners=120)
    square = cv2.boxPoints(((160.0, 160.0), (210.0, 210.0), 27.0)).astype(np.int32)
    shown = cv2.fillConvexPoly(np.zeros_like(full), square, 1)
    assert full.min() > 2
    a, b = (full * shown, full) if band == "a" else (full, full * shown)
    sampler = sampler_of(image_pair(a, b))
    for seed in range(4):
        batch = sampler.draw(phase(16, 1), WIDE, generator(seed))
        assert len(batch.image) == 16
        assert 255 * min(batch.colour_a.min(), batch.patches_b.min()) > 2
        rows = torch.arange(16)  # synthetic bands are cut from the other image at the same locations
        assert 255 * sampler.colour_at_b(batch, rows).min() > 2
        assert 255 * sampler.grey_at_a(batch, rows).min() > 2


def test_other_images_are_drawn_where_too_few_patches_fit():
    """Of two images, one has room for a single location."""
    large, small = textured(200, 200, corners=60), np.full((100, 100), 90, np.uint8)
    small[50, 50] = 255
    sampler = sampler_of(image_pair(small, small, name="small"), image_pair(large, large, name="large"))
    assert len(sampler.locations[0]) == 1
    sizes = [len(sampler.draw(phase(8, 1), PLAIN, generator(seed)).image) for seed in range(20)]
    assert sizes.count(8) >= 18  # the small one four times in a row has a probability of 1/16


def test_nothing_that_fits_is_an_error():
    a = textured(100, 100, corners=30)
    sampler = sampler_of(image_pair(a, a))
    geometry = Geometry(**{**vars(PLAIN), "shift": 0.0, "location_jitter": 1000.0})
    with pytest.raises(DataError, match="no patch fits"):
        sampler.draw(phase(4, 1), geometry, generator())


def test_draw_depends_on_the_generators_state_alone():
    pairs = [image_pair(textured(200, 190, seed=k, corners=40), textured(200, 190, seed=k)) for k in range(4)]
    sampler = PatchSampler([PairSource("x", pairs[:2]), PairSource("y", pairs[2:])], 64, CPU)
    torch.manual_seed(1)
    first = sampler.draw(phase(10, 3, 2), WIDE, generator(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = sampler.draw(phase(10, 3, 2), WIDE, generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    other = sampler.draw(phase(10, 3, 2), WIDE, generator(6))
    for one, same in zip(first, again, strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first.patches_b, other.patches_b)


def test_locations_are_spread_over_images():
    pairs = [image_pair(textured(170, 160, seed=k, corners=60), textured(170, 160, seed=k)) for k in range(4)]
    sampler = sampler_of(*pairs)
    batch = sampler.draw(phase(10, 2), PLAIN, generator())
    images, counts = batch.image.unique(return_counts=True)
    assert len(images) == 2
    assert counts.tolist() == [5, 5]
    _, counts = sampler.draw(phase(10, 99), PLAIN, generator()).image.unique(return_counts=True)
    assert sorted(counts.tolist()) == [2, 2, 3, 3]
    assert len(torch.unique(torch.cat([batch.image[:, None], batch.position], 1), dim=0)) == 10


# Several sources


@pytest.fixture(scope="module")
def texture():
    return textured(160, 160, corners=60)


def of_sizes(texture, sizes, weights=None):
    weights = weights or [1.0] * len(sizes)
    pair = image_pair(texture, texture)
    sources = [PairSource(str(k), [pair] * n, w) for k, (n, w) in enumerate(zip(sizes, weights, strict=True))]
    return PatchSampler(sources, 64, CPU)


def source_of(sampler, image):
    """Row of the source that each image belongs to."""
    rows = torch.cat([torch.full((len(rows),), k) for k, (_, rows) in enumerate(sampler.sources)])
    return rows[image]


@pytest.mark.parametrize(("count", "sources"), [(12, 3), (13, 3), (8, 2), (9, 1)])
def test_groups_are_of_one_source_each_and_the_batch_is_full(texture, count, sources):
    sampler = of_sizes(texture, [6, 7, 8])
    for seed in range(3):
        batch = sampler.draw(phase(count, 6, sources), PLAIN, generator(seed))
        assert len(batch.group) == len(batch.image) == len(batch.patches_b) == count
        assert batch.group.unique().tolist() == list(range(sources))
        by_group = [source_of(sampler, batch.image[batch.group == k]).unique().tolist() for k in range(sources)]
        assert all(len(of_group) == 1 for of_group in by_group)
        assert len({of_group[0] for of_group in by_group}) == sources  # no source twice
        counts = batch.group.bincount()
        assert counts.max() - counts.min() <= 1
        images = [len(batch.image[batch.group == k].unique()) for k in range(sources)]
        assert images == [6 // sources] * sources


def test_batch_has_no_more_groups_than_there_are_sources(texture):
    batch = of_sizes(texture, [4]).draw(phase(8, 4, sources=3), PLAIN, generator())
    assert batch.group.tolist() == [0] * 8


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [([4, 4], [1, 1], 0.5), ([1, 16], [1, 1], 0.8), ([4, 4], [1, 3], 0.75), ([16, 1], [1, 4], 0.5)],
)
def test_sources_are_drawn_by_weight_and_the_root_of_their_size(texture, sizes, weights, expected):
    sampler = of_sizes(texture, sizes, weights)
    draws = 400
    second = 0
    sampler.cut = lambda image, *_: image  # only which images are drawn matters
    state = generator()
    for _ in range(draws):
        second += int(source_of(sampler, sampler.draw(phase(1, 1), PLAIN, state))[0])
    assert second / draws == pytest.approx(expected, abs=0.08)


def test_images_of_a_group_are_of_one_scene_where_it_has_enough(texture):
    pairs = [image_pair(texture, texture, name=str(k), scene=s) for k, s in enumerate("aaaaabbbbbc")]
    sampler = sampler_of(*pairs)
    seen = set()
    for seed in range(30):
        batch = sampler.draw(phase(8, 4), PLAIN, generator(seed))
        images = batch.image.unique().tolist()
        assert len(images) == 4
        scenes = {pairs[k].scene for k in images}
        assert len(scenes) == 1 or "c" in scenes
        seen |= scenes
    assert seen == {"a", "b", "c"}


def test_images_and_sources_without_locations_are_left_out(texture, caplog):
    flat = np.full((120, 120), 90, np.uint8)
    pairs = [image_pair(flat, flat, name="flat"), image_pair(texture, texture, name="textured")]
    sampler = PatchSampler([PairSource("blank", pairs[:1]), PairSource("road", pairs)], 64, CPU)
    assert [p.name for p in sampler.pairs] == ["textured"]
    assert [name for name, _ in sampler.sources] == ["road"]
    assert "road: no location to cut a patch at, left out: flat" in caplog.text
    assert sampler.draw(phase(4, 2, sources=2), PLAIN, generator()).image.tolist() == [0] * 4


# Synthetic bands: the other band's image at the same locations


@pytest.mark.parametrize("a_to_b", [np.eye(2, 3), rotated(centre=(120.0, 120.0))])
def test_the_other_band_is_cut_at_exactly_the_same_locations(monkeypatch, a_to_b):
    """Both images show their own coordinates in A's frame."""
    y, x = np.mgrid[:240, :250]
    inverse = cv2.invertAffineTransform(a_to_b)
    in_a = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    b = in_a.clip(10, 245).round().astype(np.uint8)
    locations = np.array([[120, 118], [128, 110], [112, 122]], np.float32)
    monkeypatch.setattr("rrl_match.training.sampling.find_locations", lambda *_: locations)
    sampler = sampler_of(image_pair(coordinates(240, 240).clip(10), b, a_to_b))
    batch = sampler.draw(phase(3, 1), Geometry(**{**vars(WIDE), "zoom": 1.0}), generator())
    assert len(batch.image) == 3
    rows = torch.arange(3)
    seen_a, seen_b = sampler.colour_at_b(batch, rows), sampler.grey_at_a(batch, rows)
    assert seen_a.shape == (3, 3, 64, 64)
    assert seen_b.shape == (3, 1, 64, 64)
    torch.testing.assert_close(255 * seen_a[:, :1], 255 * batch.patches_b, rtol=0, atol=1.0)  # B is rounded
    torch.testing.assert_close(255 * seen_b, 255 * batch.colour_a[:, :1], rtol=0, atol=1.0)
    assert (255 * (batch.colour_a[:, :1] - batch.patches_b)).abs().max() > 4  # band A was moved against B
    for row in rows:
        torch.testing.assert_close(sampler.colour_at_b(batch, row[None])[0], seen_a[row])


def recipe_with(**probabilities):
    return Recipe(("a", "b"), "", phase(12, 2, 2), geometry=PLAIN, synthetic=SyntheticBands(**probabilities))


@pytest.mark.parametrize("band", ["a", "b"])
def test_synthetic_bands_replace_one_band_of_a_whole_group(texture, band):
    """A's image differs from B's, so a band that is made from the other shows that one's edges."""
    sampler = of_sizes(texture, [3, 3])
    plain = recipe_with()
    changed = {"a": 0, "b": 0}
    for seed in range(10):
        before = draw_batch(sampler, plain, plain.training, generator(seed))
        recipe = recipe_with(**{f"probability_{band}": 0.5})
        after = draw_batch(sampler, recipe, recipe.training, generator(seed))
        assert torch.equal(before.negative, after.negative)
        group = torch.arange(12) // 6
        for name, one, other in (
            ("a", before.patches_a, after.patches_a),
            ("b", before.patches_b, after.patches_b),
        ):
            moved = (one - other).abs().amax((1, 2, 3)) > 1 / 255
            for k in (0, 1):
                assert moved[group == k].all() or not moved[group == k].any()
                changed[name] += bool(moved[group == k].any())
    other = "b" if band == "a" else "a"
    assert changed[other] == 0
    assert 4 <= changed[band] <= 16  # of 20 groups


def test_without_synthetic_bands_a_batch_is_the_images_own(texture):
    sampler = of_sizes(texture, [3])
    batch = draw_batch(sampler, recipe_with(), phase(6, 2), generator())
    torch.testing.assert_close(batch.patches_a, batch.patches_b, rtol=0, atol=1 / 255)
    assert batch.negative.shape == (6, 6)
    assert not batch.negative.diagonal().any()
