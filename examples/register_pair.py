"""Register two pictures of one place taken in different bands.

    python examples/register_pair.py                        # a pair that the example renders itself
    python examples/register_pair.py VISIBLE.png NIR.png --out folder

Keypoints in both pictures, patches around them, scores, mutual best partners, and a robust affine transform.
Writes the matches and the overlay before and after as PNG, and prints the 2x3 matrix that takes pixel (x, y) of
the first picture to the second.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rendered_scene import render_pair

from rrl_match import RRLMatcher, extract_patches

Image = NDArray[np.uint8]
Points = NDArray[np.float64]


def read_rgb(path: Path) -> Image:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{path} cannot be read as a picture")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def find_keypoints(image: Image, count: int, cell: int = 8) -> Points:
    """The strongest FAST corners, (N, 2) xy, at most one in each cell and none whose patch leaves the picture."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    strongest: dict[tuple[int, int], Any] = {}
    for keypoint in cv2.FastFeatureDetector.create(threshold=8).detect(cv2.GaussianBlur(grey, (0, 0), 1.0)):
        x, y = keypoint.pt
        place = int(x) // cell, int(y) // cell
        if place not in strongest or keypoint.response > strongest[place].response:
            strongest[place] = keypoint
    best = sorted(strongest.values(), key=lambda k: -k.response)
    points = np.array([k.pt for k in best], np.float64).reshape(-1, 2)
    h, w = grey.shape
    inside = np.all((points >= 32) & (points <= (w - 32, h - 32)), axis=1)
    return points[inside][:count]


def overlay(image_a: Image, image_b: Image, matrix: NDArray[np.float64]) -> Image:
    """Picture A, moved by the matrix, in red and green against picture B in blue and green."""
    h, w = image_b.shape[:2]
    a = cv2.warpAffine(cv2.cvtColor(image_a, cv2.COLOR_RGB2GRAY), matrix, (w, h))
    b = cv2.cvtColor(image_b, cv2.COLOR_RGB2GRAY)
    contrast = cv2.createCLAHE(3.0, (8, 8))
    a, b = contrast.apply(a), contrast.apply(b)
    return np.asarray(np.dstack([b, cv2.addWeighted(a, 0.5, b, 0.5, 0), a]), np.uint8)


def draw_matches(
    image_a: Image, image_b: Image, points_a: Points, points_b: Points, inlier: NDArray[np.bool_]
) -> Image:
    """Both pictures side by side; inliers green, outliers red and underneath."""
    h = max(image_a.shape[0], image_b.shape[0])
    padded = [cv2.copyMakeBorder(i, 0, h - len(i), 0, 0, cv2.BORDER_CONSTANT) for i in (image_a, image_b)]
    canvas = np.asarray(np.hstack(padded)[..., ::-1], np.uint8, order="C")
    for k in np.argsort(inlier, kind="stable"):
        start, end = points_a[k].round().astype(int), (points_b[k] + (image_a.shape[1], 0)).round().astype(int)
        colour = (80, 220, 80) if inlier[k] else (60, 60, 230)
        cv2.line(canvas, start.tolist(), end.tolist(), colour, 1, cv2.LINE_AA)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="two pictures, the first one visible")
    parser.add_argument("--weights", default="vis-nir", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--keypoints", type=int, default=500, help="in each picture")
    parser.add_argument("--out", type=Path, default=Path("register_pair_out"))
    args = parser.parse_args()
    if len(args.images) not in (0, 2):
        parser.error("give two pictures, or none for the rendered pair")

    truth = None
    if args.images:
        image_a, image_b = (read_rgb(path) for path in args.images)
    else:
        print("No pictures given: registering a pair that this example renders. It is made, not photographed;")
        print("how well it registers says nothing about real pictures.")
        image_a, nir, truth = render_pair()
        image_b = np.dstack([nir] * 3)

    matcher = RRLMatcher.from_pretrained(args.weights)
    points_a, points_b = (find_keypoints(image, args.keypoints) for image in (image_a, image_b))
    patches_a, patches_b = extract_patches(image_a, points_a)[0], extract_patches(image_b, points_b)[0]
    matches = matcher.match(patches_a, patches_b, candidates=4, progress=True)
    print(f"{len(points_a)} and {len(points_b)} keypoints, {len(matches)} mutual matches above {matcher.threshold:.3f}")

    matched_a, matched_b = points_a[matches.indices[:, 0]], points_b[matches.indices[:, 1]]
    matrix, inlier = None, np.zeros(len(matches), bool)
    if len(matches) >= 3:
        matrix, mask = cv2.estimateAffine2D(
            matched_a, matched_b, method=cv2.USAC_MAGSAC, ransacReprojThreshold=3.0, maxIters=10000, confidence=0.9999
        )
        inlier = mask.ravel().astype(bool) if mask is not None else inlier
    args.out.mkdir(parents=True, exist_ok=True)
    picture = draw_matches(image_a, image_b, matched_a, matched_b, inlier)
    cv2.imwrite(str(args.out / "matches.png"), picture)
    cv2.imwrite(str(args.out / "before.png"), overlay(image_a, image_b, np.eye(2, 3)))
    if matrix is None or inlier.sum() < 12:
        raise SystemExit(
            f"not registered: only {inlier.sum()} matches agree on one transform; see {args.out / 'matches.png'}"
        )
    cv2.imwrite(str(args.out / "after.png"), overlay(image_a, image_b, matrix))
    print(f"{inlier.sum()} of them agree on the transform\n{np.array2string(matrix, precision=5, suppress_small=True)}")
    if truth is not None:
        h, w = image_a.shape[:2]
        corners = np.array([[0, 0, 1], [w - 1, 0, 1], [0, h - 1, 1], [w - 1, h - 1, 1]], float).T
        error = np.linalg.norm((matrix - truth) @ corners, axis=0).mean()
        print(f"mean distance from the true place of the four corners: {error:.2f} px")
    print(f"pictures: {args.out}/matches.png, before.png, after.png")


if __name__ == "__main__":
    main()
