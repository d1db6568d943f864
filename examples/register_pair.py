"""Register two pictures of one place taken in different bands.

    python examples/register_pair.py                        # a pair that the example renders itself
    python examples/register_pair.py VISIBLE.png NIR.png --out folder
    python examples/register_pair.py VISIBLE.png THERMAL.tiff --weights vis-lwir --json

Prints the matrix that takes pixel (x, y) of the first picture to the second, and writes the matches, and an overlay
and a checkerboard of both pictures before and after, as PNG. Exit code 0 if they were registered, 2 if refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rendered_scene import render_pair

from rrl_match import Registration, RRLMatcher, percentile_range, register

Image = NDArray[np.uint8]


def read(path: Path) -> NDArray[Any]:
    """RGB or grey, of any depth."""
    picture = cv2.imread(str(path), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if picture is None:
        raise SystemExit(f"{path} cannot be read as a picture")
    return picture if picture.ndim == 2 else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def shown(picture: NDArray[Any]) -> Image:
    """Grey, 8 bit, with an even contrast."""
    low, high = (0, 255) if picture.dtype == np.uint8 else percentile_range(picture)
    grey = np.clip((picture.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    grey = np.asarray(cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY)) if grey.ndim == 3 else grey
    return np.asarray(cv2.createCLAHE(3.0, (8, 8)).apply(grey), np.uint8)


def moved(grey: Image, matrix: NDArray[np.float64], like: Image) -> Image:
    whole = matrix if matrix.shape == (3, 3) else np.vstack([matrix, [0, 0, 1]])
    return np.asarray(cv2.warpPerspective(grey, whole, like.shape[::-1]), np.uint8)


def overlay(a: Image, b: Image) -> Image:
    """A in red and green against B in blue and green."""
    return np.asarray(np.dstack([b, cv2.addWeighted(a, 0.5, b, 0.5, 0), a]), np.uint8)


def checkerboard(a: Image, b: Image, cells: int = 8) -> Image:
    size = max(b.shape) / cells
    y, x = (np.indices(b.shape) / size).astype(int)
    return np.where((x + y) % 2 == 0, a, b)


def draw_matches(a: Image, b: Image, result: Registration) -> Image:
    """Both pictures side by side; inliers green, outliers red and underneath."""
    h = max(a.shape[0], b.shape[0])
    padded = [cv2.copyMakeBorder(i, 0, h - len(i), 0, 0, cv2.BORDER_CONSTANT) for i in (a, b)]
    canvas = np.asarray(cv2.cvtColor(np.hstack(padded), cv2.COLOR_GRAY2BGR), np.uint8)
    for k in np.argsort(result.inliers, kind="stable"):
        start = result.keypoints_a[k].round().astype(int)
        end = (result.keypoints_b[k] + np.array([a.shape[1], 0])).round().astype(int)
        colour = (80, 220, 80) if result.inliers[k] else (60, 60, 230)
        cv2.line(canvas, start.tolist(), end.tolist(), colour, 1, cv2.LINE_AA)
    return canvas


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="two pictures, the first one visible")
    parser.add_argument("--weights", default="vis-nir", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--model", choices=("similarity", "affine", "homography"), default="affine")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("register_pair_out"))
    args = parser.parse_args()
    if len(args.images) not in (0, 2):
        parser.error("give two pictures, or none for the rendered pair")

    truth = None
    if args.images:
        image_a, image_b = (read(path) for path in args.images)
    else:
        image_a, image_b, truth = render_pair()
        if not args.json:
            print("No pictures given: registering a pair that this example renders. It is made, not photographed;")
            print("how well it registers says nothing about real pictures.")

    result = register(RRLMatcher.from_pretrained(args.weights), image_a, image_b, args.model)

    args.out.mkdir(parents=True, exist_ok=True)
    a, b = shown(image_a), shown(image_b)
    pictures = {"matches": draw_matches(a, b, result)}
    for name, matrix in (("before", np.eye(3)), ("after", result.matrix if result.ok else None)):
        if matrix is not None:
            there = moved(a, matrix, b)
            pictures |= {name: overlay(there, b), f"{name}_checkerboard": checkerboard(there, b)}
    for name, picture in pictures.items():
        cv2.imwrite(str(args.out / f"{name}.png"), picture)

    inliers = int(result.inliers.sum())
    if args.json:
        matrix = result.matrix.tolist() if result.ok and result.matrix is not None else None
        print(json.dumps({"ok": result.ok, "reason": result.reason, "matrix": matrix, "inliers": inliers}))
    elif result.ok and result.matrix is not None:
        print(f"{len(result.matches)} matches, {inliers} of them agree on the transform")
        print(np.array2string(result.matrix, precision=5, suppress_small=True))
        if truth is not None:
            h, w = image_a.shape[:2]
            corners = np.array([[0, 0, 1], [w - 1, 0, 1], [0, h - 1, 1], [w - 1, h - 1, 1]], float).T
            there = result.matrix @ corners
            error = np.linalg.norm(there[:2] / (there[2] if len(there) == 3 else 1) - truth @ corners, axis=0).mean()
            print(f"mean distance from the true place of the four corners: {error:.2f} px")
    else:
        print(f"not registered: {result.reason}")
    if not args.json:
        print(f"pictures: {', '.join(str(args.out / f'{name}.png') for name in pictures)}")
    return 0 if result.ok else 2


if __name__ == "__main__":
    sys.exit(main())
