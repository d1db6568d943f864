"""Each kind of transform: applied, inverted, differentiated, warped by, stored and estimated."""

import pickle

import cv2
import numpy as np
import pytest

from rrl_match.transforms import (
    Affine,
    FailedEstimation,
    Homography,
    MatrixTransform,
    Similarity,
    Transform,
    Translation,
    compose,
    matrix_kind,
    resizing,
    similarity,
    simpler_kinds,
)

EXAMPLES = [
    Translation([[1, 0, 3.5], [0, 1, -2]]),
    similarity(20, 1.1, (5, -3)),
    Affine([[1.1, 0.2, 5], [-0.1, 0.9, -3]]),
    Homography([[1.1, 0.2, 5], [-0.1, 0.9, -3], [2e-4, -1e-4, 1]]),
]
POINTS = np.random.default_rng(0).uniform(0, 200, (40, 2))
each_kind = pytest.mark.parametrize("transform", EXAMPLES, ids=lambda t: t.kind)


@each_kind
def test_inverse_undoes_a_transform(transform):
    assert type(transform.inverse()) is type(transform)
    np.testing.assert_allclose(transform.inverse()(transform(POINTS)), POINTS, atol=1e-9)


@each_kind
def test_call_is_that_of_the_homogeneous_matrix(transform):
    expected = cv2.perspectiveTransform(POINTS[None], transform.full)[0]
    np.testing.assert_allclose(transform(POINTS), expected, atol=1e-9)
    np.testing.assert_array_equal(transform(POINTS[0]), transform(POINTS)[0])
    assert transform(np.empty((0, 2))).shape == (0, 2)
    assert transform.matrix.shape == ((3, 3) if transform.kind == "homography" else (2, 3))


