"""Registered image pairs: what training needs of a data set, and data sets read from folders with a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.borders import border_without_data
from rrl_match.errors import DataError, ImageError
from rrl_match.io.images import decode
from rrl_match.io.tables import read_table

_COLUMNS = ["pair", "split", "scene", "image_a", "image_b", *(f"m{i}{j}" for i in (0, 1) for j in (0, 1, 2))]


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two registered images.

    Attributes:
        name: unique within its source.
        scene: pairs of one scene may show the same place, or follow each other in a video.
        image_a: uint8 (H, W, 3), RGB order; three equal channels for a grey image.
        image_b: uint8 (H, W).
        a_to_b: (2, 3), takes pixel (x, y) of A to B, pixel centres at integers.

    Raises:
        DataError: an image or the matrix is of another kind or shape, or the matrix cannot be inverted.
    """

    name: str
    scene: str
    image_a: NDArray[np.uint8]
    image_b: NDArray[np.uint8]
    a_to_b: NDArray[np.float64]

    def __post_init__(self) -> None:
        for key, image, shape in (("image_a", self.image_a, "(H, W, 3)"), ("image_b", self.image_b, "(H, W)")):
            _check_array(image, "uint8", shape, f"pair {self.name!r}: {key}")
        _check_array(self.a_to_b, "float64", "(2, 3)", f"pair {self.name!r}: a_to_b")
        if not is_invertible(self.a_to_b):
            raise DataError(f"pair {self.name!r}: a_to_b cannot be inverted: {self.a_to_b.tolist()}")


def _check_array(value: object, dtype: str, shape: str, name: str) -> None:
    """Refuse anything but an array of this dtype and a shape such as "(H, W, 3)", whose letters stand for any size."""
    sizes = shape.strip("()").split(", ")
    if isinstance(value, np.ndarray):
        own = [size if size in ("H", "W") else str(n) for size, n in zip(sizes, value.shape, strict=False)]
        if value.dtype == dtype and value.ndim == len(sizes) and own == sizes:
            return
    got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise DataError(f"{name} must be an array, {dtype} {shape}, got {got}")


def is_invertible(matrix: NDArray[np.float64]) -> bool:
    """Whether an affine matrix (2, 3) is finite and has an inverse."""
    return bool(np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:, :2])) >= 1e-6)


@runtime_checkable
class Source(Protocol):
    """What training needs of a data set; any object with these attributes will do.

    Only patches of the same source serve as negatives.

    Attributes:
        name: for logs and model cards; no two sources of a run have one name.
        pairs: its image pairs, neighbouring ones in order: frames of a video, overlapping crops.
        weight: positive factor on how often it is drawn, see :class:`~rrl_match.training.sampling.PatchSampler`.
    """

    @property
    def name(self) -> str: ...
    @property
    def pairs(self) -> Sequence[ImagePair]: ...
    @property
    def weight(self) -> float: ...


