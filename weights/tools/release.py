"""For maintainers: add the weights of a training run to the released ones.

``python weights/tools/release.py RUN/weights weights NAME --metrics FILE --card FILE`` copies the folder, adds the
benchmark metrics to its config and to ``weights/results``, and updates the manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrl_match.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from rrl_match.matcher import RRLMatcher
from rrl_match.pretrained import load_folder
from rrl_match.selftest import reference_scores
from rrl_match.training.results import load_rows


def release(run_weights: Path, released: Path, name: str, metrics: dict[str, Any], card: Path | None = None) -> Path:
    """Copy a weights folder to ``released/name`` with its metrics, and update ``released/manifest.json``.

    The manifest holds the sha256 of each file, and the scores that ``rrl-match selftest`` compares with.

    Args:
        run_weights: a folder as the trainer writes it.
        released: the folder of all released weights.
        name: that the weights are loaded by.
        metrics: added to the config, by name.
        card: model card to use instead of the run's own.

    Returns:
        the new folder.
    """
    _, config = load_folder(run_weights)
    config = dataclasses.replace(config, metrics={**config.metrics, **metrics})
    folder = released / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # so that the copy has ordinary permissions
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


def fpr95_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """FPR95 of what ``rrl-match evaluate --save`` wrote: ``[benchmark][kind of negatives][category]``."""
    result: dict[str, Any] = {}
    for row in rows:
        by_kind = result.setdefault(row["data"], {})
        by_kind.setdefault(row["negatives"], {})[row["category"]] = row["FPR95"]
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Release the weights of a run."""
    parser = argparse.ArgumentParser(description="Add the weights of a training run to the released ones.")
    parser.add_argument("run_weights", type=Path, help="weights folder of a training run")
    parser.add_argument("released", type=Path, help="folder of released weights: weights in a checkout")
    parser.add_argument("name", help="that the weights are loaded by")
    parser.add_argument("--metrics", type=Path, help="JSON file written by rrl-match evaluate --save")
    parser.add_argument("--card", type=Path, help="model card, instead of the run's own")
    args = parser.parse_args(arguments)
    metrics = {}
    if args.metrics:
        metrics["benchmark_fpr95"] = fpr95_of(load_rows(args.metrics))
    print(f"released: {release(args.run_weights, args.released, args.name, metrics, args.card)}")
    if args.metrics:
        (args.released / "results").mkdir(exist_ok=True)
        shutil.copyfile(args.metrics, args.released / "results" / f"patches_{args.name}.json")


if __name__ == "__main__":
    main()
