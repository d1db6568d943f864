"""How often `register` accepts a transform that is wrong, by source and by kind of mistake.

    python examples/experiments/registration_refusals.py ../shared/data/vis-lwir ../shared/data/lwir-solar

Takes pairs of the folders (training pairs, as thresholds are chosen on them) and puts a random rotation, scale and
shift on image B. Wrong transforms are handed to the last check directly, beside the hypotheses of the dense search,
without the refinement that would correct many of them. Whole calls of `register` get image B rotated by any angle: as
it is, where more than 20 px off is wrong; mirrored; or that of another pair. There the search chooses the transform
that deceives best. Of `nir-naip`, whose pairs show few locations in many years, another pair is one of another folder.
Prints the rates at which right transforms and those that are a few pixels off are accepted, too.
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

from rrl_match import Registration, RRLMatcher, register
from rrl_match.registration import Settings
from rrl_match.registration.coarse import propose
from rrl_match.registration.geometry import Matrix, as_3x3, corner_distance, similarity, translation
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.judge import judge
from rrl_match.registration.refine import align, examine
from rrl_match.registration.trust import Supported, Trial

check = sys.modules[register.__module__].check
HALF_A_PATCH = 32
SETTINGS = Settings()
NOT_WRONG = ("right", "8 px", "15 px")


class Case(NamedTuple):
    """Images RGB, the true (3, 3) from A to B, and the folder of image A."""

    location: Path
    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    a_to_b: Matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="with a manifest.csv each")
    parser.add_argument("--weights", default="universal")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=10, help="of each folder")
    parser.add_argument("--calls", type=int, default=10, help="of the pairs of each folder, those for whole calls")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("--pairs must be at least 2: image B of another pair is a wrong partner")
    matcher = RRLMatcher.from_pretrained(args.weights)
    everything: dict[str, list[bool]] = defaultdict(list)
    for folder in args.folders:
        accepted: dict[str, list[bool]] = defaultdict(list)
        cases = list(_cases(folder, args.split, args.pairs))
        random = np.random.default_rng(args.seed)
        for n, case in enumerate(cases):
            frames = [Frame(prepare(case.a, None, None, "a"), prepare(case.b, None, None, "b"))]
            trial = Trial(matcher, frames, "affine", SETTINGS)
            trial.supported = _supported(matcher, frames)
            for kind, matrix in _transforms(case, random):
                candidate = trial.weigh(examine(frames, matrix, "affine", SETTINGS))
                accepted[kind].append(check(trial, candidate).registration.ok)
            if n >= args.calls:
                continue
            half = (n + len(cases) // 2) % len(cases)
            others = cases[half:] + cases[:half]
            if folder.name == "nir-naip":
                others = [other for other in others if other.location != case.location]
            wrong = {"mirrored": np.ascontiguousarray(case.b[:, ::-1]), "another image": others[0].b}
            for kind, b in wrong.items():
                accepted[f"{kind}, registered"].append(register(matcher, case.a, _rotated(b, random)[0]).ok)
            b, move = _rotated(case.b, random)
            accepted["rotated, registered"].append(_is_wrong(register(matcher, case.a, b), case, move))
        _report(folder.name, accepted)
        for kind, values in accepted.items():
            everything[kind] += values
    _report("all", everything)


def _rotated(image: NDArray[np.uint8], random: np.random.Generator) -> tuple[NDArray[np.uint8], Matrix]:
    """An image, rotated about its centre by any angle, and the matrix (3, 3) by which."""
    h, w = image.shape[:2]
    move = translation(w / 2, h / 2) @ similarity(random.uniform(-180, 180), 1) @ translation(-w / 2, -h / 2)
    return np.asarray(cv2.warpAffine(image, move[:2], (w, h)), np.uint8), move


def _is_wrong(found: Registration, case: Case, move: Matrix) -> bool:
    """Whether a result was accepted although A's corners are more than 20 px off on average."""
    true = move @ case.a_to_b
    return found.matrix is not None and corner_distance(as_3x3(found.matrix), true, case.a.shape) > 20


def _supported(matcher: RRLMatcher, frames: list[Frame]) -> list[Supported]:
    """Hypotheses near the identity, as the first stage of `register` has them, where these pairs have theirs."""
    rotations, scales = [float(r) for r in range(-30, 31, 5)], [0.77, 0.88, 1.0, 1.14, 1.3]
    aligned = align(frames, propose(frames, rotations, scales, SETTINGS.first_proposals, SETTINGS), SETTINGS)
    judged = judge(matcher, frames, [h.matrix for h in aligned], SETTINGS.quick_locations, SETTINGS) if aligned else []
    return [Supported(h, j.support(SETTINGS.quick_prior)) for h, j in zip(aligned, judged, strict=True)]


def _transforms(case: Case, random: np.random.Generator) -> Iterator[tuple[str, Matrix]]:
    """(kind, transform): the true one first, then others."""
    h, w = case.b.shape[:2]
    middle, back = translation(w / 2, h / 2), translation(-w / 2, -h / 2)
    yield "right", case.a_to_b
    for degrees in (5, 8, 12, 20, 30):
        for sign in (-1, 1):
            yield f"rotation {degrees}", middle @ similarity(sign * degrees, 1) @ back @ case.a_to_b
    for percent in (10, 20, 40):
        factor = (1 + percent / 100) ** random.choice([-1, 1])
        yield f"scale {percent} %", middle @ similarity(0, factor) @ back @ case.a_to_b
    shifts = {"8 px": 8, "15 px": 15, "half a patch": HALF_A_PATCH, "a patch": 2 * HALF_A_PATCH}
    for kind, distance in (*shifts.items(), ("elsewhere", 0.3 * min(h, w))):
        for _ in range(1 if kind in NOT_WRONG else 3):
            angle = random.uniform(0, 2 * np.pi)
            yield kind, translation(distance * np.cos(angle), distance * np.sin(angle)) @ case.a_to_b


def _report(name: str, accepted: dict[str, list[bool]]) -> None:
    wrong = [v for kind, values in accepted.items() if kind not in NOT_WRONG for v in values]
    called = [v for kind, values in accepted.items() if kind.endswith("registered") for v in values]
    right, *off = (f"{100 * float(np.mean(accepted[kind])):.0f} %" for kind in NOT_WRONG)
    rate = 100 * sum(wrong) / max(1, len(wrong))
    print(
        f"{name}: {sum(wrong)} of {len(wrong)} wrong accepted ({rate:.2f} %), {sum(called)} of {len(called)} in calls;"
    )
    print(f"    {right} of the right ones, {off[0]} of those 8 px off, {off[1]} of those 15 px off", flush=True)
    for kind, values in accepted.items():
        if any(values) and kind not in NOT_WRONG:
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
        rotated = similarity(random.uniform(-20, 20), random.uniform(0.9, 1.1))
        move = translation(w / 2, h / 2) @ rotated @ translation(*(-np.array([w, h]) * random.uniform(0.47, 0.53, 2)))
        b = cv2.warpAffine(b, move[:2], (w, h))
        rgb = [np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8) for image in (a, b)]
        yield Case(Path(row["image_a"]).parent, rgb[0], rgb[1], move @ np.array([*values, 0, 0, 1]).reshape(3, 3))


if __name__ == "__main__":
    main()
