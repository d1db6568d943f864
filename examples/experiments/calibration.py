"""What the probability and the expected error of `register` rest on: calls whose truth is known, and the fit.

    python examples/experiments/calibration.py collect ../shared/data/* --calls 400 --save weights/results/calls.json
    python examples/experiments/calibration.py fit weights/results/calls.json --save weights/results/calibration.json

`collect` takes training pairs, changes image B (any rotation, scale, stretch, crop, clouds, darkness, relief, lens, two
depths), or takes one that does not belong to A, and keeps what speaks for each candidate of a call. `fit` gives the
numbers of `VerifyConfig` and `ErrorConfig`, each source left out in turn for the curves that it saves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from rrl_match import RRLMatcher, Search
from rrl_match.io.images import decode
from rrl_match.registration import error, verification
from rrl_match.registration.config import Config
from rrl_match.registration.dense_search import Region
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.pipeline import explored
from rrl_match.registration.refinement import Freedom
from rrl_match.registration.task import Task
from rrl_match.training.datasets import ManifestRow, read_manifest
from rrl_match.training.results import load_rows, save_results
from rrl_match.transforms import Affine, Translation, resizing

Image: TypeAlias = NDArray[np.uint8]
Array: TypeAlias = NDArray[np.float64]
Fitted: TypeAlias = Callable[[Array, Array], Array]
KINDS = ("plain", "stretched", "cropped", "clouded", "dark", "small", "relief", "lens", "depths")
PARTNERS = ("right", "right", "right", "mirrored", "another image")
SMALL = 160  # pixels across a small image B
RIGHT, WRONG = 8.0, 20.0  # median errors in units: below the first, a transform is right, above the second wrong
QUANTILES = np.arange(1, 20) / 20  # of the errors of a transform that are kept
ENOUGH = 0.7  # part of the calls whose radius is not understated
ODDS = ("mutual", "support", "log ratio", "peak")
ERRORS = ("surroundings", "blocks", "disagreeing")


class Case(NamedTuple):
    """Images, a mask of B, the matrix (3, 3) from A to B, and the displacement (H, W, 2) that B has on top of it."""

    a: Image
    b: Image
    mask: NDArray[np.bool_] | None
    matrix: Array
    bent: NDArray[np.float32]

    def truth(self, points: Array) -> Array:
        """Where locations (N, 2) of A lie in B: B shows at x what was at x + bent(x)."""
        straight = cv2.perspectiveTransform(points[None], self.matrix)[0]
        there = straight.copy()
        for _ in range(30):
            at = there.astype(np.float32)[None]
            off = cv2.remap(self.bent, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]  # type: ignore[call-overload]
            there = straight - off
        return np.asarray(there, np.float64)


def collect(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each candidate of each call."""
    random = np.random.default_rng(args.seed)
    matcher = RRLMatcher.from_pretrained(args.weights)
    manifests = {folder.name: read_manifest(folder, "train") for folder in args.folders}
    rows = []
    for call in tqdm(range(args.calls), "calls", disable=None):
        source = list(manifests)[call % len(manifests)]
        partner = PARTNERS[random.integers(len(PARTNERS))]
        kinds = KINDS if partner == "right" else KINDS[:6]
        kind = kinds[random.integers(len(kinds))]
        case = _case(manifests[source], partner, kind, random)
        common = {"call": call, "source": source, "partner": partner, "kind": kind}
        rows += [common | row for row in _candidates(matcher, case, partner == "right")]
    return rows


