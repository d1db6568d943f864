"""Baselines for RRL-Net: SIFT, and other networks that are trained on the same patches.

``python baselines.py sift --benchmark FILE`` prints the metrics of SIFT. ``python baselines.py hardnet --data FOLDER
--benchmark FILE`` trains a network first; its weights are not saved. ``--weights`` measures weights of RRL-Net beside.
"""

from __future__ import annotations

import abc
import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rrl_match import RRLMatcher
from rrl_match.inference import choose_device
from rrl_match.patches import PatchSource
from rrl_match.training.batches import draw_batch
from rrl_match.training.datasets import Source, read_source
from rrl_match.training.evaluation import Benchmark, Metrics, evaluate, metrics_of, table
from rrl_match.training.losses import matching_loss
from rrl_match.training.mining import mine_pairs
from rrl_match.training.recipe import Phase, Recipe
from rrl_match.training.sampling import PatchSampler


class Baseline(abc.ABC):
    """Scores pairs of patches."""

    @abc.abstractmethod
    def score(self, patches_a: Tensor, patches_b: Tensor, pairs: Tensor) -> Tensor:
        """Scores (P,) of index pairs (P, 2) of patches (N, 1, 64, 64) in [0, 1]; higher means more similar."""


class Sift(Baseline):
    """OpenCV's SIFT descriptor (Lowe, IJCV 2004) of one upright keypoint of 10 px at the centre of each patch."""

    def __init__(self) -> None:
        self.sift = cv2.SIFT.create()

    def describe(self, patches: Tensor) -> Tensor:
        """Descriptors (N, 128), float32, of patches (N, 1, 64, 64) in [0, 1]; they are rounded to 8 bit."""
        grey = (patches * 255).round().byte().squeeze(1).cpu().numpy()
        centre = cv2.KeyPoint(32, 32, 10, 0)  # x, y, size, angle
        descriptors = [self.sift.compute(patch, [centre])[1] for patch in grey]
        return torch.from_numpy(np.concatenate([np.empty((0, 128), np.float32), *descriptors])).to(patches.device)

    def score(self, patches_a: Tensor, patches_b: Tensor, pairs: Tensor) -> Tensor:
        a, b = self.describe(patches_a), self.describe(patches_b)
        distance: Tensor = torch.linalg.vector_norm(a[pairs[:, 0]] - b[pairs[:, 1]], dim=1)
        return -distance


class TrainedBaseline(nn.Module, Baseline):
    """A network that learns from batches of locations."""

    @abc.abstractmethod
    def loss(self, patches_a: Tensor, patches_b: Tensor, negative: Tensor, generator: torch.Generator) -> Tensor:
        """Of N locations: patches (N, 1, 64, 64), row n of A matches row n of B; negative (N, N) bool."""


