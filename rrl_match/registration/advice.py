"""What to try next where a pair was refused: calls that were tried here and would have passed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from rrl_match.registration.config import Search
from rrl_match.registration.images import Frame, PreparedImage
from rrl_match.registration.result import Registration
from rrl_match.registration.task import Task
from rrl_match.registration.verification import BENT

Searched: TypeAlias = Callable[[Task, Search, bool], Registration]

_ONE_GREY = 0.98  # part of an image that may have one grey value


def one_grey(frames: Sequence[Frame]) -> Registration | None:
    """A refusal if an image shows nothing, or almost nothing, but one grey value."""
    for band in ("a", "b"):
        part = max(_commonest(getattr(frame, band)) for frame in frames)
        if part >= _ONE_GREY:
            return Registration(
                reason=f"{part:.0%} of the known pixels of image_{band} have one grey value",
                advice=f"check what image_{band} holds, and value_range: values outside it become black or white",
            )
    return None


def _commonest(image: PreparedImage) -> float:
    """Part of the known pixels that has the commonest of 256 grey values."""
    level = image.level(max(1.0, (image.grey.size / 250_000) ** 0.5))
    known = level.image[level.known > 0.5]
    if not known.size:
        return 1.0
    return float(np.bincount((known * 255).round().astype(np.int64), minlength=256).max() / known.size)


def advise(refused: Registration, task: Task, search: Search, searched: Searched) -> str:
    """What to try next.

    Args:
        refused: the registration.
        task: what was registered.
        search: what was searched.
        searched: registers a task with a search, of what is near alone or of everything.
    """
    if refused.reason.startswith(BENT) and not task.bends:
        return 'pass model="local", or --model local'
    plain, free = dataclasses.replace(search, aspect=1.0), not task.region.known
    if free and not search.mirrored and searched(task, dataclasses.replace(plain, mirrored=True), True):
        return "one image is mirrored: pass search=Search(mirrored=True), or --mirrored"
    swapped = dataclasses.replace(task, frames=[Frame(frame.b, frame.a) for frame in task.frames])
    a, b = task.matcher.modalities
    if free and search.scale is None and a != b and searched(swapped, plain, True):
        return f"the bands are swapped: image_a must be {a}, image_b {b}"
    if refused.rejected is None or refused.probability < 0.01:
        return "if one image shows a small part of the other, crop the other to it, or pass initial="
    return "look at result.rejected: if it is nearly right, pass it as initial= with a narrow search"
