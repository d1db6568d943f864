"""Selection of the pairs of a batch that the metric network is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from rrl_match.training.device import to_device


def negative_mask(group: Tensor, image: Tensor, position: Tensor, distance: float) -> Tensor:
    """(N, N) bool, which pairs of locations may serve as negatives.

    Both must be of one group: patches of another source are recognised by their looks, so they teach nothing. They must
    be of different images, or at least `distance` pixels apart.

    Args:
        group, image: (N,) int64.
        position: (N, 2) xy, in pixels.
        distance: in pixels.
    """
    apart = (image[:, None] != image) | (torch.cdist(position, position) >= distance)
    return apart & (group[:, None] == group)


def mine_pairs(
    similarity: Tensor, negative: Tensor, hard_fraction: float, generator: torch.Generator, hardest: int = 4
) -> Tensor:
    """Every location with its own partner, then as many non-matching pairs.

    A hard negative is drawn from the `hardest` most similar ones, half of them along A and half along B: in-batch
    mining as HardNet's (Mishchuk et al., 2017), less greedy because the most similar location of a meadow is often
    in the same meadow.

    Args:
        similarity: (N, N), of row i of A and row j of B.
        negative: (N, N) bool, which pairs may serve as negatives.
        hard_fraction: fraction of hard negatives; the others are random.
        generator: a CPU generator.

    Returns:
        index_pairs (P, 2) int64 on the device of `similarity`: first the N matching ones, then a non-matching one for
        each location that has a negative, nearly always N as well.
    """
    n = len(similarity)
    device = similarity.device
    hard = to_device(torch.rand(n, generator=generator), device) < hard_fraction
    along_b = to_device(torch.rand(n, generator=generator), device) < 0.5
    lowest = torch.finfo(torch.float32).min
    random_key = to_device(torch.rand(n, n, generator=generator), device).masked_fill(~negative, lowest)
    ranked = similarity.detach().float().masked_fill(~negative, lowest)
    ranked = torch.where(along_b[:, None], ranked.T, ranked)
    top = ranked.topk(min(hardest, n), dim=1)
    # one of the hardest, but never a masked one
    key = to_device(torch.rand(n, top.indices.shape[1], generator=generator), device)
    rank = key.masked_fill(top.values == lowest, -1.0).argmax(1)
    partner = torch.where(hard, top.indices.gather(1, rank[:, None])[:, 0], random_key.argmax(1))
    own = torch.arange(n, device=device)
    non_matching = torch.where(along_b[:, None], torch.stack([partner, own], 1), torch.stack([own, partner], 1))
    return torch.cat([torch.stack([own, own], 1), non_matching[negative.any(1)]])
