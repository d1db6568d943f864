"""A training recipe: patches, losses and schedule of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rrl_match.errors import DataError
from rrl_match.modeling import RRLNetConfig
from rrl_match.training.network import TrainingConfig


@dataclass(frozen=True)
class Geometry:
    """How patches are cut. Angles in degrees, lengths in pixels.

    The first group moves both bands alike, the second moves band A against band B.
    """

    flips_and_right_angles: bool = True  # mirror both bands, and rotate them by a multiple of 90 degrees
    zoom: float = 1.0  # both bands are cut at a scale between 1 / zoom and zoom
    common_rotation: float = 0.0
    location_jitter: float = 4.0
    shared_orientation: bool = False  # one flip, rotation and zoom for all patches of a source in a batch

    probability: float = 0.0  # that the bands of a location are moved against each other
    rotation: float = 0.0  # within +- rotation
    scale: float = 1.0  # between 1 / scale and scale
    aspect: float = 1.0
    shift: float = 0.0
    perspective: float = 0.0  # change of scale from the centre to the border of the patch


@dataclass(frozen=True)
class Photometry:
    """Changes of grey values, drawn separately for each band; each is applied with `probability`."""

    probability: float = 0.5
    channel_mix: bool = False  # band A's grey from random weights of its colours instead of BT.601
    gamma: float = 1.0  # between 1 / gamma and gamma
    contrast: float = 0.0  # factor within 1 +- contrast
    brightness: float = 0.0
    tone: float = 0.0  # largest amplitude of a sine added to the tone curve; beyond 0.1 contrast reverses in parts
    shading: float = 0.0  # brightening from one side of the patch to the other
    inversion: float = 0.0  # probability that grey values are inverted
    blur: float = 0.0  # largest sigma of a Gaussian, in pixels
    noise: float = 0.0  # largest sigma, in units of the full range
    stripes: float = 0.0  # the same, of one value a row or column: fixed-pattern noise of thermal cameras
    speckle: float = 0.0  # largest sigma of noise that grows with the grey value, as a radar's
    quantisation: float = 0.0  # largest step, in units of the full range
    jpeg: bool = False


@dataclass(frozen=True)
class SyntheticBands:
    """How often one band is replaced by a synthetic one, for all patches of a source in a batch.

    Attributes:
        probability_b: band B is made from the colours of band A.
        probability_a: band A is made from band B.
    """

    probability_b: float = 0.0
    probability_a: float = 0.0


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the sum. If `perceptual` is not 0, VGG features replace `gradient`."""

    interaction: float = 1.0
    metric_stages: float = 1.0
    pixel: float = 0.1
    gradient: float = 1.0
    perceptual: float = 0.0
    contrastive: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A run of steps with one learning-rate schedule: linear warm-up, then cosine to zero.

    Attributes:
        steps: optimizer steps.
        batch_size: locations per step and process.
        images_per_batch: image pairs that these locations are spread over.
        learning_rate: at the end of the warm-up.
        warmup: steps, at most half of all.
        sources_per_batch: sources that these image pairs are drawn from; negatives are of the same source.
    """

    steps: int
    batch_size: int
    images_per_batch: int
    learning_rate: float
    warmup: int = 100
    sources_per_batch: int = 1

    def lr_factor(self, step: int) -> float:
        """Factor on the learning rate at a step, counted from 0."""
        warmup = min(self.warmup, self.steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run except the data, the seed, the precision and the weights to start from.

    Read from a JSON file of the same field names.

    Attributes:
        modalities: names of band A and band B.
        summary: one sentence for the model card.
        pretraining: contrastive training of the encoders; `None` for none.
        training: training of the whole graph.
        network: shape of the network, unless a run starts from weights.
        heads: which stages have auxiliary heads.
        optimizer: "adamw" or, as published, "nadam".
        encoder_lr_scale: factor on the learning rate of the encoders in `training`.
        hard_negatives: fraction of non-matching pairs that are the most similar of the batch, at the first and last
            step of `training` and linear in between; the rest are random.
        negative_distance: locations of one image nearer than this, in pixels, are not negatives.
        standardise: whether the network brings each patch to one mean and contrast first.
        align: register the training pairs by their edges first, see :mod:`rrl_match.training.alignment`.
        val_fraction: fraction of each source's image pairs that is kept for validation and calibration.
    """

    modalities: tuple[str, str]
    summary: str
    training: Phase
    pretraining: Phase | None = None
    geometry: Geometry = field(default_factory=Geometry)
    photometry: Photometry = field(default_factory=Photometry)
    synthetic: SyntheticBands = field(default_factory=SyntheticBands)
    losses: LossWeights = field(default_factory=LossWeights)
    network: RRLNetConfig = field(default_factory=RRLNetConfig)
    heads: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    encoder_lr_scale: float = 1.0
    hard_negatives: tuple[float, float] = (0.0, 0.0)
    negative_distance: float = 24.0
    temperature: float = 0.07
    label_smoothing: float = 0.0
    norm_momentum: float = 0.01
    ema_decay: float = 0.0
    descriptor_dim: int = 0
    standardise: bool = False
    align: bool = False
    val_fraction: float = 0.125

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "nadam"):
            raise ValueError(f"optimizer must be 'adamw' or 'nadam', got {self.optimizer!r}")
        if not isinstance(self.modalities, tuple) or [type(name) for name in self.modalities] != [str, str]:
            raise ValueError(f"modalities must be two names, got {self.modalities!r}")
        if not isinstance(self.training, Phase):
            raise ValueError(f"training must be a Phase, got {self.training!r}")
        for name, phase in (("pretraining", self.pretraining), ("training", self.training)):
            if phase:
                _check_phase(name, phase)
        if not isinstance(self.hard_negatives, tuple) or len(self.hard_negatives) != 2:
            raise ValueError(f"hard_negatives must be two fractions, first and last, got {self.hard_negatives!r}")
        if not all(0 <= fraction <= 1 for fraction in self.hard_negatives):
            raise ValueError(f"hard_negatives must lie in [0, 1], got {self.hard_negatives}")
        if not (0 <= self.ema_decay < 1 and 0 <= self.label_smoothing < 1):
            raise ValueError("ema_decay and label_smoothing must lie in [0, 1)")
        if min(self.negative_distance, self.temperature, self.norm_momentum) <= 0:
            raise ValueError("negative_distance, temperature and norm_momentum must be positive")
        if not 0 < self.val_fraction <= 0.5:
            raise ValueError(f"val_fraction must lie in (0, 0.5], got {self.val_fraction}")
        if not (self.synthetic.probability_a >= 0 and self.synthetic.probability_b >= 0):
            raise ValueError(f"probabilities of synthetic bands must not be negative, got {self.synthetic}")
        if self.synthetic.probability_a + self.synthetic.probability_b > 1:
            raise ValueError(f"the probabilities of synthetic bands must add up to at most 1, got {self.synthetic}")
        if self.descriptor_dim and not self.losses.contrastive:
            raise ValueError("descriptors need losses.contrastive: without it nothing trains them")
        if not self.descriptor_dim and (self.pretraining or any(self.hard_negatives) or self.losses.contrastive):
            raise ValueError("pretraining, hard_negatives and losses.contrastive need descriptors: set descriptor_dim")

    def hard_fraction(self, step: int) -> float:
        """Fraction of hard negatives at a step of `training`, counted from 0."""
        first, last = self.hard_negatives
        return first + (last - first) * min(1.0, step / max(1, self.training.steps - 1))

    def with_steps(self, training: int | None = None, pretraining: int | None = None) -> Recipe:
        """The recipe with other numbers of steps; 0 for `pretraining` leaves it out, `None` changes nothing.

        Raises:
            ValueError: there is no pretraining whose steps could be set.
        """
        changed = self
        if training is not None:
            changed = dataclasses.replace(changed, training=dataclasses.replace(self.training, steps=training))
        if pretraining == 0:
            return dataclasses.replace(changed, pretraining=None)
        if pretraining is not None:
            if not self.pretraining:
                raise DataError("the recipe has no pretraining whose steps could be set")
            phase = dataclasses.replace(self.pretraining, steps=pretraining)
            changed = dataclasses.replace(changed, pretraining=phase)
        return changed

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A recipe that comes with the package (`"universal"`, `"published"`), or a JSON file of one's own.

        Raises:
            DataError: unknown name, no JSON, or a field that is unknown, missing or malformed.
        """
        path = Path(name_or_path)
        if path.suffix != ".json":
            path = Path(str(resources.files("rrl_match.training") / "recipes" / f"{name_or_path}.json"))
        if not path.is_file():
            known = sorted(p.stem for p in Path(str(resources.files("rrl_match.training") / "recipes")).glob("*.json"))
            raise DataError(f"no recipe {str(name_or_path)!r}: give a .json file or one of {', '.join(known)}")
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
        except (ArithmeticError, AttributeError, TypeError, KeyError, ValueError) as error:
            raise DataError(f"recipe {path}: {error}") from error

    def to_json(self) -> str:
        """The recipe as :meth:`load` reads it."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def _check_phase(name: str, phase: Phase) -> None:
    if min(phase.steps, phase.batch_size, phase.images_per_batch, phase.sources_per_batch) < 1:
        raise ValueError(
            f"{name}: steps, batch_size, images_per_batch and sources_per_batch must be at least 1, got {phase}"
        )
    if phase.sources_per_batch > min(phase.batch_size, phase.images_per_batch):
        raise ValueError(f"{name}: batch_size and images_per_batch must be at least sources_per_batch, got {phase}")


_NESTED: dict[str, type] = {
    "pretraining": Phase,
    "training": Phase,
    "geometry": Geometry,
    "photometry": Photometry,
    "synthetic": SyntheticBands,
    "losses": LossWeights,
    "network": RRLNetConfig,
    "heads": TrainingConfig,
}
