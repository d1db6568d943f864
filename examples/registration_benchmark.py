"""Registers the pairs of a data folder by `register`, by the same dense search without the network, and by SIFT.

    python examples/registration_benchmark.py ../shared/data/vis-nir [--weights vis-nir] [--every 4] [--frames 3]

Prints, for each method, AUC@10px (area under the cumulative curve of the corner error up to 10 px, in percent; refused
pairs count as failures), in brackets the same if refusals are ignored and rejected transforms count, refused pairs,
wrong ones (off by more than 20 px but not refused) and the median time, its ratio to that of the last method, and where
the time of `register` goes. The baselines are SIFT with 4,000 keypoints,
ratio test and MAGSAC; and the dense search and block matching of `register` itself without RRL-Net.

Pairs that come aligned get a known similarity put on image B first: rotation within 10 degrees, scale 0.9 to 1.1,
shift within 5 % of the size. With --frames N, all pairs get that of the first, and each is registered together with
N - 1 others of the same size, as frames of a rig.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from rrl_match import RRLMatcher, __version__, register
from rrl_match.registration import Settings
from rrl_match.registration.coarse import propose
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.refine import align, refine
from rrl_match.registration.trust import Trial

Image: TypeAlias = NDArray[np.uint8]
Matrix: TypeAlias = NDArray[np.float64]


class Pair(NamedTuple):
    """Frames of A and B, RGB, and the true (3, 3) from A to B."""

    scene: str
    images_a: list[Image]
    images_b: list[Image]
    a_to_b: Matrix


class Found(NamedTuple):
    """A transform (2, 3) or (3, 3) from A to B, if there is any, and whether the method trusts it."""

    matrix: Matrix | None
    trusted: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with a manifest.csv")
    parser.add_argument("--weights", default="vis-nir")
    parser.add_argument("--split", default="test")
    parser.add_argument("--scene", help="only pairs of this scene")
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair")
    parser.add_argument("--frames", type=int, default=1, help="frames of a rig")
    parser.add_argument(
        "--methods", nargs="+", default=["register", "dense", "sift"], choices=["register", "dense", "sift"]
    )
    args = parser.parse_args()
    matcher = RRLMatcher.from_pretrained(args.weights)
    stages = _timed_stages()
    methods: dict[str, Callable[[Pair], Found]] = {
        "register": lambda pair: _register(matcher, pair),
        "dense": _dense,
        "sift": _sift,
    }
    errors: dict[tuple[str, str], list[tuple[float, bool]]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for pair in _pairs(args.folder, args.split, args.scene, args.every, args.frames):
        for method in args.methods:
            began = time.perf_counter()
            found = methods[method](pair)
            seconds[method].append(time.perf_counter() - began)
            for scene in {pair.scene, "all"}:
                error = _corner_error(found.matrix, pair.a_to_b, pair.images_a[0].shape)
                errors[method, scene].append((error, found.trusted))
    print(f"{args.folder.name}, {args.weights}, {args.frames} frames; {_environment(matcher)}")
    for method, scene in sorted(errors, key=lambda key: (args.methods.index(key[0]), key[1] == "all", key[1])):
        errors_of, trusted = (np.array(values) for values in zip(*errors[method, scene], strict=True))
        within = np.clip(1 - errors_of / 10, 0, 1)
        refused, wrong = int(np.sum(~trusted)), int(np.sum(trusted & (errors_of > 20)))
        print(
            f"{method:9} {scene:12} n={len(trusted):3}  AUC@10px {100 * np.mean(within * trusted):5.1f} "
            f"({100 * np.mean(within):5.1f})  refused {refused:3}  wrong {wrong}"
        )
    for method in args.methods:
        ratio = statistics.median(seconds[method]) / statistics.median(seconds[args.methods[-1]])
        median = statistics.median(seconds[method])
        print(f"{method:9} {median:.2f} s a pair, {ratio:.1f} times that of {args.methods[-1]}")
    for stage, of_calls in stages.items():
        if "register" in args.methods:
            print(f"  {stage:9} {1000 * sum(of_calls) / len(seconds['register']):.0f} ms a pair on average")


def _pairs(folder: Path, split: str, scene: str | None, every: int, frames: int) -> Iterator[Pair]:
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == split and scene in (None, r["scene"])]
    read = [_read(folder, row) for row in rows] if frames > 1 else None
    for n in range(0, len(rows), every):
        name, of_scene, a, b, a_to_b = read[n] if read else _read(folder, rows[n])
        others = []
        if read:
            alike = [r for r in read if r[2].shape == a.shape and r[3].shape == b.shape and r[0] != name]
            step = max(1, len(alike) // max(1, frames - 1))
            others = alike[n % step :: step][: frames - 1]
        images_a, images_b = [a, *(r[2] for r in others)], list[Image]()
        for _, _, _, other_b, matrix in [(name, of_scene, a, b, a_to_b), *others]:
            # a rig has one displacement: what another frame had is replaced by that of this one
            back = a_to_b @ np.linalg.inv(matrix)
            same = np.allclose(back, np.eye(3))
            images_b.append(other_b if same else _warped(other_b, back, b.shape))
        if np.allclose(a_to_b, np.eye(3)):
            move = _displacement(name, b.shape)
            images_b = [_warped(image, move, b.shape) for image in images_b]
            a_to_b = move @ a_to_b
        yield Pair(of_scene, images_a, images_b, a_to_b)


def _read(folder: Path, row: dict[str, str]) -> tuple[str, str, Image, Image, Matrix]:
    a, b = (cv2.imread(str(folder / row[k]), cv2.IMREAD_COLOR) for k in ("image_a", "image_b"))
    if a is None or b is None:
        sys.exit(f"{folder}: cannot read {row['image_a']} or {row['image_b']}")
    values = [float(row[f"m{i}{j}"]) for i in (0, 1) for j in (0, 1, 2)]
    matrix = np.array([*values, 0, 0, 1]).reshape(3, 3)
    rgb = [np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8) for image in (a, b)]
    return row["pair"], row["scene"], rgb[0], rgb[1], matrix


def _warped(image: Image, matrix: Matrix, shape: Sequence[int]) -> Image:
    return np.asarray(cv2.warpAffine(image, matrix[:2], (shape[1], shape[0])), np.uint8)


def _displacement(name: str, shape: Sequence[int]) -> Matrix:
    """A similarity (3, 3) that depends on the name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    h, w = shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), random.uniform(-10, 10), random.uniform(0.9, 1.1))
    shift = random.uniform(-0.05, 0.05, 2) * (w, h)
    return np.vstack([matrix + np.array([[0, 0, shift[0]], [0, 0, shift[1]]]), [0, 0, 1]])


