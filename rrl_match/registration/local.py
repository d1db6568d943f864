"""A smooth displacement on top of a global transform, where held-out blocks confirm it.

Blocks of the whole overlap are looked for around the transform. A cubic B-spline is fitted to all their cost surfaces
together, against its bending energy, and the images are warped by it before blocks are looked for again, on a finer
level (Rueckert et al., "Nonrigid registration using free-form deformations", TMI 1999, with blocks instead of one
measure for the image). How freely it may bend is chosen by blocks in parts of the image that the fit did not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrl_match.cost_surfaces import Surfaces, lowest
from rrl_match.registration.adjustment import LogCosts, Quadratics, log_costs
from rrl_match.registration.block_matching import Blocks, Grid
from rrl_match.registration.config import Config
from rrl_match.registration.dense_blocks import dense_blocks
from rrl_match.registration.images import Frame
from rrl_match.registration.overlay import Overlap, overlap_of
from rrl_match.registration.refinement import Refined, finest_pixel
from rrl_match.transforms import Affine, DisplacementField, MatrixTransform, Points
from rrl_match.transforms.displacement import basis, dense_basis

_SLOPES = 10.0  # what slopes add to the energy: it lets go of where no block tells anything, instead of going on
_HALVINGS = 4  # of a Gauss-Newton step that does not make the sum smaller


class Smoothness(NamedTuple):
    """How freely a field may bend.

    Attributes:
        cells: of its grid along the longer side of the overlap.
        weight: of its bending energy, against the costs of all blocks; the overlap counts as an area of 1.
    """

    cells: int
    weight: float


class Held(NamedTuple):
    """What blocks that a fit did not see say of it.

    Attributes:
        gain: by how much their log costs are lower than with the global transform, in the mean.
        certainty: that gain in standard errors, of parts of the image.
    """

    gain: float
    certainty: float


def bend(
    frames: Sequence[Frame], refined: Refined | None, hypothesis: MatrixTransform, config: Config
) -> Refined | None:
    """A displacement field on top of a global transform; None where blocks held out are not better off with it.

    Args:
        frames: the images.
        refined: the global transform, if there is one.
        hypothesis: from which it was refined, and which takes its place if there is none.
        config: of :class:`LocalConfig` and more.
    """
    base = hypothesis if refined is None else refined.transform
    overlap = overlap_of(frames[0], base)
    if overlap is None or not isinstance(base, MatrixTransform):
        return None
    settings, finest = config.local, finest_pixel(overlap, config)
    pixel = max(finest, overlap.unit * overlap.side / settings.first_side)
    choices = [Smoothness(*one) for one in zip(settings.cells, settings.bending, strict=True)]
    found: DisplacementField | None = None
    number = repeats = 0
    while True:
        last = number > 0 and pixel <= finest * 1.01
        grid = Grid(pixel, settings.blocks, settings.half, settings.radii[min(number, 1)])
        blocks = dense_blocks(frames, found or base, overlap, grid, config)
        if len(blocks.points) < settings.least_blocks:
            return None
        problem = Problem(blocks, base, overlap, config)
        if number == 0 or last:
            smoothness, held = chosen(problem, choices, grid.half)
            if held.certainty < settings.certain[last]:
                return None
            k = choices.index(smoothness)
            choices = choices[max(0, k - 1) : k + 3]
        field = problem.fitted(smoothness, np.arange(len(blocks.points)), settings.rounds)[0]
        moved = float(np.linalg.norm(field(blocks.points) - blocks.predicted, axis=1).mean()) / math.sqrt(overlap.area)
        after = overlap_of(frames[0], field)
        if after is None or field.folds:
            return None
        if last:
            if problem.supported(field) < settings.supported:
                return None
            return Refined(field, DisplacementField, moved, blocks, after)
        found, overlap = field, after
        settled = blocks.agreeing(field, config.blocks.bound).mean() >= settings.settled
        if number == 0 and not settled and repeats < settings.repeats:
            repeats += 1
            continue
        number, pixel = number + 1, max(finest, pixel / 2)


def bent(
    blocks: Blocks, base: MatrixTransform, overlap: Overlap, certain: float, config: Config
) -> DisplacementField | None:
    """The displacement field that blocks determine on top of a global transform; None where it is no better.

    Args:
        blocks: looked for around any transform.
        base: the global transform.
        overlap: where the field lies.
        certain: standard errors by which held-out blocks must be better off than with the global transform.
        config: of :class:`LocalConfig` and more.
    """
    settings = config.local
    if len(blocks.points) < settings.least_blocks:
        return None
    problem = Problem(blocks, base, overlap, config)
    choices = [Smoothness(*one) for one in zip(settings.cells, settings.bending, strict=True)]
    smoothness, held = chosen(problem, choices, config.blocks.half)
    if held.certainty < certain:
        return None
    field = problem.fitted(smoothness, np.arange(len(blocks.points)), settings.rounds)[0]
    return None if field.folds else field


class Space:
    """Displacements that a grid can have, at blocks, and how much they bend.

    Args:
        corners: (2, 2) xy in B, the first and the last location of the grid.
        cells: along its longer side.
    """

    def __init__(self, corners: Points, cells: int) -> None:
        first, size = corners[0], np.maximum(corners[1] - corners[0], 1.0)
        self.cell = float(size.max()) / cells
        self.columns, self.rows = (max(1, round(float(n) / self.cell)) for n in size)
        scale = (self.columns, self.rows) / size
        self.to_cells = Affine(np.column_stack([np.diag(scale), -scale * first]))
        lengths = size / float(np.sqrt(size.prod()))  # of a grid of area 1
        x, y = (_grams(n, float(length) / n) for n, length in zip((self.columns, self.rows), lengths, strict=True))
        bends = np.kron(y[0], x[2]) + 2 * np.kron(y[1], x[1]) + np.kron(y[2], x[0])
        self.bending = bends + _SLOPES * (np.kron(y[0], x[1]) + np.kron(y[1], x[0]))

    def design(self, points: Points) -> NDArray[np.float64]:
        """Values (N, K) of the B-splines at locations (N, 2) of B."""
        at = self.to_cells(points)
        x, y = (dense_basis(one, n) for one, n in zip(at.T, (self.columns, self.rows), strict=True))
        return (y[:, :, None] * x[:, None, :]).reshape(len(points), -1)

    def field(self, base: MatrixTransform, coefficients: Points) -> DisplacementField:
        """The transform of coefficients (K, 2)."""
        return DisplacementField(base, coefficients.reshape(self.rows + 3, self.columns + 3, 2), self.to_cells)


def _grams(cells: int, width: float) -> tuple[NDArray[np.float64], ...]:
    """Integrals (K, K) of products of B-splines on a grid of cells of this width, of their slopes and their bends."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    at = (np.arange(cells)[:, None] + (nodes + 1) / 2).ravel()
    found = basis(at, cells)
    t = at - found.first
    bends = np.stack([1 - t, 3 * t - 2, 1 - 3 * t, t], 1)
    grams = []
    for order, values in enumerate((found.values, found.slopes, bends)):
        dense = np.zeros((len(at), cells + 3))
        np.put_along_axis(dense, found.first[:, None] + np.arange(4), values, 1)
        grams.append(dense.T @ (np.tile(weights / 2, cells)[:, None] * dense) * width ** (1 - 2 * order))
    return tuple(grams)


