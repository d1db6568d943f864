"""From two images to the transform between them, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.matcher import RRLMatcher
from rrl_match.patches import ValueRanges, range_per_band
from rrl_match.registration.coarse import Hypothesis, propose
from rrl_match.registration.geometry import MODELS, Model, Points, apply
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.judge import ScoringError, judge
from rrl_match.registration.refine import align
from rrl_match.registration.result import Registration, TiePoints
from rrl_match.registration.settings import Search, Settings
from rrl_match.registration.trust import Candidate, Supported, Trial
from rrl_match.transforms import Transform, matrix_kind

Array: TypeAlias = "NDArray[np.generic] | Tensor"
Images: TypeAlias = "Array | Sequence[Array]"


def register(
    matcher: RRLMatcher,
    image_a: Images,
    image_b: Images,
    model: Model = "affine",
    *,
    mask_a: Images | None = None,
    mask_b: Images | None = None,
    value_range: ValueRanges | None = None,
    search: Search = Search(),  # noqa: B008
    progress: bool = False,
    settings: Settings = Settings(),  # noqa: B008
) -> Registration:
    """Estimate the transform that takes image A to image B.

    Dense search proposes hypotheses: oriented gradients are correlated over shift, rotation and scale. RRL-Net judges
    them. Block matching refines the best ones, on ever finer levels, by what all blocks together say. RRL-Net judges
    the results once more. A result is trusted by how many locations its descriptors recognise, and by how far its edges
    agree better than those of other transforms.

    Lists of images are frames of a rig, two cameras that do not move against each other: one transform is estimated
    from all frames.

    Args:
        matcher: its modalities are those of A and B.
        image_a, image_b: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); uint8, uint16 or floating point; at least
            a patch wide and high. Other than uint8, they are mapped from their :func:`percentile_range` if no
            `value_range` is given. NaN and transparent pixels show nothing. Or lists of as many such images, all
            images of a band of one size.
        model: "similarity", "affine" or "homography". A simpler transform is taken where it fits as well, since
            freedom that is not needed costs accuracy at the corners.
        mask_a, mask_b: (H, W), zero where an image shows nothing, as outside its footprint; one for all frames, or a
            list. If not given, constant borders at either end of the range of values count as showing nothing.
        value_range: as in :meth:`RRLMatcher.score`.
        search: how far to look.
        progress: show a bar of the steps done; how many there will be depends on the images.
        settings: numbers of the method.

    Returns:
        The transform, or why there is none to trust. Mistakes in the arguments apart, this never raises.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    if not isinstance(search, Search):
        raise TypeError(f"search must be a Search(rotation=..., scale=(low, high)), got {search!r}")
    frames = _prepared(image_a, image_b, mask_a, mask_b, value_range)
    smallest = min(*frames[0].a.shape, *frames[0].b.shape)
    if smallest < matcher.patch_size:
        return _refusal(f"an image is {smallest} pixels wide or high, less than a patch")
    with tqdm(desc="registering", unit=" steps") if progress else nullcontext() as bar:
        try:
            return _searched(matcher, frames, model, search, settings, bar.update if bar is not None else lambda: None)
        except ScoringError as error:
            return _refusal(f"the patches could not be scored: {error}")


