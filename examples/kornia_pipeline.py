"""rrl-match inside a pipeline of kornia's: local affine frames (LAFs) in, what kornia's matchers return out.

    pip install kornia
    python examples/kornia_pipeline.py

Everything is a tensor here, and stays on the device that it is on.
"""

# %% Two pictures as tensors; these are rendered, not photographed

import kornia.feature as KF
import torch
import torch.nn.functional as F
from kornia.geometry import RANSAC
from rendered_scene import render_pair
from torch import Tensor

from rrl_match import RRLMatcher, extract_patches

visible, infrared, truth = render_pair()
device = "cuda" if torch.cuda.is_available() else "cpu"
matcher = RRLMatcher.from_pretrained("vis-nir", device=device)
bt601 = torch.tensor([0.299, 0.587, 0.114], device=device)
image_a = torch.from_numpy(visible).to(device).float() / 255 @ bt601  # (H, W) in [0, 1]
image_b = torch.from_numpy(infrared).to(device).float() / 255


# %% LAFs: from any of kornia's detectors; here corners, upright and of one size, which need no weights


def detect(image: Tensor, count: int = 300, spacing: int = 15) -> Tensor:
    """LAFs (1, N, 2, 3) of the strongest corners."""
    response = KF.gftt_response(image[None, None])
    peaks = response * (response == F.max_pool2d(response, spacing, 1, spacing // 2))
    best = peaks.flatten().topk(count).indices
    xy = torch.stack([best % image.shape[1], best // image.shape[1]], 1).float()
    half_a_patch = torch.full((1, count, 1, 1), matcher.patch_size / 2, device=image.device)
    lafs: Tensor = KF.laf_from_center_scale_ori(xy[None], half_a_patch)
    return lafs


# %% Patches of the LAFs; those that reach beyond the picture are left out

lafs, patches = [], []
for image in (image_a, image_b):
    found = detect(image)
    cut, inside = extract_patches(image, found, upright=False)
    lafs.append(found[:, inside])
    patches.append(cut[inside])

# %% Matches as kornia's own: distances (K, 1) and indices (K, 2); then whatever takes them

distances, indices = matcher.match(patches[0], patches[1], candidates=4).to_kornia()
points = [KF.get_laf_center(some)[0, indices[:, k]] for k, some in enumerate(lafs)]
print(f"{lafs[0].shape[1]} and {lafs[1].shape[1]} LAFs, {len(indices)} matches")
matrix, inliers = RANSAC("homography", inl_th=4.0)(*points)
print(f"{int(inliers.sum())} of them agree on a homography")

# %% How far off it is; the truth is known because the pair is rendered

h, w = image_a.shape
corners = torch.tensor([(0, 0, 1), (w - 1, 0, 1), (0, h - 1, 1), (w - 1, h - 1, 1)], dtype=torch.float64)
there = corners @ matrix.cpu().double().T
error = (there[:, :2] / there[:, 2:] - corners @ torch.from_numpy(truth).T).norm(dim=1).mean()
print(f"mean distance from the true place of the four corners: {error:.2f} px")
