"""RRL-Net's judgement of transforms: do locations show the same under them?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.extraction import extract_patches
from rrl_match.matcher import RRLMatcher
from rrl_match.registration.geometry import Matrix, Points, apply, inverse, jacobian, scale_of
from rrl_match.registration.images import Frame, Grey, Mask
from rrl_match.registration.settings import Settings


class ScoringError(Exception):
    """The network gave no scores, as where float16 overflows."""


class Judgement(NamedTuple):
    """Scores of locations under a transform.

    Attributes:
        locations: (N, 2) xy in A.
        frame: (N,) index of the frame.
        rows: (N,) row of the location in what was given.
        scores: (N,) in [0, 1].
        mutual: (N,) bool, whether the descriptors of both bands are mutual nearest neighbours among all locations,
            those nearby aside. Empty where only scores were asked for, False for weights without descriptors.
    """

    locations: Points
    frame: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    mutual: NDArray[np.bool_]

    def support(self, prior: float) -> float:
        """Mean score, drawn towards 0 as `prior` more locations that do not match would: few locations prove little."""
        return float(self.scores.sum() / (len(self.scores) + prior))

    def recognised(self, prior: float) -> float:
        """Part of the locations whose descriptors are mutual nearest neighbours, drawn towards 0 like the support."""
        return float(self.mutual.sum() / (len(self.scores) + prior))


class _View(NamedTuple):
    """A frame as it is judged under a transform, A and B shrunk so that it scales by about 1.

    Attributes:
        a, b: images.
        to_a: (3, 3), from the full image A to `a`.
        a_to_b: (3, 3), from `a` to `b`.
        inside_a: where a patch of `a` lies inside.
        inside_b: where the patch of `b` that belongs to a pixel of `a` lies inside, in the shape of `a`.
    """

    a: Grey
    b: Grey
    to_a: Matrix
    a_to_b: Matrix
    inside_a: Mask
    inside_b: Mask


class _Patches(NamedTuple):
    """Patches of A and of B, (N, size, size), their locations (N, 2) in A and their rows (N,) in what was given."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    locations: Points
    rows: NDArray[np.int64]


def judge(
    matcher: RRLMatcher, frames: Sequence[Frame], matrices: Sequence[Matrix], count: int, settings: Settings
) -> list[Judgement]:
    """Judge transforms (3, 3), all of them in one batch, at `count` corners each, spread over all frames."""
    each, size = max(4, math.ceil(count / len(frames))), matcher.patch_size
    cut = [[_patches(size, frame, matrix, each, None, settings) for frame in frames] for matrix in matrices]
    flat = [patches for of_matrix in cut for patches in of_matrix]
    try:
        scores = matcher.score(np.concatenate([p.a for p in flat]), np.concatenate([p.b for p in flat]))
    except ValueError as error:  # the patches are sound, so that only the network can have failed
        raise ScoringError(str(error)) from error
    ends = np.cumsum([sum(len(patches.rows) for patches in of_matrix) for of_matrix in cut])
    parts = np.split(scores, ends[:-1])
    return [_judgement(of_matrix, part) for of_matrix, part in zip(cut, parts, strict=True)]


def judge_at(
    matcher: RRLMatcher,
    frames: Sequence[Frame],
    matrix: Matrix,
    locations: Sequence[Points],
    count: int,
    settings: Settings,
) -> Judgement:
    """Judge a transform (3, 3) at `count` of the locations (N, 2) in A that each frame has, by descriptors, too.

    Locations whose patch does not lie inside both images are left out.
    """
    each, size = max(4, math.ceil(count / len(frames))), matcher.patch_size
    cut = [_patches(size, frame, matrix, each, at, settings) for frame, at in zip(frames, locations, strict=True)]
    features_a = matcher.encode(np.concatenate([patches.a for patches in cut]), "a")
    features_b = matcher.encode(np.concatenate([patches.b for patches in cut]), "b")
    try:
        scores = matcher.score_features(features_a, features_b, np.arange(len(features_a))[:, None].repeat(2, 1))
    except ValueError as error:
        raise ScoringError(str(error)) from error
    judgement = _judgement(cut, scores)
    similarity = (features_a.descriptors @ features_b.descriptors.T).cpu().numpy()
    return judgement._replace(mutual=_mutual(similarity, judgement, settings.nearby))


def _judgement(cut: Sequence[_Patches], scores: NDArray[np.float32]) -> Judgement:
    """The judgement of a transform from the patches of each frame, and their scores."""
    frame = np.repeat(np.arange(len(cut)), [len(patches.rows) for patches in cut])
    locations, rows = np.concatenate([p.locations for p in cut]), np.concatenate([p.rows for p in cut])
    return Judgement(locations, frame, rows, scores, np.empty(0, np.bool_))


