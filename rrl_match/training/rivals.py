"""Other networks for the same task, trained on the same patches, to compare RRL-Net with.

Only for measuring: what they learn is not kept.
"""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rrl_match.inference import choose_device
from rrl_match.patches import PatchSource
from rrl_match.training.augment import augment, mixed_grey
from rrl_match.training.datasets import PatchSampler, PicturePair
from rrl_match.training.evaluation import Benchmark, figures
from rrl_match.training.losses import matching_loss
from rrl_match.training.mining import mine_pairs, surely_different
from rrl_match.training.recipe import Phase, Recipe

logger = logging.getLogger(__name__)


class Rival(nn.Module, abc.ABC):
    """A network that learns from batches of places and scores pairs of patches."""

    @abc.abstractmethod
    def loss(self, patches_a: Tensor, patches_b: Tensor, negative: Tensor, generator: torch.Generator) -> Tensor:
        """Of N places: patches (N, 1, S, S), row n of A matches row n of B; negative (N, N) bool."""

    @abc.abstractmethod
    def score(self, patches_a: Tensor, patches_b: Tensor, pairs: Tensor) -> Tensor:
        """Of index pairs (P, 2): (P,), higher means more alike."""


class TwoChannel(Rival):
    """The 2-channel network of Zagoruyko and Komodakis (CVPR 2015): both patches are the channels of one picture.

    Trained, as published, on as many random non-matching pairs as matching ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 96, 7, stride=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(96, 192, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 256, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.decision = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, patches_a: Tensor, patches_b: Tensor) -> Tensor:
        """Logits (P,) of P pairs of patches (P, 1, 64, 64)."""
        both = torch.cat([patches_a, patches_b], 1) - 0.5
        logits: Tensor = self.decision(self.features(both))
        return logits.squeeze(1)

    def loss(self, patches_a: Tensor, patches_b: Tensor, negative: Tensor, generator: torch.Generator) -> Tensor:
        pairs = mine_pairs(torch.zeros_like(negative, dtype=torch.float32), negative, 0.0, generator)
        labels = (torch.arange(len(pairs), device=pairs.device) < len(negative)).float()
        return matching_loss(self(patches_a[pairs[:, 0]], patches_b[pairs[:, 1]]), labels)

    def score(self, patches_a: Tensor, patches_b: Tensor, pairs: Tensor) -> Tensor:
        return torch.cat([self(patches_a[rows[:, 0]], patches_b[rows[:, 1]]) for rows in pairs.split(512)])


class HardNet(Rival):
    """The descriptor of Mishchuk et al. (NeurIPS 2017): L2-Net's layers, triplets with the batch's hardest negative.

    One network for both bands, as published; patches are halved to its 32 x 32 pixels and standardised.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
            layers += [nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels, affine=False), nn.ReLU()]
            before = channels
        layers += [nn.Dropout(0.3), nn.Conv2d(128, 128, 8, bias=False), nn.BatchNorm2d(128, affine=False), nn.Flatten()]
        self.layers = nn.Sequential(*layers)

    def forward(self, patches: Tensor) -> Tensor:
        """Descriptors (N, 128) of unit length of patches (N, 1, 64, 64)."""
        small = F.avg_pool2d(patches, 2)
        centred = small - small.mean((1, 2, 3), keepdim=True)
        descriptors = self.layers(centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-4))
        return F.normalize(descriptors, dim=1)

    def loss(self, patches_a: Tensor, patches_b: Tensor, negative: Tensor, generator: torch.Generator) -> Tensor:
        a, b = self(torch.cat([patches_a, patches_b])).chunk(2)
        distance = (2 - 2 * a @ b.T).clamp(min=1e-6).sqrt()
        others = distance.masked_fill(~negative, math.inf)
        hardest = torch.minimum(others.amin(0), others.amin(1))
        return F.relu(1 + distance.diagonal() - hardest).mean()

    def score(self, patches_a: Tensor, patches_b: Tensor, pairs: Tensor) -> Tensor:
        a, b = (torch.cat([self(part) for part in patches.split(512)]) for patches in (patches_a, patches_b))
        return (a[pairs[:, 0]] * b[pairs[:, 1]]).sum(1)


RIVALS: dict[str, type[Rival]] = {"2-channel": TwoChannel, "hardnet": HardNet}


def train_rival(
    name: str, pairs: Sequence[PicturePair], recipe: Recipe, phase: Phase, *, seed: int = 0, device: str = "auto"
) -> Rival:
    """Train a rival from scratch on the recipe's patches: its geometry, photometry and distance of negatives.

    Args:
        name: "2-channel" or "hardnet".
        pairs: registered training pictures, all of which are trained on.
        phase: steps, places and pictures of a batch, learning rate of AdamW with warm-up and cosine.
        device: as :class:`~rrl_match.RRLMatcher` takes it.

    Raises:
        ValueError: no such rival.
    """
    if name not in RIVALS:
        raise ValueError(f"no rival {name!r}: choose one of {', '.join(RIVALS)}")
    torch.manual_seed(seed)
    place = choose_device(device)
    rival = RIVALS[name]().to(place).train()
    sampler = PatchSampler(pairs, 64, place)
    optimizer = torch.optim.AdamW(rival.parameters(), lr=phase.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, phase.rate)
    with tqdm(range(phase.steps), name) as bar:
        for step in bar:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            batch = sampler.draw(phase.places, phase.pictures, recipe.geometry, generator)
            patches_a = augment(mixed_grey(batch.colour_a, recipe.photometry, generator), recipe.photometry, generator)
            patches_b = augment(batch.patches_b, recipe.photometry, generator)
            negative = surely_different(batch.picture, batch.position, recipe.negative_distance)
            loss = rival.loss(patches_a, patches_b, negative, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=round(loss.item(), 4))
    return rival.eval()


@torch.no_grad()
def evaluate_rival(rival: Rival, benchmark: Benchmark) -> dict[str, dict[str, dict[str, float]]]:
    """Figures in percent, as :func:`rrl_match.training.evaluation.evaluate` gives them."""
    device = next(rival.parameters()).device
    patches_a, patches_b = (
        PatchSource(patches, "patches", 64).batch(0, len(patches), device)
        for patches in (benchmark.patches_a, benchmark.patches_b)
    )
    scores = rival.score(patches_a, patches_b, torch.from_numpy(benchmark.pairs).long().to(device))
    return figures(benchmark, scores.cpu().numpy())
