"""Config and model card of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rrl_match.modeling import RRLNetConfig
from rrl_match.pretrained import ModelConfig
from rrl_match.training.validation import ValidationScores, balanced_threshold_of


def calibrated_config(
    modalities: tuple[str, str],
    network: RRLNetConfig,
    scores: Mapping[str, ValidationScores],
    training: dict[str, Any],
) -> ModelConfig:
    """The config of trained weights, with the threshold and the metrics of the held-back images.

    Args:
        modalities: names of band A and band B.
        network: of the weights.
        scores: of the held-back images, by source.
        training: facts about the run, for the card and ``config.json``.
    """
    return ModelConfig(
        modalities=modalities,
        threshold=balanced_threshold_of(scores.values()),
        network=network,
        training=training,
        metrics={
            "held_back_fpr95": {name: rounded(values.fpr95()) for name, values in scores.items()},
            "threshold_by_source": {name: round(balanced_threshold_of([s]), 4) for name, s in scores.items()},
        },
    )


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Percentages as they are logged and stored."""
    return {name: round(value, 3) for name, value in values.items()}


def model_card(config: ModelConfig) -> str:
    """A README.md in the Hub's format, with the training run and the metrics of the config."""
    a, b = config.modalities
    size = config.network.patch_size
    facts = "\n".join(f"- {key}: {value}" for key, value in config.training.items() if value not in ("", None))
    held_back = config.metrics.get("held_back_fpr95")
    metrics = (
        "FPR95 in percent on held-back training images, by source and kind of negatives:\n\n"
        + "".join(f"- {source}: {_in_words(values)}\n" for source, values in held_back.items())
        if held_back
        else "None measured.\n"
    )
    calibration = (
        "The threshold gives the highest balanced accuracy on held-back training pairs."
        if held_back
        else "The threshold is not calibrated."
    )
    return f"""---
library_name: rrl-match
tags: [image-matching, cross-spectral, {a}, {b}]
---
# RRL-Net, {a} against {b}

Scores whether two {size} x {size} patches, the first {a}, the second {b}, show the same location.

```python
from rrl_match import RRLMatcher

matcher = RRLMatcher.from_pretrained("this folder")
scores = matcher.score(patches_a, patches_b)
```

A pair with a score above {config.threshold:g} counts as a match. {calibration}

## Training

{facts or "Not stated."}

## Metrics

{metrics}"""


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{value} ({kind})" for kind, value in values.items())
