"""What :func:`register` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.patches import percentile_range
from rrl_match.transforms import Interpolation, Matrix, MatrixTransform, Points, Transform


def _no_points() -> Points:
    return np.empty((0, 2))


@dataclass(frozen=True, eq=False)
class TiePoints:
    """Locations that were matched, over the whole overlap, of all frames.

    Attributes:
        a: (K, 2) xy in A.
        b: (K, 2) xy, where they are found in B.
        scores: (K,) float32, of RRL-Net where it judged the location, NaN elsewhere.
        residuals: (K,) pixels of B between `b` and where the transform takes `a`.
        inliers: (K,) bool, those that agree with the transform.
    """

    a: Points = field(default_factory=_no_points)
    b: Points = field(default_factory=_no_points)
    scores: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    residuals: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    inliers: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.a)


@dataclass(frozen=True, eq=False)
class Registration:
    """What :func:`register` found; true if the transform passed all checks.

    Attributes:
        transform: takes locations of A to B; None if it was refused.
        rejected: the transform that did not pass the checks, or None.
        model: the model that was fitted, which may be simpler than the one asked for.
        reason: why the pair was refused, or "".
        advice: what to try next, or "".
        probability: that the transform is right.
        overlap: part of A that B shows under the transform.
        agreement: part of the overlap under which the blocks of both images agree.
        tie_points: locations that were matched.
        notes: what was assumed about the images, such as borders without data.
    """

    transform: Transform | None = None
    rejected: Transform | None = None
    model: str = ""
    reason: str = ""
    advice: str = ""
    probability: float = 0.0
    overlap: float = 0.0
    agreement: float = 0.0
    tie_points: TiePoints = field(default_factory=TiePoints)
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the transform passed all checks."""
        return self.transform is not None

    def __bool__(self) -> bool:
        return self.ok

    @property
    def matrix(self) -> Matrix | None:
        """Of `transform`: float64 (2, 3), (3, 3) for a homography; None if it was refused or no matrix describes it."""
        return self.transform.matrix if isinstance(self.transform, MatrixTransform) else None

    def __repr__(self) -> str:
        if not self.ok:
            return f"Registration refused: {self.reason}" + (f"\n  {self.advice}" if self.advice else "")
        return (
            f"Registration by a {self.model} transform, right with a probability of {self.probability:.0%}\n"
            f"  {self.overlap:.0%} of A overlaps B, {self.agreement:.0%} of it agrees; "
            f"{len(self.tie_points)} tie points, {int(self.tie_points.inliers.sum())} inliers"
        )

    def warp(
        self, image_a: NDArray[np.generic], shape: tuple[int, ...], interpolation: Interpolation = "linear"
    ) -> NDArray[np.generic]:
        """Image A, or anything that lies on its pixels, resampled into B's frame: see :meth:`Transform.warp`.

        Raises:
            ValueError: the registration is not `ok`.
        """
        if self.transform is None:
            raise ValueError(f"there is no transform to warp by: {self.reason}")
        return self.transform.warp(image_a, shape, interpolation)

    def checkerboard(
        self, image_a: NDArray[np.generic] | Tensor, image_b: NDArray[np.generic] | Tensor, squares: int = 8
    ) -> NDArray[np.uint8]:
        """Alternating squares of warped A and of B, as uint8 RGB (H, W, 3) of B's size, to look at.

        Args:
            image_a, image_b: (H, W) or RGB (H, W, 3); other than uint8, they are mapped from their percentile range.
            squares: along the longer side.

        Raises:
            ValueError: the registration is not `ok`.
        """
        b = displayed(image_b)
        warped = self.warp(displayed(image_a), b.shape)
        h, w = b.shape[:2]
        side = max(1, math.ceil(max(h, w) / squares))
        odd = (np.arange(h)[:, None] // side + np.arange(w) // side) % 2 == 1
        board: NDArray[np.uint8] = np.where(odd[..., None], b, warped)
        return board


def displayed(image: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """An image as uint8 RGB (H, W, 3); other than uint8, it is mapped from its percentile range, NaN to black."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8:
        low, high = percentile_range(array)
        scaled = (np.nan_to_num(array.astype(np.float32), nan=low) - low) / (high - low)
        array = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    return np.asarray(cv2.cvtColor(array, cv2.COLOR_GRAY2RGB) if array.ndim == 2 else array[..., :3], np.uint8)