class Problem:
    """Blocks that a field is fitted to.

    Args:
        blocks: as they were found.
        base: the global transform.
        overlap: where the grid lies; displacements are fitted in its unit.
        config: how blocks are weighted.
    """

    def __init__(self, blocks: Blocks, base: MatrixTransform, overlap: Overlap, config: Config) -> None:
        self.base, self.config, self.blocks, self.bound = base, config, blocks, config.blocks.bound
        self._spaces: dict[int, tuple[Space, NDArray[np.float64]]] = {}
        self.at = base(blocks.points)
        self.unit, self.steps = overlap.unit, overlap.unit / blocks.pixel  # pixels of the level for a unit
        self.corners = np.stack([overlap.outline.min(0), overlap.outline.max(0)])
        self.start = (self.at - blocks.predicted) / blocks.pixel
        self.costs = LogCosts(blocks.surfaces, config.blocks)
        self.weights = self.costs.weights * _told(blocks.surfaces, config)
        around = self.costs.at(lowest(blocks.surfaces)[0])[2]
        bends = np.trace(around.hessian, axis1=1, axis2=2) / around.value / 2
        self.sharpness = float(np.average(bends, weights=self.weights)) * self.steps**2
        spacing = math.sqrt(overlap.area / max(1, len(self.at)))
        offsets, self.found = lowest(_pooled(blocks.surfaces, self.at, spacing, self))
        self.goal = (offsets - self.start) / self.steps

    def space(self, cells: int) -> tuple[Space, NDArray[np.float64]]:
        """The displacements of a grid, and their design; kept for the next call."""
        if cells not in self._spaces:
            space = Space(self.corners, cells)
            self._spaces[cells] = space, space.design(self.at)
        return self._spaces[cells]

    def parts(self) -> tuple[NDArray[np.int64], int, Points]:
        """Part of the overlap in which each block lies (N,), how many there are in a row, and their size (2,)."""
        whole = np.maximum(np.ptp(self.corners, axis=0), 1e-9)
        counts = np.maximum(1, (whole / math.sqrt(float(whole.prod()) / self.config.local.parts)).round()).astype(int)
        column, row = ((self.at - self.corners[0]) / whole * counts).astype(int).clip(0, counts - 1).T
        return row * int(counts[0]) + column, int(counts[0]), whole / counts

    def supported(self, field: DisplacementField) -> float:
        """Part of the overlap in which the blocks together agree with a field."""
        part, _, _ = self.parts()
        offsets = (field(self.blocks.points) - self.blocks.predicted) / self.blocks.pixel
        costs = log_costs(self.blocks.surfaces, self.config.blocks) * self.weights[:, None, None]
        numbers = np.unique(part)
        together = np.stack([costs[part == one].sum(0) for one in numbers])
        meant = np.stack([np.average(offsets[part == one], axis=0) for one in numbers])
        off = np.linalg.norm(lowest(together)[0] - meant, axis=1)
        return float(np.average(off < self.bound, weights=np.bincount(part, self.weights)[numbers]))

    def log_costs(self, displacement: Points) -> NDArray[np.float64]:
        """Of each block (N,), under displacements (N, 2) in units."""
        return np.log(self.costs.at(self.start + displacement * self.steps)[2].value)

    def fitted(
        self, smoothness: Smoothness, rows: NDArray[np.int64], rounds: int
    ) -> tuple[DisplacementField, NDArray[np.float64]]:
        """The field that some blocks determine, and the log costs (N,) of all under it."""
        space, design = self.space(smoothness.cells)
        coefficients = _robust(self, design[rows], smoothness.weight * space.bending, rows)
        coefficients = _polished(self, design[rows], smoothness.weight * space.bending, rows, coefficients, rounds)
        return space.field(self.base, coefficients * self.unit), self.log_costs(design @ coefficients)


