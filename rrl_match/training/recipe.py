"""A training recipe: what is trained, on which patches, by which losses and schedule."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rrl_match.training.network import TrainingConfig


@dataclass(frozen=True)
class Geometry:
    """How patches are cut. Angles in degrees, lengths in pixels.

    The first group moves both bands alike, the second moves band A against band B.
    """

    flips_and_quarter_turns: bool = True
    zoom: float = 1.0  # both bands are cut at a scale between 1 / zoom and zoom
    common_turn: float = 0.0
    place_jitter: float = 4.0

    share: float = 0.0  # of places whose bands are moved against each other at all
    turn: float = 0.0  # within +- turn
    scale: float = 1.0  # between 1 / scale and scale
    aspect: float = 1.0
    shift: float = 0.0
    perspective: float = 0.0  # change of scale from the centre to the border of the patch


@dataclass(frozen=True)
class Photometry:
    """Changes of grey values, drawn apart for the two bands; each is made to `share` of the patches."""

    share: float = 0.5
    channel_mix: bool = False  # band A's grey from random weights of its colours instead of BT.601
    gamma: float = 1.0  # between 1 / gamma and gamma
    contrast: float = 0.0  # factor within 1 +- contrast
    brightness: float = 0.0
    tone: float = 0.0  # largest amplitude of a sine added to the tone curve; beyond 0.1 contrast turns in places
    shading: float = 0.0  # brightening from one side of the patch to the other
    inversion: float = 0.0  # share of patches whose grey values are inverted
    blur: float = 0.0  # largest sigma of a Gaussian, in pixels
    noise: float = 0.0  # largest sigma, in units of the full range
    stripes: float = 0.0  # the same, of one value a row or column: fixed-pattern noise of thermal cameras
    speckle: float = 0.0  # largest sigma of noise that grows with the grey value, as a radar's
    quantisation: float = 0.0  # largest step, in units of the full range
    jpeg: bool = False


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the sum. With VGG asked for, `perceptual` takes the place of `gradient`."""

    interaction: float = 1.0
    metric_stages: float = 1.0
    pixel: float = 0.1
    gradient: float = 1.0
    perceptual: float = 0.0
    contrastive: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A run of steps with one learning-rate schedule: linear warm-up, then cosine to nothing."""

    steps: int
    places: int  # per step and process
    pictures: int  # that these places are spread over
    learning_rate: float
    warmup: int = 100

    def rate(self, step: int) -> float:
        """Factor on the learning rate: linear warm-up, of half the steps at the most, then cosine to nothing."""
        warmup = min(self.warmup, self.steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class Recipe:
    """All of a training run but the data, the seed, the precision and the weights to start from.

    Read from a JSON file of the same field names.

    Attributes:
        modalities: names of band A and band B.
        summary: the recipe in words, for the model card.
        pretraining: contrastive training of the encoders; `None` for none.
        training: training of the whole graph.
        heads: which stages have auxiliary heads.
        optimizer: "adamw" or, as published, "nadam".
        hard_negatives: share of non-matching pairs picked as the most alike of the batch, at the first and the last
            step of `training` and linear in between; the rest are random.
        standardise: whether the network brings each patch to one mean and contrast first.
        held_back: every n-th training picture is kept for validation and calibration.
    """

    modalities: tuple[str, str]
    summary: str
    training: Phase
    pretraining: Phase | None = None
    geometry: Geometry = field(default_factory=Geometry)
    photometry: Photometry = field(default_factory=Photometry)
    losses: LossWeights = field(default_factory=LossWeights)
    heads: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    encoder_learning_rate: float = 1.0  # factor on the rate of the encoders in `training`
    hard_negatives: tuple[float, float] = (0.0, 0.0)
    negative_distance: float = 24.0  # places of one picture nearer than this, in pixels, are not negatives
    temperature: float = 0.07
    label_smoothing: float = 0.0
    norm_momentum: float = 0.01
    ema_decay: float = 0.0
    descriptor_dim: int = 0
    standardise: bool = False
    held_back: int = 8

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "nadam"):
            raise ValueError(f"optimizer must be 'adamw' or 'nadam', got {self.optimizer!r}")
        if not isinstance(self.modalities, tuple) or [type(name) for name in self.modalities] != [str, str]:
            raise ValueError(f"modalities must be two names, got {self.modalities!r}")
        if not isinstance(self.training, Phase):
            raise ValueError(f"training must be a Phase, got {self.training!r}")
        for name, phase in (("pretraining", self.pretraining), ("training", self.training)):
            if phase and min(phase.steps, phase.places, phase.pictures) < 1:
                raise ValueError(f"{name}: steps, places and pictures must be at least 1, got {phase}")
        if not isinstance(self.hard_negatives, tuple) or len(self.hard_negatives) != 2:
            raise ValueError(f"hard_negatives must be two shares, first and last, got {self.hard_negatives!r}")
        if not all(0 <= share <= 1 for share in self.hard_negatives):
            raise ValueError(f"hard_negatives must lie in [0, 1], got {self.hard_negatives}")
        if not (0 <= self.ema_decay < 1 and 0 <= self.label_smoothing < 1):
            raise ValueError("ema_decay and label_smoothing must lie in [0, 1)")
        if min(self.negative_distance, self.temperature, self.norm_momentum) <= 0:
            raise ValueError("negative_distance, temperature and norm_momentum must be positive")
        if self.held_back < 2:
            raise ValueError(f"held_back must be at least 2, for every second picture, got {self.held_back}")
        if self.descriptor_dim and not self.losses.contrastive:
            raise ValueError("descriptors need losses.contrastive: without it nothing trains them")
        if not self.descriptor_dim and (self.pretraining or any(self.hard_negatives) or self.losses.contrastive):
            raise ValueError("pretraining, hard_negatives and losses.contrastive need descriptors: set descriptor_dim")

    def hard_share(self, step: int) -> float:
        """Share of hard negatives at a step of `training`, counted from 0."""
        first, last = self.hard_negatives
        return first + (last - first) * min(1.0, step / max(1, self.training.steps - 1))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A recipe that comes with the package (`"vis-nir"`, `"published"`), or a JSON file of one's own.

        Raises:
            ValueError: unknown name, no JSON, or a field that is unknown, missing or malformed.
        """
        path = Path(name_or_path)
        if path.suffix != ".json":
            path = Path(str(resources.files("rrl_match.training") / "recipes" / f"{name_or_path}.json"))
        if not path.is_file():
            known = sorted(p.stem for p in Path(str(resources.files("rrl_match.training") / "recipes")).glob("*.json"))
            raise ValueError(f"no recipe {str(name_or_path)!r}: give a .json file or one of {', '.join(known)}")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"expected an object with the fields of Recipe, got {type(values).__name__}")
            for key, kind in _NESTED.items():
                if values.get(key) is not None:
                    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values[key].items()}
                    values[key] = kind(**fields)
            for key in ("modalities", "hard_negatives"):
                if isinstance(values.get(key), list):
                    values[key] = tuple(values[key])
            return cls(**values)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"recipe {path}: {error}") from error

    def to_json(self) -> str:
        """The recipe as :meth:`load` reads it."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_NESTED: dict[str, type] = {
    "pretraining": Phase,
    "training": Phase,
    "geometry": Geometry,
    "photometry": Photometry,
    "losses": LossWeights,
    "heads": TrainingConfig,
}
