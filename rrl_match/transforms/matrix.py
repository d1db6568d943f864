"""Transforms that a 3 x 3 matrix describes, and their estimation from points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from rrl_match.transforms.base import LARGEST, FailedEstimation, Points, Transform

Matrix: TypeAlias = NDArray[np.float64]

_ROUNDS = 30  # of reweighting in robust estimates
_SAMPLES, _CONFIDENCE = 5000, 0.9999  # of OpenCV's robust estimates


@dataclass(frozen=True, eq=False)
class MatrixTransform(Transform):
    """A transform that a 3 x 3 matrix describes.

    A subclass says how many parameters it has and how they move points. The parameters are those of
    a small change: zero is the identity, and points are expected to lie at about -1 to 1. One transform of a kind
    after another is again of this kind.

    Args:
        full: (3, 3), or (2, 3) without its last row; takes homogeneous xy of A to B.

    Attributes:
        full: (3, 3) float64, scaled so that its last number is 1.
        parameters: number of parameters.
        simplifies: whether a more general kind may be replaced by this one where it fits as well.
        rotates, stretches: whether it can rotate and scale, and scale unequally.
    """

    full: Matrix

    parameters: ClassVar[int]
    simplifies: ClassVar[bool] = False
    rotates: ClassVar[bool] = True
    stretches: ClassVar[bool] = True
    _linear: ClassVar[bool] = True  # whether points move linearly with the parameters

    def __post_init__(self) -> None:
        given = np.array(self.full, np.float64)
        if given.shape == (2, 3):
            given = np.vstack([given, [0.0, 0.0, 1.0]])
        if given.shape != (3, 3) or not np.isfinite(given).all():
            raise ValueError(f"a matrix must be (2, 3) or (3, 3) finite numbers, got {given.shape}: {given.tolist()}")
        given = given / given[2, 2]
        given.flags.writeable = False
        object.__setattr__(self, "full", given)

    @property
    def matrix(self) -> Matrix:
        """(2, 3) float64; (3, 3) for a homography."""
        return np.array(self.full[:2])

    def __call__(self, points: ArrayLike) -> Points:
        given = np.asarray(points, np.float64)
        moved = given.reshape(-1, 2) @ self.full[:, :2].T + self.full[:, 2]
        result: Points = (moved[:, :2] / moved[:, 2:]).reshape(given.shape)
        return result

    def inverse(self) -> Self:
        return type(self)(np.asarray(np.linalg.inv(self.full), np.float64))

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        moved = np.asarray(points, np.float64).reshape(-1, 2) @ self.full[:, :2].T + self.full[:, 2]
        target = moved[:, :2] / moved[:, 2:]
        derivative: NDArray[np.float64] = self.full[:2, :2] - target[:, :, None] * self.full[2, :2]
        return np.asarray(derivative / moved[:, 2, None, None])

    def between(self, before: Transform, after: Transform) -> MatrixTransform:
        return compose(compose(as_matrix(before), self), as_matrix(after))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "matrix": self.matrix.tolist()}

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(np.asarray(values["matrix"], np.float64))

    def _warped(self, pixels: NDArray[Any], size: tuple[int, int], flags: int) -> NDArray[Any]:
        if max(*pixels.shape[:2], *size) < LARGEST:
            return np.asarray(cv2.warpPerspective(np.ascontiguousarray(pixels), self.full, size[::-1], flags=flags))
        return super()._warped(pixels, size, flags)

    @classmethod
    def coarse(cls) -> type[MatrixTransform]:
        """The kind to fit in small images, in which not all parameters can be told."""
        return cls

    @classmethod
    def _needed(cls) -> int:
        """Points that determine a transform."""
        return -(-cls.parameters // 2)

    @classmethod
    @abstractmethod
    def basis(cls, points: Points) -> NDArray[np.float64]:
        """Derivatives (N, 2, K) of where points (N, 2) are moved, by the K parameters, at the identity."""

    @classmethod
    @abstractmethod
    def near_identity(cls, parameters: NDArray[np.float64]) -> Self:
        """The transform of these parameters (K,); that of zeros is the identity."""

    @classmethod
    def estimate(
        cls, points: ArrayLike, matched: ArrayLike, weights: ArrayLike | None = None
    ) -> Self | FailedEstimation:
        """The transform that takes points to matched points with the least weighted sum of squared distances.

        Args:
            points, matched: (N, 2) xy in A and in B.
            weights: (N,), at least 0; all alike if not given.

        Returns:
            The transform; a :class:`FailedEstimation`, which is false, if the points do not determine one.
        """
        a, b = np.asarray(points, np.float64), np.asarray(matched, np.float64)
        w = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
        if (w > 0).sum() < cls._needed():
            return FailedEstimation(f"a {cls.kind} needs {cls._needed()} points, got {int((w > 0).sum())}")
        to_unit_a, to_unit_b = _to_unit(a, w), _to_unit(b, w, spread=_spread(a, w))
        unit_a, unit_b = _moved(to_unit_a, a), _moved(to_unit_b, b)
        solved = cls._least_squares(unit_a, unit_b, np.sqrt(w))
        if solved is None or not np.isfinite(solved).all():
            return FailedEstimation(f"the points do not determine a {cls.kind}, as where they lie on a line")
        full = np.linalg.inv(to_unit_b) @ solved @ to_unit_a
        if abs(full[2, 2]) < 1e-12 or abs(np.linalg.det(full)) < 1e-12:
            return FailedEstimation(f"the points do not determine a {cls.kind}, as where they lie on a line")
        return cls(full)

    @classmethod
    def _least_squares(cls, a: Points, b: Points, root: NDArray[np.float64]) -> Matrix | None:
        """Matrix (3, 3) from points to points of unit spread: Gauss-Newton on :meth:`near_identity`."""
        current: Matrix | None = np.eye(3) if cls._linear else Affine._least_squares(a, b, root)
        for _ in range(1 if cls._linear else 10):
            if current is None:
                return None
            at = _moved(current, a)
            rows = (cls.basis(at) * root[:, None, None]).reshape(-1, cls.parameters)
            step, _, rank, _ = np.linalg.lstsq(rows, ((b - at) * root[:, None]).ravel(), rcond=1e-9)
            if rank < cls.parameters:
                return None
            current = cls.near_identity(np.asarray(step, np.float64)).full @ current
            if np.abs(step).max() < 1e-12:
                break
        return current

    @classmethod
    def estimate_robust(cls, points: ArrayLike, matched: ArrayLike, bound: float) -> Self | FailedEstimation:
        """The transform that takes as many points as it can to within about `bound` pixels of the matched points.

        Iteratively reweighted least squares from the median displacement, with a scale that falls to `bound`. The
        result does not depend on any global random state.
        """
        a, b = np.asarray(points, np.float64), np.asarray(matched, np.float64)
        if len(a) < cls._needed():
            return FailedEstimation(f"a {cls.kind} needs {cls._needed()} points, got {len(a)}")
        residual = b - a - np.median(b - a, axis=0)
        found: Self | FailedEstimation = FailedEstimation(f"no {cls.kind} fits the points")
        for k in range(_ROUNDS):
            squared = (residual**2).sum(1)
            width = max(bound, float(np.sqrt(np.median(squared))) * 0.9**k)
            found = cls.estimate(a, b, 1 / (1 + squared / width**2) ** 2)
            if not isinstance(found, MatrixTransform):
                return found
            residual = b - found(a)
        return found

    @classmethod
    def _by_opencv(
        cls, points: ArrayLike, matched: ArrayLike, fit: Callable[[Points, Points], Any]
    ) -> Self | FailedEstimation:
        """By one of OpenCV's robust estimates, whose random choices do not depend on its global seed."""
        a, b = np.asarray(points, np.float64), np.asarray(matched, np.float64)
        if len(a) < 4:
            return FailedEstimation(f"a robust {cls.kind} needs 4 points, got {len(a)}")
        full = fit(a, b)
        if full is None or not np.isfinite(full).all() or abs(np.linalg.det(np.asarray(full)[:2, :2])) < 1e-6:
            return FailedEstimation(f"no {cls.kind} fits the points")
        return cls(full)


