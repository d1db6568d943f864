"""A transform that bends: a matrix, and a smooth displacement on top of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from rrl_match.transforms.base import Points, Transform
from rrl_match.transforms.matrix import Affine, MatrixTransform, as_matrix, compose

_AT_ONCE = 2**15  # locations, so that what is gathered for them stays small
_NEWTON_STEPS, _EXACT = 40, 1e-7  # pixels of B that an inverse may be off
_LATTICE = 16  # locations a cell, between which the map of an image is interpolated
_BEYOND = 4  # of these beside an image


class Basis(NamedTuple):
    """Cubic B-splines that differ from zero at locations of a grid whose cells are 1 wide, in one direction.

    Attributes:
        first: (N,), the first of four.
        values, slopes: (N, 4), of each and of its derivative.
    """

    first: NDArray[np.int64]
    values: NDArray[np.float64]
    slopes: NDArray[np.float64]


def basis(at: NDArray[np.float64], cells: int) -> Basis:
    """The B-splines at locations (N,), which are moved to the border of the grid if they lie outside."""
    inside = at.clip(0, cells)
    first = np.minimum(inside.astype(np.int64), cells - 1)
    t = inside - first
    values = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    slopes = np.stack([-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2], 1) / 2
    slopes[inside != at] = 0
    return Basis(first, values, slopes)


@dataclass(frozen=True, eq=False)
class DisplacementField(Transform, kind="local"):
    """A matrix, and a smooth displacement on top of it, for what no matrix explains: relief, lenses, scanners.

    The matrix takes a location of A to B, where the displacement is added that the field has there: a uniform bicubic
    B-spline on a grid of cells. Outside its grid, the displacement is that of the nearest location of the grid.

    Args:
        base: from A to B.
        coefficients: (rows + 3, columns + 3, 2) xy in pixels of B, of the B-splines of a grid of so many cells.
        to_cells: takes pixels of B to the grid, the cells of which are 1 wide; the grid begins at the origin.
        inverted: whether this is the transform from B to A.
    """

    base: MatrixTransform
    coefficients: NDArray[np.float64]
    to_cells: Affine
    inverted: bool = False

    def __post_init__(self) -> None:
        given = np.array(self.coefficients, np.float64)
        if given.ndim != 3 or given.shape[2] != 2 or min(given.shape[:2]) < 4 or not np.isfinite(given).all():
            raise ValueError(f"coefficients must be (4 or more, 4 or more, 2) finite numbers, got {given.shape}")
        given.flags.writeable = False
        object.__setattr__(self, "coefficients", given)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.coefficients.shape[0] - 3, self.coefficients.shape[1] - 3

    @property
    def folds(self) -> bool:
        """Whether the displacement takes several locations of the grid to one: its Jacobian is not positive everywhere.

        Looked at at eight locations a cell, in each direction.
        """
        rows, columns = (np.linspace(0, n, 8 * n + 1) for n in self.cells)
        grid = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
        return bool((np.linalg.det(self._bent(self.to_cells.inverse()(grid))[1]) <= 0).any())

    def displacement(self, points: ArrayLike) -> Points:
        """What is added to locations (N, 2) of B: (N, 2) xy in pixels of B."""
        return self._bent(np.asarray(points, np.float64).reshape(-1, 2))[0]

    def __call__(self, points: ArrayLike) -> Points:
        given = np.asarray(points, np.float64)
        flat = given.reshape(-1, 2)
        if self.inverted:
            return self.base.inverse()(self._undone(flat)).reshape(given.shape)
        there = self.base(flat)
        result: Points = (there + self.displacement(there)).reshape(given.shape)
        return result

    def inverse(self) -> DisplacementField:
        """The transform from B to A, by Newton's method; exact to 1e-6 pixels of B where the field does not fold."""
        return replace(self, inverted=not self.inverted)

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        given = np.asarray(points, np.float64).reshape(-1, 2)
        if self.inverted:
            return np.asarray(np.linalg.inv(self.inverse().jacobian(self(given))))
        return np.asarray(self._bent(self.base(given))[1] @ self.base.jacobian(given))

    def between(self, before: Transform, after: Transform) -> DisplacementField:
        """The field that applies `before`, this one and then `after`, which have a matrix.

        Raises:
            TypeError: they have none.
            ValueError: `after` (of an inverse: `before`) is a homography: splines do not stay splines under it.
        """
        if self.inverted:
            return self.inverse().between(after.inverse(), before.inverse()).inverse()
        after = as_matrix(after)
        if not np.allclose(after.full[2], (0, 0, 1)):
            raise ValueError("a displacement field can be followed by an affine transform only")
        return DisplacementField(
            self.base.between(before, after),
            self.coefficients @ after.full[:2, :2].T,
            Affine(compose(after.inverse(), self.to_cells).full),
        )

    def map(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Locations xy in A of the pixels of an image B of this shape (H, W, ...): (H, W, 2), for ``cv2.remap``.

        Interpolated between the sixteenths of the cells: exact to 0.02 pixels, but for the border of the grid.
        """
        if self.inverted:
            return super().map(shape)
        step = max(1.0, 1 / (_LATTICE * float(np.linalg.norm(self.to_cells.full[:2, :2], 2))))
        weights, nodes = zip(*(_interpolation(n, step) for n in shape[:2]), strict=True)
        lattice = np.stack(np.meshgrid(nodes[1], nodes[0]), -1)
        back = self.inverse()(lattice.reshape(-1, 2)).reshape(lattice.shape)
        moved = [weights[0] @ back[..., k] @ weights[1].T for k in (0, 1)]
        return np.stack(moved, 2).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "base": self.base.to_dict(),
            "to_cells": self.to_cells.matrix.tolist(),
            "coefficients": self.coefficients.tolist(),
            "inverted": self.inverted,
        }

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Self:
        base = Transform.from_dict(values["base"])
        if not isinstance(base, MatrixTransform):
            raise ValueError(f"the base of a displacement field must have a matrix, got a {base.kind} transform")
        to_cells = Affine(np.asarray(values["to_cells"], np.float64))
        return cls(base, np.asarray(values["coefficients"], np.float64), to_cells, bool(values["inverted"]))

    def _bent(self, points: Points) -> tuple[Points, NDArray[np.float64]]:
        """Displacements (N, 2) at locations (N, 2) of B, and the Jacobian (N, 2, 2) of a location with it."""
        if len(points) > _AT_ONCE:
            parts = [self._bent(points[k : k + _AT_ONCE]) for k in range(0, len(points), _AT_ONCE)]
            return np.concatenate([p for p, _ in parts]), np.concatenate([j for _, j in parts])
        at = self.to_cells(points)
        (rows, columns), four = self.cells, np.arange(4)
        x, y = basis(at[:, 0], columns), basis(at[:, 1], rows)
        around = self.coefficients[y.first[:, None, None] + four[:, None], x.first[:, None, None] + four]
        by_row = np.einsum("nijc,nj->nic", around, x.values)
        along_y = np.einsum("nic,ni->nc", by_row, y.slopes)
        along_x = np.einsum("nijc,nj,ni->nc", around, x.slopes, y.values, optimize=True)
        slope: NDArray[np.float64] = np.stack([along_x, along_y], 2) @ self.to_cells.full[:2, :2] + np.eye(2)
        displacement: Points = np.einsum("nic,ni->nc", by_row, y.values)
        return displacement, slope

    def _undone(self, points: Points) -> Points:
        """Locations (N, 2) of B whose displacement ends at given ones."""
        found = points - self.displacement(points)
        left = np.arange(len(points))
        for _ in range(_NEWTON_STEPS):
            moved, jacobian = self._bent(found[left])
            off = found[left] + moved - points[left]
            far = np.abs(off).max(1, initial=0.0) > _EXACT
            left, off, jacobian = left[far], off[far], jacobian[far]
            if not len(left):
                break
            found[left] -= np.linalg.solve(jacobian, off[..., None])[..., 0]
        return found


def _interpolation(count: int, step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (count, K) by which values at K locations, about `step` apart, give those of pixels; and the locations.

    Interpolation by natural cubic splines.
    """
    cells = max(1, math.ceil((count - 1) / step)) + 2 * _BEYOND
    step = max(1, count - 1) / (cells - 2 * _BEYOND)
    at_nodes, at_pixels = (dense_basis(at, cells) for at in (np.arange(cells + 1.0), np.arange(count) / step + _BEYOND))
    ends = np.zeros((2, cells + 3))
    ends[0, :3] = ends[1, -3:] = 1, -2, 1  # natural splines do not bend there
    weights = np.asarray(at_pixels @ np.linalg.inv(np.vstack([at_nodes, ends]))[:, :-2], np.float64)
    return weights, np.asarray((np.arange(cells + 1) - _BEYOND) * step, np.float64)


def dense_basis(at: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """All B-splines of a grid at locations (N,): (N, cells + 3)."""
    found = basis(at, cells)
    dense = np.zeros((len(at), cells + 3))
    np.put_along_axis(dense, found.first[:, None] + np.arange(4), found.values, 1)
    return dense
