"""How good weights are on sensors that nobody trained on, and on those that they know: what choices are made by.

``python left_out_sources.py --weights NAME --known FOLDER --left-out GROUP=FOLDER`` prints FPR95 of each source and the
selection score; every option may be repeated. Only training images are read: the held-back ones of known sources, all
of sources that are left out. The weights must not have been trained on what is called left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rrl_match.hub import find_folder
from rrl_match.modeling import RRLNet
from rrl_match.pretrained import load_folder
from rrl_match.training.alignment import align
from rrl_match.training.datasets import hold_back, read_source
from rrl_match.training.results import save_results
from rrl_match.training.validation import ValidationSet

FLOOR = 0.2  # percent: of a few hundred locations, less is chance
LEFT_OUT_SHARE = 0.6  # of the selection score, in the exponent

Groups = dict[str, list[ValidationSet]]  # "known" and each group that is left out
Rates = dict[str, dict[str, dict[str, float]]]  # FPR95 by group, source and kind of negatives
KNOWN = "known"


def read_groups(
    known: Iterable[str], left_out: Mapping[str, Sequence[str]], cache: Path | None, locations: int, fraction: float
) -> Groups:
    """Patches of the images that are measured on.

    Args:
        known: folders of sources that the weights were trained on; a fraction of them is held back, as the trainer
            does it.
        left_out: folders of the sources of each group, of which all training images are used.
        cache: the trainer's ``alignment.json``; `None` registers the pairs anew.
        locations: upper bound for each source; at least two of each image.
        fraction: `val_fraction` of the recipe.
    """

    def validation(folders: Iterable[str], held_back: bool) -> list[ValidationSet]:
        sources = align([read_source(folder) for folder in folders], cache)
        used = [hold_back(source, fraction)[1] if held_back else source for source in sources]
        return [ValidationSet(source, 64, torch.device("cpu"), locations) for source in used]

    groups = {KNOWN: validation(known, held_back=True)}
    return groups | {name: validation(folders, held_back=False) for name, folders in left_out.items()}


def measure(network: RRLNet, groups: Groups, dtype: torch.dtype) -> Rates:
    """FPR95 in percent of every source."""
    return {
        name: {source.name: source.score(network, dtype).fpr95() for source in sources}
        for name, sources in groups.items()
    }


def selection_score(rates: Rates) -> dict[str, float]:
    """What weights are chosen by; lower is better.

    FPR95 is a geometric mean at each level, in which a halving counts as much for an easy source as for a hard one:
    over the kinds of negatives, the sources of a group, and the groups that are left out.

    Returns:
        "known", "left out", and their weighted geometric mean "score", in percent.
    """
    by_group = {
        name: _geometric_mean(_geometric_mean(kinds.values()) for kinds in sources.values())
        for name, sources in rates.items()
    }
    known = by_group.pop(KNOWN)
    left_out = _geometric_mean(by_group.values())
    return {KNOWN: known, "left out": left_out, "score": left_out**LEFT_OUT_SHARE * known ** (1 - LEFT_OUT_SHARE)}


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(max(value, FLOOR)) for value in values]
    return math.exp(sum(logs) / len(logs))


def rows(weights: str, rates: Rates) -> Iterator[dict[str, Any]]:
    """Flat rows of the rates and of the selection score, as they are stored."""
    for group, sources in rates.items():
        for source, kinds in sources.items():
            yield {
                "weights": weights,
                "group": group,
                "data": source,
                **{k: round(value, 2) for k, value in kinds.items()},
            }
    yield {"weights": weights, **{key: round(value, 3) for key, value in selection_score(rates).items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each set of weights."""
    parser = argparse.ArgumentParser(description="Measure weights on known sources and on those left out.")
    parser.add_argument("--weights", action="append", required=True, help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--known", action="append", required=True, metavar="FOLDER")
    parser.add_argument("--left-out", action="append", required=True, metavar="GROUP=FOLDER")
    parser.add_argument("--alignment", type=Path, metavar="FILE", help="alignment.json of a run on these sources")
    parser.add_argument("--locations", type=int, default=300, help="of each source")
    parser.add_argument("--val-fraction", type=float, default=0.11, help="of known sources, as in the recipe")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the rates as JSON as well")
    args = parser.parse_args(arguments)
    left_out: dict[str, list[str]] = {}
    for text in args.left_out:
        group, equals, folder = text.partition("=")
        if not equals or group == KNOWN:
            parser.error(f"--left-out takes GROUP=FOLDER, got {text!r}")
        left_out.setdefault(group, []).append(folder)
    groups = read_groups(args.known, left_out, args.alignment, args.locations, args.val_fraction)
    results: list[dict[str, Any]] = []
    for name in args.weights:
        rates = measure(load_folder(find_folder(name))[0].eval(), groups, getattr(torch, args.dtype))
        results += rows(name, rates)
        print(f"{name}, FPR95 in percent, random / near:", flush=True)
        for group, sources in rates.items():
            for source, kinds in sources.items():
                print(f"  {group:12} {source:20}" + " / ".join(f"{value:6.2f}" for value in kinds.values()))
        print("  " + ", ".join(f"{key} {value:.3f}" for key, value in selection_score(rates).items()), flush=True)
    if args.save:
        save_results(args.save, results)


if __name__ == "__main__":
    main()
