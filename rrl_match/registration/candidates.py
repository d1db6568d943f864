"""Which hypotheses are refined, and which candidate is the best of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rrl_match.registration.dense_search import Hypothesis
from rrl_match.registration.local import bend
from rrl_match.registration.refinement import refine
from rrl_match.registration.task import Task
from rrl_match.registration.verification import (
    Alternatives,
    Evidence,
    Judged,
    Verdict,
    is_distinct,
    judge,
    measure,
    verify,
)


class Candidates:
    """Hypotheses that wait to be refined, and the evidence of those that were."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.waiting: list[Judged] = []
        self.measured: list[Evidence] = []

    def promising(self, aligned: Sequence[Hypothesis], last: bool) -> Iterator[Judged]:
        """What to refine at this stage, which found some hypotheses.

        First what agrees clearly better than all others, if there is such; then what RRL-Net prefers; at the last stage
        also what the dense search itself prefers.
        """
        settings, new = self.task.config.verify, [Judged(one) for one in aligned if self._is_new(one)]
        self.waiting += new
        best, *others = sorted((one.hypothesis.score for one in new), reverse=True) or [0.0]
        if best > 0 and max(others, default=0.0) < settings.clear * best:
            yield max(self.waiting, key=lambda one: (not one.judged, one.hypothesis.score))
        self.judge()
        least = 0.0 if last else settings.quick_support
        yield from [one for one in self.waiting[: settings.attempts] if one.support >= least]
        if last and self.waiting:
            yield max(self.waiting, key=lambda one: one.hypothesis.score)

    def judge(self) -> None:
        """Judge the hypotheses that were not, and put the best first."""
        task, new = self.task, [one.hypothesis for one in self.waiting if not one.judged]
        judged = judge(task.matcher, task.frames, new, task.config) if new else []
        self.waiting = sorted([*judged, *(one for one in self.waiting if one.judged)], key=lambda one: -one.rank)

    def refine(self, one: Judged) -> None:
        """Refine a hypothesis that waits, and measure what speaks for it."""
        task = self.task
        self.waiting.remove(one)
        refined = refine(task.frames, one.hypothesis.transform, task.freedom, task.config)
        if task.bends:
            refined = bend(task.frames, refined, one.hypothesis.transform, task.config) or refined
        if refined is not None:
            self.measured.append(measure(task.matcher, task.frames, refined, task.config))
            self.waiting = [one for one in self.waiting if self._is_new(one.hypothesis)]
        task.step()

    def _is_new(self, hypothesis: Hypothesis) -> bool:
        """Whether no candidate is where the hypothesis is."""
        sound, distance = [e for e in self.measured if not e.fault], self.task.config.search.distance
        return all(is_distinct(evidence, hypothesis.transform, distance) for evidence in sound)

    def best(self) -> tuple[Evidence, Verdict] | None:
        """The candidate of the highest log odds, after all alternatives that could decide its verdict were refined."""
        while self.measured:
            verdicts = [self.verdict(one) for one in self.measured]
            best = max(range(len(verdicts)), key=lambda k: (not verdicts[k].reason, verdicts[k].log_odds))
            alternative = verdicts[best].alternative
            if alternative is None:
                return self.measured[best], verdicts[best]
            if alternative.judged:
                self.refine(alternative)
            else:
                self.judge()
        return None

    def verdict(self, candidate: Evidence) -> Verdict:
        """What the evidence says of a candidate, beside all others."""
        others = [one for one in self.measured if one is not candidate]
        return verify(candidate, Alternatives(others, self.waiting), self.task.matcher.threshold, self.task.config)
