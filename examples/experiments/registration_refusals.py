"""How often the last check of `register` accepts a transform that is wrong, by source and by kind of mistake.

    python examples/experiments/registration_refusals.py ../shared/data/vis-lwir ../shared/data/lwir-solar

Takes pairs of the folders (training pairs, as thresholds are chosen on them), puts a random rotation, scale and shift
on image B, and hands wrong transforms to the check directly, without the search and the refinement that would correct
many of them. `--registrations N` registers images of N pairs of different locations, too. Prints the rate at which
right transforms are accepted beside the false-acceptance rates.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match import RRLMatcher, register
from rrl_match.registration import Settings
from rrl_match.registration.geometry import Matrix, similarity, translation
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.refine import examine

check = sys.modules[register.__module__].check
HALF_A_PATCH = 32


class Case(NamedTuple):
    """Images RGB, and the true (3, 3) from A to B."""

    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    a_to_b: Matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="with a manifest.csv each")
    parser.add_argument("--weights", default="vis-nir")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=12, help="of each folder")
    parser.add_argument("--registrations", type=int, default=0, help="of each folder, of images of different locations")
    args = parser.parse_args()
    matcher = RRLMatcher.from_pretrained(args.weights)
    everything: dict[str, list[bool]] = defaultdict(list)
    for folder in args.folders:
        accepted: dict[str, list[bool]] = defaultdict(list)
        cases = list(_cases(folder, args.split, args.pairs))
        random = np.random.default_rng(0)
        for case, other in zip(cases, cases[1:] + cases[:1], strict=True):
            for kind, b, matrix in _trials(case, other, random):
                accepted[kind].append(_accepts(matcher, case.a, b, matrix))
        for n in range(min(args.registrations, len(cases))):
            accepted["registered"].append(register(matcher, cases[n].a, cases[n - 1].b).ok)
        _report(folder.name, accepted)
        for kind, values in accepted.items():
            everything[kind] += values
    _report("all", everything)


def _accepts(matcher: RRLMatcher, a: NDArray[np.uint8], b: NDArray[np.uint8], matrix: Matrix) -> bool:
    settings = Settings()
    frames = [Frame(prepare(a, None, None, "a"), prepare(b, None, None, "b"))]
    return bool(check(matcher, frames, examine(frames, matrix, "affine", settings), "affine", settings).registration.ok)


def _trials(case: Case, other: Case, random: np.random.Generator) -> Iterator[tuple[str, NDArray[np.uint8], Matrix]]:
    """(kind, image B, transform): the true one first, then wrong ones."""
    h, w = case.b.shape[:2]
    middle, back = translation(w / 2, h / 2), translation(-w / 2, -h / 2)
    yield "right", case.b, case.a_to_b
    for degrees in (5, 8, 12, 20, 30):
        sign = random.choice([-1, 1])
        yield f"rotation {degrees}", case.b, middle @ similarity(sign * degrees, 1) @ back @ case.a_to_b
    for percent in (10, 20, 40):
        factor = (1 + percent / 100) ** random.choice([-1, 1])
        yield f"scale {percent} %", case.b, middle @ similarity(0, factor) @ back @ case.a_to_b
    for kind, distance in (("half a patch", HALF_A_PATCH), ("elsewhere", 0.3 * min(h, w))):
        for _ in range(3):
            angle = random.uniform(0, 2 * np.pi)
            shift = translation(distance * np.cos(angle), distance * np.sin(angle))
            yield kind, case.b, shift @ case.a_to_b
    yield "mirrored", np.ascontiguousarray(case.b[:, ::-1]), case.a_to_b
    if other.b.shape == case.b.shape:
        yield "other image", other.b, case.a_to_b
        yield "other image", other.b, other.a_to_b


def _report(name: str, accepted: dict[str, list[bool]]) -> None:
    wrong = [v for kind, values in accepted.items() if kind != "right" for v in values]
    rate = 100 * sum(wrong) / max(1, len(wrong))
    right = 100 * float(np.mean(accepted["right"]))
    print(f"{name}: {sum(wrong)} of {len(wrong)} wrong accepted ({rate:.2f} %), {right:.0f} % of the right ones")
    for kind, values in accepted.items():
        if any(values) and kind != "right":
            print(f"    {kind}: {sum(values)} of {len(values)}")


def _cases(folder: Path, split: str, count: int) -> Iterator[Case]:
    """Evenly spaced pairs, with a random rotation, scale and shift of B."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    random = np.random.default_rng(1)
    for row in rows[:: max(1, len(rows) // count)][:count]:
        a, b = (cv2.imread(str(folder / row[k]), cv2.IMREAD_COLOR) for k in ("image_a", "image_b"))
        if a is None or b is None:
            sys.exit(f"{folder}: cannot read {row['image_a']} or {row['image_b']}")
        h, w = b.shape[:2]
        values = [float(row[f"m{i}{j}"]) for i in (0, 1) for j in (0, 1, 2)]
        turn = similarity(random.uniform(-20, 20), random.uniform(0.9, 1.1))
        move = translation(w / 2, h / 2) @ turn @ translation(*(-np.array([w, h]) * random.uniform(0.47, 0.53, 2)))
        b = cv2.warpAffine(b, move[:2], (w, h))
        rgb = [np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8) for image in (a, b)]
        yield Case(rgb[0], rgb[1], move @ np.array([*values, 0, 0, 1]).reshape(3, 3))


if __name__ == "__main__":
    main()