def _case(pairs: Sequence[ManifestRow], partner: str, kind: str, random: np.random.Generator) -> Case:
    pair = other = pairs[int(random.integers(len(pairs)))]
    if partner == "another image":  # of another folder, if there are several: these may show one place at several dates
        elsewhere = [one for one in pairs if one.image_a.parent != pair.image_a.parent]
        elsewhere = elsewhere or [one for one in pairs if one.image_a != pair.image_a]
        other = elsewhere[int(random.integers(len(elsewhere)))]
    a, b = (np.asarray(decode(path, cv2.IMREAD_COLOR), np.uint8) for path in (pair.image_a, other.image_b))
    matrix = np.vstack([pair.a_to_b, [0, 0, 1]])
    if partner == "mirrored":
        b = np.ascontiguousarray(b[:, ::-1])
    if kind == "small":
        matrix = resizing(b.shape[1] / SMALL).full @ matrix
        b = np.asarray(cv2.resize(b, (SMALL, round(b.shape[0] * SMALL / b.shape[1])), interpolation=cv2.INTER_AREA))
    h, w = b.shape[:2]
    angle = random.uniform(-180, 180) if random.random() < 0.25 else random.uniform(-20, 20)
    move = np.vstack([cv2.getRotationMatrix2D((w / 2, h / 2), angle, random.uniform(0.8, 1.25)), [0, 0, 1]])
    if kind == "stretched":
        move = np.diag([random.uniform(0.75, 1.35), 1.0, 1.0]) @ move
    if kind == "cropped":
        part = random.uniform(0.45, 0.7)
        left, top = random.uniform(0, 1 - part, 2) * (w, h)
        move = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ move
        h, w = round(part * h), round(part * w)
    there, bent = cv2.warpPerspective(b, move, (w, h)), displacement(kind, (h, w), random)
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    there = cv2.remap(there, x + bent[..., 0], y + bent[..., 1], cv2.INTER_LINEAR)
    if kind == "dark":
        there = cv2.subtract(there, np.full_like(there, np.quantile(there, random.uniform(0.2, 0.5))))
    cloud = cv2.GaussianBlur(random.random((h, w)), (0, 0), max(2.0, min(h, w) / 15))
    mask = cloud < np.quantile(cloud, random.uniform(0.7, 0.9)) if kind == "clouded" else None
    return Case(a, np.asarray(there, np.uint8), mask, move @ matrix, bent)


def displacement(kind: str, shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.float32]:
    """The displacement (H, W, 2) of a kind."""
    (h, w), side = shape, max(shape)
    x, y = np.meshgrid(np.linspace(-1, 1, w), np.linspace(-1, 1, h))
    smooth = cv2.resize(random.normal(size=(7, 7)), (w, h), interpolation=cv2.INTER_CUBIC)
    along = np.array([math.cos(angle := random.uniform(0, math.pi)), math.sin(angle)])
    if kind == "relief":
        field = smooth[..., None] * along * random.uniform(0.002, 0.012) * side
    elif kind == "lens":
        field = np.stack([x * w, y * h], 2) / 2 * ((x**2 + y**2) / 2)[..., None] * random.uniform(0.03, 0.1)
    elif kind == "depths":
        field = (smooth > np.median(smooth))[..., None] * along * random.uniform(0.01, 0.04) * side
    else:
        field = np.zeros((h, w, 2))
    return np.asarray(field, np.float32)


