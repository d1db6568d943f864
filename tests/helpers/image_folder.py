"""Small registered images, in memory and on disk as training reads them."""

import csv

import cv2
import numpy as np

from rrl_match.training.datasets import ImagePair

COLUMNS = ["pair", "split", "scene", "image_a", "image_b", "m00", "m01", "m02", "m10", "m11", "m12"]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def textured(width, height, seed=0, corners=8):
    """Smooth noise with a few small squares, which have corners: uint8 (height, width)."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 4)
    image = np.clip(128 + 25 * noise / noise.std(), 40, 200).astype(np.uint8)
    for x, y in zip(rng.integers(30, width - 36, corners), rng.integers(30, height - 36, corners), strict=True):
        image[y : y + 6, x : x + 6] = rng.choice([4, 255])
    return image


def colour(grey):
    """Three equal channels: (H, W) to (H, W, 3)."""
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))


def image_pair(image_a, image_b, a_to_b=None, name="p", scene="s"):
    """An ImagePair in memory, aligned by the identity by default."""
    image_a = image_a if image_a.ndim == 3 else colour(image_a)
    return ImagePair(name, scene, image_a, image_b, np.eye(2, 3) if a_to_b is None else np.asarray(a_to_b, float))


def write_manifest(folder, rows):
    """Write `rows`, dicts; columns that they leave out are those of pair ``p0`` of the training split."""
    default = dict(zip(COLUMNS, ("p0", "train", "s", "a0.png", "b0.png", *IDENTITY), strict=True))
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(default | row for row in rows)
    return folder


def write_folder(folder, pairs=4, width=128, height=128, seed=0):
    """A folder with a manifest and `pairs` registered pairs: B is A inverted, with noise of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(pairs):
        a = textured(width, height, seed=seed + k)
        b = 255 - cv2.add(a, np.random.default_rng(100 + seed + k).integers(0, 8, a.shape, dtype=np.uint8))
        cv2.imwrite(str(folder / f"a{k}.png"), a)
        cv2.imwrite(str(folder / f"b{k}.png"), np.maximum(b, 4))  # black would be outside the footprint
    return write_manifest(
        folder, [{"pair": f"p{k}", "image_a": f"a{k}.png", "image_b": f"b{k}.png"} for k in range(pairs)]
    )
