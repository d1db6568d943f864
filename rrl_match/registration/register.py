"""From two pictures to the transform between them, or an honest refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.matcher import Features, RRLMatcher
from rrl_match.matching import Matches, similarities
from rrl_match.modeling import Band
from rrl_match.patches import as_grey, checked_range, extract_patches, percentile_range, range_per_band
from rrl_match.refinement import edge_offsets, warped_patches

Points = NDArray[np.float64]
Picture = NDArray[np.float32]

KEYPOINTS = 160  # of picture A that are looked for in B
EDGES = 300  # places of picture A whose edges are looked for at the end
EDGES_AGREE = 0.3  # share of them that must agree on one transform for it to be taken; by chance, 0.04 do
GRID = 1200  # places of picture B that they are looked for at
COARSE_PIXELS = 400_000  # pictures are shrunk to this size for the first pass
SEARCH = ((0.0, 1.0), (-22.0, 1.0), (22.0, 1.0), (0.0, 0.8), (0.0, 1.25))  # turns in degrees and scales tried in turn
# What a transform must have to be trusted. Of held-back training pairs, right ones had a support of 0.72 and 40 inliers
# or more; pictures of different places had up to 0.33 and 38, but for those that shrank to a point.
SUPPORT = 0.45  # share of keypoints that score as matches under the transform
INLIERS = 12  # matches that agree with it
SPREAD = 0.3  # of the area that the keypoints span, what those in agreement do; of the right pairs, half or more


@dataclass(frozen=True)
class Search:
    """How far to look for the transform that takes image A to image B.

    Attributes:
        rotation: largest rotation in degrees, in either direction; 180 is any.
        scale: smallest and largest scale, in pixels of B per pixel of A.
    """

    rotation: float = 180.0
    scale: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True, eq=False)
class Registration:
    """What :func:`register` found.

    Attributes:
        matrix: takes pixel (x, y) of A to B, pixel centres at integers: float64 (2, 3), (3, 3) for a homography, None
            where there is none to show. Not to be used unless `ok`.
        ok: whether the transform passed all checks.
        reason: why not, or "".
        keypoints_a, keypoints_b: (K, 2) xy float64, places in both pictures that were matched.
        matches: of their rows; pair n is row n of both.
        inliers: (K,) bool, matches that agree with the matrix.
        support: share of the keypoints whose patches score above the matcher's threshold under the transform.
        rejected: the matrix that was not trusted, if there is one.
    """

    matrix: NDArray[np.float64] | None
    ok: bool
    reason: str
    keypoints_a: Points
    keypoints_b: Points
    matches: Matches
    inliers: NDArray[np.bool_]
    support: float
    rejected: NDArray[np.float64] | None = None

    @property
    def matched_fraction(self) -> float:
        """Fraction of the keypoints whose patches match under the transform."""
        return self.support

    def warp(self, image_a: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Image A (H, W) or (H, W, C) in the frame of an image B of `shape`, zero where A shows nothing."""
        if self.matrix is None:
            raise ValueError(f"there is no transform to warp by: {self.reason}")
        return np.asarray(cv2.warpPerspective(image_a, _as_3x3(self.matrix), (shape[1], shape[0])))

    def checkerboard(self, image_a: NDArray[Any], image_b: NDArray[Any]) -> NDArray[Any]:
        """Cells of warped image A and of image B by turns; both of the same channels and dtype."""
        y, x = np.indices(image_b.shape[:2]) // (max(image_b.shape[:2]) // 8 + 1)
        odd = (x + y) % 2 == 1
        warped = self.warp(image_a, image_b.shape)
        return np.where(odd.reshape(odd.shape + (1,) * (image_b.ndim - 2)), image_b, warped)


