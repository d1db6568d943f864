"""Registered pictures in memory, and batches of patches cut from them on the training device."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrl_match.errors import DataError
from rrl_match.training.device import to_device
from rrl_match.training.recipe import Geometry

logger = logging.getLogger(__name__)

_COLUMNS = ["pair", "split", "scene", "image_a", "image_b", *(f"m{i}{j}" for i in (0, 1) for j in (0, 1, 2))]


@dataclass(frozen=True, eq=False)
class PicturePair:
    """Two registered pictures.

    Attributes:
        name, scene: as in the manifest.
        image_a: uint8 (H, W, 3), RGB order; three times the same for a grey picture.
        image_b: uint8 (H, W).
        a_to_b: (2, 3), takes pixel (x, y) of A to B, pixel centres at integers.
    """

    name: str
    scene: str
    image_a: NDArray[np.uint8]
    image_b: NDArray[np.uint8]
    a_to_b: NDArray[np.float64]


def read_pairs(folder: str | Path, split: str = "train") -> list[PicturePair]:
    """The picture pairs of one split of a folder with a ``manifest.csv``.

    The manifest's columns are ``pair,split,scene,image_a,image_b,m00,m01,m02,m10,m11,m12``; paths are relative
    to the folder. Pictures are 8-bit, grey or colour.

    Raises:
        DataError: no manifest, no such split, or a row whose pictures are missing, broken, not 8-bit, too small
            or aligned by the identity without being of one size.
    """
    folder = Path(folder)
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise DataError(f"{manifest} is not there: training reads a folder with a manifest.csv, see the README")
    with open(manifest, newline="", encoding="utf-8-sig") as f:
        reader = csv.DictReader(f)
        missing = set(_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{manifest} lacks the columns {', '.join(sorted(missing))}")
        rows = [(reader.line_num, row) for row in reader if row["split"] == split]
    if not rows:
        raise DataError(f"{manifest} has no row with split {split!r}")
    return [_read_pair(folder, f"{manifest}, line {line} ({row['pair']})", row) for line, row in rows]


def hold_back(pairs: Sequence[PicturePair], every: int) -> tuple[list[PicturePair], list[PicturePair]]:
    """Pairs to train on, and every n-th one to validate on; at least two of these where there are four.

    Whole pictures are held back, never patches of one that is trained on.

    Raises:
        DataError: fewer than two pairs.
    """
    if len(pairs) < 2:
        raise DataError(f"training needs at least two picture pairs, one of them to validate on, got {len(pairs)}")
    step = max(2, min(every, len(pairs) // 2))
    held_back = range(step // 2, len(pairs), step)
    return [p for k, p in enumerate(pairs) if k not in held_back], [pairs[k] for k in held_back]


def _read_pair(folder: Path, where: str, row: dict[str, str]) -> PicturePair:
    pictures: list[NDArray[np.uint8]] = []
    for key, flag in (("image_a", cv2.IMREAD_COLOR), ("image_b", cv2.IMREAD_GRAYSCALE)):
        path = folder / (row[key] or "")
        if not path.is_file():
            raise DataError(f"{where}: {key} {path} is not there")
        picture = cv2.imread(str(path), flag | cv2.IMREAD_ANYDEPTH)
        if picture is not None and _is_cut_off(path):
            raise DataError(f"{where}: {key} {path} is a JPEG that was cut off")
        if picture is None:
            raise DataError(f"{where}: {key} {path} cannot be read as a picture")
        if picture.ndim == 3:
            picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        if picture.dtype != np.uint8:
            raise DataError(f"{where}: {key} {path} is {picture.dtype}, not 8-bit: map its range of values to 0..255")
        if min(picture.shape[:2]) < 96:
            raise DataError(
                f"{where}: {key} {path} is {picture.shape[1]} x {picture.shape[0]}, too small to cut patches"
            )
        pictures.append(picture.astype(np.uint8, copy=False))
    try:
        a_to_b = np.array([float(row[c]) for c in _COLUMNS[5:]]).reshape(2, 3)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the matrix m00..m12 is not six numbers") from error
    if not np.isfinite(a_to_b).all() or abs(np.linalg.det(a_to_b[:, :2])) < 1e-6:
        raise DataError(f"{where}: the matrix m00..m12 cannot be inverted")
    a, b = pictures
    if np.array_equal(a_to_b, np.eye(2, 3)) and a.shape[:2] != b.shape[:2]:
        raise DataError(
            f"{where}: the pictures differ in size, {a.shape[:2]} and {b.shape[:2]}, yet the matrix is the identity"
        )
    return PicturePair(row["pair"], row["scene"], a, b, a_to_b)


def _is_cut_off(path: Path) -> bool:
    """Whether a JPEG lacks its end marker, what OpenCV passes over and fills with grey."""
    data = path.read_bytes()
    return data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-65536:]


def find_places(pair: PicturePair, patch_size: int, spacing: int = 12) -> NDArray[np.float32]:
    """Places (N, 2), xy in band B's frame, where a patch has something to show in either band.

    FAST corners of both bands (Rosten and Drummond, ECCV 2006), strongest first, at most one in each cell of
    `spacing` pixels, and only where an upright patch lies inside both pictures.
    """
    h, w = pair.image_b.shape
    a = cv2.warpAffine(cv2.cvtColor(pair.image_a, cv2.COLOR_RGB2GRAY), pair.a_to_b, (w, h))
    covered = cv2.warpAffine(np.ones(pair.image_a.shape[:2], np.uint8), pair.a_to_b, (w, h))
    covered = cv2.copyMakeBorder(covered, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    covered = cv2.erode(covered, np.ones((patch_size + 3, patch_size + 3), np.uint8), borderValue=0)[1:-1, 1:-1]
    fast = cv2.FastFeatureDetector.create(threshold=7)
    cells: dict[tuple[int, int], tuple[float, float, float]] = {}
    for image in (a, pair.image_b):
        for keypoint in fast.detect(image):
            x, y = keypoint.pt
            if covered[round(y), round(x)]:
                cell = int(x) // spacing, int(y) // spacing
                cells[cell] = max(cells.get(cell, (0.0, 0.0, 0.0)), (keypoint.response, x, y))
    places = sorted(cells.values(), reverse=True)
    return np.array([(x, y) for _, x, y in places], np.float32).reshape(-1, 2)


class PatchBatch(NamedTuple):
    """Patches of N places: float (N, 3 or 1, S, S) in [0, 1], and where they are from."""

    colour_a: Tensor  # (N, 3, S, S)
    patches_b: Tensor  # (N, 1, S, S)
    picture: Tensor  # (N,) int64
    position: Tensor  # (N, 2) xy in band B's picture


class Warp(NamedTuple):
    """How the patches of N places are changed while they are cut."""

    jitter: Tensor  # (N, 2) moves the place, in pixels of band B
    common: Tensor  # (N, 2, 2) turns, flips and scales both bands' grids
    relative: Tensor  # (N, 2, 2) turns and scales band A's grid alone
    shift: Tensor  # (N, 2) shifts band A's grid, in pixels
    perspective: Tensor  # (N, 2) tilts band A's grid: change of scale per pixel


class PatchSampler:
    """Cuts batches of patches from pictures held on the training device.

    Geometric changes are made while cutting, so that no corner of a patch is invented; where a changed patch
    would leave its picture, the place is cut unchanged instead.
    """

    def __init__(self, pairs: Sequence[PicturePair], patch_size: int, device: torch.device) -> None:
        self.patch_size = patch_size
        self.device = device
        places = [find_places(pair, patch_size) for pair in pairs]
        kept = [k for k, p in enumerate(places) if len(p)]
        if not kept:
            raise DataError("none of the pictures has a place to cut a patch at")
        if len(kept) < len(pairs):
            left_out = [pair.name for k, pair in enumerate(pairs) if k not in kept]
            logger.warning("no place to cut a patch at, left out: %s", ", ".join(left_out))
        self.pairs = [pairs[k] for k in kept]
        self.places = [torch.from_numpy(places[k]) for k in kept]
        self._pixels = []
        self._sizes = []
        for images in ([p.image_a for p in self.pairs], [p.image_b[..., None] for p in self.pairs]):
            self._pixels.append(
                torch.from_numpy(np.concatenate([i.reshape(-1, i.shape[2]) for i in images])).to(device)
            )
            self._sizes.append(torch.tensor([i.shape[:2] for i in images], device=device))
        self._starts = [torch.cumsum(s.prod(1), 0) - s.prod(1) for s in self._sizes]
        inverse = [np.linalg.inv(np.vstack([p.a_to_b, [0, 0, 1]]))[:2] for p in self.pairs]
        self._b_to_a = torch.tensor(np.array(inverse), dtype=torch.float32, device=device)
        side = torch.arange(patch_size, dtype=torch.float32, device=device) - (patch_size - 1) / 2
        self._grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)  # (S * S, 2) xy

    def draw(self, places: int, pictures: int, geometry: Geometry, generator: torch.Generator) -> PatchBatch:
        """A batch of `places` places of `pictures` pictures, fewer where they have fewer, cut with random `geometry`.

        `generator` is a CPU generator: the same state gives the same batch on every device.
        """
        chosen = torch.randperm(len(self.pairs), generator=generator)[:pictures]
        share = -(-places // len(chosen))
        picture, position = [], []
        for k in chosen.tolist():
            rows = torch.randperm(len(self.places[k]), generator=generator)[:share]
            picture += [k] * len(rows)
            position.append(self.places[k][rows])
        picture = picture[:places]
        warp = _draw_warp(len(picture), geometry, generator)
        return self.cut(torch.tensor(picture), torch.cat(position)[:places], warp)

    def cut(self, picture: Tensor, centre: Tensor, warp: Warp | None = None) -> PatchBatch:
        """Patches of both bands at places of band B's pictures.

        Args:
            picture: (N,) int64, row of `pairs`; all arguments on the CPU.
            centre: (N, 2) xy in band B; the patch covers [x - S/2, x + S/2).
            warp: changes, each left out where it would make a patch leave its picture.
        """
        picture, centre = to_device(picture, self.device), to_device(centre, self.device)
        at_b = centre[:, None] - 0.5 + self._grid
        at_a = self._to_a(picture, at_b)
        if warp is not None:
            warp = Warp(*(to_device(parameter, self.device) for parameter in warp))
            moved = (centre + warp.jitter)[:, None] - 0.5
            tilt = 1 + (self._grid * warp.perspective[:, None]).sum(-1, keepdim=True)
            grid_a = self._grid @ warp.relative.mT / tilt + warp.shift[:, None]
            warped_b = moved + self._grid @ warp.common.mT
            warped_a = self._to_a(picture, moved + grid_a @ warp.common.mT)
            inside = (self._inside(0, picture, warped_a) & self._inside(1, picture, warped_b))[:, None, None]
            at_a, at_b = torch.where(inside, warped_a, at_a), torch.where(inside, warped_b, at_b)
        return PatchBatch(self._sample(0, picture, at_a), self._sample(1, picture, at_b), picture, at_b.mean(1))

    def _to_a(self, picture: Tensor, at: Tensor) -> Tensor:
        matrix = self._b_to_a[picture]
        return at @ matrix[:, :, :2].mT + matrix[:, None, :, 2]

    def _inside(self, band: int, picture: Tensor, at: Tensor) -> Tensor:
        last = self._sizes[band][picture].flip(1)[:, None] - 1
        return ((at >= 0) & (at <= last)).all(2).all(1)

    def _sample(self, band: int, picture: Tensor, at: Tensor) -> Tensor:
        """Bilinear values at xy (N, S * S, 2): float (N, channels, S, S) in [0, 1]."""
        height, width = self._sizes[band][picture].unbind(1)
        start = self._starts[band][picture]
        last = torch.stack([width, height], 1)[:, None] - 1
        at = at.clamp(min=0).minimum(last)
        corner = at.floor().long().minimum(last - 1)
        fraction = at - corner
        first = start[:, None] + corner[..., 1] * width[:, None] + corner[..., 0]
        pixels, row = self._pixels[band], width[:, None]
        x, y = fraction[..., :1], fraction[..., 1:]
        top = torch.lerp(pixels[first].float(), pixels[first + 1].float(), x)
        bottom = torch.lerp(pixels[first + row].float(), pixels[first + row + 1].float(), x)
        values = torch.lerp(top, bottom, y) / 255
        return values.mT.reshape(len(at), -1, self.patch_size, self.patch_size)


def _draw_warp(n: int, geometry: Geometry, generator: torch.Generator) -> Warp:
    """Random changes for n places."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * 2 - 1

    def turn(degrees: Tensor) -> Tensor:
        angle = torch.deg2rad(degrees)
        c, s = torch.cos(angle), torch.sin(angle)
        return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)

    def power(base: float, *shape: int) -> Tensor:
        return torch.tensor(base) ** uniform(*shape)

    jitter = uniform(2) * geometry.place_jitter
    common = turn(uniform() * geometry.common_turn) * power(geometry.zoom, 1, 1)
    if geometry.flips_and_quarter_turns:
        quarter = turn(90.0 * torch.randint(4, (n,), generator=generator))
        flip = torch.ones(n, 2)
        flip[:, 0] = 1 - 2 * torch.randint(2, (n,), generator=generator).float()
        common = common @ quarter.round() @ torch.diag_embed(flip)
    used = (torch.rand(n, generator=generator) < geometry.share).float()
    aspect = power(geometry.aspect)
    stretch = torch.stack([aspect, 1 / aspect], 1) * power(geometry.scale, 1)
    relative = turn(uniform() * geometry.turn) @ torch.diag_embed(stretch)
    relative = torch.lerp(torch.eye(2).expand(n, 2, 2), relative, used[:, None, None])
    shift = uniform(2) * geometry.shift * used[:, None]
    perspective = uniform(2) * geometry.perspective / 32 * used[:, None]
    return Warp(jitter, common, relative, shift, perspective)
