"""What speaks for a transform, and the verdict on it."""

import numpy as np
import pytest
from scenes import EdgeMatcher, NoDescriptors, frame_of, make_scene, moved

from rrl_match.registration.config import Config
from rrl_match.registration.dense_search import Hypothesis
from rrl_match.registration.error import Misfit
from rrl_match.registration.refinement import Freedom, refine
from rrl_match.registration.verification import Alternatives, Judged, judge, log_odds, measure, verify
from rrl_match.transforms import Affine, Similarity, Translation, compose

CONFIG = Config()
FAR = Translation([[1, 0, 60], [0, 1, 0]])


@pytest.fixture(scope="module")
def right():
    """Frames, and the evidence of the true transform."""
    scene = make_scene(0)
    there, truth = moved(scene, 3, 1.02)
    frames = [frame_of(scene, there)]
    refined = refine(frames, truth, Freedom(Affine, Similarity(np.eye(3)), True, 1.5), CONFIG)
    return frames, measure(EdgeMatcher(), frames, refined, CONFIG)


def test_evidence_of_the_right_transform(right):
    _, evidence = right
    assert evidence.fault == ""
    assert evidence.mutual > 0.6
    assert evidence.peak > 3.5
    assert evidence.misfit.part_beyond(3.0) == 0
    assert evidence.agreeing.mean() > 0.9
    assert log_odds(evidence, 2.0, CONFIG.verify) > CONFIG.verify.certain


def test_odds_fall_with_all_that_speaks_against_a_transform(right):
    frames, evidence = right
    odds = log_odds(evidence, 2.0, CONFIG.verify)
    forgetful = measure(NoDescriptors(), frames, evidence.refined, CONFIG)
    assert not forgetful.judgement.mutual.any()
    assert log_odds(forgetful, 2.0, CONFIG.verify) < odds
    assert log_odds(evidence, 1.2, CONFIG.verify) < odds
    for worse in ({"mutual": 0.1}, {"support": 0.1}, {"peak": 1.0}):
        assert log_odds(evidence._replace(**worse), 2.0, CONFIG.verify) < odds
    unsettled = measure(EdgeMatcher(), frames, evidence.refined._replace(moved=0.05), CONFIG)
    assert "not settled" in unsettled.fault
    assert log_odds(unsettled, 2.0, CONFIG.verify) == -np.inf


def test_a_alternative_decides_only_if_it_is_distinct_supported_and_agrees(right):
    _, evidence = right
    there = compose(evidence.refined.transform, FAR)

    def verdict(score, transform, support):
        waiting = [Judged(Hypothesis(score, transform), support, support)]
        return verify(evidence, Alternatives([], waiting), 0.4, CONFIG)

    much, little = 0.9 * evidence.agreement, 0.4 * evidence.agreement
    assert verdict(much, there, evidence.support).alternative is not None, "must be refined first"
    for harmless in (
        (much, evidence.refined.transform, evidence.support),
        (much, there, 0.4 * evidence.support),
        (little, there, evidence.support),
    ):
        assert verdict(*harmless).alternative is None
        assert verdict(*harmless).reason == ""


def test_a_refined_alternative_that_agrees_as_well_means_a_refusal(right):
    _, evidence = right
    other = evidence.refined._replace(transform=compose(evidence.refined.transform, FAR))
    alternative = evidence._replace(refined=other, agreement=0.9 * evidence.agreement)
    verdict = verify(evidence, Alternatives([alternative], []), 0.4, CONFIG)
    assert verdict.ratio == pytest.approx(1 / 0.9)
    assert "another transform fits nearly as well" in verdict.reason
    doubtful = alternative._replace(mutual=0.0, support=0.0, peak=0.0)
    assert verify(evidence, Alternatives([doubtful], []), 0.4, CONFIG).reason == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"misfit": Misfit(np.zeros((4, 2)), np.array([0, 0, 9.0, 9.0]), np.ones(4, bool))}, "bent against each other"),
        ({"misfit": Misfit(np.zeros((3, 2)), np.array([0, 3.5, 3.5]), np.ones(3, bool))}, "bent against each other"),
        ({"mutual": 0.0, "support": 0.0, "peak": 0.0}, "no transform stands out"),
        ({"fault": "only 3% agree"}, "only 3% agree"),
    ],
)
def test_reasons(right, change, reason):
    _, evidence = right
    assert verify(evidence, Alternatives([], []), 0.4, CONFIG).reason == ""
    assert reason in verify(evidence._replace(**change), Alternatives([], []), 0.4, CONFIG).reason


def test_matches_on_a_line_are_refused(right):
    _, evidence = right
    judgement = evidence.judgement
    line = judgement.locations * (1, 0)
    there = evidence._replace(judgement=judgement._replace(locations=line))
    assert "on a line" in verify(there, Alternatives([], []), 0.4, CONFIG).reason


def test_hypotheses_are_ranked_by_the_network(right):
    frames, evidence = right
    wrong = compose(evidence.refined.transform, FAR)
    hypotheses = [Hypothesis(1.0, wrong), Hypothesis(1.0, evidence.refined.transform)]
    judged = judge(EdgeMatcher(), frames, hypotheses, CONFIG)
    assert judged[0].hypothesis.transform is evidence.refined.transform
    assert judged[0].support > 2 * judged[1].support
    nowhere = [Hypothesis(1.0, Translation([[1, 0, 900], [0, 1, 0]]))]
    assert judge(EdgeMatcher(), frames, nowhere, CONFIG)[0].support == 0


def test_peak_falls_with_the_part_that_both_images_show(right):
    _, evidence = right
    scene = make_scene(0)
    left = np.zeros_like(scene)
    left[:, : scene.shape[1] // 2] = 1
    there, truth = moved(scene, 3, 1.02)
    half = [frame_of(scene, there, left)]
    refined = refine(half, truth, Freedom(Similarity, Similarity(np.eye(3)), True, 1.5), CONFIG)
    assert 0 < measure(EdgeMatcher(), half, refined, CONFIG).peak < evidence.peak
