"""Patches cut out of images around keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.patches import as_grey, kind_of, to_array

Keypoints: TypeAlias = NDArray[np.generic] | Tensor | Sequence[cv2.KeyPoint] | Sequence[Sequence[float]]
FloatImage: TypeAlias = NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]
ScalarT = TypeVar("ScalarT", bound=np.generic)

_REMAP_LIMIT = 32766  # rows or columns that cv2.remap can address


@overload
def extract_patches(
    image: FloatImage, keypoints: Keypoints, patch_size: int = 64, *, orientation: bool = ..., scale: bool = ...
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


@overload
def extract_patches(
    image: NDArray[ScalarT], keypoints: Keypoints, patch_size: int = 64, *, orientation: bool = ..., scale: bool = ...
) -> tuple[NDArray[ScalarT], NDArray[np.bool_]]: ...


@overload
def extract_patches(
    image: Tensor, keypoints: Keypoints, patch_size: int = 64, *, orientation: bool = ..., scale: bool = ...
) -> tuple[Tensor, Tensor]: ...


def extract_patches(
    image: NDArray[np.generic] | Tensor,
    keypoints: Keypoints,
    patch_size: int = 64,
    *,
    orientation: bool = False,
    scale: bool = False,
) -> tuple[NDArray[np.generic] | Tensor, NDArray[np.bool_] | Tensor]:
    """Cut patches around keypoints.

    By default, a patch at (x, y) is upright and covers [x - S/2, x + S/2) x [y - S/2, y + S/2), where S is
    `patch_size`: pixel (x, y) of the image, with pixel centres at integers, is pixel (S/2, S/2) of the patch. At
    fractional centres, patches are interpolated bilinearly (to 1/32 pixel, the resolution of OpenCV).

    Args:
        image: (H, W), (H, W, 1) or RGB (H, W, 3), converted to grey by BT.601; uint8, uint16 or floating point.
        keypoints: (N, 2) xy in pixels, a list of ``cv2.KeyPoint``, or kornia's LAFs (N, 2, 3) or (1, N, 2, 3).
            (N, 2) have neither orientation nor scale.
        patch_size: S, even, at most 4096.
        orientation: rotate each patch by the angle of its ``cv2.KeyPoint`` (-1, no angle, counts as 0), or by the 2 x 2
            matrix M of its LAF divided by sqrt(|det M|): rotation, shear and aspect, without the scale. For images
            that are rotated by more than the 12 degrees, or scaled by more than the 12 %, that scores tolerate.
        scale: let each patch cover a square six sizes of its ``cv2.KeyPoint`` wide, as for a SIFT descriptor, or
            2 sqrt(|det M|) for a LAF. Patches that shrink by more than half are cut from a smaller version of the
            image. With both, the patch of a LAF covers the image of [-1, 1) x [-1, 1) under M.

    Returns:
        patches (N, S, S) of the image's dtype (float32 for any float), and valid (N,) bool: whether a patch lies inside
        the image. Pixels outside it are filled by reflection. Arrays for an array; tensors on its device for a tensor.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> image = np.arange(100 * 100, dtype=np.uint16).reshape(100, 100)
    >>> patches, valid = extract_patches(image, [(50, 40), (99, 40)])
    >>> valid
    array([ True, False])
    >>> bool(patches[0, 32, 32] == image[40, 50])
    True
    """
    if not isinstance(patch_size, (int, np.integer)) or not 2 <= patch_size <= 4096 or patch_size % 2:
        raise ValueError(f"patch_size must be even, from 2 to 4096, got {patch_size!r}")
    grey = as_grey(image, "image")
    if orientation or scale:
        patches, valid = _warped(grey, as_frames(keypoints, patch_size, orientation, scale), patch_size)
    else:
        patches, valid = _upright(grey, as_points(keypoints, "keypoints"), patch_size)
    if isinstance(image, Tensor):
        return torch.from_numpy(patches).to(image.device), torch.from_numpy(valid).to(image.device)
    return patches, valid


def as_points(keypoints: Any, name: str) -> NDArray[np.float64]:
    """Keypoints of any accepted kind as (N, 2) xy, float64.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(keypoints, Tensor):
        keypoints = to_array(keypoints, name)
    if isinstance(keypoints, (list, tuple)) and keypoints and all(isinstance(k, cv2.KeyPoint) for k in keypoints):
        keypoints = [k.pt for k in keypoints]
    try:
        points = np.asarray(keypoints)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be (N, 2) xy, cv2.KeyPoint or LAFs, got {kind_of(keypoints)}") from error
    if points.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be (N, 2) xy, cv2.KeyPoint or LAFs, got {kind_of(keypoints)} of {points.dtype}")
    points = points.astype(np.float64)
    if points.size == 0 and points.ndim <= 2:
        return np.empty((0, 2))
    if points.ndim == 4 and points.shape[0] == 1:
        points = points[0]
    if points.ndim == 3 and points.shape[1:] == (2, 3):
        points = points[..., 2]
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} must have shape (N, 2), xy in pixels, or be LAFs (1, N, 2, 3), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} holds NaN or infinite coordinates: remove these keypoints")
    return points


