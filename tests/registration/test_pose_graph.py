"""Transforms of many images onto one."""

import itertools

import numpy as np
import pytest

from rrl_match.registration.pose_graph import Link, adjust
from rrl_match.transforms import Affine, Homography, Similarity, Translation, compose, similarity

GRID = np.stack(np.meshgrid(np.linspace(0, 600, 8), np.linspace(0, 400, 6)), -1).reshape(-1, 2)
TO_REFERENCE = [
    Homography(similarity(4, 1.1, (12, -5)).full + np.array([[0, 0, 0], [0, 0, 0], [2e-5, -3e-5, 0]])),
    similarity(-2, 0.95, (-20, 8)),
    similarity(),
    similarity(1, 1.02, (7, 30)),
]


def link(a, b, noise=0.0, rng=None, transform=None):
    """What registration says of two of these images, with errors of this many pixels."""
    true = compose(TO_REFERENCE[a], TO_REFERENCE[b].inverse())
    off = noise * (rng or np.random.default_rng(0)).standard_normal(GRID.shape)
    found = transform or type(true)(true.full + 0.3 * noise * np.array([[0, 0, 1], [0, 0, -1], [0, 0, 0]]))
    return Link(a, b, found, GRID, (transform or true)(GRID) + off)


def errors(adjusted):
    """The mean error of each transform in pixels of the reference."""
    return [
        np.linalg.norm(found(GRID) - true(GRID), axis=1).mean()
        for found, true in zip(adjusted.transforms, TO_REFERENCE, strict=True)
    ]


def test_exact_links_give_exact_transforms():
    links = [link(a, b) for a, b in itertools.combinations(range(4), 2)]
    adjusted = adjust(links, 4, 2, Homography)
    np.testing.assert_allclose(errors(adjusted), 0, atol=1e-6)
    np.testing.assert_allclose(adjusted.residuals, 0, atol=1e-6)
    assert adjusted.agree.all()
    np.testing.assert_array_equal(adjusted.transforms[2].full, np.eye(3))


def test_all_links_together_are_more_accurate_than_those_to_the_reference():
    one_by_one, together = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        links = [link(a, b, 1.0, rng) for a, b in itertools.combinations(range(4), 2)]
        direct = [one for one in links if 2 in (one.a, one.b)]
        one_by_one += errors(adjust(direct, 4, 2, Homography))
        together += errors(adjust(links, 4, 2, Homography))
    assert np.mean(together) < 0.85 * np.mean(one_by_one)


def test_images_that_reach_the_reference_through_others_only():
    adjusted = adjust([link(0, 1), link(1, 2), link(2, 3)], 4, 2, Homography)
    np.testing.assert_allclose(errors(adjusted), 0, atol=1e-6)
    assert adjust([link(0, 1), link(2, 3)], 4, 2, Homography).transforms[:2] == [None, None]
    alone = adjust([link(0, 1)], 4, 2, Homography)
    assert [one is None for one in alone.transforms] == [True, True, False, True]
    assert np.isnan(alone.residuals).all()
    assert not alone.agree.any()
    assert adjust([], 1, 0, Affine).transforms[0].kind == "translation"


def test_accurate_links_count_most():
    rng = np.random.default_rng(0)
    links = [link(0, 2, 0.1, rng), link(0, 1, 2.0, rng), link(1, 2, 2.0, rng), link(2, 3)]
    assert errors(adjust(links, 4, 2, Homography))[0] < 0.1


def test_the_transform_of_a_link_counts_unless_it_is_simpler():
    true = Affine(np.array([[1.01, 0.02, 5], [0, 0.99, -3]]))
    off = np.random.default_rng(0).standard_normal(GRID.shape)
    simpler = Similarity.estimate(GRID, true(GRID))
    for given, bound in ((true, 1e-6), (simpler, 0.5)):
        found = adjust([Link(0, 1, given, GRID, true(GRID) + off)], 2, 1, Affine).transforms[0]
        assert np.linalg.norm(found(GRID) - true(GRID), axis=1).mean() < bound
    assert np.linalg.norm(simpler(GRID) - true(GRID), axis=1).mean() > 1


def test_a_wrong_link_hardly_counts():
    links = [link(a, b, 0.2) for a, b in itertools.combinations(range(4), 2)]
    links[0] = link(0, 1, transform=similarity(30, 0.7, (90, 50)))
    adjusted = adjust(links, 4, 2, Homography)
    assert max(errors(adjusted)) < 0.2
    assert adjusted.agree.tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("kind", [Translation, Similarity, Affine])
def test_only_the_freedom_of_the_kind_is_fitted(kind):
    links = [link(a, b, 0.3) for a, b in itertools.combinations((1, 2, 3), 2)]
    adjusted = adjust(links, 4, 2, kind)
    assert (
        max(np.linalg.norm(adjusted.transforms[k](GRID) - TO_REFERENCE[k](GRID), axis=1).mean() for k in (1, 3)) < 0.3
    )
    if kind is Translation:  # what cannot be fitted stays as the first link says
        np.testing.assert_allclose(adjusted.transforms[1].full[:2, :2], TO_REFERENCE[1].full[:2, :2], atol=1e-9)


def test_pixels_of_the_coarser_image_are_what_counts():
    coarse = similarity(0, 8.0, (3.5, 3.5))  # of an image with pixels eight times as large
    off = np.where(np.arange(len(GRID)) % 2, 1.0, -1.0)[:, None] * (0.5, 0)
    links = [Link(0, 1, coarse, GRID / 8, coarse(GRID / 8) + 8 * off), Link(0, 1, coarse, GRID / 8, coarse(GRID / 8))]
    assert adjust(links, 2, 1, Similarity).agree.all()
