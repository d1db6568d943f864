"""rrl-match in a pipeline of kornia: from local affine frames (LAFs) to what kornia's matchers return.

    pip install kornia
    python examples/kornia_pipeline.py

All values are tensors and stay on their device.
"""

# %% Two images as grey tensors in [0, 1]

import kornia.feature as KF
import torch
import torch.nn.functional as F
from example_pair import read_pair
from kornia.color import rgb_to_grayscale
from kornia.geometry import RANSAC
from torch import Tensor

from rrl_match import RRLMatcher, extract_patches

device = "cuda" if torch.cuda.is_available() else "cpu"
matcher = RRLMatcher.from_pretrained("vis-nir", device=device)
visible, infrared, _ = read_pair("naip")
image_a = rgb_to_grayscale(torch.from_numpy(visible).to(device).movedim(-1, 0) / 255)[0]  # (H, W)
image_b = torch.from_numpy(infrared).to(device) / 255


# %% LAFs from any detector of kornia; here upright corners of one size, which need no weights


def detect(image: Tensor, count: int = 300, spacing: int = 15) -> Tensor:
    """LAFs (1, N, 2, 3) of the strongest corners."""
    response = KF.gftt_response(image[None, None])
    peaks = response * (response == F.max_pool2d(response, spacing, 1, spacing // 2))
    best = peaks.flatten().topk(count).indices
    xy = torch.stack([best % image.shape[1], best // image.shape[1]], 1).float()
    half_a_patch = torch.full((1, count, 1, 1), matcher.patch_size / 2, device=image.device)
    lafs: Tensor = KF.laf_from_center_scale_ori(xy[None], half_a_patch)
    return lafs


# %% The patches of the LAFs; those that cross the border are left out

lafs, patches = [], []
for image in (image_a, image_b):
    found = detect(image)
    cut, inside = extract_patches(image, found, orientation=True, scale=True)
    lafs.append(found[:, inside])
    patches.append(cut[inside])
print(f"{lafs[0].shape[1]} and {lafs[1].shape[1]} LAFs")

# %% Matches as kornia returns them, distances (K, 1) and indices (K, 2), then a homography

distances, indices = matcher.match(patches[0], patches[1], candidates=4).to_kornia()
points_a = KF.get_laf_center(lafs[0])[0, indices[:, 0]]
points_b = KF.get_laf_center(lafs[1])[0, indices[:, 1]]
matrix, inliers = RANSAC("homography", inl_th=4.0)(points_a, points_b)
print(f"{len(indices)} matches, {int(inliers.sum())} inliers")
print(matrix.cpu().numpy())