def as_frames(keypoints: Any, patch_size: int, orientation: bool, scale: bool) -> NDArray[np.float64]:
    """Frames (N, 2, 3), which map pixel offsets from a patch's centre to positions in the image.

    Args:
        keypoints: LAFs or ``cv2.KeyPoint``.
        patch_size: in pixels.
        orientation, scale: which part of the keypoints to apply, as for :func:`extract_patches`.

    Raises:
        TypeError, ValueError: naming `keypoints`; positions alone have no frame.
    """
    centres = as_points(keypoints, "keypoints")
    if not len(centres):
        return np.empty((0, 2, 3))
    if isinstance(keypoints, (list, tuple)) and isinstance(keypoints[0], cv2.KeyPoint):
        angle = np.deg2rad([max(k.angle, 0.0) if orientation else 0.0 for k in keypoints])  # -1 means no angle
        factor = np.array([6 * k.size / patch_size if scale else 1.0 for k in keypoints])
        c, s = factor * np.cos(angle), factor * np.sin(angle)
        linear = _finite(np.stack([np.stack([c, -s], 1), np.stack([s, c], 1)], 1))
    else:
        values = to_array(keypoints, "keypoints") if isinstance(keypoints, Tensor) else np.asarray(keypoints)
        if values.shape[-2:] != (2, 3):
            raise ValueError(
                "keypoints must be LAFs (N, 2, 3) or cv2.KeyPoint for orientation=True or scale=True, "
                f"got {values.shape}: positions alone have neither"
            )
        matrices = _finite(values.reshape(-1, 2, 3)[:, :, :2].astype(np.float64))
        linear = _part_of_lafs(matrices, patch_size, orientation, scale)
    return np.concatenate([linear, centres[:, :, None]], 2)


