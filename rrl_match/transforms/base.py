"""What all kinds of transform have in common: they are applied, inverted, warped by and stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

Points: TypeAlias = NDArray[np.float64]
Interpolation: TypeAlias = Literal["nearest", "linear", "cubic"]

FLAGS = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
LARGEST = 32_000  # OpenCV counts the pixels of a warped image in 16 bits
_WARPED_BY_OPENCV = ("uint8", "uint16", "int16", "float32", "float64")


@dataclass(frozen=True)
class FailedEstimation:
    """What an estimate returns if the points determine no transform: false, with the reason."""

    reason: str

    def __bool__(self) -> bool:
        return False


class Transform(ABC):
    """Takes locations of image A to image B; xy in pixels, pixel centres at integers.

    Attributes:
        kind: the name under which a class is stored and asked for.
        kinds: all classes by their names.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Transform]]] = {}

    def __init_subclass__(cls, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is not None:
            cls.kind = kind
            Transform.kinds[kind] = cls

    @abstractmethod
    def __call__(self, points: ArrayLike) -> Points:
        """Locations (N, 2) of A, or one (2,), in B: float64 of the same shape."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The transform from B to A."""

    @abstractmethod
    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Derivatives (N, 2, 2) at locations (N, 2) of A; row 0 is of x in B."""

    def scale(self, point: ArrayLike) -> float:
        """Pixels of B for a pixel of A at a location (2,): the root of the factor by which areas grow."""
        return float(np.sqrt(abs(np.linalg.det(self.jacobian(np.asarray(point, np.float64)[None])[0]))))

    @abstractmethod
    def between(self, before: Transform, after: Transform) -> Transform:
        """The transform that applies `before`, this one and then `after`, both of which have a matrix.

        Raises:
            TypeError: a matrix does not describe them.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The transform in terms of JSON, as :meth:`from_dict` reads it."""

    @classmethod
    @abstractmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Self: ...

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Transform:
        """The transform that :meth:`to_dict` described.

        Raises:
            ValueError: the kind is unknown, or its numbers are missing or malformed.
        """
        kind = values.get("kind") if isinstance(values, Mapping) else None
        if not isinstance(kind, str) or kind not in Transform.kinds:
            raise ValueError(f"a transform must have a kind, one of {', '.join(Transform.kinds)}, got {kind!r}")
        try:
            return Transform.kinds[kind]._from_dict(values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the {kind} cannot be read: {error!r}") from error

    def map(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Locations xy in A of the pixels of an image B of this shape (H, W, ...): (H, W, 2), for ``cv2.remap``."""
        h, w = shape[:2]
        grid = np.stack(np.meshgrid(np.arange(w, dtype=np.float64), np.arange(h, dtype=np.float64)), -1)
        return self.inverse()(grid.reshape(-1, 2)).reshape(h, w, 2).astype(np.float32)

    def warp(
        self, image: NDArray[np.generic], shape: tuple[int, ...], interpolation: Interpolation = "linear"
    ) -> NDArray[np.generic]:
        """Image A, or anything that lies on its pixels, resampled into B's frame; zero where A shows nothing.

        Args:
            image: (H, W) or (H, W, C) of any integer or floating dtype, or bool.
            shape: of image B; its first two numbers are height and width.
            interpolation: "nearest", which keeps labels as they are, "linear" or "cubic".

        Returns:
            (H of B, W of B) or (H of B, W of B, C), of the image's dtype.

        Raises:
            ValueError: the interpolation is unknown, or the image has no two or three dimensions.
        """
        if interpolation not in FLAGS:
            raise ValueError(f"interpolation must be one of {', '.join(FLAGS)}, got {interpolation!r}")
        pixels = np.asarray(image)
        if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "biuf":
            raise ValueError(f"image must be numbers (H, W) or (H, W, C), got {pixels.dtype} {pixels.shape}")
        size = int(shape[0]), int(shape[1])
        if pixels.dtype.name in _WARPED_BY_OPENCV:
            layers = pixels.reshape(*pixels.shape[:2], -1)
            parts = [
                self._warped(layers[..., k : k + 4], size, FLAGS[interpolation]) for k in range(0, layers.shape[2], 4)
            ]
            joined = np.concatenate([p.reshape(*size, -1) for p in parts], axis=2)
            return np.asarray(joined.reshape(*size, *pixels.shape[2:]))
        if interpolation == "nearest":
            return self._gathered(pixels, size)
        warped: NDArray[Any] = self.warp(pixels.astype(np.float64), shape, interpolation)
        if pixels.dtype.kind == "b":
            return np.asarray(warped > 0.5)
        if pixels.dtype.kind == "f":
            return np.asarray(warped.astype(pixels.dtype))
        limits = np.iinfo(pixels.dtype)
        return np.asarray(warped.round().clip(limits.min, limits.max).astype(pixels.dtype))

    def _warped(self, pixels: NDArray[Any], size: tuple[int, int], flags: int) -> NDArray[Any]:
        """Up to four channels in one of OpenCV's dtypes."""
        at = self.map(size)
        if max(pixels.shape[:2]) < LARGEST:
            return np.asarray(cv2.remap(np.ascontiguousarray(pixels), at[..., 0], at[..., 1], flags))
        # OpenCV counts in 16 bits: only the part of A that B shows, which must be smaller
        first = (np.floor(at.reshape(-1, 2).min(0)).astype(int) - 2).clip(0)
        part = pixels[first[1] : first[1] + LARGEST, first[0] : first[0] + LARGEST]
        x, y = np.moveaxis(at - first.astype(np.float32), -1, 0)
        return np.asarray(cv2.remap(np.ascontiguousarray(part), x, y, flags))

    def _gathered(self, pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
        """The nearest pixels, of any dtype."""
        x, y = np.moveaxis(self.map(size).round().astype(np.int64), -1, 0)
        h, w = pixels.shape[:2]
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        found = pixels[y.clip(0, h - 1), x.clip(0, w - 1)]
        found[~inside] = 0
        return np.asarray(found)
