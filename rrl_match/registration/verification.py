"""Is a transform right? What RRL-Net and the edges say of it, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.channels import Grey
from rrl_match.cost_surfaces import Surfaces
from rrl_match.extraction import extract_patches
from rrl_match.matcher import RRLMatcher
from rrl_match.registration.adjustment import log_costs, peak_to_sidelobes
from rrl_match.registration.block_matching import Blocks, Grid, agreement_of, match_blocks
from rrl_match.registration.config import Config, VerifyConfig
from rrl_match.registration.dense_search import Hypothesis
from rrl_match.registration.error import ErrorMap, Misfit, expected_error, misfit_of
from rrl_match.registration.images import Frame
from rrl_match.registration.overlay import Overlay, overlap_of, overlay_of
from rrl_match.registration.refinement import Refined
from rrl_match.transforms import Points, Transform

BENT = "the images are bent against each other"


class Judged(NamedTuple):
    """A hypothesis, how far RRL-Net supports it, and its rank: the support, to which the channels' agreement adds.

    Before it is judged, nothing is known against it.
    """

    hypothesis: Hypothesis
    support: float = 1.0
    rank: float = math.inf

    @property
    def judged(self) -> bool:
        return math.isfinite(self.rank)


class Judgement(NamedTuple):
    """RRL-Net's judgement of locations under a transform.

    Attributes:
        locations: (N, 2) xy in B.
        rows: (N,) row of each location in what was given.
        scores: (N,) in [0, 1].
        mutual: (N,) bool, whether the descriptors of both bands are mutual nearest neighbours among all locations,
            those nearby aside; false for weights without descriptors.
    """

    locations: Points
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    mutual: NDArray[np.bool_]


class Evidence(NamedTuple):
    """What speaks for a refined transform; measured once.

    Attributes:
        refined: the transform.
        judgement: of locations of its blocks.
        support: mean score of the locations, drawn towards 0 where there are few.
        mutual: part of the locations that are mutual nearest neighbours, likewise.
        agreement: of the channels in small images.
        peak: peak-to-sidelobe ratio of all blocks together; less in small overlaps, where more agrees by chance.
        agreeing: (N,) bool, which blocks of `refined` agree with the transform.
        misfit: how far the surroundings of blocks are off.
        error: what is expected of that.
        fault: what alone speaks against the transform, or "".
    """

    refined: Refined
    judgement: Judgement
    support: float = 0.0
    mutual: float = 0.0
    agreement: float = 0.0
    peak: float = 0.0
    agreeing: NDArray[np.bool_] = np.empty(0, np.bool_)
    misfit: Misfit = Misfit()
    error: ErrorMap = ErrorMap()
    fault: str = ""


class Verdict(NamedTuple):
    """What the evidence says of a candidate.

    Attributes:
        log_odds: that the transform is right.
        ratio: by what factor its channels agree better than those of any alternative, infinite without any.
        reason: why it is refused, or "".
        alternative: a hypothesis that was not refined and decides between refusal and acceptance, or None.
    """

    log_odds: float
    ratio: float
    reason: str
    alternative: Judged | None


def judge(
    matcher: RRLMatcher, frames: Sequence[Frame], hypotheses: Sequence[Hypothesis], config: Config
) -> list[Judged]:
    """What RRL-Net makes of hypotheses at a few locations each, best first; all of them are scored in one batch."""
    settings, each = config.verify, max(4, math.ceil(config.verify.quick_locations / len(frames)))
    patches_a, patches_b, counts = [], [], []
    for hypothesis in hypotheses:
        overlays = _overlays(frames, hypothesis.transform, matcher.patch_size, config)
        cut = [_patches_at_corners(overlay, matcher.patch_size, each, settings) for overlay in overlays]
        patches_a += [a for a, _ in cut]
        patches_b += [b for _, b in cut]
        counts.append(sum(len(a) for a, _ in cut))
    if not sum(counts):
        return [Judged(hypothesis, 0.0, 0.0) for hypothesis in hypotheses]
    scores = np.split(matcher.score(np.concatenate(patches_a), np.concatenate(patches_b)), np.cumsum(counts)[:-1])
    highest = max([1e-6, *(h.score for h in hypotheses)])
    supports = [float(s.sum() / (len(s) + settings.quick_prior)) for s in scores]
    judged = [
        Judged(hypothesis, support, support + settings.agreement_weight * hypothesis.score / highest)
        for hypothesis, support in zip(hypotheses, supports, strict=True)
    ]
    return sorted(judged, key=lambda one: -one.rank)


def measure(matcher: RRLMatcher, frames: Sequence[Frame], refined: Refined, config: Config) -> Evidence:
    """Everything that speaks for or against a refined transform by itself."""
    settings, blocks = config.verify, refined.blocks
    agreeing = blocks.agreeing(refined.transform, config.blocks.bound)
    nothing = Judgement(np.empty((0, 2)), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.bool_))
    if agreeing.mean() < settings.min_agreeing:
        fault = f"only {agreeing.mean():.0%} of the blocks agree on one transform"
        return Evidence(refined, nothing, agreeing=agreeing, fault=fault)
    if refined.moved > settings.max_move:
        fault = f"the transform is not settled, the last fit moved it by {refined.moved:.0%}"
        return Evidence(refined, nothing, agreeing=agreeing, fault=fault)
    judgement = _judgement(matcher, frames, refined, config)
    count = len(judgement.scores) + settings.prior
    peak, misfit = _peak(frames, refined, matcher.patch_size, config)
    residuals = np.linalg.norm(refined.transform(blocks.points) - blocks.matched, axis=1)
    return Evidence(
        refined,
        judgement,
        support=float(judgement.scores.sum() / count),
        mutual=float(judgement.mutual.sum() / count),
        agreement=agreement_of(frames, refined.transform, config),
        peak=peak,
        agreeing=agreeing,
        misfit=misfit,
        error=expected_error(misfit, residuals, refined.overlap.unit, config.error),
    )


def terms(evidence: Evidence, ratio: float, config: VerifyConfig) -> tuple[float, float, float, float]:
    """What the log odds of a transform add up from: its descriptors, scores, ratio to alternatives and peak.

    Each counts within bounds, so that none decides alone: on sensors that the network does not know, few descriptors
    are nearest neighbours.
    """
    ahead = math.log(min(max(ratio, 1.0), config.most_ratio))
    return evidence.mutual, evidence.support, ahead, min(evidence.peak, config.most_peak)


def log_odds(evidence: Evidence, ratio: float, config: VerifyConfig) -> float:
    """Log odds that a transform is right."""
    if evidence.fault:
        return -math.inf
    return config.bias + float(np.dot(config.weights, terms(evidence, ratio, config)))


class Alternatives(NamedTuple):
    """What a candidate is compared with: other refined transforms, and hypotheses that were not refined."""

    refined: Sequence[Evidence]
    waiting: Sequence[Judged]


def verify(candidate: Evidence, alternatives: Alternatives, threshold: float, config: Config) -> Verdict:
    """The verdict on a candidate, beside everything else that is known.

    Under wrong transforms, channels agree about equally well, whatever the sensors. An alternative is a distinct
    transform: one that was refined and is trusted nearly as much, or one that was not and is supported half as well.

    Args:
        candidate: what is judged.
        alternatives: what else is known.
        threshold: score above which a location matches.
        config: of :class:`VerifyConfig` and more.
    """
    settings, alone = config.verify, log_odds(candidate, math.inf, config.verify)
    if candidate.fault or alone < 0:
        return Verdict(alone, math.inf, candidate.fault or "no transform stands out from others", None)
    trusted = [
        e for e in alternatives.refined if log_odds(e, math.inf, settings) >= alone - settings.alternative_margin
    ]
    refined = [e.agreement for e in trusted if is_distinct(candidate, e.refined.transform, settings.distinct)]
    floor, needed = candidate.agreement / settings.most_ratio, settings.alternative_support * candidate.support
    open_ones = [
        one
        for one in alternatives.waiting
        if one.support >= needed
        and one.hypothesis.score >= floor
        and is_distinct(candidate, one.hypothesis.transform, settings.distinct)
    ]
    decided = _decision(candidate, max(refined, default=0.0), threshold, config)
    if decided.reason or not open_ones:
        return decided
    strongest = max(open_ones, key=lambda one: one.hypothesis.score)
    worst = _decision(candidate, max(strongest.hypothesis.score, *refined, 0.0), threshold, config)
    return (
        decided if not worst.reason and worst.log_odds >= settings.certain else decided._replace(alternative=strongest)
    )


def _decision(candidate: Evidence, alternative: float, threshold: float, config: Config) -> Verdict:
    """The verdict if the best alternative's channels agree so well."""
    settings = config.verify
    ratio = candidate.agreement / alternative if alternative > 0 else math.inf
    odds = log_odds(candidate, ratio, settings)
    scores, rows = candidate.judgement.scores, candidate.judgement.rows
    matching = scores > min(threshold, float(np.median(scores)) if len(scores) else 0.0)
    inliers = int((matching & candidate.agreeing[rows]).sum())
    if odds < 0 and ratio < settings.most_ratio:
        reason = "another transform fits nearly as well"
    elif odds < 0:
        reason = "no transform stands out from others"
    elif ratio < settings.clear_ratio:
        reason = "another transform fits nearly as well, as where texture repeats"
    elif inliers < settings.min_matches:
        reason = f"only {inliers} locations match and agree with one transform"
    elif not _spread_out(candidate.judgement.locations, matching, settings):
        reason = "the locations that match lie together in a small part of the overlap, or on a line"
    elif _is_bent(candidate, settings):
        reason = f"{BENT}: no {candidate.refined.kind.kind} transform explains more than a part"
    else:
        reason = ""
    return Verdict(odds, ratio, reason, None)


