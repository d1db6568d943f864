"""How far a refined transform can be trusted: by its edges, by RRL-Net's scores, and beside other transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from rrl_match.matcher import RRLMatcher
from rrl_match.registration.coarse import Hypothesis
from rrl_match.registration.geometry import Matrix, implausible, inverse
from rrl_match.registration.images import Frame
from rrl_match.registration.judge import Judgement, judge_at
from rrl_match.registration.refine import Refined, agreement_of, elsewhere, prominence
from rrl_match.registration.settings import Settings


class Supported(NamedTuple):
    """A hypothesis whose score is the agreement of the fields, and how far RRL-Net supports it."""

    hypothesis: Hypothesis
    support: float


class Candidate(NamedTuple):
    """A refined transform, and what speaks for it.

    Attributes:
        refined: the transform.
        reason: why its blocks alone speak against it, or ""; then nothing else was measured.
        judged: scores at some of the blocks.
        support: of these scores, see :meth:`Judgement.support`.
        agreement: of the fields, see :func:`agreement_of`.
        prominence: see :func:`prominence`; less in small images, where chance does more.
    """

    refined: Refined
    reason: str
    judged: Judgement
    support: float = 0.0
    agreement: float = 0.0
    prominence: float = 0.0


def weigh(matcher: RRLMatcher, frames: Sequence[Frame], refined: Refined, settings: Settings) -> Candidate:
    """Measure what speaks for a refined transform."""
    reason, matrix = _unsound(frames[0].a.shape, refined, settings), refined.matrix
    if reason:
        nowhere = np.empty(0, np.int64)
        return Candidate(refined, reason, Judgement(np.empty((0, 2)), nowhere, nowhere, np.empty(0, np.float32)))
    judged = judge_at(matcher, frames, matrix, [b.points for b in refined.blocks], settings.locations, settings)
    support, agreement = judged.support(settings.prior), agreement_of(frames, matrix, settings)
    patches = _shown(frames, matrix, settings) / (settings.prominence_patches * matcher.patch_size**2)
    above = math.sqrt(min(1.0, patches)) * prominence(frames, refined, settings)
    return Candidate(refined, "", judged, support, agreement, above)


def _shown(frames: Sequence[Frame], matrix: Matrix, settings: Settings) -> float:
    """Pixels of A that B shows, too, under a transform (3, 3), in all frames."""
    total = 0.0
    for a, b in frames:
        factor = max(1.0, math.sqrt(a.mask.size / settings.judge_pixels))
        _, mask, to_level = a.level(factor)
        back = to_level @ inverse(matrix)
        of_b = np.asarray(cv2.warpPerspective(b.mask, back, mask.shape[::-1], flags=cv2.INTER_NEAREST), np.uint8)
        total += factor**2 * np.count_nonzero(of_b & mask)
    return total


def _unsound(shape: tuple[int, ...], refined: Refined, settings: Settings) -> str:
    """Why the blocks alone speak against a transform of an image A of this shape, or ""."""
    h, w = shape
    wrong = implausible(refined.matrix, np.array([(w - 1) / 2, (h - 1) / 2]))
    if wrong:
        return f"the transform is implausible: {wrong}"
    if refined.agreeing < settings.min_agreeing:
        return f"only {refined.agreeing:.0%} of the blocks agree on one transform"
    if refined.moved > settings.max_move:
        return f"the transform is not settled, the last fit moved it by {refined.moved:.0%}"
    return ""


def alternatives(
    frames: Sequence[Frame], candidate: Candidate, supported: Sequence[Supported], settings: Settings
) -> list[Hypothesis]:
    """The hypotheses elsewhere that RRL-Net supports nearly as well as a candidate, or at least half as well.

    The others may agree well by chance, as where a small part of A without detail is spread over B.
    """
    matrix, least = candidate.refined.matrix, settings.alternative_support * candidate.support
    return [h for h, support in supported if support >= least and elsewhere(frames, matrix, h.matrix, settings)]


def lead(frames: Sequence[Frame], candidate: Candidate, supported: Sequence[Supported], settings: Settings) -> float:
    """By what factor the fields agree better under a candidate than under any of its :func:`alternatives`.

    Under wrong transforms, fields agree about equally well, whatever the sensors. Infinite without any.
    """
    best = max((h.score for h in alternatives(frames, candidate, supported, settings)), default=0.0)
    return candidate.agreement / best if best > 0 else math.inf


def trust(frames: Sequence[Frame], candidate: Candidate, supported: Sequence[Supported], settings: Settings) -> float:
    """Log odds that a transform is right: by its scores, its lead over others and its prominence together.

    Each counts within bounds, so that none decides alone: support from `trusted_support` on, since how high patches
    score depends on how well the network knows the sensors.
    """
    if candidate.reason:
        return -math.inf
    support = max(candidate.support, settings.trusted_support)
    ahead = math.log(np.clip(lead(frames, candidate, supported, settings), *settings.trusted_leads))
    above = min(candidate.prominence, settings.trusted_prominence)
    of_support, of_lead, of_prominence = settings.trust_weights
    return settings.trust_bias + of_support * support + of_lead * ahead + of_prominence * above