def _mutual(similarity: NDArray[np.float32], judgement: Judgement, nearby: float) -> NDArray[np.bool_]:
    """Which patches (N,) of A and of B are nearest to each other by similarity (N, N), those nearby aside."""
    locations, frame = judgement.locations, judgement.frame
    if len(locations) < 2:
        return np.zeros(len(locations), np.bool_)
    distance = np.linalg.norm(locations[:, None] - locations, axis=2)
    near = (frame[:, None] == frame) & (distance <= nearby * np.median(distance))
    others = np.where(near, -np.inf, similarity)
    return np.asarray(similarity.diagonal() > np.maximum(others.max(0), others.max(1)), np.bool_)


def _patches(
    size: int, frame: Frame, matrix: Matrix, count: int, locations: Points | None, settings: Settings
) -> _Patches:
    """Patches of A and of B, warped to A's frame: around corners of A, or some of its locations (N, 2)."""
    view = _view(size, frame, matrix, settings)
    allowed = view.inside_a & view.inside_b
    if locations is None:
        points = corners(view.a, allowed, count)
        locations, rows = apply(inverse(view.to_a), points), np.arange(len(points))
    else:
        points = _rounded(view, locations)
        rows = np.flatnonzero(_shown(allowed, points))
        rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
        locations, points = locations[rows], points[rows]
    return _Patches(extract_patches(view.a, points, size)[0], _patches_b(view, points, size), locations, rows)


def _view(size: int, frame: Frame, matrix: Matrix, settings: Settings) -> _View:
    shrink_a, shrink_b = _factors(frame, matrix, settings)
    image_a, mask_a, to_a = frame.a.level(shrink_a)
    image_b, mask_b, to_b = frame.b.level(shrink_b)
    whole = to_b @ matrix @ inverse(to_a)
    inside_b = cv2.warpPerspective(
        patch_inside(mask_b, size), whole, mask_a.shape[::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    return _View(image_a, image_b, to_a, whole, patch_inside(mask_a, size), np.asarray(inside_b, np.uint8))


def _rounded(view: _View, locations: Points) -> Points:
    """Locations (N, 2) of the full image A as whole pixels of the view's."""
    h, w = view.a.shape
    points: Points = apply(view.to_a, locations).round().clip(0, (w - 1, h - 1))
    return points


def _shown(mask: Mask, points: Points) -> NDArray[np.bool_]:
    """Which whole pixels (N, 2) lie in a mask."""
    (h, w), (x, y) = mask.shape, points.T.astype(int)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return np.asarray(inside & (mask[y.clip(0, h - 1), x.clip(0, w - 1)] > 0), np.bool_)


def _patches_b(view: _View, points: Points, size: int) -> NDArray[np.float32]:
    """Patches of B, warped to A's frame, that belong to points (N, 2) of A."""
    laf = np.concatenate([jacobian(view.a_to_b, points) * (size / 2), apply(view.a_to_b, points)[:, :, None]], axis=2)
    return extract_patches(view.b, laf, size, orientation=True, scale=True)[0]


def _factors(frame: Frame, matrix: Matrix, settings: Settings) -> tuple[float, float]:
    """How much to shrink A and B, so that a transform scales by about 1 and neither is larger than it has to be."""
    h, w = frame.a.shape
    scale = scale_of(matrix, np.array([(w - 1) / 2, (h - 1) / 2]))
    least_a, least_b = (max(1.0, math.sqrt(image.shape[0] * image.shape[1] / settings.judge_pixels)) for image in frame)
    shrink_b = max(least_b, least_a * scale, scale if scale > 1 else 1.0)
    return max(1.0, shrink_b / scale), shrink_b


def corners(image: Grey, allowed: Mask, count: int) -> Points:
    """Corners (N, 2) of an image (H, W), spread over what is allowed."""
    area = int(allowed.sum())
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
    spacing = max(3.0, 0.75 * math.sqrt(area / count))
    found = cv2.goodFeaturesToTrack(smooth, count, 1e-4, spacing, mask=allowed, blockSize=7) if area else None
    return np.empty((0, 2)) if found is None else found.reshape(-1, 2).astype(np.float64)


def patch_inside(mask: Mask, size: int) -> Mask:
    """Where a patch lies inside the image, and inside the mask but for its margin."""
    half = size // 2
    inside = np.zeros_like(mask)
    inside[half : mask.shape[0] - half + 1, half : mask.shape[1] - half + 1] = 1
    kernel = np.ones((size // 4 * 3, size // 4 * 3), np.uint8)
    return np.asarray(cv2.erode(mask, kernel, borderValue=1.0), np.uint8) & inside