def _prepared(
    image_a: Images, image_b: Images, mask_a: Images | None, mask_b: Images | None, value_range: ValueRanges | None
) -> list[Frame]:
    """Checked frames, one or more, of equal shapes."""
    ranges = range_per_band(value_range)
    prepared = []
    for images, masks, given, band in ((image_a, mask_a, ranges[0], "a"), (image_b, mask_b, ranges[1], "b")):
        listed: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        of_each: list[Any] = list(masks) if isinstance(masks, (list, tuple)) else [masks] * len(listed)
        if not listed:
            raise ValueError(f"image_{band} is an empty list")
        if len(of_each) != len(listed):
            raise ValueError(f"mask_{band} must be one mask or {len(listed)}, one for each image, got {len(of_each)}")
        prepared.append([prepare(i, m, given, band) for i, m in zip(listed, of_each, strict=True)])
        shapes = {one.shape for one in prepared[-1]}
        if len(shapes) > 1:
            raise ValueError(f"image_{band} must be images of one size, got {sorted(shapes)}")
    if len(prepared[0]) != len(prepared[1]):
        counts = " and ".join(str(len(part)) for part in prepared)
        raise ValueError(f"image_a and image_b must be lists of one length, got {counts}")
    return [Frame(a, b) for a, b in zip(*prepared, strict=True)]


def _searched(
    matcher: RRLMatcher,
    frames: list[Frame],
    model: Model,
    search: Search,
    settings: Settings,
    step: Callable[[], object],
) -> Registration:
    """Look near the identity first, and everywhere if what is found there is not beyond doubt."""
    trial = Trial(matcher, frames, model, settings)
    outcomes: list[Outcome] = []
    pool: list[Supported] = []
    candidates: list[Candidate] = []
    stages = list(_grids(search, settings))
    for grids in stages:
        last = grids is stages[-1]
        most = settings.proposals if last else settings.first_proposals
        hypotheses = [h for rotations, scales in grids for h in propose(frames, rotations, scales, most, settings)]
        step()
        hypotheses = align(frames, sorted(hypotheses, key=lambda h: -h.score)[:most], settings)
        step()
        judged = _judged(matcher, frames, hypotheses, settings)
        trial.supported += judged
        pool = sorted(pool + judged, key=lambda one: -one.rank)
        outcomes = [check(trial, candidate) for candidate in candidates]  # once more, beside the new hypotheses
        for one in _to_refine(pool, last, settings):
            pool.remove(one)
            step()
            candidate = trial.candidate(one.hypothesis)
            if candidate is None:
                continue
            candidates.append(candidate)
            outcomes.append(check(trial, candidate))
            if outcomes[-1].registration.ok and outcomes[-1].trust >= settings.certain_trust:
                return outcomes[-1].registration
    if not outcomes:
        return _refusal("no transform was found under which the images agree")
    return max(outcomes, key=lambda o: (o.registration.ok, o.trust)).registration


class Outcome(NamedTuple):
    """A registration, and how far it is trusted; see :meth:`Trial.trust`."""

    trust: float
    registration: Registration


_Grid: TypeAlias = "tuple[list[float], list[float]]"


def _grids(search: Search, settings: Settings) -> Iterator[list[_Grid]]:
    """Rotations in degrees and scales to search first, and then all others; each grid holds all combinations."""
    low, high = search.scale
    count = max(0, math.ceil(math.log(high / low) / math.log(settings.scale_step)))
    scales = [low * (high / low) ** (k / max(1, count)) for k in range(count + 1)]
    count = max(0, math.ceil(search.rotation / settings.rotation_step))
    rotations = [search.rotation * k / max(1, count) for k in range(-count, count + 1)]
    if search.rotation > 180 - settings.rotation_step / 2:
        rotations = rotations[1:]  # the first is the same as the last
    near_rotations = [r for r in rotations if abs(r) <= settings.first_rotation]
    near_scales = [s for s in scales if 1 / settings.first_scale <= s <= settings.first_scale]
    rest = [
        ([r for r in rotations if r not in near_rotations], near_scales),
        (rotations, [s for s in scales if s not in near_scales]),
    ]
    rest = [(some, at) for some, at in rest if some and at]
    if near_rotations and near_scales:
        yield [(near_rotations, near_scales)]
    if rest:
        yield rest


