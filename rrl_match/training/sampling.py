"""Batches of patches, cut on the training device from images that are held there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rrl_match.errors import DataError
from rrl_match.training.datasets import ImagePair, Source, find_locations, footprint
from rrl_match.training.device import to_device
from rrl_match.training.recipe import Geometry, Phase

logger = logging.getLogger(__name__)

_OVERSAMPLING = 4  # locations drawn for each one needed, because some patches leave their image when warped
_ATTEMPTS = 4  # to find enough locations whose patches fit
_PROBES = 9  # points per side of a patch that must lie inside both footprints


class PatchBatch(NamedTuple):
    """Patches of N locations and where they come from."""

    colour_a: Tensor  # (N, 3, S, S) float in [0, 1]
    patches_b: Tensor  # (N, 1, S, S) float in [0, 1]
    group: Tensor  # (N,) int64, rows of one source
    image: Tensor  # (N,) int64, row of the sampler's pairs
    position: Tensor  # (N, 2) xy in image B
    grid_a: Tensor  # (N, 2, S * S) xy in image A, where the patch's pixels were sampled
    grid_b: Tensor  # (N, 2, S * S) the same in image B


class Warp(NamedTuple):
    """How the patches of N locations are changed while they are cut."""

    jitter: Tensor  # (N, 2) moves the location, in pixels of band B
    common: Tensor  # (N, 2, 2) rotates, flips and scales both bands' grids
    relative: Tensor  # (N, 2, 2) rotates and scales band A's grid alone
    shift: Tensor  # (N, 2) shifts band A's grid, in pixels
    perspective: Tensor  # (N, 2) tilts band A's grid: change of scale per pixel

    def rows(self, which: Tensor) -> Warp:
        """The changes of some of the locations."""
        return Warp(*(parameter[which] for parameter in self))


class PatchSampler:
    """Cuts batches of patches from the images of one or several sources.

    A source is drawn with a probability that grows with its weight and with the square root of its number of image
    pairs. Geometric changes are made while cutting, so that no corner of a patch is invented; a location whose changed
    patch would leave an image or its footprint is dropped for another one.
    """

    def __init__(self, sources: Sequence[Source], patch_size: int, device: torch.device) -> None:
        self.patch_size = patch_size
        self.device = device
        self.pairs: list[ImagePair] = []
        self.locations: list[Tensor] = []  # of each pair, (N, 2) xy in image B
        self.sources: list[tuple[str, Tensor]] = []  # name, rows of `pairs`
        weights = []
        for source in sources:
            found = [(pair, find_locations(pair, patch_size)) for pair in source.pairs]
            empty = [pair.name for pair, locations in found if not len(locations)]
            if empty:
                logger.warning("%s: no location to cut a patch at, left out: %s", source.name, ", ".join(empty))
            found = [(pair, locations) for pair, locations in found if len(locations)]
            if found:
                first = len(self.pairs)
                self.pairs += [pair for pair, _ in found]
                self.locations += [torch.from_numpy(locations) for _, locations in found]
                self.sources.append((source.name, torch.arange(first, len(self.pairs))))
                weights.append(source.weight * len(found) ** 0.5)
        if not self.pairs:
            names = ", ".join(source.name for source in sources)
            raise DataError(f"{names}: no image has a location to cut a patch at")
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._hold_images()

    def _hold_images(self) -> None:
        """Put all images into one tensor per band, because patches of many images are gathered at once."""
        self._pixels, self._shown, self._sizes = [], [], []
        for images in ([p.image_a for p in self.pairs], [p.image_b[..., None] for p in self.pairs]):
            pixels = np.concatenate([i.reshape(-1, i.shape[2]) for i in images])
            shown = np.concatenate([footprint(i).ravel() for i in images])
            self._pixels.append(torch.from_numpy(pixels).to(self.device))
            self._shown.append(torch.from_numpy(shown).to(self.device) > 0)
            self._sizes.append(torch.tensor([i.shape[:2] for i in images], device=self.device))
        self._starts = [torch.cumsum(s.prod(1), 0) - s.prod(1) for s in self._sizes]
        inverse = [np.linalg.inv(np.vstack([p.a_to_b, [0, 0, 1]]))[:2] for p in self.pairs]
        self._b_to_a = torch.tensor(np.array(inverse), dtype=torch.float32, device=self.device)
        self._a_to_b = torch.tensor(np.array([p.a_to_b for p in self.pairs]), dtype=torch.float32, device=self.device)
        side = torch.arange(self.patch_size, dtype=torch.float32, device=self.device) - (self.patch_size - 1) / 2
        self._grid = torch.stack(torch.meshgrid(side, side, indexing="xy")).reshape(2, -1)  # xy
        probes = torch.linspace(0, self.patch_size - 1, _PROBES, device=self.device).round().long()
        self._probes = (probes[:, None] * self.patch_size + probes).flatten()

    def draw(self, phase: Phase, geometry: Geometry, generator: torch.Generator) -> PatchBatch:
        """A batch of `phase.batch_size` locations, cut with random `geometry`.

        There are fewer if the images drawn have fewer locations at which the changed patch fits.

        Args:
            phase: how many locations, images and sources to draw.
            geometry: how far each change goes.
            generator: a CPU generator: the same state gives the same batch on every device.

        Raises:
            DataError: no changed patch fits into the images drawn.
        """
        count = min(phase.sources_per_batch, len(self.sources))
        drawn = torch.multinomial(self._weights, count, generator=generator).tolist()
        groups, images, positions, warps = [], [], [], []
        for k, source in enumerate(drawn):
            batch_size, per_source = (_part(n, k, count) for n in (phase.batch_size, phase.images_per_batch))
            image, position, warp = self._draw_group(source, batch_size, per_source, geometry, generator)
            groups.append(torch.full((len(image),), k))
            images.append(image)
            positions.append(position)
            warps.append(warp)
        if not sum(len(image) for image in images):
            raise DataError("no patch fits into the images drawn: reduce zoom, rotation or shift in the recipe")
        warp = Warp(*(torch.cat(parameter) for parameter in zip(*warps, strict=True)))
        return self.cut(torch.cat(images), torch.cat(positions), warp, torch.cat(groups))

    def _draw_group(
        self, source: int, batch_size: int, images: int, geometry: Geometry, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Warp]:
        """Image, position and warp of locations of one source; other images are tried if too few patches fit."""
        fitting: list[tuple[Tensor, Tensor, Warp]] = []
        for _ in range(_ATTEMPTS):
            image, position = self._candidates(source, batch_size, images, generator)
            warp = draw_warp(len(image), geometry, generator)
            kept = torch.nonzero(self.fits(image, position, warp).cpu())[:batch_size, 0]
            fitting.append((image[kept], position[kept], warp.rows(kept)))
            if len(kept) == batch_size:
                break
        return max(fitting, key=lambda group: len(group[0]))

    def _candidates(
        self, source: int, batch_size: int, images: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Locations of some images of one source, more than needed, interleaved.

        The images are of one scene where that has enough of them: scenes often differ in their looks alone.
        """
        shuffled = self.sources[source][1][torch.randperm(len(self.sources[source][1]), generator=generator)].tolist()
        scene = [k for k in shuffled if self.pairs[k].scene == self.pairs[shuffled[0]].scene]
        chosen = (scene if len(scene) >= images else shuffled)[:images]
        count = _OVERSAMPLING * -(-batch_size // len(chosen))
        picked = [
            self.locations[k][torch.randperm(len(self.locations[k]), generator=generator)[:count]] for k in chosen
        ]
        round_of = torch.cat([torch.arange(len(p)) for p in picked])
        image = torch.cat([torch.full((len(p),), k) for k, p in zip(chosen, picked, strict=True)])
        order = torch.argsort(round_of, stable=True)
        return image[order], torch.cat(picked)[order]

    def cut(self, image: Tensor, centre: Tensor, warp: Warp | None = None, group: Tensor | None = None) -> PatchBatch:
        """Patches of both bands at locations of band B's images.

        Args:
            image: (N,) int64, row of `pairs`; all arguments on the CPU.
            centre: (N, 2) xy in band B; the patch covers [x - S/2, x + S/2).
            warp: changes, if any; see :meth:`fits`.
            group: (N,) int64, to return with the patches; zeros if not given.
        """
        group = torch.zeros_like(image) if group is None else group
        grid_a, grid_b = self._grids(image, centre, warp, self._grid)
        image, group = to_device(image, self.device), to_device(group, self.device)
        return PatchBatch(
            self._sample(0, image, grid_a),
            self._sample(1, image, grid_b),
            group,
            image,
            grid_b.mean(2),
            grid_a,
            grid_b,
        )

    def fits(self, image: Tensor, centre: Tensor, warp: Warp) -> Tensor:
        """(N,) bool, whether warped patches lie inside both images and their footprints; arguments as :meth:`cut`."""
        grid_a, grid_b = self._grids(image, centre, warp, self._grid[:, self._probes])
        image = to_device(image, self.device)
        inside = self._inside(0, image, grid_a) & self._inside(1, image, grid_b)
        # each grid in the other band's image as well, from which synthetic bands are cut
        b_to_a, a_to_b = self._b_to_a[image], self._a_to_b[image]
        return inside & self._inside(0, image, _apply(b_to_a, grid_b)) & self._inside(1, image, _apply(a_to_b, grid_a))

    def colour_at_b(self, batch: PatchBatch, rows: Tensor) -> Tensor:
        """Image A's colours (M, 3, S, S) at exactly the locations of band B's patches, for some rows of a batch."""
        image = batch.image[rows]
        return self._sample(0, image, _apply(self._b_to_a[image], batch.grid_b[rows]))

    def grey_at_a(self, batch: PatchBatch, rows: Tensor) -> Tensor:
        """Image B's grey values (M, 1, S, S) at exactly the locations of band A's patches, for some rows of a batch."""
        image = batch.image[rows]
        return self._sample(1, image, _apply(self._a_to_b[image], batch.grid_a[rows]))

    def _grids(self, image: Tensor, centre: Tensor, warp: Warp | None, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Where points of the patches, (2, P) from their centre, lie in image A and in image B: (N, 2, P) each."""
        image, centre = to_device(image, self.device), to_device(centre, self.device)
        b_to_a = self._b_to_a[image]
        if warp is None:
            grid_b = centre[:, :, None] - 0.5 + grid
            return _apply(b_to_a, grid_b), grid_b
        warp = Warp(*(to_device(parameter, self.device) for parameter in warp))
        moved = (centre + warp.jitter)[:, :, None] - 0.5
        tilt = 1 + (warp.perspective @ grid)[:, None]
        tilted = warp.relative @ grid / tilt + warp.shift[:, :, None]
        return _apply(b_to_a, moved + warp.common @ tilted), moved + warp.common @ grid

    def _inside(self, band: int, image: Tensor, at: Tensor) -> Tensor:
        """(N,) bool, whether all points xy (N, 2, P) lie in the image and its footprint."""
        height, width = (side[:, None] for side in self._sizes[band][image].unbind(1))
        x, y = at.unbind(1)
        inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        x, y = (value.round().long().clamp(min=0) for value in (x, y))
        pixel = self._starts[band][image][:, None] + y.minimum(height - 1) * width + x.minimum(width - 1)
        return (inside & self._shown[band][pixel]).all(1)

    def _sample(self, band: int, image: Tensor, at: Tensor) -> Tensor:
        """Bilinear values at xy (N, 2, S * S): float (N, channels, S, S) in [0, 1]."""
        height, width = (side[:, None] for side in self._sizes[band][image].unbind(1))
        x, y = (value.clamp(min=0).minimum(side - 1) for value, side in zip(at.unbind(1), (width, height), strict=True))
        left, top = x.long().minimum(width - 2), y.long().minimum(height - 2)
        first = (self._starts[band][image][:, None] + top * width + left).flatten()
        row = width.expand_as(left).flatten()
        pixels, x, y = self._pixels[band], (x - left).flatten()[:, None], (y - top).flatten()[:, None]

        def between(pixel: Tensor) -> Tensor:
            """Values (N * S * S, channels) between a pixel and the one right of it."""
            return torch.lerp(pixels.index_select(0, pixel).float(), pixels.index_select(0, pixel + 1).float(), x)

        values = (torch.lerp(between(first), between(first + row), y) / 255).reshape(*at[:, 0].shape, -1)
        return values.mT.reshape(len(at), -1, self.patch_size, self.patch_size)


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (N, 2, P) under affine matrices (N, 2, 3)."""
    return torch.baddbmm(matrix[:, :, 2:], matrix[:, :, :2], points)


def _part(n: int, k: int, count: int) -> int:
    """The k-th of `count` nearly equal parts of n."""
    return n * (k + 1) // count - n * k // count


def draw_warp(n: int, geometry: Geometry, generator: torch.Generator) -> Warp:
    """Random changes for n locations of one source."""
    oriented = 1 if geometry.shared_orientation else n

    def uniform(count: int, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * 2 - 1

    def power(base: float, exponent: Tensor) -> Tensor:
        return torch.tensor(base) ** exponent

    jitter = uniform(n, 2) * geometry.location_jitter
    common = _rotation(uniform(oriented) * geometry.common_rotation) * power(geometry.zoom, uniform(oriented, 1, 1))
    if geometry.flips_and_right_angles:
        right_angles = _rotation(90.0 * torch.randint(4, (oriented,), generator=generator)).round()
        flip = torch.ones(oriented, 2)
        flip[:, 0] = 1 - 2 * torch.randint(2, (oriented,), generator=generator).float()
        common = common @ right_angles @ torch.diag_embed(flip)
    moved = (torch.rand(n, generator=generator) < geometry.probability).float()
    aspect = power(geometry.aspect, uniform(n))
    stretch = torch.stack([aspect, 1 / aspect], 1) * power(geometry.scale, uniform(n, 1))
    relative = _rotation(uniform(n) * geometry.rotation) @ torch.diag_embed(stretch)
    relative = torch.lerp(torch.eye(2).expand(n, 2, 2), relative, moved[:, None, None])
    shift = uniform(n, 2) * geometry.shift * moved[:, None]
    perspective = uniform(n, 2) * geometry.perspective / 32 * moved[:, None]
    return Warp(jitter, common.expand(n, 2, 2), relative, shift, perspective)


def _rotation(degrees: Tensor) -> Tensor:
    """Rotation matrices (N, 2, 2)."""
    angle = torch.deg2rad(degrees)
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