@each_kind
def test_jacobian_is_the_derivative(transform):
    step = 1e-4
    columns = [(transform(POINTS + step * e) - transform(POINTS - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(transform.jacobian(POINTS), np.stack(columns, 2), atol=1e-6)


@each_kind
def test_stored_and_read(transform):
    for copy in (Transform.from_dict(transform.to_dict()), pickle.loads(pickle.dumps(transform))):
        assert type(copy) is type(transform)
        np.testing.assert_array_equal(copy.full, transform.full)


@pytest.mark.parametrize(
    "values",
    [
        *({}, 7, {"kind": "spiral"}, {"kind": ["affine"]}),
        *({"kind": "affine"}, {"kind": "affine", "matrix": [[1, 2], [3, 4]]}, {"kind": "affine", "matrix": "abc"}),
        {"kind": "similarity", "matrix": [[1, 0, float("nan")], [0, 1, 0]]},
    ],
)
def test_malformed_values_are_refused(values):
    with pytest.raises(ValueError, match=r"kind|cannot be read|matrix|convert"):
        Transform.from_dict(values)


def test_a_transform_does_not_change_with_the_array_it_was_made_of():
    given = np.eye(3)
    transform = Affine(given)
    given[0, 2] = 9
    transform.matrix[0, 2] = 9
    assert transform.full[0, 2] == 0


@each_kind
def test_map_holds_where_pixels_come_from(transform):
    at = transform.map((7, 9, 3))
    assert at.shape == (7, 9, 2)
    assert at.dtype == np.float32
    np.testing.assert_allclose(transform(at[4, 6]), (6, 4), atol=1e-3)


@each_kind
def test_warp_is_resampling_at_the_map(transform):
    image = cv2.GaussianBlur(np.random.default_rng(1).random((60, 80)).astype(np.float32), (0, 0), 3)
    at = transform.map((50, 70))
    expected = cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    np.testing.assert_allclose(transform.warp(image, (50, 70)), expected, atol=2e-3)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int32", "uint32", "int64", "float16", "float64"])
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_warp_keeps_the_dtype(dtype, interpolation):
    """A shift by whole pixels takes each value along as it is."""
    image = np.random.default_rng(2).integers(0, 2 if dtype == "bool" else 120, (30, 40)).astype(dtype)
    if dtype in ("uint32", "int64") and interpolation != "cubic":
        image[5, 5] = 2**31 + 12345  # which float32 cannot hold
    there = Translation([[1, 0, 4], [0, 1, -3]]).warp(image, (30, 40), interpolation)
    assert there.dtype == image.dtype
    np.testing.assert_array_equal(there[2:25, 6:38], image[5:28, 2:34])
    assert not there[:, :4].any(), "zero where the image shows nothing"


@each_kind
def test_nearest_keeps_labels(transform):
    labels = np.random.default_rng(3).choice(np.array([0, 7, 200, 70_000], np.int32), (40, 50))
    for image in (labels, labels.astype(np.uint8), labels.astype(np.int64)):
        assert set(np.unique(transform.warp(image, (60, 60), "nearest"))) <= set(np.unique(image))


def test_nearest_of_all_dtypes_is_the_same():
    labels = np.random.default_rng(4).integers(0, 100, (40, 50))
    there = [EXAMPLES[2].warp(labels.astype(dtype), (45, 55), "nearest") for dtype in (np.uint8, np.int64)]
    assert (there[0] == there[1]).mean() > 0.99, "but for halves, which are rounded either way"


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_warp_of_several_channels(channels):
    image = np.random.default_rng(5).random((30, 40, channels)).astype(np.float32)
    there = EXAMPLES[2].warp(image, (35, 45, 3))
    assert there.shape == (35, 45, channels)
    for k in range(channels):
        alone = EXAMPLES[2].warp(image[..., k], (35, 45))
        np.testing.assert_allclose(there[..., k], alone, atol=0.04)  # OpenCV rounds locations, to 1/32 px at worst


def test_images_longer_than_opencv_counts_are_warped():
    image = np.zeros((4, 40_000), np.uint8)
    image[:, 39_000] = 200
    assert Translation([[1, 0, -38_990], [0, 1, 0]]).warp(image, (4, 20))[1].argmax() == 10


@pytest.mark.parametrize("image", [np.zeros(5), np.zeros((2, 2, 2, 2)), np.array([["a"]])])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="image must be numbers"):
        EXAMPLES[0].warp(image, (4, 4))


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="interpolation must be one of nearest, linear, cubic, got 'area'"):
        EXAMPLES[0].warp(np.zeros((4, 4)), (4, 4), "area")


@each_kind
def test_estimate_is_exact_for_exact_points(transform):
    found = type(transform).estimate(POINTS, transform(POINTS))
    assert type(found) is type(transform)
    np.testing.assert_allclose(found.full, transform.full, atol=1e-7)


@each_kind
def test_points_without_weight_do_not_count(transform):
    matched, weights = transform(POINTS), np.ones(len(POINTS))
    matched[::4] += 30
    weights[::4] = 0
    np.testing.assert_allclose(type(transform).estimate(POINTS, matched, weights).full, transform.full, atol=1e-7)
    assert not np.allclose(type(transform).estimate(POINTS, matched).full, transform.full, atol=1e-3)


def test_estimate_minimises_the_weighted_squares():
    rng = np.random.default_rng(6)
    weights, noisy = rng.uniform(0.1, 3, len(POINTS)), EXAMPLES[2](POINTS) + rng.normal(0, 2, POINTS.shape)
    rows = np.column_stack([POINTS, np.ones(len(POINTS))]) * np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(rows, noisy * np.sqrt(weights)[:, None], rcond=None)[0].T
    np.testing.assert_allclose(Affine.estimate(POINTS, noisy, weights).matrix, expected, atol=1e-6)


@each_kind
def test_robust_estimate_leaves_outliers_out(transform):
    rng = np.random.default_rng(7)
    matched = transform(POINTS) + rng.normal(0, 0.2, POINTS.shape)
    matched[::4] += rng.uniform(20, 60, (10, 2))
    found = type(transform).estimate_robust(POINTS, matched, 3.0)
    assert np.linalg.norm(found(POINTS) - transform(POINTS), axis=1).max() < 1.5
    again = type(transform).estimate_robust(POINTS, matched, 3.0)
    np.testing.assert_array_equal(found.full, again.full)


@pytest.mark.parametrize("points", [np.zeros((20, 2)), np.outer(np.arange(20.0), [1, 2]), np.zeros((1, 2)), POINTS[:0]])
@each_kind
def test_points_that_determine_nothing(transform, points):
    """All at one location, on a line, or too few: false with a reason, or a finite transform, never an exception."""
    kind = type(transform)
    for found in (kind.estimate(points, points + 1), kind.estimate_robust(points, points + 1, 3.0)):
        if found:
            assert np.isfinite(found.full).all()
        else:
            assert isinstance(found, FailedEstimation)
            assert kind.kind in found.reason
    if kind.parameters > 4 or len(points) == 0:
        assert not kind.estimate(points, points + 1)


@pytest.mark.parametrize("matrix", [np.eye(2), np.full((3, 3), np.nan), [[1, 0], [0, 1], [0, 0]]])
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match=r"a matrix must be \(2, 3\) or \(3, 3\) finite numbers"):
        Affine(matrix)


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_compose_applies_one_after_the_other(first, second):
    both = compose(EXAMPLES[first], EXAMPLES[second])
    assert type(both) is type(EXAMPLES[max(first, second)])
    np.testing.assert_allclose(both(POINTS), EXAMPLES[second](EXAMPLES[first](POINTS)), atol=1e-9)


