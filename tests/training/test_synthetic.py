import pytest
import torch
from image_folder import textured

from rrl_match.training import synthetic
from rrl_match.training.synthetic import synthetic_band

SENSORS = sorted({sensor.__name__ for sensor in synthetic.SENSORS})
CONDITIONS = sorted({condition.__name__ for condition in synthetic.CONDITIONS})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def patches(n=4):
    """Coloured patches (n, 3, 64, 64)."""
    grey = torch.stack([torch.from_numpy(textured(96, 96, seed=k))[16:80, 16:80] for k in range(3 * n)])
    return grey.reshape(n, 3, 64, 64) / 255


def step_edge(column=24, n=4):
    """Dark to the left of `column`, bright from there on, in another colour in each patch."""
    colour = torch.rand(n, 3, 1, 1, generator=generator()) * 0.4
    right = (torch.arange(64) >= column).float()
    return (0.1 + colour * 0.3) * (1 - right) + (0.5 + colour) * right * torch.ones(n, 3, 64, 64)


@pytest.mark.parametrize("seed", range(12))
def test_bands_keep_shape_and_range(seed):
    for colour in (patches(), torch.zeros(2, 3, 64, 64), torch.full((2, 3, 64, 64), 0.5)):
        band = synthetic_band(colour, generator(seed))
        assert band.shape == (len(colour), 1, 64, 64)
        assert torch.isfinite(band).all()
        assert 0 <= band.min() <= band.max() <= 1


def test_bands_of_a_textured_patch_are_not_flat_and_differ():
    bands = [synthetic_band(patches(), generator(seed)) for seed in range(12)]
    assert all(band.std() > 0.02 for band in bands)
    assert all((one - other).abs().mean() > 0.01 for k, one in enumerate(bands) for other in bands[:k])


def test_same_generator_state_same_result():
    for seed in range(8):
        first, again = (synthetic_band(patches(), generator(seed)) for _ in range(2))
        assert torch.equal(first, again)


def test_global_random_state_and_input_are_left_alone():
    before, colour = torch.get_rng_state(), patches()
    copy = colour.clone()
    for seed in range(8):
        synthetic_band(colour, generator(seed))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(colour, copy)


@pytest.mark.parametrize("name", SENSORS)
def test_all_patches_of_a_group_get_the_same_sensor(name):
    """Equal patches look equal, whatever the others of the group are."""
    colour = patches()
    colour[3] = colour[0]
    band = getattr(synthetic, name)(colour, generator(1))
    torch.testing.assert_close(band[3], band[0])
    assert (band[1] - band[0]).abs().max() > 0.01


@pytest.mark.parametrize("name", SENSORS)
def test_sensors_keep_the_position_of_an_edge(name):
    """Where grey values change along a row, they do so within the smoothing of the step."""
    column, steps = 24, 0
    for seed in range(6):
        band = getattr(synthetic, name)(step_edge(column), generator(seed))[:, 0]
        change = band.diff(dim=2).abs().mean((0, 1))
        if change.max() < 0.02:  # a tone curve may map both sides to one value
            continue
        centre = (change * (torch.arange(63) + 0.5)).sum() / change.sum()
        assert float(centre) == pytest.approx(column - 0.5, abs=2.0)
        assert change[: column - 10].max() < 0.02 * change.max()
        assert change[column + 10 :].max() < 0.02 * change.max()
        steps += 1
    assert steps >= 3


def test_gradient_magnitude_is_largest_at_a_step_edge():
    seen = set()
    for seed in range(8):
        band = synthetic.gradients(step_edge(24), generator(seed))[:, 0]
        bright = band[:, :, 23:25].mean() > band.mean()
        profile = band.mean((0, 1)) if bright else -band.mean((0, 1))
        assert profile.topk(2).indices.sort().values.tolist() == [23, 24]
        seen.add(bool(bright))
    assert seen == {True, False}


def test_low_resolution_keeps_positions():
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    for factor in (2, 3, 4):
        out = synthetic.low_resolution(ramp, factor)
        assert out.shape == ramp.shape
        torch.testing.assert_close(out[..., 8:-8], ramp[..., 8:-8], rtol=0, atol=0.01)