class TwoChannel(TrainedBaseline):
    """The 2-channel network of Zagoruyko and Komodakis (CVPR 2015): the two patches are the channels of one image.

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


class HardNet(TrainedBaseline):
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


TRAINED: dict[str, type[TrainedBaseline]] = {"2-channel": TwoChannel, "hardnet": HardNet}


def train_baseline(
    name: str, sources: Sequence[Source], recipe: Recipe, phase: Phase, *, seed: int = 0, device: str = "auto"
) -> TrainedBaseline:
    """Train a baseline from scratch on the batches of a recipe.

    Args:
        name: "2-channel" or "hardnet".
        sources: registered training images, all of which are trained on.
        recipe: its geometry, photometry, synthetic bands and distance of negatives are used.
        phase: steps, batch size and learning rate of AdamW with warm-up and cosine.
        device: as :class:`~rrl_match.RRLMatcher` takes it.

    Raises:
        ValueError: no such baseline.
    """
    if name not in TRAINED:
        raise ValueError(f"no baseline {name!r}: choose one of {', '.join(TRAINED)}")
    torch.manual_seed(seed)
    chosen = choose_device(device)
    baseline = TRAINED[name]().to(chosen).train()
    sampler = PatchSampler(sources, 64, chosen)
    optimizer = torch.optim.AdamW(baseline.parameters(), lr=phase.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, phase.lr_factor)
    with tqdm(range(phase.steps), name) as bar:
        for step in bar:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            loss = baseline.loss(*draw_batch(sampler, recipe, phase, generator), generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=round(loss.item(), 4))
    return baseline.eval()


@torch.no_grad()
def evaluate_baseline(baseline: Baseline, benchmark: Benchmark, device: str = "auto") -> Metrics:
    """Metrics in percent, as :func:`rrl_match.training.evaluation.evaluate` gives them."""
    chosen = choose_device(device)
    patches_a, patches_b = (
        PatchSource(patches, "patches", 64).batch(0, len(patches), chosen)
        for patches in (benchmark.patches_a, benchmark.patches_b)
    )
    scores = baseline.score(patches_a, patches_b, torch.from_numpy(benchmark.pairs).long().to(chosen))
    return metrics_of(benchmark, scores.cpu().numpy())


def comparison(results: Mapping[str, Mapping[str, Metrics]]) -> Iterator[str]:
    """Lines of a Markdown table of the mean FPR95, random / near: `results` by column, then by benchmark."""
    yield f"| test patches, random / near | {' | '.join(results)} |"
    yield "| --- |" + " ---: |" * len(results)
    for benchmark in next(iter(results.values())):
        metrics = [result[benchmark] for result in results.values()]
        cells = (" / ".join(f"{by_category['mean']['FPR95']:.2f}" for by_category in m.values()) for m in metrics)
        yield f"| {benchmark} | {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a baseline, after training it if it is a network.")
    parser.add_argument("name", choices=("sift", *TRAINED))
    parser.add_argument(
        "--benchmark",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help=".npz as rrl-match evaluate reads it; repeat it for several",
    )
    parser.add_argument("--weights", help="weights of RRL-Net to measure beside: a bundled name or a folder")
    parser.add_argument("--dtype", default="auto", help="of these weights: auto, float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the metrics as JSON as well")
    training = parser.add_argument_group("training of a network")
    training.add_argument("--data", action="append", metavar="FOLDER[=WEIGHT]", help="as rrl-match train takes it")
    training.add_argument("--recipe", default="vis-nir", help="a recipe of the package, or a JSON file")
    training.add_argument("--steps", type=int, default=2000)
    training.add_argument("--batch-size", type=int, default=256, help="locations per step")
    training.add_argument("--images-per-batch", type=int, default=16)
    training.add_argument("--learning-rate", type=float, default=1e-3)
    training.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a baseline, and weights of RRL-Net beside it, and print the metrics."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.name in TRAINED and not args.data:
        parser.error(f"{args.name} is trained first: give --data")
    benchmarks = {path.stem: Benchmark.load(path) for path in args.benchmark}  # before training, to find wrong paths
    if len(benchmarks) < len(args.benchmark):
        parser.error("the files of benchmarks must have different names")
    matcher = RRLMatcher.from_pretrained(args.weights, device=args.device, dtype=args.dtype) if args.weights else None
    baseline: Baseline = Sift()
    if args.name in TRAINED:
        phase = Phase(args.steps, args.batch_size, args.images_per_batch, args.learning_rate)
        sources, recipe = [read_source(folder) for folder in args.data], Recipe.load(args.recipe)
        baseline = train_baseline(args.name, sources, recipe, phase, seed=args.seed, device=args.device)
    results = {args.name: {name: evaluate_baseline(baseline, b, args.device) for name, b in benchmarks.items()}}
    if matcher:
        results[args.weights] = {name: evaluate(matcher, b) for name, b in benchmarks.items()}
    for method, by_benchmark in results.items():
        for benchmark, result in by_benchmark.items():
            print(f"{method} on {benchmark}; all metrics in percent")
            for line in table(result):
                print(line)
    print("FPR95 in percent, mean over the categories:")
    for line in comparison(results):
        print(line)
    if args.save:
        args.save.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