class Translation(MatrixTransform, kind="translation"):
    """Shift alone: for bands of one sensor and maps of one grid, whose scale and rotation are known."""

    parameters = 2
    rotates = stretches = False

    @classmethod
    def basis(cls, points: Points) -> NDArray[np.float64]:
        return np.broadcast_to(np.eye(2), (len(points), 2, 2))

    @classmethod
    def near_identity(cls, parameters: NDArray[np.float64]) -> Self:
        x, y = parameters
        return cls(np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]]))


class Similarity(MatrixTransform, kind="similarity"):
    """Rotation, scale and shift."""

    parameters = 4
    simplifies = True
    stretches = False

    @classmethod
    def basis(cls, points: Points) -> NDArray[np.float64]:
        (x, y), one, zero = points.T, np.ones(len(points)), np.zeros(len(points))
        return np.stack([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)], 1)

    @classmethod
    def near_identity(cls, parameters: NDArray[np.float64]) -> Self:
        a, b, x, y = parameters
        return cls(np.array([[1 + a, -b, x], [b, 1 + a, y], [0.0, 0.0, 1.0]]))

    @classmethod
    def estimate_robust(cls, points: ArrayLike, matched: ArrayLike, bound: float) -> Self | FailedEstimation:
        def fit(a: Points, b: Points) -> Any:
            return cv2.estimateAffinePartial2D(a, b, None, cv2.RANSAC, bound, _SAMPLES, _CONFIDENCE)[0]

        return cls._by_opencv(points, matched, fit)


