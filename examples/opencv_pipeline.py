"""rrl-match in a pipeline with its own keypoints: from a detector of OpenCV to cv2.estimateAffine2D.

    python examples/opencv_pipeline.py                                    # the NAIP pair of examples/images
    python examples/opencv_pipeline.py VISIBLE.png THERMAL.png vis-lwir   # 8-bit images, and weights for them

To register two images and nothing else, use rrl_match.register: it needs no keypoints in B and can refuse.
"""

# %% Two images, and any detector

import sys
from pathlib import Path

import cv2
import numpy as np
from example_pair import IMAGES, read_image
from numpy.typing import NDArray

from rrl_match import Matches, Near, RRLMatcher, extract_patches

paths = [Path(path) for path in sys.argv[1:3]] or [IMAGES / "naip_visible.jpg", IMAGES / "naip_nir.jpg"]
images = [read_image(path) for path in paths]
matcher = RRLMatcher.from_pretrained(sys.argv[3] if len(sys.argv) > 3 else "vis-nir")
detector = cv2.GFTTDetector.create(maxCorners=300, qualityLevel=1e-4, minDistance=15, blockSize=7)

# %% Keypoints, and the patch around each; patches that cross the border are left out

points, patches = [], []
for image in images:
    keypoints = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image)
    cut, inside = extract_patches(image, keypoints)
    points.append(np.array([keypoint.pt for keypoint in keypoints])[inside])
    patches.append(cut[inside])
points_a, points_b = points
patches_a, patches_b = patches
print(f"{len(points_a)} and {len(points_b)} keypoints")

# %% Matches, and the affine transform that most of them agree on


def fit(matches: Matches) -> NDArray[np.float64]:
    if len(matches) < 6:
        raise SystemExit(f"{len(matches)} matches are too few for an affine transform")
    rows_a, rows_b = matches.indices.T
    matrix, inliers = cv2.estimateAffine2D(
        points_a[rows_a], points_b[rows_b], method=cv2.USAC_MAGSAC, ransacReprojThreshold=4
    )
    if matrix is None:
        raise SystemExit("the matches agree on no transform")
    print(f"{len(matches)} matches, {int(inliers.sum())} inliers")
    return np.asarray(matrix, np.float64)


matrix = fit(matcher.match(patches_a, patches_b, candidates=4))  # .to_cv2() gives a list of cv2.DMatch

# %% Again, among the keypoints near where this transform predicts them

predicted = cv2.transform(points_a[None], matrix)[0]
near = Near(radius=8, positions_a=predicted, positions_b=points_b)
matrix = fit(matcher.match(patches_a, patches_b, near=near))
print(np.array2string(matrix, precision=5, suppress_small=True))
