"""How far a refined transform can be trusted: by RRL-Net's descriptors, by its edges, and beside other transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from rrl_match.matcher import RRLMatcher
from rrl_match.registration.coarse import Hypothesis
from rrl_match.registration.geometry import Matrix, Model, implausible, inverse
from rrl_match.registration.images import Frame
from rrl_match.registration.judge import Judgement, judge_at
from rrl_match.registration.refine import Refined, agreement_of, elsewhere, prominence, refine
from rrl_match.registration.settings import Settings


@dataclass(frozen=True, eq=False)  # compared by identity: matrices have no single truth value
class Supported:
    """A hypothesis whose score is the agreement of the fields, and how far RRL-Net supports it.

    Attributes:
        hypothesis: as it was aligned.
        support: in [0, 1], see :meth:`Judgement.support`.
        rank: in the order of refinement; the support, to which the fields' agreement adds.
    """

    hypothesis: Hypothesis
    support: float
    rank: float = 0.0


class Candidate(NamedTuple):
    """A refined transform, and what speaks for it.

    Attributes:
        refined: the transform.
        reason: why its blocks alone speak against it, or "". If they do, nothing else was measured.
        judged: locations of some of the blocks.
        support: by the scores there, see :meth:`Judgement.support`.
        recognised: by the descriptors there, see :meth:`Judgement.recognised`.
        agreement: of the fields, see :func:`agreement_of`.
        prominence: see :func:`prominence`; less in small images, where chance does more.
    """

    refined: Refined
    reason: str = ""
    judged: Judgement | None = None
    support: float = 0.0
    recognised: float = 0.0
    agreement: float = 0.0
    prominence: float = 0.0


class Trial:
    """Hypotheses that are refined, weighed and compared, each at most once.

    Args:
        matcher, frames, model, settings: as for `register`; the frames are prepared.

    Attributes:
        supported: the hypotheses that candidates are compared with.
    """

    def __init__(self, matcher: RRLMatcher, frames: Sequence[Frame], model: Model, settings: Settings) -> None:
        self.matcher, self.frames, self.model, self.settings = matcher, frames, model, settings
        self.supported: list[Supported] = []
        self._candidates: dict[bytes, Candidate | None] = {}

    def candidate(self, hypothesis: Hypothesis) -> Candidate | None:
        """A hypothesis, refined and weighed; None if nothing fits near it."""
        key = hypothesis.matrix.tobytes()
        if key not in self._candidates:
            refined = refine(self.frames, hypothesis.matrix, self.model, self.settings)
            self._candidates[key] = None if refined is None else self.weigh(refined)
        return self._candidates[key]

    def weigh(self, refined: Refined) -> Candidate:
        """Measure what speaks for a refined transform."""
        matcher, frames, settings = self.matcher, self.frames, self.settings
        reason, matrix = _unsound(frames[0].a.shape, refined, settings), refined.matrix
        if reason:
            return Candidate(refined, reason)
        judged = judge_at(matcher, frames, matrix, [b.points for b in refined.blocks], settings.locations, settings)
        patches = _shown(frames, matrix, settings) / (settings.prominence_patches * matcher.patch_size**2)
        return Candidate(
            refined,
            judged=judged,
            support=judged.support(settings.prior),
            recognised=judged.recognised(settings.prior),
            agreement=agreement_of(frames, matrix, settings),
            prominence=math.sqrt(min(1.0, patches)) * prominence(frames, refined, settings),
        )

    def trust(self, candidate: Candidate, lead: float = math.inf) -> float:
        """Log odds that a transform is right: by its descriptors, its lead over others and its prominence together.

        Each counts within bounds, so that none decides alone: on sensors that the network does not know, it recognises
        little.
        """
        if candidate.reason:
            return -math.inf
        settings = self.settings
        ahead = math.log(np.clip(lead, *settings.trusted_leads))
        above = min(candidate.prominence, settings.trusted_prominence)
        of_recognised, of_lead, of_prominence = settings.trust_weights
        return settings.trust_bias + of_recognised * candidate.recognised + of_lead * ahead + of_prominence * above

    def lead(self, candidate: Candidate) -> float:
        """By what factor the fields agree better under a candidate than under any alternative; infinite without any.

        Under wrong transforms, fields agree about equally well, whatever the sensors. An alternative is a hypothesis
        elsewhere that has half the support and, once it is refined, is trusted nearly as much: others agree well by
        chance, as where a small part of A without detail is spread over B. None is refined where that cannot change
        the outcome.
        """
        settings, others = self.settings, self._elsewhere(candidate)
        least = candidate.agreement / others[0].score if others else math.inf
        beyond_doubt = least >= settings.clear_lead and self.trust(candidate, least) >= settings.certain_trust
        if beyond_doubt or self.trust(candidate) < 0:
            return least
        for other in others:
            if self._is_alternative(candidate, other):
                return candidate.agreement / other.score
        return math.inf

    def _elsewhere(self, candidate: Candidate) -> list[Hypothesis]:
        """Hypotheses elsewhere with enough support that agree well enough to matter, the best first."""
        settings, matrix = self.settings, candidate.refined.matrix
        support = settings.alternative_support * candidate.support
        score = max(1e-9, candidate.agreement / settings.trusted_leads[1])
        found = [s.hypothesis for s in self.supported if s.support >= support and s.hypothesis.score >= score]
        found = [h for h in found if elsewhere(self.frames, matrix, h.matrix, settings)]
        return sorted(found, key=lambda h: -h.score)

    def _is_alternative(self, candidate: Candidate, hypothesis: Hypothesis) -> bool:
        """Whether a hypothesis stays elsewhere when it is refined, and is then trusted nearly as much."""
        other = self.candidate(hypothesis)
        if other is None or self.trust(other) < self.trust(candidate) - self.settings.alternative_trust:
            return False
        return elsewhere(self.frames, candidate.refined.matrix, other.refined.matrix, self.settings)


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