def _finite(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(matrices).all():
        raise ValueError("keypoints holds NaN or infinite sizes or angles: remove these keypoints")
    return matrices


def _part_of_lafs(
    matrices: NDArray[np.float64], patch_size: int, orientation: bool, scale: bool
) -> NDArray[np.float64]:
    """The part to apply of the matrices (N, 2, 2) of LAFs, for offsets in pixels of the patch."""
    size: NDArray[np.float64] = np.sqrt(np.abs(np.linalg.det(matrices)))[:, None, None]
    if orientation and not scale:
        if not size.all():
            raise ValueError("keypoints holds LAFs of no area, which have no orientation: remove these keypoints")
        return np.divide(matrices, size)
    linear = matrices if orientation else size * np.eye(2)
    return np.multiply(linear, 2 / patch_size)


def _upright(
    grey: NDArray[Any], centres: NDArray[np.float64], patch_size: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    h, w = grey.shape
    corner = centres - patch_size // 2  # position of the patch's first pixel
    valid: NDArray[np.bool_] = np.all((corner >= 0) & (corner + patch_size <= (w, h)), axis=1)
    patches = np.empty((len(centres), patch_size, patch_size), grey.dtype)
    whole = valid & np.all(centres == np.floor(centres), axis=1)
    if whole.any():  # copied without interpolation
        windows = np.lib.stride_tricks.sliding_window_view(grey, (patch_size, patch_size))
        x, y = corner[whole].astype(np.int64).T
        patches[whole] = windows[y, x]
    rest = np.flatnonzero(~whole)
    at_once = 1 if max(h, w) > _REMAP_LIMIT else _REMAP_LIMIT // patch_size
    for rows in (rest[k : k + at_once] for k in range(0, len(rest), at_once)):
        patches[rows] = _interpolated(grey, corner[rows], patch_size)
    return patches, valid


def _interpolated(grey: NDArray[Any], corner: NDArray[np.float64], size: int) -> NDArray[Any]:
    """Patches (n, size, size) whose first pixels lie at `corner` (n, 2) xy; one at a time in very large images."""
    h, w = grey.shape
    # Corners far away would overflow remap's integers; nearer ones give reflections just as well.
    corner = np.clip(corner, -2.0 * size, np.array([w, h]) + 2.0 * size)
    if max(h, w) > _REMAP_LIMIT:  # only the neighbourhood, with room for reflections
        x0, y0 = np.maximum(corner[0] - 6 * size, 0).astype(int)
        grey = grey[y0 : y0 + 13 * size, x0 : x0 + 13 * size]
        corner = corner - (x0, y0)
    side = np.arange(size, dtype=np.float32)
    shape = len(corner), size, size
    x = np.broadcast_to(corner[:, :1, None].astype(np.float32) + side, shape).reshape(-1, size)
    y = np.broadcast_to(corner[:, 1:, None].astype(np.float32) + side[:, None], shape).reshape(-1, size)
    return cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101).reshape(shape)


def _warped(grey: NDArray[Any], frames: NDArray[np.float64], size: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Patches of frames (N, 2, 3), which map offsets from pixel (S/2, S/2) of a patch to positions in the image."""
    h, w = grey.shape
    side = np.arange(size) - size / 2
    offsets = np.stack([*np.meshgrid(side, side), np.ones((size, size))])  # (3, S, S)
    corners = frames @ offsets[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (N, 2, 4)
    valid: NDArray[np.bool_] = np.all((corners >= 0) & (corners <= np.array([[w - 1], [h - 1]])), axis=(1, 2))
    patches = np.empty((len(frames), size, size), grey.dtype)
    shrunk = np.sqrt(np.abs(np.linalg.det(frames[:, :, :2])))
    levels = np.floor(np.log2(np.clip(shrunk, 1, 2**10))).astype(int)
    to_offsets = np.array([[1, 0, -size / 2], [0, 1, -size / 2], [0, 0, 1]])  # from pixels of a patch
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    reduced = grey
    for level in range(levels.max(initial=0) + 1):
        rows = np.flatnonzero((levels == level) & valid)
        # The part of the image that a patch needs, from its first pixel to beyond its last one.
        first = np.floor(corners[rows].min(2) / 2**level).astype(int)
        last = np.floor(corners[rows].max(2) / 2**level).astype(int) + 2
        matrices = frames[rows] @ to_offsets / 2**level
        matrices[:, :, 2] -= first
        for row, matrix, (x0, y0), (x1, y1) in zip(rows, matrices, first.tolist(), last.tolist(), strict=True):
            part = reduced[y0:y1, x0:x1]
            patches[row] = cv2.warpAffine(part, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for row in np.flatnonzero((levels == level) & ~valid):  # may lie anywhere, and needs reflection
            x, y = frames[row].reshape(2, 3) @ offsets.reshape(3, -1) / 2**level
            patches[row] = _remapped(reduced, x.reshape(size, size), y.reshape(size, size))
        if level < levels.max(initial=0):
            reduced = cv2.pyrDown(reduced)
    return patches, valid


def _remapped(grey: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[Any]:
    """Values at (x, y), reflected at the border of the image; only the part of it that they need is read."""
    h, w = grey.shape
    x, y = np.clip(x, -w + 1, 2 * w - 2), np.clip(y, -h + 1, 2 * h - 2)  # the end of the first reflection
    x, y = np.minimum(np.abs(x), 2 * (w - 1) - np.abs(x)), np.minimum(np.abs(y), 2 * (h - 1) - np.abs(y))
    x0, y0 = int(x.min()), int(y.min())
    part = grey[y0 : int(y.max()) + 2, x0 : int(x.max()) + 2]
    at = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    values: NDArray[Any] = cv2.remap(part, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return values