def _is_bent(candidate: Evidence, config: VerifyConfig) -> bool:
    """Whether most of the overlap is off, or much of it is far off."""
    misfit, unit = candidate.misfit, candidate.refined.overlap.unit
    return misfit.part_beyond(config.bent * unit) > 0.5 or misfit.part_beyond(config.off * unit) > config.most_off


def _spread_out(locations: Points, matching: NDArray[np.bool_], config: VerifyConfig) -> bool:
    """Whether the locations (N, 2) that match span enough of what all do."""
    area, whole = (cv2.contourArea(cv2.convexHull(p.astype(np.float32))) for p in (locations[matching], locations))
    return bool(area >= max(config.min_spread * whole, 1e-9))


def is_distinct(candidate: Evidence, other: Transform, distance: float) -> bool:
    """Whether another transform takes the overlap elsewhere, on average by more than `distance` of its side."""
    outline = candidate.refined.overlap.outline
    moved = other(candidate.refined.transform.inverse()(outline))
    return bool(np.linalg.norm(moved - outline, axis=1).mean() > distance * math.sqrt(candidate.refined.overlap.area))


def _overlays(frames: Sequence[Frame], transform: Transform, patch_size: int, config: Config) -> list[Overlay]:
    """The frames as patches are cut of them: a unit a pixel, larger in large overlaps, smaller in small ones."""
    overlap = overlap_of(frames[0], transform)
    if overlap is None:
        return []
    large = overlap.side / math.sqrt(config.verify.pixels)
    small = max(1 / config.refine.enlarged, overlap.side / (3.5 * patch_size))
    pixel = overlap.unit * max(large, min(1.0, small))
    return [overlay_of(frame, transform, overlap, pixel, config.channels) for frame in frames]


