"""Small images with a known transform, and a stand-in for RRL-Net that needs no weights."""

from typing import NamedTuple

import cv2
import numpy as np
import torch

from rrl_match import Search
from rrl_match.registration.images import Frame, prepare
from rrl_match.transforms import Affine

NEAR = Search(rotation=18, scale=(0.85, 1.2), aspect=1.0)


class EdgeMatcher:
    """Scores patches by how well their edges coincide."""

    patch_size = 32
    threshold = 0.4
    modalities = "a", "b"

    def score(self, patches_a, patches_b):
        edges = [
            np.stack([_edges(p) for p in patches]) if len(patches) else patches for patches in (patches_a, patches_b)
        ]
        return np.array([max(0.0, (a * b).mean()) for a, b in zip(*edges, strict=True)], np.float32)

    def encode(self, patches, band):
        edges = np.array([_edges(p).ravel() for p in patches], np.float32).reshape(len(patches), self.patch_size**2)
        return EncodedEdges(patches, torch.from_numpy(edges))

    def score_features(self, features_a, features_b, index_pairs):
        rows_a, rows_b = np.asarray(index_pairs).T
        return self.score(features_a.patches[rows_a], features_b.patches[rows_b])


class EncodedEdges(NamedTuple):
    patches: np.ndarray
    descriptors: torch.Tensor

    def __len__(self):
        return len(self.patches)


class NoDescriptors(EdgeMatcher):
    """Weights without descriptors."""

    def encode(self, patches, band):
        return EncodedEdges(patches, torch.empty(len(patches), 0))


class FaintMatcher(EdgeMatcher):
    """Scores all patches below its threshold, as a network does on sensors that it does not know."""

    def score(self, patches_a, patches_b):
        return 0.3 * super().score(patches_a, patches_b)


def _edges(patch):
    smooth = cv2.GaussianBlur(np.asarray(patch, np.float32), (0, 0), 1.0)
    strength = cv2.GaussianBlur(cv2.magnitude(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)), (0, 0), 1.5)
    return (strength - strength.mean()) / (strength.std() + 1e-6)


def make_scene(seed, shape=(190, 220), sizes=(3, 7)):
    """uint8, blobs of these sizes in pixels with edges in all directions; no area has one value, as in photographs."""
    rng = np.random.default_rng(seed)
    noise = rng.random(shape).astype(np.float32)
    blobs = [cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in sizes]
    grey = sum((40 + 30 * k) * (blob > blob.mean()) for k, blob in enumerate(blobs)).astype(np.uint8)
    return grey + rng.integers(55, 65, shape, dtype=np.uint8)


def inverted(image):
    """The same scene, seen by another sensor."""
    return (230 - image * 0.8).astype(image.dtype)


def warped(image, matrix, shape=None, border=0):
    """An image of the other sensor under a matrix (2, 3)."""
    h, w = shape or image.shape[:2]
    return cv2.warpAffine(inverted(image), np.asarray(matrix, float), (w, h), flags=cv2.INTER_AREA, borderValue=border)


def moved(image, rotation=0.0, scale=1.0, shift=(0, 0), border=0):
    """The other sensor's image under a similarity about the centre, and the true transform."""
    h, w = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rotation, scale)
    matrix[:, 2] += shift
    return warped(image, matrix, border=border), Affine(matrix)


def frame_of(a, b, mask_a=None):
    return Frame(prepare(a, mask_a, None, "a"), prepare(b, None, None, "b"))


def corner_error(transform, truth, shape):
    """Mean distance in pixels of B between where two transforms take the corners of A."""
    h, w = shape[:2]
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]], float)
    return np.linalg.norm(transform(corners) - truth(corners), axis=1).mean()
