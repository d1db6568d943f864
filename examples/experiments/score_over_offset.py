"""How the score decreases when one of the patches is offset from its true location, which registration relies on.

``python score_over_offset.py --weights NAME --data FOLDER --plot FILE.png`` measures and plots the curve.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rrl_match.errors import DataError
from rrl_match.matcher import RRLMatcher
from rrl_match.training.augment import to_grey
from rrl_match.training.datasets import ImagePair, Source, find_locations, read_pairs
from rrl_match.training.sampling import PatchSampler, Warp


@dataclass(frozen=True, eq=False)
class OffsetCurve:
    """Scores of N locations, with the patch of band A moved along x and along y.

    Attributes:
        offsets: (K,) pixels of band B.
        scores: (2, K, N) float32: along x, along y.
    """

    offsets: NDArray[np.float64]
    scores: NDArray[np.float32]

    def peaks(self) -> NDArray[np.float64]:
        """Offset (2, N) of each location's highest score; the mean offset of equal scores, as at saturation."""
        highest = self.scores >= self.scores.max(1, keepdims=True)
        peaks: NDArray[np.float64] = (highest * self.offsets[:, None]).sum(1) / highest.sum(1)
        return peaks

    def metrics(self, threshold: float) -> dict[str, float]:
        """Summary of the curve, lengths in pixels.

        ``bias_x`` and ``bias_y``: median offset of the peaks, the mean misalignment of the training images' bands.
        ``spread``: median distance of a peak from the bias of its axis. ``half_width``: smallest offset at which
        the fraction of locations above `threshold` is less than half of that at offset 0.
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
    matcher: RRLMatcher, pairs: Sequence[ImagePair], reach: int = 24, step: int = 2, locations: int = 300
) -> OffsetCurve:
    """Measure the curve at textured locations, spread over registered image pairs.

    Args:
        pairs: as :func:`~rrl_match.training.datasets.read_pairs` gives them.
        reach, step: offsets from -reach to reach, in pixels of band B.
        locations: total, rounded up to the same number per image; images with less room for `reach` give fewer.

    Raises:
        DataError: no image has such a location.
    """
    size = matcher.patch_size
    per_image = -(-locations // len(pairs))
    chosen: list[ImagePair] = []
    centres: list[NDArray[np.float32]] = []
    for pair in pairs:
        found = find_locations(pair, size + 2 * reach)
        if len(found):
            chosen.append(pair)
            centres.append(np.random.default_rng(0).permutation(found)[:per_image])
    if not chosen:
        raise DataError(f"no image has a location with {reach} pixels around its patch")
    sampler = PatchSampler([Source("data", chosen)], size, torch.device("cpu"))
    image = torch.from_numpy(np.repeat(np.arange(len(centres)), [len(c) for c in centres]))
    centre = torch.from_numpy(np.concatenate(centres))
    n = len(centre)
    upright = torch.eye(2).expand(n, 2, 2)
    zero = torch.zeros(n, 2)
    features_b = matcher.encode(sampler.cut(image, centre).patches_b, "b")
    index_pairs = np.repeat(np.arange(n)[:, None], 2, axis=1)
    offsets = np.arange(-reach, reach + 1, step, dtype=np.float64)
    scores = np.empty((2, len(offsets), n), np.float32)
    for axis in (0, 1):
        for k, offset in enumerate(offsets):
            shift = zero.clone()
            shift[:, axis] = float(offset)
            moved = sampler.cut(image, centre, Warp(zero, upright, upright, shift, zero))
            features_a = matcher.encode(to_grey(moved.colour_a), "a")
            scores[axis, k] = matcher.score_features(features_a, features_b, index_pairs)
    return OffsetCurve(offsets, scores)


def plot(curve: OffsetCurve, threshold: float, title: str, path: Path) -> None:
    """Plot medians, quartiles, and the fraction of locations above the threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for scores, name, colour in zip(curve.scores, ("x", "y"), ("tab:blue", "tab:orange"), strict=True):
        low, median, high = np.quantile(scores, [0.25, 0.5, 0.75], axis=1)
        axes.plot(curve.offsets, median, color=colour, label=f"along {name}: median, quartiles")
        axes.fill_between(curve.offsets, low, high, color=colour, alpha=0.15, linewidth=0)
    above = (curve.scores > threshold).mean((0, 2))
    axes.plot(curve.offsets, above, "k--", linewidth=1, label=f"fraction of locations above {threshold:.3f}")
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="offset in pixels", ylabel="score", ylim=(-0.02, 1.02), title=title)
    axes.legend(loc="upper right", fontsize=7)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the curve's metrics and plot it."""
    parser = argparse.ArgumentParser(description="Measure how the score decreases with the offset between the patches.")
    parser.add_argument("--weights", required=True, help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--data", type=Path, required=True, help="folder with a manifest.csv and the images it names")
    parser.add_argument("--plot", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--split", default="test", help="split of the manifest to measure")
    parser.add_argument("--locations", type=int, default=300, help="number of locations, over all images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    args = parser.parse_args(arguments)
    matcher = RRLMatcher.from_pretrained(args.weights, device=args.device, dtype=args.dtype)
    curve = score_over_offset(matcher, read_pairs(args.data, args.split), locations=args.locations)
    title = f"{matcher.modalities[0]} against {matcher.modalities[1]}, {curve.scores.shape[2]} locations"
    plot(curve, matcher.threshold, title, args.plot)
    for name, value in curve.metrics(matcher.threshold).items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