def _allowed(overlay: Overlay, patch_size: int, config: VerifyConfig) -> NDArray[np.uint8]:
    """Where a patch (H, W) lies inside and both images know enough of it."""
    both = np.minimum(overlay.a.known, overlay.b.known)
    part = cv2.boxFilter(both, -1, (patch_size, patch_size), borderType=cv2.BORDER_CONSTANT)
    half = patch_size // 2
    inside = np.zeros(both.shape, np.uint8)
    inside[half : both.shape[0] - half + 1, half : both.shape[1] - half + 1] = 1
    return np.asarray(inside & (part >= config.patch_known), np.uint8)


def _patches_at_corners(
    overlay: Overlay, patch_size: int, count: int, config: VerifyConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Patches of A and B, (N, S, S), around corners of A that are spread over the overlap."""
    points = corners(overlay.a.image, _allowed(overlay, patch_size, config), count)
    a, b = (extract_patches(image, points, patch_size)[0] for image in (overlay.a.image, overlay.b.image))
    return a, b


def corners(image: Grey, allowed: NDArray[np.uint8], count: int) -> Points:
    """Corners (N, 2) of an image (H, W), spread over what is allowed."""
    area = int(allowed.sum())
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
    spacing = max(3.0, 0.75 * math.sqrt(area / count))
    found = cv2.goodFeaturesToTrack(smooth, count, 1e-4, spacing, mask=allowed, blockSize=7) if area else None
    return np.empty((0, 2)) if found is None else found.reshape(-1, 2).astype(np.float64)


def _judgement(matcher: RRLMatcher, frames: Sequence[Frame], refined: Refined, config: Config) -> Judgement:
    """RRL-Net at locations of the blocks, by scores and descriptors."""
    settings, size, blocks = config.verify, matcher.patch_size, refined.blocks
    each = max(4, math.ceil(settings.locations / len(frames)))
    targets = refined.transform(blocks.points)
    chosen, patches_a, patches_b = [], [], []
    for number, overlay in enumerate(_overlays(frames, refined.transform, size, config)):
        rows = np.flatnonzero(blocks.frame == number)
        h, w = overlay.a.image.shape
        x, y = overlay.to_level(targets[rows]).round().astype(int).clip(0, (w - 1, h - 1)).T
        inside = np.flatnonzero(_allowed(overlay, size, settings)[y, x])
        inside = inside[np.linspace(0, len(inside) - 1, min(each, len(inside))).round().astype(int)]
        chosen.append(rows[inside])
        points = np.stack([x, y], 1)[inside].astype(np.float64)
        patches_a.append(extract_patches(overlay.a.image, points, size)[0])
        patches_b.append(extract_patches(overlay.b.image, points, size)[0])
    rows = np.concatenate(chosen)
    features_a = matcher.encode(np.concatenate(patches_a), "a")
    features_b = matcher.encode(np.concatenate(patches_b), "b")
    scores = matcher.score_features(features_a, features_b, np.arange(len(rows))[:, None].repeat(2, 1))
    similarity = (features_a.descriptors @ features_b.descriptors.T).cpu().numpy()
    locations = targets[rows]
    mutual = _mutual(similarity, locations, blocks.frame[rows], settings.nearby)
    return Judgement(locations, rows, scores, mutual)


def _mutual(
    similarity: NDArray[np.float32], locations: Points, frame: NDArray[np.int64], nearby: float
) -> NDArray[np.bool_]:
    """Which patches (N,) of A and of B are nearest to each other by similarity (N, N), those nearby aside."""
    if len(locations) < 2:
        return np.zeros(len(locations), np.bool_)
    distance = np.linalg.norm(locations[:, None] - locations, axis=2)
    near = (frame[:, None] == frame) & (distance <= nearby * np.median(distance))
    others = np.where(near, -np.inf, similarity)
    return np.asarray(similarity.diagonal() > np.maximum(others.max(0), others.max(1)), np.bool_)


def _peak(frames: Sequence[Frame], refined: Refined, patch_size: int, config: Config) -> tuple[float, Misfit]:
    """Peak-to-sidelobe ratio of all blocks together, and how far they are off, each with those around it.

    Blocks that were fitted to each other at random have one shallow minimum among many. Where the images overlap
    little, few blocks agree by chance: the ratio falls with the root of the covered part.
    """
    settings, overlap, pixel = config.verify, refined.overlap, refined.blocks.pixel
    blocks, costs = _wide_blocks(frames, refined, pixel, config)
    if not len(costs):
        return 0.0, Misfit()
    covered = min(1.0, len(costs) / blocks.asked)
    patches = overlap.area / overlap.unit**2 / (settings.whole_patches * patch_size**2)
    beyond, radius = settings.sidelobe_radii
    peak = math.sqrt(covered * min(1.0, patches)) * peak_to_sidelobes(costs.mean(0), beyond)
    misfit = misfit_of(blocks, costs, config.error, overlap.unit)
    coarse = overlap.unit * overlap.side / config.refine.first_side
    if coarse > pixel:  # what is farther off than the radius, as another depth may be, shows on a coarse level
        far = misfit_of(*_wide_blocks(frames, refined, coarse, config), config.error, overlap.unit)
        misfit = misfit.joined(far.beyond(radius * pixel))
    return peak, misfit


def _wide_blocks(frames: Sequence[Frame], refined: Refined, pixel: float, config: Config) -> tuple[Blocks, Surfaces]:
    """Blocks looked for far around a transform, and their log costs."""
    grid = Grid(pixel, config.verify.sidelobe_cells, config.blocks.half, config.verify.sidelobe_radii[1])
    blocks = match_blocks(frames, refined.transform, refined.overlap, grid, config)
    return blocks, log_costs(blocks.surfaces, config.blocks)
