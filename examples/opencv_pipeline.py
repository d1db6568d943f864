"""rrl-match inside a pipeline that has its own keypoints: any of OpenCV's detectors in, a transform of OpenCV's out.

    python examples/opencv_pipeline.py                                  # a pair that the example renders
    python examples/opencv_pipeline.py VISIBLE.png THERMAL.png vis-lwir # 8-bit pictures, and the weights for them

To register two pictures and be done, take rrl_match.register: it needs no corner in the other band, and may refuse.
"""

# %% Two pictures, and a detector of your own

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from register_pair import read
from rendered_scene import render_pair

from rrl_match import Near, RRLMatcher, extract_patches

if len(sys.argv) > 2:
    image_a, image_b, truth = read(Path(sys.argv[1])), read(Path(sys.argv[2])), None
else:
    image_a, image_b, truth = render_pair()
matcher = RRLMatcher.from_pretrained(sys.argv[3] if len(sys.argv) > 3 else "vis-nir")
detector = cv2.GFTTDetector.create(maxCorners=300, qualityLevel=1e-4, minDistance=15, blockSize=7)

# %% Keypoints, and a patch of each; those at the border are left out

keypoints, patches = [], []
for image in (image_a, image_b):
    found = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image)
    cut, inside = extract_patches(image, found)
    keypoints.append([keypoint for keypoint, kept in zip(found, inside, strict=True) if kept])
    patches.append(cut[inside])
places_a, places_b = (np.array([keypoint.pt for keypoint in some]) for some in keypoints)

# %% Matches of OpenCV's kind, and a transform from them


def fit(a: list[int], b: list[int]) -> NDArray[np.float64]:
    """The affine transform (2, 3) that most pairs of keypoints, row of A and row of B, agree on."""
    if len(a) < 6:
        raise SystemExit(f"{len(a)} matches are too few to estimate a transform from")
    matrix, inliers = cv2.estimateAffine2D(places_a[a], places_b[b], method=cv2.USAC_MAGSAC, ransacReprojThreshold=4)
    if matrix is None:
        raise SystemExit("the matches agree on no transform")
    print(f"{len(a)} matches, {int(inliers.sum())} of them agree on a transform")
    return np.asarray(matrix, np.float64)


print(f"{len(places_a)} and {len(places_b)} keypoints")
matches = matcher.match(patches[0], patches[1], candidates=4).to_cv2()
matrix = fit([m.queryIdx for m in matches], [m.trainIdx for m in matches])

# %% Once more, but only among keypoints near where that transform predicts them

near = Near(8, cv2.transform(places_a[None], matrix)[0], places_b)
matches = matcher.match(patches[0], patches[1], near=near).to_cv2()
matrix = fit([m.queryIdx for m in matches], [m.trainIdx for m in matches])
print(np.array2string(matrix, precision=5, suppress_small=True))
if truth is not None:
    h, w = image_a.shape[:2]
    corners = np.array([[(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)]], float)
    error = np.linalg.norm(cv2.transform(corners, matrix - truth), axis=2).mean()
    print(f"mean distance from the true place of the four corners: {error:.2f} px")
