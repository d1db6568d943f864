"""What one call of :func:`register` works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rrl_match.matcher import RRLMatcher
from rrl_match.registration.config import Config
from rrl_match.registration.dense_search import Region
from rrl_match.registration.images import Frame
from rrl_match.registration.refinement import Freedom


@dataclass(frozen=True, eq=False)
class Task:
    """Images to register, and what is asked.

    Attributes:
        matcher: RRL-Net.
        frames: prepared images, of one size each band.
        freedom: what may be fitted.
        region: where to look.
        bends: whether a displacement field may be put on top of the global transform.
        config: numbers of the method.
        step: called after each step, for a progress bar.
    """

    matcher: RRLMatcher
    frames: Sequence[Frame]
    freedom: Freedom
    region: Region
    bends: bool
    config: Config
    step: Callable[[], object]