def _corner_error(found: Matrix | None, true: Matrix, shape: Sequence[int]) -> float:
    """Mean distance of A's corners in pixels of B; infinite without a transform."""
    if found is None:
        return float("inf")
    h, w = shape[:2]
    corners = np.array([[0, 0, 1], [w - 1, 0, 1], [w - 1, h - 1, 1], [0, h - 1, 1]], float).T
    return float(np.hypot(*(found[:2] @ corners - true[:2] @ corners)).mean())


def _register(matcher: RRLMatcher, pair: Pair) -> Found:
    result = register(matcher, pair.images_a, pair.images_b)
    return Found(result.matrix if result.ok else result.rejected, result.ok)


def _sift(pair: Pair) -> Found:
    """SIFT's 4,000 strongest keypoints, ratio test at 0.8, MAGSAC."""
    sift = cv2.SIFT_create(4000)  # type: ignore[attr-defined]
    of_a, of_b = (
        sift.detectAndCompute(cv2.cvtColor(i[0], cv2.COLOR_RGB2GRAY), None) for i in (pair.images_a, pair.images_b)
    )
    if of_a[1] is None or of_b[1] is None:
        return Found(None, False)
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(of_a[1], of_b[1], k=2)
    good = [m[0] for m in nearest if len(m) == 2 and m[0].distance < 0.8 * m[1].distance]
    if len(good) < 4:
        return Found(None, False)
    a, b = np.array([of_a[0][m.queryIdx].pt for m in good]), np.array([of_b[0][m.trainIdx].pt for m in good])
    found = cv2.estimateAffine2D(a, b, method=cv2.USAC_MAGSAC, ransacReprojThreshold=3.0, maxIters=10000)[0]
    return Found(None, False) if found is None else Found(np.asarray(found, np.float64), True)


def _dense(pair: Pair) -> Found:
    """The best hypothesis of the dense search, refined; there is no refusal."""
    settings = Settings()
    frames = [
        Frame(prepare(a, None, None, "a"), prepare(b, None, None, "b"))
        for a, b in zip(pair.images_a, pair.images_b, strict=True)
    ]
    rotations = np.arange(-180, 180, settings.rotation_step).tolist()
    hypotheses = propose(frames, rotations, _scales(settings), settings.proposals, settings)
    aligned = align(frames, hypotheses, settings)
    refined = refine(frames, aligned[0].matrix, "affine", settings) if aligned else None
    return Found(None, False) if refined is None else Found(refined.matrix, True)


def _scales(settings: Settings) -> list[float]:
    steps = round(np.log(2) / np.log(settings.scale_step))
    return [2 ** (k / steps) for k in range(-steps, steps + 1)]


def _timed_stages() -> dict[str, list[float]]:
    """Seconds of each call of the stages of `register`, filled as they are called."""
    search = sys.modules[register.__module__]
    owners: dict[str, object] = dict.fromkeys(("propose", "align", "judge"), search)
    owners |= {"refine": sys.modules[Trial.__module__], "weigh": Trial}
    stages: dict[str, list[float]] = {name: [] for name in owners}
    for name, owner in owners.items():
        setattr(owner, name, _timed(getattr(owner, name), stages[name]))
    return stages


def _timed(call: Callable[..., object], seconds: list[float]) -> Callable[..., object]:
    def timed(*args: object) -> object:
        began = time.perf_counter()
        result = call(*args)
        seconds.append(time.perf_counter() - began)
        return result

    return timed


def _environment(matcher: RRLMatcher) -> str:
    device = torch.cuda.get_device_name() if matcher.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    versions = f"rrl-match {__version__}, torch {torch.__version__}, OpenCV {cv2.__version__}"
    return f"{platform.processor() or platform.machine()}, {device}, {matcher.dtype}, {versions}"


if __name__ == "__main__":
    main()