class Affine(MatrixTransform, kind="affine"):
    """Any linear map and a shift: also pixels that are not square, and shear."""

    parameters = 6
    simplifies = True

    @classmethod
    def basis(cls, points: Points) -> NDArray[np.float64]:
        (x, y), one, zero = points.T, np.ones(len(points)), np.zeros(len(points))
        rows = np.stack([x, y, one, zero, zero, zero], 1), np.stack([zero, zero, zero, x, y, one], 1)
        return np.stack(rows, 1)

    @classmethod
    def near_identity(cls, parameters: NDArray[np.float64]) -> Self:
        return cls(np.eye(3)[:2] + np.reshape(parameters, (2, 3)))

    @classmethod
    def estimate_robust(cls, points: ArrayLike, matched: ArrayLike, bound: float) -> Self | FailedEstimation:
        def fit(a: Points, b: Points) -> Any:
            return cv2.estimateAffine2D(a, b, None, cv2.USAC_MAGSAC, bound, _SAMPLES, _CONFIDENCE)[0]

        return cls._by_opencv(points, matched, fit)


class Homography(MatrixTransform, kind="homography"):
    """The view of a plane from another point, or of anything by a camera that rotates."""

    parameters = 8
    _linear = False

    @property
    def matrix(self) -> Matrix:
        return np.array(self.full)

    @classmethod
    def coarse(cls) -> type[MatrixTransform]:
        return Affine

    @classmethod
    def basis(cls, points: Points) -> NDArray[np.float64]:
        x, y = points.T
        tilt = np.stack([np.stack([-x * x, -x * y], 1), np.stack([-x * y, -y * y], 1)], 1)
        return np.concatenate([Affine.basis(points), tilt], 2)

    @classmethod
    def near_identity(cls, parameters: NDArray[np.float64]) -> Self:
        return cls((np.eye(3).ravel() + np.append(parameters, 0.0)).reshape(3, 3))

    @classmethod
    def estimate_robust(cls, points: ArrayLike, matched: ArrayLike, bound: float) -> Self | FailedEstimation:
        def fit(a: Points, b: Points) -> Any:
            return cv2.findHomography(a, b, cv2.USAC_MAGSAC, bound, maxIters=_SAMPLES, confidence=_CONFIDENCE)[0]

        return cls._by_opencv(points, matched, fit)


