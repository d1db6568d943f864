"""A displacement field: applied, inverted, differentiated, warped by, stored and put between other transforms."""

import dataclasses
import pickle

import cv2
import numpy as np
import pytest

from rrl_match.transforms import Affine, DisplacementField, Homography, Transform, Translation, similarity
from rrl_match.transforms.displacement import basis, dense_basis

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-30, 230, (60, 2))
TO_CELLS = Affine([[6 / 200, 0, 0], [0, 4 / 160, -0.2]])
FIELD = DisplacementField(Affine([[1.05, 0.1, 3], [-0.1, 0.95, 8]]), RNG.normal(size=(7, 9, 2)) * 6, TO_CELLS)
BENT = DisplacementField(Homography([[1, 0, 3], [0, 1, 8], [1e-4, 0, 1]]), FIELD.coefficients, TO_CELLS)


@pytest.mark.parametrize("field", [FIELD, BENT])
def test_inverse_undoes_it(field):
    np.testing.assert_allclose(field.inverse()(field(POINTS)), POINTS, atol=1e-6)
    np.testing.assert_allclose(field(field.inverse()(POINTS)), POINTS, atol=1e-6)
    assert field.inverse().inverse().inverted is False
    np.testing.assert_array_equal(field(POINTS[0]), field(POINTS)[0])
    assert field(np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("field", [FIELD, BENT, FIELD.inverse()])
def test_jacobian_is_the_derivative(field):
    step = 1e-4
    columns = [(field(POINTS + step * e) - field(POINTS - step * e)) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(field.jacobian(POINTS), np.stack(columns, 2), atol=1e-5)


def test_displacement_is_the_spline_and_stays_the_same_beside_its_grid():
    at = RNG.uniform((0, 0), (6, 4), (20, 2))
    expected = np.einsum("ni,ijc,nj->nc", dense_basis(at[:, 1], 4), FIELD.coefficients, dense_basis(at[:, 0], 6))
    np.testing.assert_allclose(FIELD.displacement(TO_CELLS.inverse()(at)), expected, atol=1e-9)
    beside, border = TO_CELLS.inverse()([[-3.0, 2.0], [0.0, 2.0]])
    np.testing.assert_allclose(FIELD.displacement([beside]), FIELD.displacement([border]), atol=1e-9)
    np.testing.assert_allclose(basis(np.linspace(0, 5, 30), 5).values.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("field", [FIELD, BENT, FIELD.inverse()])
def test_map_is_that_of_each_pixel(field):
    x, y = np.meshgrid(np.arange(190), np.arange(150))
    pixels = np.stack([x, y], -1).reshape(-1, 2)
    off = np.linalg.norm(field.map((150, 190)).reshape(-1, 2) - field.inverse()(pixels), axis=1)
    assert np.quantile(off, 0.95) < 0.02
    assert off.max() < 0.15


def test_warp():
    image = cv2.GaussianBlur(RNG.random((150, 190)).astype(np.float32), (0, 0), 3)
    warped = FIELD.warp(image, (140, 180))
    inside = FIELD.inverse()([[90.0, 70.0]])[0]
    expected = cv2.getRectSubPix(image, (1, 1), tuple(inside.astype(np.float32)))[0, 0]
    assert warped[70, 90] == pytest.approx(expected, abs=1e-3)
    assert FIELD.warp((image > 0.5).astype(np.int64), (140, 180), "nearest").dtype == np.int64


def test_stored_and_read():
    for field in (BENT, FIELD.inverse()):
        for copy in (Transform.from_dict(field.to_dict()), pickle.loads(pickle.dumps(field))):
            np.testing.assert_array_equal(copy(POINTS), field(POINTS))


@pytest.mark.parametrize("field", [FIELD, FIELD.inverse()])
def test_between_other_transforms(field):
    before, after = similarity(20, 1.3, (4, 2)), Affine([[0, 0.5, 3], [-0.5, 0.1, 9]])
    np.testing.assert_allclose(field.between(before, after)(POINTS), after(field(before(POINTS))), atol=1e-6)
    with pytest.raises(TypeError, match="must have a matrix"):
        field.between(FIELD, after)


def test_nothing_but_affine_transforms_can_follow():
    with pytest.raises(ValueError, match="affine"):
        FIELD.between(Translation(np.eye(3)), BENT.base)


def test_folds():
    assert not FIELD.folds
    assert dataclasses.replace(FIELD, coefficients=FIELD.coefficients * 20).folds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": [[1.0]]}, "coefficients must be"),
        ({"base": FIELD.to_dict()}, "must have a matrix"),
        ({"to_cells": None}, "matrix"),
    ],
)
def test_malformed_numbers_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Transform.from_dict({**FIELD.to_dict(), **change})
    with pytest.raises(ValueError, match="cannot be read"):
        Transform.from_dict({"kind": "local"})
