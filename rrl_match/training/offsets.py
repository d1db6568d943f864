"""How the score falls off when one of the patches is cut beside its true place: what a registration leans on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rrl_match.errors import DataError
from rrl_match.matcher import RRLMatcher
from rrl_match.training.augment import to_grey
from rrl_match.training.datasets import PatchSampler, PicturePair, Warp, find_places


@dataclass(frozen=True, eq=False)
class OffsetCurve:
    """Scores of N places, their patch of band A moved along x and along y.

    Attributes:
        offsets: (K,) pixels of band B.
        scores: (2, K, N) float32: along x, along y.
    """

    offsets: NDArray[np.float64]
    scores: NDArray[np.float32]

    def peaks(self) -> NDArray[np.float64]:
        """Offset (2, N) of each place's highest score; of equal ones, as where scores saturate, their mean."""
        highest = self.scores >= self.scores.max(1, keepdims=True)
        peaks: NDArray[np.float64] = (highest * self.offsets[:, None]).sum(1) / highest.sum(1)
        return peaks

    def figures(self, threshold: float) -> dict[str, float]:
        """The curve in a few numbers, lengths in pixels.

        ``bias_x`` and ``bias_y``: median offset of the peaks, what the training pictures' bands are apart on the
        average. ``spread``: median distance of a peak from its axis' bias. ``half_width``: smallest offset at which
        fewer than half as many places as at offset 0 score above `threshold`.
        """
        peaks = self.peaks()
        bias = np.median(peaks, axis=1)
        above = (self.scores > threshold).mean((0, 2))
        at_zero = above[np.abs(self.offsets).argmin()]
        far = np.abs(self.offsets[above < at_zero / 2])
        return {
            "bias_x": float(bias[0]),
            "bias_y": float(bias[1]),
            "spread": float(np.median(np.abs(peaks - bias[:, None]))),
            "above_threshold_at_0": float(at_zero),
            "half_width": float(far.min()) if len(far) else float("inf"),
        }


def score_over_offset(
    matcher: RRLMatcher, pairs: Sequence[PicturePair], reach: int = 24, step: int = 2, places: int = 300
) -> OffsetCurve:
    """Measure the curve at places with structure, spread over registered picture pairs.

    Args:
        pairs: as :func:`~rrl_match.training.datasets.read_pairs` gives them.
        reach, step: offsets from -reach to reach, in pixels of band B.
        places: in all, rounded up to equally many of each picture; fewer where one has no more that lie `reach` inside.

    Raises:
        DataError: no picture has such a place.
    """
    size = matcher.patch_size
    share = -(-places // len(pairs))
    chosen: list[PicturePair] = []
    centres: list[NDArray[np.float32]] = []
    for pair in pairs:
        found = find_places(pair, size + 2 * reach)
        if len(found):
            chosen.append(pair)
            centres.append(np.random.default_rng(0).permutation(found)[:share])
    if not chosen:
        raise DataError(f"no picture has a place with {reach} pixels around its patch")
    sampler = PatchSampler(chosen, size, torch.device("cpu"))
    picture = torch.from_numpy(np.repeat(np.arange(len(centres)), [len(c) for c in centres]))
    centre = torch.from_numpy(np.concatenate(centres))
    n = len(centre)
    upright = torch.eye(2).expand(n, 2, 2)
    nothing = torch.zeros(n, 2)
    codes_b = matcher.encode(sampler.cut(picture, centre).patches_b, "b")
    index_pairs = np.repeat(np.arange(n)[:, None], 2, axis=1)
    offsets = np.arange(-reach, reach + 1, step, dtype=np.float64)
    scores = np.empty((2, len(offsets), n), np.float32)
    for axis in (0, 1):
        for k, offset in enumerate(offsets):
            shift = nothing.clone()
            shift[:, axis] = float(offset)
            moved = sampler.cut(picture, centre, Warp(nothing, upright, upright, shift, nothing))
            codes_a = matcher.encode(to_grey(moved.colour_a), "a")
            scores[axis, k] = matcher.score_features(codes_a, codes_b, index_pairs)
    return OffsetCurve(offsets, scores)


def plot(curve: OffsetCurve, threshold: float, title: str, path: Path) -> None:
    """A picture of the curve: medians, quartiles, and the share of places above the threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for scores, name, colour in zip(curve.scores, ("x", "y"), ("tab:blue", "tab:orange"), strict=True):
        low, median, high = np.quantile(scores, [0.25, 0.5, 0.75], axis=1)
        axes.plot(curve.offsets, median, color=colour, label=f"along {name}: median, quartiles")
        axes.fill_between(curve.offsets, low, high, color=colour, alpha=0.15, linewidth=0)
    above = (curve.scores > threshold).mean((0, 2))
    axes.plot(curve.offsets, above, "k--", linewidth=1, label=f"share of places above {threshold:.3f}")
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="offset in pixels", ylabel="score", ylim=(-0.02, 1.02), title=title)
    axes.legend(loc="upper right", fontsize=7)
    figure.savefig(path, dpi=110)
