"""The model card of a training run: what the run itself knows."""

from __future__ import annotations

from rrl_match.pretrained import ModelConfig


def model_card(config: ModelConfig) -> str:
    """A README.md in the Hub's form, with what the config knows of the training run and its figures."""
    a, b = config.modalities
    facts = "\n".join(f"- {key}: {value}" for key, value in config.training.items() if value not in ("", None))
    held_back = config.metrics.get("held_back_fpr95")
    figures = (
        "FPR95 in percent on held-back training images, by source and kind of negatives:\n\n"
        + "".join(f"- {source}: {_in_words(values)}\n" for source, values in held_back.items())
        if held_back
        else "None measured.\n"
    )
    calibration = (
        "The threshold gives the highest balanced accuracy on held-back training pairs."
        if held_back
        else "The threshold was not calibrated."
    )
    return f"""---
library_name: rrl-match
tags: [image-matching, cross-spectral, {a}, {b}]
---
# RRL-Net, {a} against {b}

Scores whether two 64 x 64 patches, the first {a}, the second {b}, show the same location.

```python
from rrl_match import RRLMatcher

matcher = RRLMatcher.from_pretrained("this folder")
scores = matcher.score(patches_a, patches_b)
```

A pair with a score above {config.threshold:g} is called a match. {calibration}

## Training

{facts or "Not stated."}

## Figures

{figures}"""


def _in_words(values: dict[str, float]) -> str:
    return ", ".join(f"{value} ({kind})" for kind, value in values.items())
