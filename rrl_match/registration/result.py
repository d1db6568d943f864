"""What :func:`register` returns."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, fields, replace
from html import escape

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rrl_match.drawing import Drawable, RGBImage, checkerboard, displayed, error_overlay, matches_side_by_side
from rrl_match.registration.error import ErrorMap
from rrl_match.transforms import Interpolation, Matrix, MatrixTransform, Points, Transform, resizing

_MAP_SIDE = 96  # locations along the longer side of an error map


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

    def joined(self, more: TiePoints, apart: float) -> TiePoints:
        """These, and others that are farther than `apart` pixels of B from each of them."""
        distance = np.linalg.norm(more.b[:, None] - self.b, axis=2).min(1, initial=np.inf)
        parts = ((getattr(self, one.name), getattr(more, one.name)[distance > apart]) for one in fields(self))
        return TiePoints(*(np.concatenate(pair) for pair in parts))


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small versions of both images, for notebooks to show.

    Attributes:
        a, b: (h, w) uint8.
        size_a, size_b: (width, height) of the images.
    """

    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    size_a: tuple[int, int]
    size_b: tuple[int, int]

    def checkerboard(self, transform: Transform) -> RGBImage:
        """Alternating squares of both under a transform between the images, of B's size."""
        h, w = self.b.shape
        to_a, to_b = (
            resizing((size[0] / small.shape[1], size[1] / small.shape[0]))
            for size, small in ((self.size_a, self.a), (self.size_b, self.b))
        )
        grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2)
        at = to_a(transform.inverse()(to_b.inverse()(grid))).reshape(h, w, 2).astype(np.float32)
        warped = cv2.remap(self.a, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
        return checkerboard(displayed(warped), displayed(self.b), squares=6)


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
        errors: expected errors, see :meth:`error_at`.
        notes: what was assumed about the images, such as borders without data.
        thumbnails: of both images, of the first frame; None if there was nothing to register.
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
    errors: ErrorMap = field(default_factory=ErrorMap)
    notes: tuple[str, ...] = ()
    thumbnails: Thumbnails | None = None

    @property
    def ok(self) -> bool:
        """Whether the transform passed all checks."""
        return self.transform is not None

    def inverse(self) -> Registration:
        """The registration of image B to A: it takes locations of B to A, and residuals are in pixels of A."""
        forth = self.transform or self.rejected
        if forth is None:
            return self
        points, found = self.tie_points, forth.inverse()
        residuals = np.linalg.norm(found(points.b) - points.a, axis=1)
        images, overlap = self.thumbnails, self.overlap
        if images is not None:
            outline_a, outline_b = (
                np.array([(0, 0), (w, 0), (w, h), (0, h)]) - 0.5 for w, h in (images.size_a, images.size_b)
            )
            moved = found(outline_b).astype(np.float32)
            area = cv2.intersectConvexConvex(moved, outline_a.astype(np.float32))[0]
            overlap = min(1.0, area / max(float(cv2.contourArea(moved)), 1e-9))
            images = Thumbnails(images.b, images.a, images.size_b, images.size_a)
        return replace(
            self,
            transform=found if self.ok else None,
            rejected=None if self.ok else found,
            overlap=overlap,
            errors=self.errors.inverse(forth),
            tie_points=TiePoints(points.b, points.a, points.scores, residuals, points.inliers),
            thumbnails=images,
        )

    def __bool__(self) -> bool:
        return self.ok

    @property
    def matrix(self) -> Matrix | None:
        """Of `transform`: float64 (2, 3), (3, 3) for a homography; None if it was refused or no matrix describes it."""
        return self.transform.matrix if isinstance(self.transform, MatrixTransform) else None

    def __repr__(self) -> str:
        if not self.ok:
            return "\n  ".join([f"Registration refused: {self.reason}", *filter(None, [self.advice, *self.notes])])
        model = f"{'an' if self.model[:1] in 'aeiou' else 'a'} {self.model}"
        return (
            f"Registration by {model} transform, right with a probability of {self.probability:.0%}\n"
            f"  expected error: 90 % of the overlap within {self.error:.2g} pixels of B\n"
            f"  {self.overlap:.0%} of A overlaps B, {self.agreement:.0%} of it agrees"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the text, and a checkerboard of small versions of the images."""
        text = f"<pre>{escape(repr(self))}</pre>"
        if self.transform is None or self.thumbnails is None:
            return text
        board = cv2.cvtColor(self.thumbnails.checkerboard(self.transform), cv2.COLOR_RGB2BGR)
        data = base64.b64encode(cv2.imencode(".png", board)[1].tobytes()).decode("ascii")
        return f'{text}<img alt="Alternating squares of registered A and of B" src="data:image/png;base64,{data}">'

    def warp(
        self, image_a: NDArray[np.generic], shape: tuple[int, ...], interpolation: Interpolation = "linear"
    ) -> NDArray[np.generic]:
        """Image A, or anything that lies on its pixels, resampled into B's frame: see :meth:`Transform.warp`.

        Raises:
            ValueError: the registration is not `ok`.
        """
        return self._found("warp by").warp(image_a, shape, interpolation)

    @property
    def error(self) -> float:
        """Pixels of B: 90 % of the overlap is expected to be closer to the truth; infinite if nothing was found."""
        return self.errors.radius

    def error_at(self, points: ArrayLike) -> NDArray[np.float64]:
        """Expected error of the transform at locations of A.

        It is calibrated on pairs whose truth is known; where the images show nothing to tell it by, it grows with the
        distance to where they do.

        Args:
            points: (N, 2) xy of A.

        Returns:
            (N,) pixels of B; infinite if nothing was found.
        """
        return self.errors.at(points)

    def checkerboard(self, image_a: Drawable, image_b: Drawable, squares: int = 8) -> NDArray[np.uint8]:
        """Alternating squares of warped A and of B, as uint8 RGB (H, W, 3) of B's size, to look at.

        Args:
            image_a, image_b: as :func:`register` took them, or other images of their sizes; of lists, the first.
            squares: along the longer side.

        Raises:
            ValueError: the registration is not `ok`, or no image is passed.
        """
        transform, b = self._found("warp by"), displayed(image_b)
        return checkerboard(np.asarray(transform.warp(displayed(image_a), b.shape), np.uint8), b, squares)

    def draw_matches(self, image_a: Drawable, image_b: Drawable, lines: int = 40) -> NDArray[np.uint8]:
        """Both images side by side with their tie points, as uint8 RGB; those that disagree are red.

        Args:
            image_a, image_b: as in :meth:`checkerboard`.
            lines: how many tie points that agree, and that do not, are joined by lines; all have dots.
        """
        points = self.tie_points
        return matches_side_by_side(image_a, image_b, (points.a, points.b), points.inliers, lines)

    def error_map(self, image_b: Drawable, most: float | None = None) -> NDArray[np.uint8]:
        """What :meth:`error_at` says all over B, as colours over B: uint8 RGB (H, W, 3); grey where A shows nothing.

        Args:
            image_b: as in :meth:`checkerboard`.
            most: error in pixels of B that has the last colour; default: what 99 % of the errors lie below.

        Raises:
            ValueError: the registration is not `ok`, or no image is passed.
        """
        transform, b = self._found("tell the error of"), displayed(image_b)
        step = max(b.shape[:2]) / _MAP_SIDE
        h, w = (max(1, round(side / step)) for side in b.shape[:2])
        grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2)
        on_b = resizing((b.shape[1] / w, b.shape[0] / h)).inverse()(grid)
        on_a = transform.inverse()(on_b)
        errors = self.error_at(on_a)
        if self.thumbnails is not None:
            errors[((on_a < -0.5) | (on_a > np.array(self.thumbnails.size_a) - 0.5)).any(1)] = np.inf
        return error_overlay(errors.reshape(h, w), b, most)

    def _found(self, purpose: str) -> Transform:
        """The transform.

        Raises:
            ValueError: there is none.
        """
        if self.transform is None:
            raise ValueError(f"there is no transform to {purpose}: {self.reason}")
        return self.transform
