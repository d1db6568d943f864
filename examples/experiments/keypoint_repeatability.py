"""How often a keypoint of one band is found in the other as well, which limits registration by keypoints.

``python keypoint_repeatability.py --data FOLDER`` prints, for several detectors, the percentage of keypoints of image A
that have a keypoint of image B at their true location, and the percentage expected by chance.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from rrl_match.training.datasets import ImagePair, read_pairs

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Metrics = dict[str, dict[int, dict[str, float]]]


def repeatability(
    pairs: Sequence[ImagePair],
    counts: Sequence[int] = (500, 2000),
    *,
    tolerance: float = 3.0,
    spacing: int = 4,
    smooth: float = 0.0,
    margin: int = 32,
    seed: int = 0,
) -> Metrics:
    """Measure all of :data:`DETECTORS`, and a grid with random offsets, on registered images.

    Of each image, the strongest keypoints in the area that both images show are compared.

    Args:
        pairs: as :func:`~rrl_match.training.datasets.read_pairs` gives them.
        counts: of keypoints in each image.
        tolerance: largest distance, in pixels of B, between a keypoint of B and the true location.
        spacing: smallest distance between keypoints of an image, in pixels.
        smooth: sigma in pixels of a Gaussian filter applied to the images first.
        margin: smallest distance to the border in pixels; half a patch by default.
        seed: of the random locations that measure chance, and of the grids.

    Returns:
        ``result[detector][count]``, means over the images: "found", the number of keypoints of A; "repeated", the
        percentage with a keypoint of B at the true location; "chance", the percentage of random locations with one.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, dict[int, list[tuple[float, float, float]]]] = {
        name: {count: [] for count in counts} for name in (*DETECTORS, "grid")
    }
    for pair in pairs:
        images, masks = _overlap(pair, margin)
        images = [_smoothed(image, smooth) if smooth else image for image in images]
        anywhere = _grid(masks[1], 4000, rng)
        for name, by_count in rows.items():
            if name == "grid":
                found = {count: [_grid(mask, count, rng) for mask in masks] for count in counts}
            else:
                detected = zip(images, masks, strict=True)
                best = [_strongest(DETECTORS[name](i), mask, max(counts), spacing) for i, mask in detected]
                found = {count: [points[:count] for points in best] for count in counts}
            for count, (a, b) in found.items():
                true = a @ pair.a_to_b[:, :2].T + pair.a_to_b[:, 2]
                repeated, chance = (_percent_near(locations, b, tolerance) for locations in (true, anywhere))
                by_count[count].append((len(a), repeated, chance))
    return {
        name: {
            count: dict(zip(("found", "repeated", "chance"), np.mean(values, 0).tolist(), strict=True))
            for count, values in by_count.items()
        }
        for name, by_count in rows.items()
    }


def table(result: Metrics) -> Iterator[str]:
    """Lines of a table of :func:`repeatability`'s result."""
    yield "detector".ljust(20) + "".join(f"{h:>12s}" for h in ("keypoints", "found", "repeated", "chance"))
    for name, by_count in result.items():
        for count, row in by_count.items():
            values = f"{count:12d}{row['found']:12.0f}{row['repeated']:12.1f}{row['chance']:12.1f}"
            yield f"  {name}".ljust(20) + values


