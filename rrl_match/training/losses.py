"""The terms of the loss that RRL-Net is trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrl_match.errors import MissingExtraError


def matching_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of logits (P,) against labels (P,) in {0, 1}; `smoothing` moves these towards 1/2."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels * (1 - smoothing) + smoothing / 2)


def gradient_loss(reconstruction: Tensor, patches: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients of (N, 1, S, S).

    Used instead of the paper's VGG-19 features, because it needs no download. Like them, it compares edges rather than
    grey values; unlike them, it does not compare textures.
    """
    difference = reconstruction.float() - patches
    return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


def contrastive_loss(descriptors_a: Tensor, descriptors_b: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions (van den Oord et al., 2018): row n of A belongs to row n of B.

    Args:
        descriptors_a, descriptors_b: (N, dim), unit length.
        negative: (N, N) bool, which pairs of locations may serve as negatives.
        temperature: divides the cosine similarities.
    """
    similarity = descriptors_a @ descriptors_b.T / temperature
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    similarity = similarity.masked_fill(~(negative | own), -torch.inf)
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


class PerceptualLoss(nn.Module):
    """Mean squared error of VGG-19 features (block5_conv4, ImageNet), the paper's reconstruction loss.

    Needs torchvision and its ImageNet weights, which torchvision downloads or finds in its cache.

    Raises:
        MissingExtraError: torchvision is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchvision.models import VGG19_Weights, vgg19
        except ImportError as error:
            raise MissingExtraError(
                "the perceptual loss needs torchvision: pip install torchvision, or set its weight to 0"
            ) from error
        features = vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features
        self.features = features[:36].eval().requires_grad_(False)  # up to the activation of block5_conv4
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, reconstruction: Tensor, patches: Tensor) -> Tensor:
        """Grey patches (N, 1, S, S) in [0, 1] to a scalar; VGG-19 gets them as three equal channels."""
        features = [self.features((x.float() - self.mean) / self.std) for x in (reconstruction, patches)]
        return F.mse_loss(*features)