def register(
    matcher: RRLMatcher,
    image_a: NDArray[Any] | Tensor,
    image_b: NDArray[Any] | Tensor,
    model: str = "affine",
    *,
    mask_a: NDArray[Any] | Tensor | None = None,
    mask_b: NDArray[Any] | Tensor | None = None,
    value_range: Any = None,
    search: Search | Sequence[tuple[float, float]] = SEARCH,
    progress: bool = False,
) -> Registration:
    """Estimate the transform that takes picture A to picture B.

    First, keypoints of A are looked for all over B on a grid: the descriptors propose, the metric network decides, and
    a robust fit follows. Where that fails, A is turned and scaled and it is tried again. Then the keypoints are looked
    for anew around where the transform predicts them, in patches of B that it has warped, on ever finer pictures,
    each time with a robust fit (MAGSAC++, Barath et al., 2020). At last, where most edges of both pictures agree on
    it, the transform is the one under which they coincide: edges are less sure than the network, but sharper.

    Args:
        matcher: with descriptors; its modalities are those of A and B.
        image_a, image_b: (H, W), (H, W, 1) or RGB (H, W, 3); uint8, uint16 or floating point; at least a patch wide
            and high. Other than uint8, they are mapped from the :func:`percentile_range` of what they show, unless
            told.
        model: "similarity", "affine" or "homography".
        mask_a, mask_b: (H, W), zero where a picture shows nothing, as outside its footprint.
        value_range: as in :meth:`RRLMatcher.score`.
        search: turns of A in degrees and scales to try, in this order, until one passes. The network itself stands
            about 12 degrees and 12 %.
        progress: show a bar of the steps done; how many there will be depends on the pictures.

    Returns:
        the transform, or why there is none to be trusted; mistakes in the arguments apart, this never raises.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if model not in _MODELS:
        raise ValueError(f"model must be one of {', '.join(_MODELS)}, got {model!r}")
    if not matcher.config.network.descriptor_dim:
        raise ValueError("matcher must have weights with descriptors to find matches by, as the bundled ones, got none")
    turns_and_scales = _checked_search(search)
    range_a, range_b = range_per_band(value_range)
    a = _Pictures(image_a, mask_a, range_a, "a")
    b = _Pictures(image_b, mask_b, range_b, "b")
    with tqdm(desc="registering", unit=" steps") if progress else nullcontext() as bar:
        result = _Run(matcher, a, b, model, bar).register(turns_and_scales)
    return result if result.ok else replace(result, matrix=None, rejected=result.matrix)


def _checked_search(search: Any) -> list[tuple[float, float]]:
    """Turns in degrees and scales, of which there is at least one."""
    if isinstance(search, Search):
        low, high = search.scale
        turns = [sign * k * 20.0 for k in range(int(search.rotation // 20) + 1) for sign in (1, -1)]
        scales = {1.25**k for k in range(-8, 9) if low <= 1.25**k <= high} | {low, high}
        search = [(turn, scale) for scale in sorted(scales, key=lambda s: abs(s - 1)) for turn in dict.fromkeys(turns)]
    try:
        pairs = [(float(turn), float(scale)) for turn, scale in search]
    except (TypeError, ValueError) as error:
        raise TypeError(f"search must be pairs (turn in degrees, scale), got {search!r}") from error
    if not pairs or not all(math.isfinite(turn) and 0 < scale < math.inf for turn, scale in pairs):
        raise ValueError(f"search must be one or more finite turns, each with a positive scale, got {search!r}")
    return pairs


class _Pictures:
    """A picture in [0, 1] with its mask, 1 where it shows something, and smaller versions of both."""

    def __init__(self, image: Any, mask: Any, value_range: Any, band: str) -> None:
        grey = as_grey(image, f"image_{band}")
        given = checked_range(value_range, f"image_{band}")
        if mask is None:
            shown = np.ones(grey.shape, bool)
        else:
            shown = (mask != 0).cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask) != 0
        if shown.shape != grey.shape:
            raise ValueError(f"mask_{band} must have the shape of image_{band}, {grey.shape}, got {shown.shape}")
        if given is not None:
            low, high = given
        elif grey.dtype == np.uint8:
            low, high = 0, 255
        else:
            low, high = percentile_range(grey[shown] if shown.any() else grey)
        self.full: Picture = np.clip((grey.astype(np.float32) - low) / (high - low), 0, 1)
        self.mask: NDArray[np.uint8] = shown.astype(np.uint8)

    def shrunk(self, factor: float) -> tuple[Picture, NDArray[np.uint8]]:
        """Picture and mask, `factor` times smaller."""
        if factor <= 1:
            return self.full, self.mask
        size = [max(1, round(n / factor)) for n in self.full.shape[::-1]]
        picture: Picture = np.asarray(cv2.resize(self.full, size, interpolation=cv2.INTER_AREA), np.float32)
        return picture, np.asarray(cv2.resize(self.mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)


class _Level(NamedTuple):
    """Both pictures and their masks, `factor` times smaller than they came, and places of A with structure."""

    factor: float
    image_a: Picture
    image_b: Picture
    mask_a: NDArray[np.uint8]
    mask_b: NDArray[np.uint8]
    points: Points


class _Grid(NamedTuple):
    """Places of B that keypoints are looked for at, `spacing` pixels apart, and their encoded patches."""

    places: Points
    spacing: float
    codes: Features


class _Run:
    """One registration; matrices are 3 x 3 here."""

    def __init__(self, matcher: RRLMatcher, a: _Pictures, b: _Pictures, model: str, bar: Any = None) -> None:
        self.matcher, self.a, self.b, self.model, self.bar = matcher, a, b, model, bar
        self.size = matcher.patch_size

    def register(self, search: Sequence[tuple[float, float]]) -> Registration:
        smallest = min(*self.a.full.shape, *self.b.full.shape)
        if smallest < self.size:
            return _refusal(f"a picture is {smallest} pixels wide or high, less than a patch")
        factor = math.sqrt(max(self.a.full.size, self.b.full.size) / COARSE_PIXELS)
        level = self._level(min(max(1.0, factor), smallest / self.size))
        places, spacing = self._places(level.image_b, level.mask_b)
        if min(len(level.points), len(places)) < INLIERS:
            return _refusal(f"too few places with structure, {len(level.points)} and {len(places)}")
        grid = _Grid(places, spacing, self._encode(extract_patches(level.image_b, places, self.size)[0], "b"))
        best = _refusal("too few matches agree on one transform")
        for turn, scale in search:
            found = self._first_pass(level, grid, turn, scale)
            if found is None:
                continue
            result = self._refined(found, level, 0.7 * grid.spacing)
            if result.ok:
                return result
            if result.support >= best.support:
                best = result
        return best

    def _level(self, factor: float) -> _Level:
        (image_a, mask_a), (image_b, mask_b) = self.a.shrunk(factor), self.b.shrunk(factor)
        return _Level(factor, image_a, image_b, mask_a, mask_b, self._keypoints(image_a, mask_a, KEYPOINTS))

    def _encode(self, patches: NDArray[Any], band: Band) -> Features:
        """What every step spends its time on."""
        if self.bar is not None:
            self.bar.update()
        return self.matcher.encode(patches, band)

    def _keypoints(self, image: Picture, mask: NDArray[np.uint8], count: int) -> Points:
        """Places of A with structure in both directions, spread over the picture."""
        spacing = math.sqrt(max(1, int(mask.sum())) / count)
        smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
        inside = _patch_inside(mask, self.size)
        corners = cv2.goodFeaturesToTrack(smooth, count, 1e-4, max(4.0, 0.7 * spacing), mask=inside, blockSize=7)
        return np.empty((0, 2)) if corners is None else corners.reshape(-1, 2).astype(np.float64)

    def _places(self, image: Picture, mask: NDArray[np.uint8]) -> tuple[Points, float]:
        """Places of B to look at, a grid but for what is flat; and its spacing."""
        h, w = image.shape
        spacing = max(6.0, math.sqrt(int(mask.sum()) / GRID))
        half = self.size / 2
        xs = np.arange(half, w - half + 1e-6, spacing).round()
        ys = np.arange(half, h - half + 1e-6, spacing).round()
        places = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
        mean = cv2.blur(image, (self.size, self.size))
        variance = cv2.blur(image * image, (self.size, self.size)) - mean * mean
        x, y = places.T.astype(int).clip(0, [[w - 1], [h - 1]])
        useful = (_patch_inside(mask, self.size)[y, x] > 0) & (variance[y, x] > 1e-6)
        kept: Points = places[useful]
        return kept, spacing

    def _first_pass(self, level: _Level, grid: _Grid, turn: float, scale: float) -> NDArray[np.float64] | None:
        """A transform from keypoints that are looked for all over B."""
        points = level.points
        angle = math.radians(turn)
        linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        codes_a = self._encode(self._warped(level.image_a, points, linear), "a")
        similarity = similarities(codes_a.descriptors, grid.codes.descriptors)
        nearest = similarity.topk(min(3, len(grid.places)), dim=1).indices.cpu().numpy()
        rows = np.arange(len(points))
        pairs = np.stack([rows.repeat(nearest.shape[1]), nearest.ravel()], 1)
        scores = self.matcher.score_features(codes_a, grid.codes, pairs).reshape(nearest.shape)
        best = scores.argmax(1)
        kept = scores[rows, best] > self.matcher.threshold
        matched = grid.places[nearest[rows, best]]
        matrix, _ = _fit(points[kept], matched[kept], "similarity", 1.2 * grid.spacing)
        # many keypoints may look like one place of a picture that does not show theirs, and agree to shrink to it
        plausible = matrix is not None and 0.6 < math.sqrt(np.linalg.det(matrix[:2, :2])) * scale < 1.6
        return matrix if plausible else None

    def _refined(self, matrix: NDArray[np.float64], level: _Level, radius: float) -> Registration:
        """Look again within `radius` of the predicted places, then on ever finer pictures, and check what comes out."""
        found = self._look_around(matrix, level, radius, "similarity")
        while found.matrix is not None:
            found = self._look_around(_as_3x3(found.matrix), level, 3.0, self.model)
            if not found.ok:
                break
            if level.factor < 2:  # near enough for edges, whose search is a matter of pixels
                sharpened = self._sharpened(_enlarged(found, level.factor))
                if sharpened is not None:
                    return sharpened
            if level.factor <= 1:
                break
            finer = self._level(max(1.0, level.factor / 2))
            found, level = _enlarged(found, level.factor / finer.factor), finer
        return _enlarged(found, level.factor)

    def _sharpened(self, found: Registration) -> Registration | None:
        """With the transform under which edges coincide, if enough of them agree on one."""
        points = self._keypoints(self.a.full, self.a.mask, EDGES)
        matrix = _as_3x3(np.asarray(found.matrix))
        for radius in (8, 4):
            points = points[_shown(self.b.mask, _apply(matrix, points), 0)]
            predicted, linear = _apply(matrix, points), _jacobian(matrix, points)
            offsets, seen = edge_offsets(self.a.full, self.b.full, points, predicted, linear, radius)
            matched = predicted + np.einsum("nij,nj->ni", linear, offsets)
            fitted, inliers = _fit(points[seen], matched[seen], self.model, 2.0)
            if fitted is None or inliers.sum() < max(24, EDGES_AGREE * len(inliers)):
                return None
            matrix = fitted
        inliers = np.linalg.norm(_apply(matrix, found.keypoints_a) - found.keypoints_b, axis=1) < 4.0
        if _doubts(matrix, found.keypoints_a[inliers], points, found.support, self.a.full.shape):
            return None
        whole = matrix if self.model == "homography" else matrix[:2]
        return replace(found, matrix=whole, inliers=inliers)

    def _look_around(self, matrix: NDArray[np.float64], level: _Level, radius: float, model: str) -> Registration:
        """Fit anew to where the patches of keypoints are most alike within `radius` of where they are predicted."""
        points = level.points[_shown(level.mask_b, _apply(matrix, level.points), self.size / 4)]
        predicted, linear = _apply(matrix, points), _jacobian(matrix, points)
        if len(points) < INLIERS:
            return _refusal("the pictures hardly overlap under the only transform that was found")
        steps = radius * np.array([-1.0, 0.0, 1.0])
        offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        own = self._encode(extract_patches(level.image_a, points, self.size)[0], "a")
        similarity = np.empty((len(points), len(offsets)), np.float32)
        for k, offset in enumerate(offsets):
            there = self._encode(self._warped(level.image_b, predicted + linear @ offset, linear), "b")
            similarity[:, k] = (own.descriptors * there.descriptors).sum(1).cpu().numpy()
        shifts = _peaks(similarity.reshape(-1, 3, 3)) * radius
        matched = predicted + np.einsum("nij,nj->ni", linear, shifts)
        final = self._encode(self._warped(level.image_b, matched, linear), "b")
        rows = np.repeat(np.arange(len(points))[:, None], 2, axis=1)
        scores = self.matcher.score_features(own, final, rows)
        kept = scores > self.matcher.threshold
        fitted, inliers = _fit(points[kept], matched[kept], model, max(2.0, radius))
        support = float(kept.mean())
        indices = np.repeat(np.arange(int(kept.sum()))[:, None], 2, axis=1)
        reason = _doubts(fitted, points[kept][inliers], points, support, level.image_a.shape)
        return Registration(
            fitted if fitted is None or self.model == "homography" else fitted[:2],
            not reason,
            reason,
            points[kept],
            matched[kept],
            Matches(indices, scores[kept]),
            inliers,
            support,
        )

    def _warped(self, image: Picture, points: Points, linear: NDArray[np.float64]) -> NDArray[Any]:
        """Patches whose pixels are taken to the picture by `linear`, (2, 2) or one for each."""
        return warped_patches(image, points, linear, self.size)[0].clip(0, 1)


def _doubts(
    matrix: NDArray[np.float64] | None, inliers: Points, points: Points, support: float, shape: tuple[int, ...]
) -> str:
    """Why a transform is not to be trusted, or ""; `inliers` are some of the `points` that were looked for."""
    if matrix is None or len(inliers) < INLIERS:
        return f"too few matches agree on one transform, {len(inliers)}"
    if support < SUPPORT:
        return f"only {support:.0%} of the keypoints match under the transform"
    scales = np.linalg.svd(_jacobian(matrix, inliers.mean(0)[None])[0], compute_uv=False)
    if np.linalg.det(matrix[:2, :2]) <= 0 or scales[0] > 4 or scales[1] < 0.25 or scales[0] > 2 * scales[1]:
        return f"the transform is implausible, it scales by {scales[0]:.2f} and {scales[1]:.2f}"
    area, whole = (cv2.contourArea(cv2.convexHull(some.astype(np.float32))) for some in (inliers, points))
    if area < max(SPREAD * whole, 0.05 * shape[0] * shape[1]):
        return "the matches lie together in a small part of the picture, or on a line"
    return ""


def _patch_inside(mask: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Where a patch lies inside the picture, and inside the mask but for its margin."""
    half = size // 2
    inside = np.zeros_like(mask)
    inside[half : mask.shape[0] - half + 1, half : mask.shape[1] - half + 1] = 1
    kernel = np.ones((size // 4 * 3, size // 4 * 3), np.uint8)
    return np.asarray(cv2.erode(mask, kernel) * inside, np.uint8)


def _shown(mask: NDArray[np.uint8], places: Points, margin: float) -> NDArray[np.bool_]:
    """(N,) whether places (N, 2) lie in the mask, and `margin` pixels or more from the picture's border."""
    h, w = mask.shape
    inside = np.all((places >= margin) & (places <= (w - 1 - margin, h - 1 - margin)), axis=1)
    x, y = np.where(inside[:, None], places, 0).round().astype(int).T
    shown: NDArray[np.bool_] = inside & (mask[y, x] > 0)
    return shown


def _peaks(surface: NDArray[np.float32]) -> Points:
    """Places (N, 2), xy in steps from the middle, of the maxima of surfaces (N, 3, 3), by a parabola between steps."""
    top = surface.reshape(len(surface), -1).argmax(1)
    row, column = np.divmod(top, 3)
    rows = np.arange(len(surface))
    peak = np.empty((len(surface), 2))
    for axis, at, line in ((0, column, surface[rows, row]), (1, row, surface[rows, :, column])):
        before, middle, after = line.T
        bend = 2 * middle - before - after
        between = np.where(bend > 1e-6, (after - before) / (2 * np.maximum(bend, 1e-6)), at - 1)
        peak[:, axis] = between.clip(-1.5, 1.5)  # also where the maximum lies at the border
    return peak


def _enlarged(found: Registration, factor: float) -> Registration:
    """The same of pictures that are `factor` times as large; the corner of a picture lies at -1/2 in both."""
    grow = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])
    matrix = found.matrix
    if matrix is not None:
        matrix = (grow @ _as_3x3(matrix) @ np.linalg.inv(grow))[: len(matrix)]
    points_a, points_b = _apply(grow, found.keypoints_a), _apply(grow, found.keypoints_b)
    return replace(found, matrix=matrix, keypoints_a=points_a, keypoints_b=points_b)


