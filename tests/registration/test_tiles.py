"""A transform is refined at full resolution on tiles, and only where these agree."""

import dataclasses

import numpy as np
import pytest
from scenes import corner_error, frame_of, make_scene, moved

from rrl_match.registration import Config, Registration, TiePoints
from rrl_match.registration.config import RefineConfig, TileConfig
from rrl_match.registration.overlay import overlap_of
from rrl_match.registration.refinement import Freedom, fit
from rrl_match.registration.tiles import Part, Reader, refine_on_tiles
from rrl_match.transforms import Affine, Similarity, Translation, compose, resizing, similarity

CONFIG = Config(refine=RefineConfig(finest_pixels=64_000), tiles=TileConfig(side=256, few=2, most=3))
FREEDOM = Freedom(Affine, Similarity(np.eye(3)), True)
SHAPE = (720, 800)


def fitted(blocks, around, config):
    found = fit(blocks, around, FREEDOM, config)
    return None if found is None else (found[0], found[1].kind)


@pytest.fixture(scope="module")
def pair():
    """A scene, what another sensor sees of it, and the true transform."""
    scene = make_scene(0, SHAPE)
    return scene, *moved(scene, 2, 1.01, (4.3, -6.6))


def roughly(transform):
    """A registration that is accepted, with tie points all over the images, two of three of which are inliers."""
    x, y = np.meshgrid(np.linspace(60, SHAPE[1] - 60, 9), np.linspace(60, SHAPE[0] - 60, 9))
    points = np.stack([x.ravel(), y.ravel()], 1)
    nothing = np.zeros(len(points))
    inliers = np.arange(len(points)) % 3 > 0
    ties = TiePoints(points, transform(points), nothing.astype(np.float32), nothing, inliers)
    return Registration(transform, model="similarity", tie_points=ties)


def refined(start, a, b, finer=(None, None), config=CONFIG):
    frame = frame_of(a, b)
    readers = Reader(frame.a, finer[0]), Reader(frame.b, finer[1])
    overlap = overlap_of(frame, start.transform or start.rejected)
    return refine_on_tiles(start, [readers], overlap, fitted, config)


class Fine:
    """A `Source` that cuts an image, which was registered at a third of its resolution, and counts its pixels."""

    finest = 1 / 3

    def __init__(self, image, mask=None):
        self.image, self.mask, self.pixels = image, mask, 0

    def __call__(self, low, high, pixel):
        to_fine = resizing(3).inverse()
        left, top = to_fine(low).clip(0).astype(int)
        right, bottom = to_fine(high).astype(int) + 1
        part = self.image[top:bottom, left:right]
        self.pixels = max(self.pixels, part.size)
        from_whole = compose(to_fine, similarity(shift=(-left, -top)))
        mask = None if self.mask is None else self.mask[top:bottom, left:right]
        return Part(part, mask, Affine(from_whole.full)) if min(part.shape) >= 32 else None


def test_arrays_are_refined_to_a_tenth_of_a_pixel(pair):
    scene, there, truth = pair
    rough = compose(truth, Affine([[1.003, 0, 2.5], [0, 0.998, -3]]))
    found = refined(roughly(rough), scene, there)
    assert corner_error(rough, truth, SHAPE) > 3
    assert corner_error(found.transform, truth, SHAPE) < 0.1
    assert found.model == found.transform.kind == "similarity"
    assert found.notes == ()
    points = found.tie_points
    assert len(points) >= 200
    assert np.median(np.linalg.norm(truth(points.a) - points.b, axis=1)) < 0.15
    np.testing.assert_allclose(points.residuals, np.linalg.norm(found.transform(points.a) - points.b, axis=1))
    assert points.inliers.mean() > 0.95
    assert points.b.min() < 80, "they are spread over all of the overlap"
    assert (points.b.max(0) > np.array(SHAPE[::-1]) - 80).all()


def test_a_freer_kind_is_taken_if_the_tiles_tell_it(pair):
    scene, _, _ = pair
    truth = Affine([[1.002, 0, 1], [0, 1, 2]])
    there = truth.warp(255 - scene, SHAPE)
    found = refined(roughly(Similarity(np.eye(3))), scene, there)
    assert found.model == "affine"
    assert corner_error(found.transform, truth, SHAPE) < 0.1


def test_reduced_images_are_refined_on_what_a_source_reads(pair):
    """The image in memory has a third of the resolution, and a ninth of the pixels; only tiles are read."""
    scene, there, truth = pair
    reduced = [resizing(3).warp(image, (240, 267)) for image in (scene, there)]
    fine = [Fine(scene), Fine(there, there > 0)]
    expected = compose(compose(resizing(3).inverse(), truth), resizing(3))
    rough = compose(expected, Translation([[1, 0, 0.8], [0, 1, -0.7]]))
    start = roughly(rough)
    ties = dataclasses.replace(start.tie_points, a=start.tie_points.a / 3, b=rough(start.tie_points.a / 3))
    found = refined(dataclasses.replace(start, tie_points=ties), *reduced, fine)
    assert 3 * corner_error(found.transform, expected, (240, 267)) < 0.1
    assert len(found.tie_points) >= 200
    assert max(one.pixels for one in fine) < 0.5 * scene.size


def test_a_mask_of_the_whole_image_holds_for_its_parts(pair):
    scene, _, _ = pair
    known = np.ones((240, 267), np.uint8)
    known[:, 100:] = 0
    frame = frame_of(resizing(3).warp(scene, (240, 267)), scene, known)
    part, from_whole = Reader(frame.a, Fine(scene)).read(np.array([60.0, 60]), np.array([140.0, 140]), 1 / 3)
    columns = from_whole(np.array([(99.0, 80), (100.0, 80)]))[:, 0]
    assert part.known[:, : int(columns[0])].all()
    assert not part.known[:, int(np.ceil(columns[1])) + 1 :].any()
    assert Reader(frame.a).read(np.array([150.0, 0]), np.array([200.0, 50]), 1.0) is None


def test_the_coarse_transform_stays_where_the_tiles_disagree(pair):
    """Both show the same coarsely; their pixels are noise."""
    truth = pair[2]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, SHAPE, np.uint8) for _ in range(2)]
    found = refined(roughly(truth), *noise)
    assert found.transform is truth
    assert "pixels of B only" in found.notes[0]


def test_nothing_is_read_where_there_is_nothing_finer(pair):
    scene, there, truth = pair
    start = roughly(truth)
    assert refined(start, scene, there, config=Config()) is start
    refused = Registration(rejected=truth, reason="no transform stands out from others")
    assert refined(refused, scene, there) is refused