@pytest.mark.parametrize("looks", [1, 8])
def test_speckle_is_multiplicative(looks):
    flat = torch.tensor([0.2, 0.6])[:, None, None, None].expand(2, 1, 64, 64)
    out = synthetic.speckled(flat, looks, generator())
    mean, deviation = out.mean((1, 2, 3)), out.std((1, 2, 3))
    assert float(mean[1] / mean[0]) == pytest.approx(3, rel=0.05)
    assert float(deviation[1] / deviation[0]) == pytest.approx(3, rel=0.1)
    # Rayleigh distribution for one look: standard deviation over mean
    expected = {1: (4 / torch.pi - 1) ** 0.5, 8: 0.18}[looks]
    assert float(deviation[0] / mean[0]) == pytest.approx(expected, rel=0.1)


def test_tone_curve_spans_the_range_and_is_a_function_of_the_value():
    x = torch.linspace(0, 1, 501)[None, None, None]
    for seed in range(5):
        y = synthetic.random_curve(x, generator(seed))
        assert float(y.min()) == pytest.approx(0, abs=0.01)
        assert float(y.max()) == pytest.approx(1, abs=0.01)
        torch.testing.assert_close(synthetic.random_curve(x.flip(3), generator(seed)).flip(3), y)


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_change_colours_within_range(name):
    for seed in range(4):
        colour = patches()
        changed = getattr(synthetic, name)(colour, generator(seed))
        assert changed.shape == colour.shape
        assert 0 <= changed.min() <= changed.max() <= 1
        assert (changed - colour).abs().mean() > 0.005


def bright_square():
    """(1, 3, 64, 64), grey ground with a bright square at 28..35."""
    colour = torch.full((1, 3, 64, 64), 0.4)
    colour[:, :, 28:36, 28:36] = 0.9
    return colour


def test_shadows_fall_beside_what_is_bright_to_different_sides():
    sides = set()
    for seed in range(16):
        change = (synthetic.cast_shadows(bright_square(), generator(seed)) - bright_square())[0, 0]
        dark = torch.nonzero(change < -0.08).float()
        assert len(dark) >= 8
        assert (dark - 31.5).abs().max() <= 4 + 9  # the side of the square and the longest shadow
        assert change[28:36, 28:36].mean() > -0.05
        sides.add(tuple((dark.mean(0) > 31.5).tolist()))
    assert len(sides) >= 3


def test_radar_lies_over_to_the_side_that_is_lit():
    """A bright edge on one side of the square, spread outwards; none on the other side."""
    for seed in range(6):
        weights = synthetic.radar(bright_square(), generator(seed))[0, 0]
        assert torch.isfinite(weights).all()
        assert weights[20:44, 20:44].std() > 2 * weights[:12].std()


def test_contour_maps_are_flat_between_their_lines():
    ramp = torch.linspace(0, 1, 64).expand(2, 3, 64, 64).contiguous()
    for seed in range(6):
        values = synthetic.contour_map(ramp, generator(seed)).unique()
        assert 3 <= len(values) <= 12


def test_surface_has_steps_without_texture():
    colour = step_edge() + 0.1 * (torch.rand(4, 1, 64, 64, generator=generator()) > 0.9)
    for seed in range(3):
        surface = synthetic.surface(colour, generator(seed))
        away = torch.cat([surface[..., 4:16], surface[..., 34:60]], 3)
        across = (surface[..., 4:16].mean() - surface[..., 34:60].mean()).abs()
        assert away.diff(dim=2).abs().mean() < 0.05 * across


def test_smear_is_along_one_direction_and_keeps_the_mean():
    point = torch.zeros(1, 1, 64, 64)
    point[..., 32, 30] = 1
    seen = set()
    for seed in range(8):
        out = synthetic.smeared(point, generator(seed))[0, 0]
        assert float(out.sum()) == pytest.approx(1)
        rows, columns = ((out.sum(k) > 0).sum().item() for k in (1, 0))
        assert min(rows, columns) == 1
        assert max(rows, columns) in (3, 5, 7)
        seen.add(rows > columns)
    assert seen == {True, False}


def test_moved_by_whole_pixels():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    moved = synthetic.shifted(x, 1, -2)
    assert moved[0, 0, 0].tolist() == [8, 8, 9, 10]
    assert moved[0, 0, 3].tolist() == [12, 12, 13, 14]
