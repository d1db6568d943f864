"""The dense search: what is searched in which order, and what is found."""

import numpy as np
import pytest
from scenes import NEAR, corner_error, frame_of, make_scene, moved

from rrl_match import Search
from rrl_match.registration.config import Config
from rrl_match.registration.dense_search import Hypothesis, Region, distinct, propose, stages
from rrl_match.registration.overlay import overlap_of
from rrl_match.transforms import Similarity, Translation, resizing, similarity

CONFIG = Config()
ANYWHERE = Region(Similarity(np.eye(3)), False, np.inf)


def determinants(frame, search, region=ANYWHERE):
    scales = [scale for stage in stages(frame, search, region, CONFIG.search) for scale in stage]
    return np.array([np.linalg.det(scale.linear) for scale in scales])


@pytest.fixture(scope="module")
def frame():
    return frame_of(make_scene(0, (200, 240)), make_scene(1, (100, 120)))


def test_scales_follow_from_the_sizes(frame):
    """Either image may show from a sixteenth to all of the area that the other shows."""
    factors = np.sqrt(np.abs(determinants(frame, Search())))
    assert factors.min() == pytest.approx(0.5 / 4)
    assert factors.max() == pytest.approx(0.5 * 4)
    given = np.sqrt(np.abs(determinants(frame, Search(scale=(0.4, 0.6)))))
    assert (given.min(), given.max()) == pytest.approx((0.4, 0.6))


def test_mirror_images_are_searched_if_asked(frame):
    assert (determinants(frame, Search()) > 0).all()
    assert (determinants(frame, Search(mirrored=True)) < 0).any()


def test_an_initial_transform_is_where_the_search_starts(frame):
    region = Region(similarity(90, 0.5), True, 10.0)
    scales = [s for stage in stages(frame, Search(rotation=5, aspect=1), region, CONFIG.search) for s in stage]
    for scale in scales:
        assert scale.linear[0, 1] < 0, "rotated by about 90 degrees"
        assert abs(scale.linear[0, 0]) < 1e-9
        assert 0.5 / 1.31 < np.sqrt(np.linalg.det(scale.linear)) < 0.5 * 1.31
        assert np.abs(scale.rotations).max() <= 5


def test_the_similarity_is_found():
    scene = make_scene(0)
    there, truth = moved(scene, 12, 0.9, (5, 3))
    frame = frame_of(scene, there)
    scales = next(iter(stages(frame, NEAR, ANYWHERE, CONFIG.search)))
    found = propose([frame], scales, 5, ANYWHERE, CONFIG)
    assert corner_error(found[0].transform, truth, scene.shape) < 12, "a step of the scales"
    assert found[0].score == max(h.score for h in found)
    near = propose([frame], scales, 5, Region(Translation(np.eye(3)), True, 4.0), CONFIG)
    centre = np.array([109.5, 94.5])
    off = [np.linalg.norm(h.transform(centre) - centre) for h in near]
    assert max(off) < 4 + 3 * 3, "the shift, and two pixels of the level"


def test_hypotheses_that_are_alike_count_once():
    frame = frame_of(make_scene(0), make_scene(1))
    found = [Hypothesis(k, Translation([[1, 0, x], [0, 1, 0]])) for k, x in enumerate((0, 1, 60))]
    assert [h.score for h in distinct(found, frame, 0.04, 9)] == [2, 1]
    assert len(distinct(found, frame, 0.04, 1)) == 1


def test_units_and_shares_are_those_of_the_overlap():
    frame = frame_of(make_scene(0, (200, 240)), make_scene(1, (100, 120)))
    shrinking = overlap_of(frame, resizing(2.0))
    assert shrinking.unit == 1, "B is coarser"
    assert shrinking.of_a == pytest.approx(1, abs=0.03)
    enlarging = overlap_of(frame, similarity(0, 3.0))
    assert enlarging.unit == pytest.approx(3), "A is coarser"
    assert enlarging.of_a == pytest.approx(1 / 36, rel=0.1)
    assert enlarging.side == pytest.approx(np.sqrt(100 * 120) / 3, rel=0.05)
    assert overlap_of(frame, Translation([[1, 0, 5000], [0, 1, 0]])) is None
