"""Transforms of many images onto one, made consistent over all pairs of them that could be registered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrl_match.transforms import MatrixTransform, Points, Similarity, Translation, compose

_LEAST = 0.05  # pixels of the coarser image: least spread of the locations of a link
_AGREE = 3.0  # pixels of it that the median residual of a link may reach
_ROUNDS = 30
_SETTLED = 1e-9  # change of the parameters at which the rounds end
_MOST_POINTS = 200  # of a link


class Link(NamedTuple):
    """A registered pair of images.

    Attributes:
        a, b: numbers of the images.
        transform: from a to b.
        points_a, points_b: (N, 2) xy, locations that show the same.
    """

    a: int
    b: int
    transform: MatrixTransform
    points_a: Points
    points_b: Points


class Adjusted(NamedTuple):
    """Transforms that explain all links together.

    Attributes:
        transforms: of each image to the reference, None where no links lead to it.
        residuals: of each link, the median distance of its locations under both transforms, in pixels of the
            reference; NaN where there are none.
        agree: (L,) bool, which links agree with the others.
    """

    transforms: list[MatrixTransform | None]
    residuals: NDArray[np.float64]
    agree: NDArray[np.bool_]


def adjust(links: Sequence[Link], count: int, reference: int, kind: type[MatrixTransform]) -> Adjusted:
    """Transforms of images to a reference by least squares over the locations of all links.

    A pose graph, as in bundle adjustment: each image but the reference has the parameters of one transform.
    Gauss-Newton with Cauchy's weights as wide as the locations of a link spread around its transform: accurate links
    count most, and one that contradicts the others hardly counts.

    Args:
        links: pairs that were registered.
        count: of images.
        reference: number of the image that all others are taken to.
        kind: of the transforms.
    """
    found = _first(links, reference)
    used = [_Used.of(link, kind) for link in links if link.a in found]
    nodes = [node for node in found if node != reference]
    if nodes:
        to_unit = _to_unit(np.concatenate([found[link.a](link.points_a) for link in used]))
        for _ in range(_ROUNDS):
            steps = _step(used, nodes, found, kind, to_unit)
            for node, parameters in zip(nodes, steps, strict=True):
                moved = compose(compose(to_unit, kind.near_identity(parameters)), to_unit.inverse())
                found[node] = compose(found[node], moved)
            if np.abs(steps).max() < _SETTLED:
                break
    residuals, agree = np.full(len(links), np.nan), np.zeros(len(links), np.bool_)
    for number, link in enumerate(links):
        if link.a in found:
            a, b = found[link.a], found[link.b]
            residuals[number] = np.median(np.linalg.norm(a(link.points_a) - b(link.points_b), axis=1))
            agree[number] = residuals[number] <= _AGREE * _unit(link, a, b)
    return Adjusted([found.get(node) for node in range(count)], residuals, agree)


def _first(links: Sequence[Link], reference: int) -> dict[int, MatrixTransform]:
    """Transforms to the reference by the fewest links, of equally few by the first; of the images that they reach."""
    found: dict[int, MatrixTransform] = {reference: Translation(np.eye(3))}
    reached = [reference]
    for node in reached:
        for link in links:
            other = link.a if link.b == node else link.b
            if node in (link.a, link.b) and other not in found:
                onward = link.transform if link.b == node else link.transform.inverse()
                found[other] = compose(onward, found[node])
                reached.append(other)
    return found


class _Used(NamedTuple):
    """What is used of a link: locations (N, 2) of both images, and how far they spread, in pixels of the second."""

    a: int
    b: int
    points_a: Points
    points_b: Points
    spread: float

    @classmethod
    def of(cls, link: Link, kind: type[MatrixTransform]) -> _Used:
        """Its own transform tells more than its locations if it is of the kind that is fitted, and less if simpler."""
        count = len(link.points_a)
        rows = np.unique(np.linspace(0, count - 1, min(_MOST_POINTS, count)).round().astype(int))
        points, matched = link.points_a[rows], link.points_b[rows]
        moved = link.transform(points)
        spread = float(np.median(np.linalg.norm(moved - matched, axis=1)))
        return cls(link.a, link.b, points, moved if isinstance(link.transform, kind) else matched, spread)


def _to_unit(points: Points) -> Similarity:
    """Takes points to about -1 to 1."""
    middle, size = points.mean(0), max(1e-9, float(np.abs(points - points.mean(0)).max()))
    return Similarity(np.array([[1 / size, 0, -middle[0] / size], [0, 1 / size, -middle[1] / size]]))


def _unit(link: Link | _Used, a: MatrixTransform, b: MatrixTransform) -> float:
    """Pixels of the reference that one of the coarser image of a link covers."""
    return max(1.0, a.scale(link.points_a.mean(0)), b.scale(link.points_b.mean(0)))


def _step(
    links: Sequence[_Used],
    nodes: Sequence[int],
    current: dict[int, MatrixTransform],
    kind: type[MatrixTransform],
    to_unit: Similarity,
) -> NDArray[np.float64]:
    """Parameters (nodes, K) of the changes in units of `to_unit` that reduce the weighted residuals most."""
    size, per_pixel = len(nodes) * kind.parameters, to_unit.scale((0, 0))
    normal, right = np.zeros((size, size)), np.zeros(size)
    for link in links:
        a, b = current[link.a], current[link.b]
        at_a, at_b = to_unit(a(link.points_a)), to_unit(b(link.points_b))
        width = per_pixel * max(_LEAST * _unit(link, a, b), link.spread * b.scale(link.points_b.mean(0)))
        weights = 1 / (width**2 + ((at_a - at_b) ** 2).sum(1))
        rows = np.zeros((len(at_a), 2, size))
        for node, at, sign in ((link.a, at_a, 1), (link.b, at_b, -1)):
            if node in nodes:
                first = nodes.index(node) * kind.parameters
                rows[..., first : first + kind.parameters] = sign * kind.basis(at)
        weighted = (rows * weights[:, None, None]).reshape(-1, size)
        normal += weighted.T @ rows.reshape(-1, size)
        right += weighted.T @ (at_b - at_a).ravel()
    return np.asarray(np.linalg.lstsq(normal, right, rcond=1e-12)[0].reshape(len(nodes), -1), np.float64)