def chosen(problem: Problem, choices: Sequence[Smoothness], half: int) -> tuple[Smoothness, Held]:
    """The smoothness with which blocks in parts of the image that a fit did not see are best off.

    The parts are groups of cells of the overlap. Blocks nearer to them than a block's width have no part in the fit,
    since they show the same.
    """
    settings, (part, columns, size) = problem.config.local, problem.parts()
    width, first = settings.gap * (2 * half + 1) * problem.blocks.pixel, problem.corners[0]
    group = (part % columns + 2 * (part // columns)) % settings.groups
    global_costs, weights = problem.log_costs(np.zeros_like(problem.at)), problem.weights
    best, worse = (choices[0], Held(-math.inf, -math.inf)), 0
    for smoothness in choices:
        gains = np.zeros(len(part))
        for number in range(settings.groups):
            held = group == number
            near = np.zeros(len(part), bool)
            for one in np.unique(part[held]):
                low = first + (one % columns, one // columns) * size
                near |= ((problem.at >= low - width) & (problem.at <= low + size + width)).all(1)
            rows = np.flatnonzero(~near)
            if held.any() and len(rows) >= settings.least_blocks / 4:
                gains[held] = (global_costs - problem.fitted(smoothness, rows, settings.held_rounds)[1])[held]
        outcome = _held(gains, weights, part)
        if outcome.gain > best[1].gain:
            best, worse = (smoothness, outcome), 0
        else:
            worse += 1
        if worse > 2:
            break
    return best


def _held(gains: NDArray[np.float64], weights: NDArray[np.float64], part: NDArray[np.int64]) -> Held:
    """The mean of the gains (N,) of blocks, and how certain it is that it is positive."""
    sums = np.bincount(part, weights * gains), np.bincount(part, weights)
    shown = sums[1] > 0
    means, counts = sums[0][shown] / sums[1][shown], sums[1][shown]
    gain = float(np.average(means, weights=counts))
    spread = np.average((means - gain) ** 2, weights=counts) / max(1, len(means) - 1)
    return Held(gain, gain / (math.sqrt(float(spread)) + 1e-9))


def _told(surfaces: Surfaces, config: Config) -> NDArray[np.float64]:
    """How far each block (N,) can be trusted, from 0 to 1, by how much worse any other offset is than its best one.

    Under the sky or on water, a block is lowest anywhere, and sharply so.
    """
    settings, reach = config.local, surfaces.shape[1] // 2
    costs, (best, _) = log_costs(surfaces, config.blocks), lowest(surfaces)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    far = np.hypot(x - best[:, 0, None, None], y - best[:, 1, None, None]) > settings.beside
    behind = np.where(far, costs, np.inf).min((1, 2)) - costs.min((1, 2))
    trusted: NDArray[np.float64] = settings.least_trust + behind**2 / (behind**2 + settings.behind**2)
    return trusted


def _pooled(surfaces: Surfaces, at: Points, width: float, problem: Problem) -> Surfaces:
    """Log costs (N, S, S) of blocks, each with those around it: where one cannot tell, its neighbours may."""
    costs = log_costs(surfaces, problem.config.blocks) * problem.weights[:, None, None]
    near = np.exp(-((at[:, None] - at) ** 2).sum(2) / (2 * width**2))
    together: Surfaces = (near @ costs.reshape(len(costs), -1)).reshape(costs.shape)
    return together


def _robust(
    problem: Problem, design: NDArray[np.float64], bending: NDArray[np.float64], rows: NDArray[np.int64]
) -> Points:
    """Coefficients (K, 2) that take most blocks near to where each was found: least squares, reweighted.

    Blocks that are far off count less and less (Geman and McClure's weights, at a scale that falls to the bound).
    """
    settings, goal = problem.config.local, problem.goal[rows]
    trusted = problem.weights[rows] * problem.found[rows]
    stiff = len(rows) * bending + 1e-9 * np.eye(design.shape[1])
    least = problem.config.blocks.bound / problem.steps
    width = max(least, (problem.blocks.surfaces.shape[1] // 2) / problem.steps)
    coefficients = np.zeros((design.shape[1], 2))
    residual = goal - (np.median(goal[trusted > 0], axis=0) if trusted.any() else 0)
    for _ in range(settings.reweighted):
        weights = trusted / (1 + (residual**2).sum(1) / width**2) ** 2
        weighted = design * weights[:, None]
        coefficients = np.linalg.solve(design.T @ weighted + stiff, weighted.T @ goal)
        residual = goal - design @ coefficients
        width = max(least, width * 0.77)
    return coefficients


def _polished(
    problem: Problem,
    design: NDArray[np.float64],
    bending: NDArray[np.float64],
    rows: NDArray[np.int64],
    coefficients: Points,
    rounds: int,
) -> Points:
    """Coefficients (K, 2) near others with the least sum of log costs and bending: Gauss-Newton."""
    k, steps, count = design.shape[1], problem.steps, len(rows)
    stiff = problem.sharpness * count * bending + 1e-9 * np.eye(k)
    offsets, weights = np.zeros_like(problem.at), np.zeros(len(problem.at))
    weights[rows] = problem.weights[rows]

    def evaluated(values: Points) -> tuple[float, NDArray[np.float64], Quadratics]:
        offsets[rows] = problem.start[rows] + design @ values * steps
        _, near, found = problem.costs.at(offsets)
        total = (weights * np.log(found.value)).sum() + (values * (stiff @ values)).sum() / 2
        return float(total), weights * near / found.value, found

    total, scale, found = evaluated(coefficients)
    for _ in range(rounds):
        pull = scale[rows, None] * found.gradient[rows] * steps
        gradient = design.T @ pull + stiff @ coefficients
        curved = found.hessian[rows] * (scale[rows] * steps**2)[:, None, None]
        xx, xy, yy = (design.T @ (design * curved[:, i, j, None]) for i, j in ((0, 0), (0, 1), (1, 1)))
        matrix = np.block([[xx + stiff, xy], [xy, yy + stiff]])
        matrix[np.diag_indices(2 * k)] *= 1.001
        change = np.linalg.solve(matrix, -gradient.T.ravel()).reshape(2, k).T
        for _ in range(_HALVINGS):
            outcome = evaluated(coefficients + change)
            if outcome[0] < total:
                break
            change = change / 3
        if outcome[0] >= total - 1e-4 * count:
            break
        coefficients, (total, scale, found) = coefficients + change, outcome
    return coefficients