def _candidates(matcher: RRLMatcher, case: Case, right: bool) -> Iterator[dict[str, Any]]:
    """What speaks for each candidate, and how far it is off."""
    config, start = Config(), Translation(np.eye(3))
    frame = Frame(prepare(case.a, None, None, "a"), prepare(case.b, case.mask, None, "b"))
    freedom, region = Freedom(Affine, start, True), Region(start, False, math.inf)
    task = Task(matcher, [frame], freedom, region, False, config, lambda: None)
    candidates = explored(task, Search())
    h, w = case.a.shape[:2]
    points = np.stack(np.meshgrid(np.linspace(0, w - 1, 21), np.linspace(0, h - 1, 21)), -1).reshape(-1, 2)
    truth = case.truth(points)
    inside = ((truth >= 0) & (truth < case.b.shape[1::-1])).all(1)
    best = candidates.best()
    for evidence in candidates.measured:
        if evidence.fault:
            continue
        refined, verdict = evidence.refined, candidates.verdict(evidence)
        blocks, unit = refined.blocks, refined.overlap.unit
        off = np.linalg.norm(refined.transform(points) - truth, axis=1)[inside] / unit
        row: dict[str, Any] = dict(zip(ODDS, verification.terms(evidence, verdict.ratio, config.verify), strict=True))
        row |= {"best": best is not None and evidence is best[0], "ok": not verdict.reason}
        row |= {"median": float(np.median(off)) if right else None, "radius": None}
        if right and len(evidence.error.errors):
            residuals = np.linalg.norm(refined.transform(blocks.points) - blocks.matched, axis=1)
            known = error.terms(evidence.misfit, residuals, unit, config.error)
            stated = evidence.error.radius / unit
            row |= dict(zip(ERRORS, known, strict=True))
            row |= {
                "radius": float(np.quantile(off, 0.9)),
                "quantiles": np.quantile(off, np.arange(1, 20) / 20).tolist(),
            }
            row |= {"stated": stated, "covered": float((off <= stated).mean())}
        yield {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def fit(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The weights of both sums, and how well they are calibrated on sources that they were not fitted to."""
    return [*_fit_probability(rows), *_fit_error(rows)]


def _fit_probability(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    labelled = [row for row in rows if _label(row) is not None]
    x = np.array([[row[name] for name in ODDS] for row in labelled])
    y, sources = np.array([_label(row) for row in labelled]), [row["source"] for row in labelled]
    odds = _left_out(x, y, sources, logistic)
    yield {"fit": "log odds", **dict(zip((*ODDS, "bias"), logistic(x, y).round(2).tolist(), strict=True))}
    best, settings = np.array([row["best"] for row in labelled]), Config().verify
    yield from _curve("probability", odds[best], y[best])
    yield from _curve("probability in use", (x @ settings.weights + settings.bias)[best], y[best])


def _curve(name: str, odds: Array, right: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    """Stated probability and true part of ten ranges."""
    probability = 1 / (1 + np.exp(-odds))
    ranges = (probability * 10).astype(int).clip(0, 9)
    for number in np.unique(ranges):
        part = ranges == number
        stated, true = (round(float(one[part].mean()), 3) for one in (probability, right))
        yield {"curve": name, "stated": stated, "true": true, "calls": int(part.sum())}


def _fit_error(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    known = [row for row in rows if row["best"] and row["radius"] is not None and row["median"] <= WRONG]
    x = np.array([[row[name] for name in ERRORS] for row in known])
    y, sources = np.log(np.maximum([row["radius"] for row in known], 0.05)), [row["source"] for row in known]
    stated = np.exp(_left_out(x, y, sources, cautious))
    yield {"fit": "log error", **dict(zip((*ERRORS, "bias"), cautious(x, y).round(2).tolist(), strict=True))}
    held = [np.interp(s, row["quantiles"], QUANTILES, 0, 1) for s, row in zip(stated, known, strict=True)]
    twice = float((np.abs(np.log(stated) - y) <= math.log(2)).mean())
    mean = round(float(np.mean(held)), 3)
    yield {"curve": "error", "calls": len(known), "held": mean, "within a factor of 2": round(twice, 3)}
    for s, row in zip(stated, known, strict=True):
        yield {"source": row["source"], "kind": row["kind"], "stated": round(float(s), 2), "true": row["radius"]}


def _label(row: dict[str, Any]) -> bool | None:
    """Whether a candidate is right; None if it is in between."""
    if row["median"] is None or row["median"] > WRONG:
        return False
    return True if row["median"] < RIGHT else None


def _left_out(x: Array, y: Array, sources: Sequence[str], fitted: Fitted) -> Array:
    """The sum for each row (N,), of a fit to the rows of other sources."""
    result = np.zeros(len(y))
    for source in set(sources):
        held = np.array([one == source for one in sources])
        *weights, bias = fitted(x[~held], y[~held])
        result[held] = x[held] @ weights + bias
    return result


def logistic(x: Array, y: Array, ridge: float = 0.02) -> Array:
    """Weights and bias of a logistic regression (Newton's method)."""
    design, weights = np.column_stack([x, np.ones(len(x))]), np.zeros(x.shape[1] + 1)
    penalty = np.diag([ridge] * x.shape[1] + [0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-(design @ weights).clip(-30, 30)))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + penalty + 1e-9 * np.eye(len(weights))
        weights = weights - np.linalg.solve(hessian, design.T @ (p - y) + penalty @ weights)
    return np.asarray(weights)


def least_squares(x: Array, y: Array, ridge: float = 1.0) -> Array:
    """Weights and bias of a linear regression."""
    middle, mean = x.mean(0), y.mean()
    weights = np.linalg.solve((x - middle).T @ (x - middle) + ridge * np.eye(x.shape[1]), (x - middle).T @ (y - mean))
    return np.append(weights, mean - middle @ weights)


def cautious(x: Array, y: Array) -> Array:
    """The same, with a bias that is large enough for so many rows that nine tenths of all errors lie below."""
    weights = least_squares(x, y)
    weights[-1] += np.quantile(y - x @ weights[:-1] - weights[-1], ENOUGH)
    return weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect", help="call `register` on changed training pairs")
    one.add_argument("folders", nargs="+", type=Path, help="with a manifest.csv each")
    one.add_argument("--calls", type=int, default=400)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--weights", default="universal")
    two = commands.add_parser("fit", help="fit the probability and the expected error")
    two.add_argument("files", nargs="+", type=Path, help="that `collect` wrote")
    for command in (one, two):
        command.add_argument("--save", type=Path, metavar="FILE.json", required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = collect(args) if args.command == "collect" else fit([row for file in args.files for row in load_rows(file)])
    save_results(args.save, rows)
    for row in rows if args.command == "fit" else []:
        if "source" not in row:
            print(row)


if __name__ == "__main__":
    main()