def _judged(
    matcher: RRLMatcher, frames: list[Frame], hypotheses: list[Hypothesis], settings: Settings
) -> list[Supported]:
    """What RRL-Net makes of hypotheses at a few locations each."""
    if not hypotheses:
        return []
    highest = max([1e-6, *(h.score for h in hypotheses)])
    judgements = judge(matcher, frames, [h.matrix for h in hypotheses], settings.quick_locations, settings)
    supports = [judgement.support(settings.quick_prior) for judgement in judgements]
    return [
        Supported(hypothesis, support, support + settings.agreement_weight * hypothesis.score / highest)
        for hypothesis, support in zip(hypotheses, supports, strict=True)
    ]


def _to_refine(pool: Sequence[Supported], last: bool, settings: Settings) -> list[Supported]:
    """The hypotheses to refine in this stage; in the last one also the dense search's own choice."""
    least = 0.0 if last else settings.quick_support
    chosen = [judged for judged in pool[: settings.attempts] if judged.support >= least]
    if last and pool:
        strongest = max(pool, key=lambda judged: judged.hypothesis.score)
        chosen += [strongest] if strongest not in chosen else []
    return chosen


def check(trial: Trial, candidate: Candidate) -> Outcome:
    """The registration that a candidate gives, or the reason to refuse it."""
    matcher, settings, (h, w) = trial.matcher, trial.settings, trial.frames[0].a.shape
    refined, judged = candidate.refined, candidate.judged
    matrix, blocks = refined.matrix, refined.blocks
    public = matrix_kind(trial.model)(matrix)
    if judged is None:
        return Outcome(-math.inf, _refusal(candidate.reason, public))
    lead = trial.lead(candidate)
    trusted = trial.trust(candidate, lead)
    above = judged.scores > matcher.threshold
    # A network that hardly knows the sensors gives low scores. The better half of them still tells where bands match.
    typical = float(np.median(judged.scores)) if len(above) else 0.0
    matching = judged.scores > min(matcher.threshold, typical)
    matched, found = (np.concatenate([getattr(b, k) for b in blocks]) for k in ("matched", "found"))
    rows = judged.rows + np.cumsum([0, *(len(b.points) for b in blocks)])[judged.frame]
    kept = matching & found[rows]
    points_a, points_b = judged.locations[kept], matched[rows][kept]
    residuals = np.linalg.norm(apply(matrix, points_a) - points_b, axis=1)
    inliers = residuals < settings.bound * refined.factor
    if trusted < 0:
        reason = f"patches and edges do not single it out: {int(above.sum())} of {len(above)} locations match"
    elif lead < settings.clear_lead:
        reason = "another transform agrees nearly as well, as where texture repeats"
    else:
        reason = _doubts(int(inliers.sum()), judged.locations, matching, (h, w), settings)
    registration = Registration(
        transform=None if reason else public,
        rejected=public if reason else None,
        model=trial.model,
        reason=reason,
        probability=1 / (1 + math.exp(-float(np.clip(trusted, -30, 30)))),
        agreement=refined.agreeing,
        tie_points=TiePoints(points_a, points_b, judged.scores[kept], residuals, inliers),
    )
    return Outcome(trusted, registration)


def _doubts(
    inliers: int, locations: Points, matching: NDArray[np.bool_], shape: tuple[int, int], settings: Settings
) -> str:
    """Why the matches are not enough to trust a transform, or "".

    Args:
        inliers: number of matches that agree with the transform.
        locations: (N, 2) in A, that were judged.
        matching: (N,), which of them match.
        shape: of A.
        settings: least values.
    """
    if inliers < settings.min_matches:
        return f"too few matches agree on one transform, {inliers}"
    area, whole = (cv2.contourArea(cv2.convexHull(p.astype(np.float32))) for p in (locations[matching], locations))
    if area < max(settings.min_spread * whole, settings.min_area * shape[0] * shape[1]):
        return "the matches lie together in a small part of the image, or on a line"
    return ""


def _refusal(reason: str, rejected: Transform | None = None) -> Registration:
    return Registration(reason=reason, rejected=rejected)
