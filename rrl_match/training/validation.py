"""Held-back training pictures: what checkpoints are chosen and thresholds are calibrated on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.errors import DataError
from rrl_match.matcher import RRLMatcher
from rrl_match.modeling.network import RRLNet
from rrl_match.pretrained import ModelConfig
from rrl_match.training.augment import to_grey
from rrl_match.training.datasets import PatchSampler
from rrl_match.training.metrics import balanced_threshold, fpr95

NEAR = 24.0  # pixels between a place and a 'near' negative of the same picture, at least


class ValidationScores(NamedTuple):
    """Scores of matching pairs, of pairs of different pictures and of pairs of one picture."""

    match: NDArray[np.float32]
    random: NDArray[np.float32]
    near: NDArray[np.float32]

    def kinds(self) -> list[str]:
        """Kinds of negatives that there are; "random" ones need two pictures."""
        return [kind for kind in ("random", "near") if len(getattr(self, kind))]

    def fpr95(self, kind: str) -> float:
        """FPR95 in percent against the negatives of one kind, "random" or "near"."""
        return 100 * fpr95(*self._labelled(getattr(self, kind)))

    def threshold(self) -> float:
        """The score at which balanced accuracy against all negatives is highest."""
        return balanced_threshold(*self._labelled(np.concatenate([self.random, self.near])))

    def _labelled(self, negatives: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        labels = np.repeat([1, 0], [len(self.match), len(negatives)])
        return labels, np.concatenate([self.match, negatives])


class ValidationSet:
    """Fixed places of held-back pictures and fixed pairs of them, patches cut without any change.

    Args:
        sampler: the held-back pictures.
        places: per picture, and 4,000 in all at the most.
        negatives: of each kind for every place.
    """

    def __init__(self, sampler: PatchSampler, places: int = 80, negatives: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        places = max(2, min(places, 4000 // len(sampler.places)))
        chosen = [p[torch.randperm(len(p), generator=generator)[:places]] for p in sampler.places]
        picture = torch.cat([torch.full((len(p),), k) for k, p in enumerate(chosen)])
        batch = sampler.cut(picture, torch.cat(chosen))
        self.patches_a, self.patches_b = to_grey(batch.colour_a), batch.patches_b
        same = picture[:, None] == picture
        far = torch.cdist(torch.cat(chosen), torch.cat(chosen)) >= NEAR
        own = torch.arange(len(picture))
        self.pairs = {
            "match": torch.stack([own, own], 1),
            "random": _draw_partners(~same, negatives, generator),
            "near": _draw_partners(same & far, negatives, generator),
        }
        if not len(self.pairs["random"]) + len(self.pairs["near"]):
            raise DataError("the held-back pictures have too few places to make non-matching pairs of")

    def score(self, network: RRLNet, dtype: torch.dtype) -> ValidationScores:
        """Scores of all pairs, by the very function that users of these weights get in `dtype`."""
        config = ModelConfig(("a", "b"), network=network.config)
        matcher = RRLMatcher(network, config, device=self.patches_a.device, dtype=dtype)
        codes = matcher.encode(self.patches_a, "a"), matcher.encode(self.patches_b, "b")
        return ValidationScores(
            **{kind: matcher.score_features(*codes, pairs.numpy()) for kind, pairs in self.pairs.items()}
        )


def _draw_partners(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each row, `count` random columns where `allowed` (N, N): pairs (P, 2); fewer where there are fewer."""
    key = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    value, column = key.topk(min(count, allowed.shape[1]), dim=1)
    row = torch.arange(len(allowed))[:, None].expand_as(column)
    return torch.stack([row, column], 2)[value >= 0]
