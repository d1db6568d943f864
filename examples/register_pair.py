"""Register two images of the same scene and show them in a checkerboard, before and after.

    python examples/register_pair.py                                  # visible and near infrared, from examples/images
    python examples/register_pair.py VISIBLE.png THERMAL.tiff --weights vis-lwir --out folder

The command `rrl-match register` does the same and writes more files; this script shows the calls.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from example_pair import IMAGES, read_image

from rrl_match import RRLMatcher, register
from rrl_match.transforms import Similarity


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image_a", nargs="?", type=Path, default=IMAGES / "naip_visible.jpg", help="the visible image")
    parser.add_argument("image_b", nargs="?", type=Path, default=IMAGES / "naip_nir.jpg", help="the other band")
    parser.add_argument("--weights", default="vis-nir", help="a bundled name, a folder or a Hub repo id")
    parser.add_argument("--model", choices=("translation", "similarity", "affine", "homography"), default="affine")
    parser.add_argument("--out", type=Path, default=Path("register_pair_out"), help="folder for the checkerboard")
    args = parser.parse_args()

    matcher = RRLMatcher.from_pretrained(args.weights)
    image_a, image_b = read_image(args.image_a), read_image(args.image_b)
    result = register(matcher, image_a, image_b, args.model)
    print(result)
    if not result:
        return 1
    print(np.array2string(np.asarray(result.matrix), precision=5, suppress_small=True))

    before = replace(result, transform=Similarity(np.eye(3))).checkerboard(image_a, image_b)
    after = result.checkerboard(image_a, image_b)
    gap = np.full_like(after[:, :12], 255)
    boards = np.hstack([before, gap, after])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "registered.jpg"
    cv2.imwrite(str(path), cv2.cvtColor(boards, cv2.COLOR_RGB2BGR))  # OpenCV writes BGR
    print(f"checkerboard before and after: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