def matrix_kind(kind: str) -> type[MatrixTransform]:
    """The class of a kind that a matrix describes.

    Raises:
        ValueError: there is none of this name.
    """
    found = Transform.kinds.get(kind)
    if found is None or not issubclass(found, MatrixTransform):
        known = [name for name, one in Transform.kinds.items() if issubclass(one, MatrixTransform)]
        raise ValueError(f"the kind must be one of {', '.join(known)}, got {kind!r}")
    return found


def simpler_kinds(kind: type[MatrixTransform]) -> list[type[MatrixTransform]]:
    """Kinds with fewer parameters that may stand in for one, the simplest first."""
    known = [one for one in Transform.kinds.values() if issubclass(one, MatrixTransform) and one.simplifies]
    return sorted((one for one in known if one.parameters < kind.parameters), key=lambda one: one.parameters)


def as_matrix(transform: Transform) -> MatrixTransform:
    """A transform, if it has a matrix.

    Raises:
        TypeError: it has none.
    """
    if not isinstance(transform, MatrixTransform):
        raise TypeError(f"the transform must have a matrix, got {type(transform).__name__}")
    return transform


def compose(first: MatrixTransform, second: MatrixTransform) -> MatrixTransform:
    """The transform that applies `first` and then `second`, of the simplest kind that includes the kinds of both.

    That is one of the two kinds if it includes the other, whatever their order; otherwise a registered one.
    """
    kinds = type(first), type(second)
    registered = (one for one in Transform.kinds.values() if issubclass(one, MatrixTransform))
    for kind in (*kinds, *sorted(registered, key=lambda one: one.parameters)):
        if all(_includes(kind, one) for one in kinds):
            return kind(second.full @ first.full)
    raise ValueError(f"no kind of transform includes both {kinds[0].kind} and {kinds[1].kind}")


@cache
def _includes(kind: type[MatrixTransform], other: type[MatrixTransform]) -> bool:
    """Whether all transforms of the other kind are of this one: every small change of points by that is one by this."""
    points = np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), -1).reshape(-1, 2)
    changes = [one.basis(points).reshape(-1, one.parameters) for one in (kind, other)]
    return bool(np.linalg.matrix_rank(np.concatenate(changes, 1)) == kind.parameters)


def similarity(rotation: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Similarity:
    """Rotation in degrees and scale about the origin, then a shift in pixels."""
    angle = np.deg2rad(rotation)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return Similarity(np.array([[c, -s, shift[0]], [s, c, shift[1]]]))


def resizing(factor: tuple[float, float] | float) -> Affine:
    """Takes pixels to those of an image `factor` times smaller; an image's corner lies at (-1/2, -1/2) in both."""
    x, y = (factor, factor) if isinstance(factor, (int, float)) else factor
    return Affine(np.array([[1 / x, 0.0, (1 / x - 1) / 2], [0.0, 1 / y, (1 / y - 1) / 2]]))


def _moved(full: Matrix, points: Points) -> Points:
    moved = points @ full[:, :2].T + full[:, 2]
    result: Points = moved[:, :2] / moved[:, 2:]
    return result


def _spread(points: Points, weights: NDArray[np.float64]) -> float:
    middle = np.average(points, axis=0, weights=weights)
    return max(1e-9, float(np.sqrt(np.average(((points - middle) ** 2).sum(1), weights=weights))))


def _to_unit(points: Points, weights: NDArray[np.float64], spread: float | None = None) -> Matrix:
    """Takes points to about -1 to 1 around their middle."""
    middle, size = np.average(points, axis=0, weights=weights), spread or _spread(points, weights)
    return np.array([[1 / size, 0.0, -middle[0] / size], [0.0, 1 / size, -middle[1] / size], [0.0, 0.0, 1.0]])
