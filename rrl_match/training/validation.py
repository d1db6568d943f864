"""Validation on held-back training images, which choose the checkpoint and calibrate the threshold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.errors import DataError
from rrl_match.matcher import RRLMatcher
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import ModelConfig
from rrl_match.training.augment import to_grey
from rrl_match.training.datasets import Source
from rrl_match.training.metrics import balanced_threshold, fpr95
from rrl_match.training.sampling import PatchSampler

NEAR = 24.0  # pixels between a location and a 'near' negative of the same image, at least
MOST_LOCATIONS = 2000  # of all sources together


class ValidationScores(NamedTuple):
    """Scores of the pairs of a :class:`ValidationSet`."""

    match: NDArray[np.float32]  # of one location
    random: NDArray[np.float32]  # of different images
    near: NDArray[np.float32]  # of different locations of one image

    def kinds(self) -> list[str]:
        """Kinds of negatives that exist; "random" ones need two images."""
        return [kind for kind in ("random", "near") if len(getattr(self, kind))]

    def fpr95(self) -> dict[str, float]:
        """FPR95 in percent against the negatives of each kind."""
        return {kind: 100 * fpr95(*_labelled(self.match, getattr(self, kind))) for kind in self.kinds()}


def balanced_threshold_of(scores: Iterable[ValidationScores]) -> float:
    """The score with the highest balanced accuracy, over the negatives of all kinds and all sources."""
    scores = list(scores)
    match = np.concatenate([s.match for s in scores])
    negatives = np.concatenate([part for s in scores for part in (s.random, s.near)])
    return balanced_threshold(*_labelled(match, negatives))


def _labelled(
    match: NDArray[np.float32], negatives: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.repeat([1, 0], [len(match), len(negatives)]), np.concatenate([match, negatives])


class ValidationSet:
    """Fixed locations of one source's held-back images and fixed pairs of them; the patches are not augmented.

    Args:
        source: with the held-back pairs.
        patch_size: in pixels.
        device: where the patches are kept.
        locations: upper bound on their number, spread evenly over the images; 2 to 80 of each image.
        negatives: number of each kind for every location.

    Raises:
        DataError: there is no location, or no pair of locations that does not match.
    """

    def __init__(
        self, source: Source, patch_size: int, device: torch.device, locations: int = MOST_LOCATIONS, negatives: int = 4
    ) -> None:
        self.name = source.name
        sampler = PatchSampler([source], patch_size, device)
        generator = torch.Generator().manual_seed(0)
        each = max(2, min(80, locations // len(sampler.locations)))
        chosen = [p[torch.randperm(len(p), generator=generator)[:each]] for p in sampler.locations]
        image = torch.cat([torch.full((len(p),), k) for k, p in enumerate(chosen)])
        batch = sampler.cut(image, torch.cat(chosen))
        self.patches_a, self.patches_b = to_grey(batch.colour_a), batch.patches_b
        same = image[:, None] == image
        far = torch.cdist(torch.cat(chosen), torch.cat(chosen)) >= NEAR
        own = torch.arange(len(image))
        self.pairs = {
            "match": torch.stack([own, own], 1),
            "random": _draw_partners(~same, negatives, generator),
            "near": _draw_partners(same & far, negatives, generator),
        }
        if not len(self.pairs["random"]) + len(self.pairs["near"]):
            raise DataError(f"{source.name}: the held-back images have too few locations for non-matching pairs")

    def score(self, network: RRLNet, dtype: torch.dtype) -> ValidationScores:
        """Scores of all pairs, computed as for users of these weights in `dtype`."""
        config = ModelConfig(("a", "b"), network=network.config)
        matcher = RRLMatcher(network, config, device=self.patches_a.device, dtype=dtype)
        features = matcher.encode(self.patches_a, "a"), matcher.encode(self.patches_b, "b")
        return ValidationScores(
            **{kind: matcher.score_features(*features, pairs.numpy()) for kind, pairs in self.pairs.items()}
        )


def _draw_partners(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each row, `count` random columns where `allowed` (N, N): pairs (P, 2); fewer where there are fewer."""
    key = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    value, column = key.topk(min(count, allowed.shape[1]), dim=1)
    row = torch.arange(len(allowed))[:, None].expand_as(column)
    return torch.stack([row, column], 2)[value >= 0]