def _as_3x3(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrix if matrix.shape == (3, 3) else np.vstack([matrix, [0, 0, 1]])


def _apply(matrix: NDArray[np.float64], points: Points) -> Points:
    """Points (N, 2) under a matrix (3, 3)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    result: Points = moved[:, :2] / moved[:, 2:]
    return result


def _jacobian(matrix: NDArray[np.float64], points: Points) -> NDArray[np.float64]:
    """How a matrix (3, 3) turns and scales the surroundings of points (N, 2): (N, 2, 2)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    place = moved[:, :2] / moved[:, 2:]
    derivative: NDArray[np.float64] = (matrix[:2, :2] - place[:, :, None] * matrix[2, :2]) / moved[:, 2, None, None]
    return derivative


def _fit(
    points: Points, matched: Points, model: str, bound: float
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_]]:
    """A robust transform (3, 3), or None, and which pairs agree with it within `bound` pixels."""
    none = None, np.zeros(len(points), bool)
    if len(points) < 6:
        return none
    matrix, agree = _MODELS[model](points, matched, bound)
    if matrix is None or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:2, :2])) < 1e-6:
        return none
    return _as_3x3(np.asarray(matrix, np.float64)), agree.ravel().astype(bool)


_MODELS: dict[str, Any] = {
    "similarity": lambda a, b, bound: cv2.estimateAffinePartial2D(
        a, b, method=cv2.RANSAC, ransacReprojThreshold=bound, maxIters=5000, confidence=0.9999
    ),
    "affine": lambda a, b, bound: cv2.estimateAffine2D(
        a, b, method=cv2.USAC_MAGSAC, ransacReprojThreshold=bound, maxIters=5000, confidence=0.9999
    ),
    "homography": lambda a, b, bound: cv2.findHomography(
        a, b, method=cv2.USAC_MAGSAC, ransacReprojThreshold=bound, maxIters=5000, confidence=0.9999
    ),
}


def _refusal(reason: str) -> Registration:
    nothing = np.empty((0, 2))
    none = Matches(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    return Registration(None, False, reason, nothing, nothing, none, np.zeros(0, bool), 0.0)