class Rotation(MatrixTransform):
    """Rotation about the origin; not registered, for other tests look through all registered kinds."""

    kind = "rotation"
    parameters = 1

    @classmethod
    def basis(cls, points):
        return np.stack([-points[:, 1], points[:, 0]], 1)[:, :, None]

    @classmethod
    def near_identity(cls, parameters):
        c, s = np.cos(parameters[0]), np.sin(parameters[0])
        return cls(np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]))


class Stretch(Rotation):
    """Scale of x alone."""

    kind = "stretch"

    @classmethod
    def basis(cls, points):
        return np.stack([points[:, 0], np.zeros(len(points))], 1)[:, :, None]


@pytest.mark.parametrize(("other", "expected"), [(Rotation, Rotation), (Translation, Similarity), (Stretch, Affine)])
def test_kinds_of_which_neither_includes_the_other(other, expected):
    """Together they are of the simplest kind that includes both, in either order; also with as many parameters."""
    rotation = Rotation(similarity(20).matrix)
    transform = other([[1, 0, 3], [0, 1, 0]])
    assert type(compose(rotation, transform)) is type(compose(transform, rotation)) is expected


def test_resizing_keeps_the_corner():
    """The corner of an image lies at -1/2 however large its pixels are."""
    np.testing.assert_allclose(resizing(2.0)([[-0.5, -0.5], [0.5, 2.5]]), [[-0.5, -0.5], [0.0, 1.0]])
    np.testing.assert_allclose(resizing((2.0, 4.0))([0.5, 3.5]), [0.0, 0.5])


def test_scale():
    assert similarity(33, 1.7).scale((5, 9)) == pytest.approx(1.7)
    assert Affine([[2, 0, 0], [0, -0.5, 0]]).scale((0, 0)) == pytest.approx(1.0)


def test_kinds_by_name():
    assert matrix_kind("affine") is Affine
    with pytest.raises(ValueError, match=r"translation, similarity, affine, homography.*got 'rigid'"):
        matrix_kind("rigid")
    assert simpler_kinds(Homography) == [Similarity, Affine]
    assert simpler_kinds(Similarity) == []
    assert issubclass(Affine, MatrixTransform)
