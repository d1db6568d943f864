"""What to try next where a pair was refused: calls that were tried here and would have passed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rrl_match.matcher import RRLMatcher
from rrl_match.registration.config import Search
from rrl_match.registration.images import Frame, PreparedImage
from rrl_match.registration.result import Registration

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


def advise(
    refused: Registration,
    matcher: RRLMatcher,
    frames: Sequence[Frame],
    search: Search,
    free: bool,
    tried: Callable[[Search, Sequence[Frame], bool], Registration],
) -> str:
    """What to try next.

    Args:
        refused: the registration.
        matcher: for the names of its bands.
        frames: the images.
        search: what was searched.
        free: whether nothing was known beforehand.
        tried: registers frames with a search, of what is near alone or of everything.
    """
    plain = dataclasses.replace(search, aspect=1.0)
    if free and not search.mirrored and tried(dataclasses.replace(plain, mirrored=True), frames, True):
        return "one image is mirrored: pass search=Search(mirrored=True), or --mirrored"
    (a, b), swapped = matcher.modalities, [Frame(frame.b, frame.a) for frame in frames]
    if free and search.scale is None and a != b and tried(plain, swapped, True):
        return f"the bands are swapped: image_a must be {a}, image_b {b}"
    if refused.rejected is None or refused.probability < 0.01:
        return "if one image shows a small part of the other, crop the other to it, or pass initial="
    return "look at result.rejected: if it is nearly right, pass it as initial= with a narrow search"