def _overlap(pair: ImagePair, margin: int) -> tuple[list[Grey], list[Grey]]:
    """Both images in grey, each with a mask of the area that both show, eroded by `margin`."""
    grey = np.asarray(cv2.cvtColor(pair.image_a, cv2.COLOR_RGB2GRAY), np.uint8)
    h, w = pair.image_b.shape
    shown = cv2.warpAffine(np.ones_like(grey), pair.a_to_b, (w, h), flags=cv2.INTER_NEAREST)
    side = 2 * margin + 1
    mask_b = cv2.erode(shown, np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    back = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    mask_a = cv2.warpAffine(mask_b, pair.a_to_b, grey.shape[::-1], flags=back)
    return [grey, pair.image_b], [np.asarray(mask, np.uint8) for mask in (mask_a, mask_b)]


def _smoothed(image: Grey, sigma: float) -> Grey:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def _percent_near(locations: Floats, keypoints: Floats, tolerance: float) -> float:
    """Percentage of `locations` (N, 2) that have one of `keypoints` (M, 2) within `tolerance`."""
    if not len(locations) or not len(keypoints):
        return 0.0
    distance = torch.cdist(torch.from_numpy(locations).double(), torch.from_numpy(keypoints).double())
    return 100 * float((distance.amin(1) <= tolerance).double().mean())


def _strongest(found: Floats, mask: Grey, count: int, spacing: int) -> Floats:
    """Of (N, 3) xy and strength, the (n, 2) strongest inside the mask at least `spacing` apart, strongest first."""
    pixel = found[:, :2].round().astype(int).clip(0, np.array(mask.shape[::-1]) - 1)
    order = np.argsort(-found[:, 2], kind="stable")
    order = order[mask[pixel[order, 1], pixel[order, 0]] > 0]
    free = np.ones_like(mask)
    kept = []
    for k, (x, y) in zip(order.tolist(), pixel[order].tolist(), strict=True):
        if free[y, x]:
            kept.append(k)
            cv2.circle(free, (x, y), spacing - 1, (0,), -1)
            if len(kept) == count:
                break
    result: Floats = found[kept, :2]
    return result


def _grid(mask: Grey, count: int, rng: np.random.Generator) -> Floats:
    """About `count` locations of the mask, random in each cell: plain grids would agree fully or not at all."""
    if not mask.any():
        return np.empty((0, 2), np.float32)
    step = math.sqrt(int(mask.sum()) / count)
    corners = np.stack(np.meshgrid(*(np.arange(0, n, step) for n in mask.shape[::-1])), -1).reshape(-1, 2)
    locations = corners + rng.uniform(0, step, corners.shape)
    x, y = locations.astype(int).clip(0, np.array(mask.shape[::-1]) - 1).T
    return np.asarray(locations[mask[y, x] > 0], np.float32)


def _maxima(response: Floats) -> Floats:
    """(N, 3) xy and strength of the local maxima of an image (H, W)."""
    y, x = np.nonzero((response == cv2.dilate(response, np.ones((3, 3), np.uint8))) & (response > 0))
    return np.asarray(np.stack([x, y, response[y, x]], 1), np.float32)


def _of_keypoints(keypoints: Sequence[cv2.KeyPoint]) -> Floats:
    return np.array([(*k.pt, k.response) for k in keypoints], np.float32).reshape(-1, 3)


def _fast(image: Grey) -> Floats:
    return _of_keypoints(cv2.FastFeatureDetector.create(threshold=5).detect(image))


def _dog(image: Grey) -> Floats:
    return _of_keypoints(cv2.SIFT.create(contrastThreshold=0.0).detect(image))


def _harris(image: Grey) -> Floats:
    return _maxima(np.asarray(cv2.cornerHarris(image, 5, 3, 0.04), np.float32))


def _least_eigenvalue(image: Grey) -> Floats:
    return _maxima(np.asarray(cv2.cornerMinEigenVal(image, 7), np.float32))


def _gradient(image: Grey) -> Floats:
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return _maxima(np.asarray(cv2.magnitude(dx, dy), np.float32))


def _phase_congruency(image: Grey, scales: int = 4, orientations: int = 6) -> Floats:
    """Maxima of the minimum moment of phase congruency (Kovesi, 1999 and 2003): corners at any contrast."""
    spectrum = torch.fft.fft2(torch.from_numpy(image).float())
    fy, fx = torch.meshgrid(*(torch.fft.fftfreq(n) for n in image.shape), indexing="ij")
    radius, angle = torch.hypot(fx, fy), torch.atan2(fy, fx)
    radius[0, 0] = 1
    centres = [1 / (3 * 2.1**k) for k in range(scales)]  # of the filters, in cycles per pixel
    radial = [torch.exp(-((radius / f).log() ** 2) / (2 * math.log(0.55) ** 2)) for f in centres]
    xx, yy, xy = torch.zeros(3, *image.shape)
    for k in range(orientations):
        orientation = k * math.pi / orientations
        away = torch.atan2(torch.sin(angle - orientation), torch.cos(angle - orientation))
        angular = torch.exp(-(away**2) / (2 * (math.pi / orientations / 1.2) ** 2)) * (radius < 0.45)
        responses = [torch.fft.ifft2(spectrum * r * angular) for r in radial]
        noise = responses[0].abs().median() / math.sqrt(math.log(4)) * sum(2.1**-s for s in range(scales))
        bound = noise * (math.sqrt(math.pi / 2) + 2 * math.sqrt((4 - math.pi) / 2))
        amplitude = torch.stack([r.abs() for r in responses]).sum(0)
        congruency = (torch.stack(responses).sum(0).abs() - bound).clamp(min=0) / (amplitude + 1e-3)
        dx, dy = congruency * math.cos(orientation), congruency * math.sin(orientation)
        xx, yy, xy = xx + dx * dx, yy + dy * dy, xy + dx * dy
    least = (xx + yy - torch.sqrt((xx - yy) ** 2 + 4 * xy**2)) / 2
    return _maxima(np.asarray(least.numpy(), np.float32))


DETECTORS: dict[str, Callable[[Grey], Floats]] = {
    "FAST": _fast,
    "DoG (SIFT)": _dog,
    "Harris": _harris,
    "least eigenvalue": _least_eigenvalue,
    "gradient": _gradient,
    "phase congruency": _phase_congruency,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of all detectors."""
    parser = argparse.ArgumentParser(description="Print how often detectors find the same keypoint in both bands.")
    parser.add_argument("--data", type=Path, required=True, help="folder with a manifest.csv and the images it names")
    parser.add_argument("--split", default="train", help="split of the manifest to measure")
    parser.add_argument("--images", type=int, help="number of image pairs, evenly spaced (default: all)")
    parser.add_argument("--keypoints", type=int, nargs="+", default=[500, 2000], help="numbers of keypoints per image")
    parser.add_argument("--tolerance", type=float, default=3.0, help="pixels between a keypoint and its true location")
    parser.add_argument("--smooth", type=float, default=0.0, help="sigma in pixels of a Gaussian filter applied first")
    args = parser.parse_args(arguments)
    pairs = read_pairs(args.data, args.split)
    pairs = pairs[:: -(-len(pairs) // (args.images or len(pairs)))]
    name = args.data.resolve().name
    print(f"{name}, {len(pairs)} image pairs of split {args.split}; within {args.tolerance:g} px, in percent")
    for line in table(repeatability(pairs, args.keypoints, tolerance=args.tolerance, smooth=args.smooth)):
        print(line)


if __name__ == "__main__":
    main()
