"""A hypothesis is refined to a part of a pixel, and a wrong one does not stay where it is."""

import numpy as np
import pytest
from scenes import corner_error, frame_of, make_scene, moved

from rrl_match.registration.config import Config
from rrl_match.registration.refinement import Freedom, refine
from rrl_match.transforms import Affine, Homography, Similarity, Translation, compose

IDENTITY = Similarity(np.eye(3))


@pytest.mark.parametrize(("kind", "bound"), [(Similarity, 0.3), (Affine, 0.5), (Homography, 1.5)])
def test_refinement_is_exact(kind, bound):
    scene = make_scene(0)
    there, truth = moved(scene, 3, 1.02)
    frame = frame_of(scene, there)
    rough = compose(truth, Translation([[1, 0, 4], [0, 1, -3]]))
    refined = refine([frame], rough, Freedom(kind, IDENTITY, False, 1.5), Config())
    assert refined.kind is kind
    assert corner_error(refined.transform, truth, scene.shape) < bound
    assert refined.moved < 0.01
    assert refined.blocks.agreeing(refined.transform, 3.0).mean() > 0.8


def test_images_that_do_not_overlap_are_not_refined():
    frame = frame_of(make_scene(0), make_scene(0))
    beyond = Translation([[1, 0, 5000], [0, 1, 0]])
    assert refine([frame], beyond, Freedom(Affine, IDENTITY, True, 1.5), Config()) is None
