"""From a training run's weights to a folder of released weights, and the manifest that guards it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from rrl_match.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from rrl_match.matcher import RRLMatcher
from rrl_match.pretrained import load_folder
from rrl_match.selftest import reference_scores


def release(run_weights: Path, released: Path, name: str, metrics: dict[str, Any], card: Path | None = None) -> Path:
    """Copy a weights folder to ``released/name`` with its figures, and update ``released/manifest.json``.

    The manifest holds each file's sha256 sum, and the scores that ``python -m rrl_match selftest`` compares with.

    Args:
        run_weights: a folder as the trainer writes it.
        released: the folder of all released weights.
        name: they are loaded by.
        metrics: figures to add to the config, by name.
        card: model card to put there instead of the run's own.

    Returns:
        the new folder.
    """
    _, config = load_folder(run_weights)
    config = dataclasses.replace(config, metrics={**config.metrics, **metrics})
    folder = released / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # so that its mode is an ordinary one
    shutil.copyfile(run_weights / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    card = card or run_weights / CARD_FILE
    if card.resolve() != (folder / CARD_FILE).resolve():
        shutil.copyfile(card, folder / CARD_FILE)

    path = released / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in (CONFIG_FILE, WEIGHTS_FILE)}
    matcher = RRLMatcher.from_pretrained(folder.resolve(), device="cpu", dtype="float32")
    manifest[name] = {"repo_id": f"rrl-match/{name}", "files": sums, "selftest": reference_scores(matcher)}
    path.write_text(json.dumps(dict(sorted(manifest.items())), indent=2) + "\n", encoding="utf-8")
    return folder
