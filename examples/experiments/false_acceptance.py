"""How often `register` accepts images that do not belong together, and refuses images that do, by source.

    python examples/experiments/false_acceptance.py ../shared/data/vis-lwir ../shared/data/lwir-solar --pairs 4

Takes pairs of the folders (training pairs, as thresholds are chosen on them) and rotates image B by any angle, scales
it by 0.9 to 1.1 and shifts it. `register` gets it as it is, where more than 20 px off is wrong; mirrored; and that of
another pair, from another folder of images if there are several, as these may show one place at several dates. The
other image is given once more stretched by 0.7 to 1.4, once as a crop of half its sides, once under clouds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from rrl_match import Registration, RRLMatcher, register
from rrl_match.io.images import decode
from rrl_match.training.datasets import read_manifest
from rrl_match.training.results import save_results

Image: TypeAlias = NDArray[np.uint8]
PARTNERS = ("right", "mirrored", "another image", "stretched", "cropped", "clouded")
TOLERANCE = 20  # px, the largest mean distance of corners that is not wrong


class Case(NamedTuple):
    """Images RGB, the true (3, 3) from A to B, and the folder of image A."""

    folder: Path
    a: Image
    b: Image
    a_to_b: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="with a manifest.csv each")
    parser.add_argument("--weights", default="universal")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=4, help="of each folder, evenly spaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the figures as JSON as well")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("--pairs must be at least 2: image B of another pair is a wrong partner")
    torch.set_num_threads(1)
    matcher = RRLMatcher.from_pretrained(args.weights)
    rows = [row for folder in tqdm(args.folders, "folders", disable=None) for row in _rows(matcher, folder, args)]
    for row in rows:
        print("{data:20} {partner:15} {accepted} of {calls} accepted, {wrong} wrong".format(**row))
    if args.save:
        save_results(args.save, rows)


def _rows(matcher: RRLMatcher, folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(args.seed)
    cases = list(_cases(folder, args.split, args.pairs))
    results = [_call(matcher, cases, n, partner, random) for n in range(len(cases)) for partner in PARTNERS]
    for k, partner in enumerate(PARTNERS):
        accepted, wrong = np.sum(results[k :: len(PARTNERS)], axis=0).tolist()
        calls = {"partner": partner, "calls": len(cases), "accepted": accepted, "wrong": wrong}
        yield {"data": folder.name, "weights": args.weights, **calls}


def _call(
    matcher: RRLMatcher, cases: list[Case], n: int, partner: str, random: np.random.Generator
) -> tuple[bool, bool]:
    """Whether a result was accepted, and whether it should not have been."""
    case, b = cases[n], cases[n].b
    if partner == "mirrored":
        b = np.ascontiguousarray(b[:, ::-1])
    if partner not in PARTNERS[:2]:
        half = (n + len(cases) // 2) % len(cases)
        others = cases[half:] + cases[:half]
        b = next((other for other in others if other.folder != case.folder), others[0]).b
    if partner in PARTNERS[3:]:
        random = np.random.default_rng((n, PARTNERS.index(partner)))  # the draws of the others stay the same
    move, mask = _similarity(b, random), None
    if partner == "stretched":
        move = move @ np.diag([random.uniform(0.7, 1.4), 1.0, 1.0])
    there = np.asarray(cv2.warpAffine(b, move[:2], b.shape[1::-1]), np.uint8)
    if partner == "cropped":
        h, w = there.shape[:2]
        there = there[h // 4 : 3 * h // 4, w // 4 : 3 * w // 4]
    if partner == "clouded":
        mask = _clear(there.shape[:2], random)
    result = register(matcher, case.a, there, "affine", mask_b=mask)
    right = partner == "right" and _error(result, move @ case.a_to_b, case.a) <= TOLERANCE
    return result.ok, result.ok and not right


def _similarity(image: Image, random: np.random.Generator) -> NDArray[np.float64]:
    """(3, 3), about the centre of the image: any rotation, scale 0.9 to 1.1, shift within 3 % of the size."""
    h, w = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), random.uniform(-180, 180), random.uniform(0.9, 1.1))
    shift = random.uniform(-0.03, 0.03, 2) * np.array([w, h])
    return np.vstack([matrix + np.array([[0, 0, shift[0]], [0, 0, shift[1]]]), [0, 0, 1]])


def _clear(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.bool_]:
    """Where clouds that cover 30 % leave an image (H, W) free."""
    noise = random.random(shape).astype(np.float32)
    cloud = cv2.GaussianBlur(noise, (0, 0), max(2.0, min(shape) / 15))
    return np.asarray(cloud < np.quantile(cloud, 0.7), np.bool_)


def _error(result: Registration, true: NDArray[np.float64], image: Image) -> float:
    """Mean distance of the image's corners in pixels of B; infinite if the pair was refused."""
    if result.matrix is None:
        return float("inf")
    h, w = image.shape[:2]
    corners = np.array([[0, 0, 1], [w - 1, 0, 1], [w - 1, h - 1, 1], [0, h - 1, 1]], np.float64).T
    return float(np.hypot(*((result.matrix[:2] - true[:2]) @ corners)).mean())


def _cases(folder: Path, split: str, count: int) -> Iterator[Case]:
    rows = read_manifest(folder, split)
    for row in rows[:: max(1, len(rows) // count)][:count]:
        a, b = (decode(path, cv2.IMREAD_COLOR) for path in (row.image_a, row.image_b))
        yield Case(row.image_a.parent, a, b, np.vstack([row.a_to_b, [0, 0, 1]]))


if __name__ == "__main__":
    main()