@dataclass(frozen=True, eq=False)
class PairSource:
    """A :class:`Source` of image pairs in memory, such as those of a folder."""

    name: str
    pairs: Sequence[ImagePair]
    weight: float = 1.0


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse what training cannot use.

    Raises:
        TypeError: not a source.
        ValueError: a weight is not positive, or two sources have one name, which tells them apart in the log, the
            checkpoint and the card.
    """
    for source in sources:
        if not isinstance(source, Source):
            raise TypeError(
                f"sources must have name, pairs and weight, got {type(source).__name__}: use read_source for a folder"
            )
        if not 0 < source.weight < float("inf"):
            raise ValueError(f"the weight of source {source.name!r} must be a positive number, got {source.weight!r}")
    names = [source.name for source in sources]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"several sources are named {', '.join(sorted(twice))}: give their folders different names")


def read_source(folder_and_weight: str | Path, split: str = "train") -> PairSource:
    """The source in a folder with a manifest; ``FOLDER=2.5`` gives it a weight of 2.5.

    Raises:
        DataError: as :func:`read_pairs`, or the weight is not a positive number.
    """
    folder, factor = name_and_weight(str(folder_and_weight))
    return PairSource(Path(folder).resolve().name, read_pairs(folder, split), factor)


def name_and_weight(text: str) -> tuple[str, float]:
    """A name, or a path, and its weight: ``NAME=2.5`` or, for a weight of 1, ``NAME``.

    Raises:
        DataError: the weight is not a positive number.
    """
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return text, 1.0
    try:
        factor = float(weight)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise DataError(f"the weight of {name} must be a positive number, got {weight!r}")
    return name, factor


@dataclass(frozen=True, eq=False)
class ManifestRow:
    """A pair as a manifest lists it: `where` it does so, for messages, files, and the matrix (2, 3) from A to B."""

    where: str
    name: str
    scene: str
    image_a: Path
    image_b: Path
    a_to_b: NDArray[np.float64]


def read_manifest(folder: str | Path, split: str) -> list[ManifestRow]:
    """The rows of one split of a folder's ``manifest.csv``.

    Its columns are ``pair,split,scene,image_a,image_b,m00,m01,m02,m10,m11,m12``; paths are relative to the folder.

    Raises:
        DataError: no manifest, no such split, a name that occurs twice, or a matrix that cannot be inverted.
    """
    manifest = Path(folder) / "manifest.csv"
    if not manifest.is_file():
        raise DataError(f"{manifest} not found: training reads a folder with a manifest.csv")
    rows: dict[str, ManifestRow] = {}
    for line, cells in read_table(manifest, set(_COLUMNS)):
        if cells["split"] != split:
            continue
        name = cells["pair"]
        if name in rows:
            raise DataError(f"{manifest}, line {line}: there are two pairs {name!r} in split {split!r}")
        where = f"{manifest}, line {line} ({name})"
        try:
            a_to_b = np.array([float(cells[c]) for c in _COLUMNS[5:]]).reshape(2, 3)
        except ValueError as error:
            raise DataError(f"{where}: the matrix m00..m12 is not six numbers") from error
        if not is_invertible(a_to_b):
            raise DataError(f"{where}: the matrix m00..m12 cannot be inverted")
        image_a, image_b = (manifest.parent / cells[key] for key in ("image_a", "image_b"))
        rows[name] = ManifestRow(where, name, cells["scene"], image_a, image_b, a_to_b)
    if not rows:
        raise DataError(f"{manifest} has no row with split {split!r}")
    return list(rows.values())


def read_pairs(folder: str | Path, split: str = "train") -> list[ImagePair]:
    """The image pairs of one split of a folder with a manifest, see :func:`read_manifest`.

    Raises:
        DataError: as :func:`read_manifest`, or images are missing, broken, not 8-bit, too small, or aligned by the
            identity without being of one size.
    """
    return [_read_pair(row) for row in read_manifest(folder, split)]


def hold_back(source: Source, fraction: float) -> tuple[PairSource, PairSource]:
    """The source without the pairs that it is validated on, and with these alone.

    Of each scene, one block of neighbouring pairs in the manifest's order is held back, because neighbours may be
    frames of one video or overlapping crops. Scenes of fewer than four pairs are trained on, unless there are no
    others.

    Raises:
        DataError: fewer than two pairs.
    """
    if len(source.pairs) < 2:
        raise DataError(
            f"{source.name}: training needs at least two image pairs, one of them for validation, "
            f"got {len(source.pairs)}"
        )
    scenes: dict[str, list[int]] = {}
    for k, pair in enumerate(source.pairs):
        scenes.setdefault(pair.scene, []).append(k)
    large = [rows for rows in scenes.values() if len(rows) >= 4] or [list(range(len(source.pairs)))]
    held_back: set[int] = set()
    for rows in large:
        count = max(2 if len(rows) >= 8 else 1, round(fraction * len(rows)))
        start = (len(rows) - count) // 2
        held_back.update(rows[start : start + count])
    kept, validation = (
        [pair for k, pair in enumerate(source.pairs) if (k in held_back) == wanted] for wanted in (False, True)
    )
    return PairSource(source.name, kept, source.weight), PairSource(source.name, validation, source.weight)


def _read_pair(row: ManifestRow) -> ImagePair:
    a = _read_image(row.image_a, cv2.IMREAD_COLOR, f"{row.where}: image_a")
    b = _read_image(row.image_b, cv2.IMREAD_GRAYSCALE, f"{row.where}: image_b")
    if np.array_equal(row.a_to_b, np.eye(2, 3)) and a.shape[:2] != b.shape[:2]:
        raise DataError(
            f"{row.where}: the images differ in size, {a.shape[:2]} and {b.shape[:2]}, yet the matrix is the identity"
        )
    return ImagePair(row.name, row.scene, a, b, row.a_to_b)


def _read_image(path: Path, flag: int, where: str) -> NDArray[np.uint8]:
    try:
        image = decode(path, flag | cv2.IMREAD_ANYDEPTH)
    except (ImageError, OSError) as error:
        raise DataError(f"{where} {error}") from error
    if image.dtype != np.uint8:
        raise DataError(f"{where} {path} is {image.dtype}, not 8-bit: map its range of values to 0..255")
    if min(image.shape[:2]) < 96:
        raise DataError(f"{where} {path} is {image.shape[1]} x {image.shape[0]}, too small to cut patches")
    return image


def footprint(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where a training image (H, W) or (H, W, 3) has data: (H, W) of 1, but 0 in a black border and 3 px beside it."""
    border = border_without_data(image.reshape(*image.shape[:2], -1).max(2), value=0).astype(np.uint8)
    return np.asarray(1 - cv2.dilate(border, np.ones((5, 5), np.uint8)), np.uint8)  # 1 px is in the border already


def find_locations(pair: ImagePair, patch_size: int, spacing: int = 12) -> NDArray[np.float32]:
    """Locations (N, 2), xy in image B, at corners of either band.

    FAST corners of both bands (Rosten and Drummond, ECCV 2006), strongest first, at most one in each cell of
    `spacing` pixels, and only where an upright patch lies inside both images and their footprints.
    """
    h, w = pair.image_b.shape
    a = cv2.warpAffine(cv2.cvtColor(pair.image_a, cv2.COLOR_RGB2GRAY), pair.a_to_b, (w, h))
    covered = cv2.warpAffine(footprint(pair.image_a), pair.a_to_b, (w, h), flags=cv2.INTER_NEAREST)
    covered = cv2.bitwise_and(covered, footprint(pair.image_b))
    covered = cv2.erode(covered, np.ones((patch_size + 3, patch_size + 3), np.uint8), borderValue=0)
    fast = cv2.FastFeatureDetector.create(threshold=7)
    cells: dict[tuple[int, int], tuple[float, float, float]] = {}
    for image in (a, pair.image_b):
        for keypoint in fast.detect(image):
            x, y = keypoint.pt
            if covered[round(y), round(x)]:
                cell = int(x) // spacing, int(y) // spacing
                cells[cell] = max(cells.get(cell, (0.0, 0.0, 0.0)), (keypoint.response, x, y))
    locations = sorted(cells.values(), reverse=True)
    return np.array([(x, y) for _, x, y in locations], np.float32).reshape(-1, 2)
