"""Files in, :func:`register`, files out: one pair, or a list of pairs that resumes."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]
from numpy.typing import NDArray

from rrl_match._version import __version__
from rrl_match.errors import RRLMatchError
from rrl_match.io.images import ImageFile, Resampling, read_image, read_mask, with_mask
from rrl_match.io.pairs import Pair, Table
from rrl_match.io.rasters import (
    RasterParts,
    View,
    by_georeference,
    common_crs,
    common_views,
    is_raster,
    read_raster,
    read_raster_mask,
)
from rrl_match.io.report import write_index
from rrl_match.io.results import RECORD, FileRegistration
from rrl_match.io.warping import WhichGrid
from rrl_match.matcher import RRLMatcher
from rrl_match.registration import Search, register
from rrl_match.transforms import MatrixTransform

TABLE = "registrations.csv"
_FATAL_ALONE = 1  # of OpenCV's levels of logging
Record: TypeAlias = dict[str, Any]

_logger = logging.getLogger(__name__)
_worker: tuple[RRLMatcher, Options, Path]  # of a process of :func:`register_list`


@dataclass(frozen=True)
class Options:
    """How pairs of files are registered; what is None keeps the default of :func:`register`.

    Attributes:
        weights, device: see :meth:`RRLMatcher.from_pretrained`.
        model: see :func:`register`.
        search: fields of :class:`Search`, in pixels of the files.
        value_range_a, value_range_b: values that become black and white.
        bands_a, bands_b: one or three bands to match by, counted from 1.
        whole: search beyond where the georeferences overlap.
        resampling: of the warped file; see :func:`~rrl_match.io.warping.warp_raster`.
        grid: of the warped file; see :func:`~rrl_match.io.warping.own_grid`.
    """

    weights: str = "universal"
    device: str = "auto"
    model: str = "affine"
    search: dict[str, Any] = field(default_factory=dict)
    value_range_a: tuple[float, float] | None = None
    value_range_b: tuple[float, float] | None = None
    bands_a: tuple[int, ...] | None = None
    bands_b: tuple[int, ...] | None = None
    whole: bool = False
    resampling: Resampling | None = None
    grid: WhichGrid = "b"

    def matcher(self) -> RRLMatcher:
        """The weights that they name."""
        return RRLMatcher.from_pretrained(self.weights, device=self.device)

    def settings(self, pair: Pair) -> Record:
        """What a result depends on besides its images, in terms of JSON."""
        given = {**asdict(self), "version": __version__, "mask_a": pair.mask_a, "mask_b": pair.mask_b}
        del given["device"]
        found: Record = json.loads(json.dumps(given, default=str))
        return found


def register_files(
    matcher: RRLMatcher, pair: Pair, options: Options, folder: Path | None = None, progress: bool = False
) -> Record:
    """Read, register and write a pair of files.

    Args:
        matcher: its modalities are those of A and B.
        pair: the files.
        options: how to read and register them.
        folder: where the results go; None writes none.
        progress: show a bar.

    Returns:
        the registration in terms of JSON, as written to ``registration.json``.

    Raises:
        OSError, RRLMatchError: a file cannot be read, used or written.
    """
    found = register_pair(matcher, pair, options, progress)
    record = {
        "image_a": str(pair.image_a),
        "image_b": str(pair.image_b),
        **found.describe(),
        "modalities": list(matcher.modalities),
        "settings": options.settings(pair),
    }
    if folder is not None:
        with quiet_opencv():
            found.write(folder, record, options.resampling, options.grid)
    return record


def register_pair(matcher: RRLMatcher, pair: Pair, options: Options, progress: bool = False) -> FileRegistration:
    """Read and register a pair of files.

    Args:
        matcher, pair, options, progress: see :func:`register_files`.

    Raises:
        OSError, RRLMatchError: a file cannot be read or used.
    """
    with quiet_opencv():
        a, b, initial, notes = read_pair(pair, options)
        given = arguments_of(options, a, b, initial)
        given |= {"mask_a": a.mask, "mask_b": b.mask, "progress": progress}
        finer = _finer(a, options.bands_a), _finer(b, options.bands_b)
        result = register(matcher, a.pixels, b.pixels, finer=finer, **given)
    return FileRegistration(replace(result, notes=(*result.notes, *notes)), a, b)


def arguments_of(options: Options, a: ImageFile, b: ImageFile, initial: MatrixTransform | None) -> dict[str, Any]:
    """What :func:`register` is told of a pair that was read, besides its images."""
    ranges = options.value_range_a, options.value_range_b
    given: dict[str, Any] = {"model": options.model, "value_range": None if ranges == (None, None) else ranges}
    if options.search:
        given["search"] = _search(options, a, b, initial is not None)
    return given if initial is None else given | {"initial": initial}


def register_list(pairs: Sequence[Pair], options: Options, folder: Path, jobs: int = 1) -> list[Record]:
    """Register pairs that have not been registered with these options yet, and write a table and a page of all.

    Args:
        pairs: the files.
        options: how to read and register them.
        folder: where the results go, a folder for each pair in it.
        jobs: processes that register, with one thread each; 1 is this process with all its threads.

    Returns:
        the records of all pairs; one that could not be registered has the key "error".

    Raises:
        WeightsError: the weights cannot be loaded.
        OSError, RRLMatchError: the table cannot be written.
    """
    finished = {pair.name: _finished(pair, options, folder) for pair in pairs}
    new = _registered([pair for pair in pairs if finished[pair.name] is None], options, folder, jobs)
    with closing(new):
        return write_list(pairs, (finished[pair.name] or next(new) for pair in pairs), folder)


def write_list(pairs: Sequence[Pair], records: Iterable[Record], folder: Path) -> list[Record]:
    """Write a table of all pairs, row by row, and then a page.

    Args:
        pairs: the files.
        records: of the pairs, in their order, as :func:`registered` gives them.
        folder: where the table and the page go; made if it does not exist.

    Returns:
        the records, with the names and files of their pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with (
        (folder / TABLE).open("w", encoding="utf-8", newline="") as file,
        tqdm(total=len(pairs), desc="registering", unit=" pairs", disable=None) as bar,
    ):
        table = Table(file)
        for pair, record in zip(pairs, records, strict=True):
            files = {"name": pair.name, "image_a": str(pair.image_a), "image_b": str(pair.image_b)}
            found.append({**record, **files})
            table.add(found[-1])
            bar.update()
    write_index(folder, found)
    return found


def _registered(pairs: Sequence[Pair], options: Options, folder: Path, jobs: int) -> Generator[Record, None, None]:
    """The records of pairs, in their order."""
    if not pairs:
        return
    matcher = options.matcher()  # raises here if there is none, not in each process
    if jobs == 1:
        for pair in pairs:
            yield registered(matcher, pair, options, folder)
        return
    del matcher
    while pairs:
        done = 0
        try:
            for record in _by_processes(pairs, options, folder, jobs):
                yield record
                done += 1
            return
        except BrokenProcessPool:  # at one of these, or of those after them
            pairs, suspects = pairs[done + jobs :], pairs[done : done + jobs]
        for pair in suspects:
            yield _alone(pair, options, folder)


def _by_processes(pairs: Sequence[Pair], options: Options, folder: Path, jobs: int) -> Generator[Record, None, None]:
    """The records of pairs, by processes.

    Raises:
        BrokenProcessPool: a process ended.
    """
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (options, folder))
    try:
        with _ignoring_interruption():
            records = pool.map(_in_worker, pairs)
        yield from records
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(pair: Pair, options: Options, folder: Path) -> Record:
    """The record of a pair that may end the process that registers it."""
    try:
        return next(_by_processes([pair], options, folder, 1))
    except BrokenProcessPool:
        return {"error": "the process that registered it ended, perhaps for want of memory: try fewer --jobs"}


@contextmanager
def _ignoring_interruption() -> Iterator[None]:
    """Processes that are started ignore Ctrl-C from the start: the first process is interrupted, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_worker(options: Options, folder: Path) -> None:
    """Prepare a process of :func:`_registered`."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is interrupted, and ends the others
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker = options.matcher(), options, folder


def _in_worker(pair: Pair) -> Record:
    matcher, options, folder = _worker
    return registered(matcher, pair, options, folder)


def registered(matcher: RRLMatcher, pair: Pair, options: Options, folder: Path) -> Record:
    """The record of a pair of a list, from an earlier run with the same options or a new one.

    Args:
        matcher, pair, options: see :func:`register_files`.
        folder: of the list; the results go into a folder of the pair's name in it.

    Returns:
        the record; with nothing but the key "error" if there was one, whatever it was: the other pairs must go on.
    """
    try:
        return _finished(pair, options, folder) or register_files(matcher, pair, options, folder / pair.name)
    except (RRLMatchError, OSError) as error:
        return {"error": str(error)}
    except Exception as error:
        _logger.exception("%s: a bug in rrl-match, please report it", pair.name)
        return {"error": f"{type(error).__name__}: {error}"}


def _finished(pair: Pair, options: Options, folder: Path) -> Record | None:
    """The record of a pair that was registered with the same options after its files last changed, if there is one."""
    path = folder / pair.name / RECORD
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        same = [record["image_a"], record["image_b"]] == [str(pair.image_a), str(pair.image_b)]
        newer = all(file.stat().st_mtime <= path.stat().st_mtime for file in pair.files)
        return record if same and newer and record["settings"] == options.settings(pair) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_pair(pair: Pair, options: Options) -> tuple[ImageFile, ImageFile, Any, list[str]]:
    """Both images, where their georeferences put A in B, and notes on how they were read."""
    views: tuple[View, View] | None = None
    crs = ""
    if not options.whole and is_raster(pair.image_a) and is_raster(pair.image_b):
        crs = common_crs(pair.image_a, pair.image_b)
        views = common_views(pair.image_a, pair.image_b, crs)
    if views is None:
        a, b = _read(pair.image_a, pair.mask_a, options.bands_a), _read(pair.image_b, pair.mask_b, options.bands_b)
        note = "the georeferences do not overlap enough or cannot be compared: both rasters were searched whole"
        return a, b, None, [note] if not options.whole and a.georeference and b.georeference else []
    a = _read(pair.image_a, pair.mask_a, options.bands_a, views[0], crs)
    b = _read(pair.image_b, pair.mask_b, options.bands_b, views[1])
    note = f"{pair.image_a} was read on the reference system of {pair.image_b}; no matrix leads from file to file"
    return a, b, by_georeference(a, b), [note] if crs else []


def _search(options: Options, a: ImageFile, b: ImageFile, from_initial: bool) -> Search:
    """In pixels as they were read, which are larger than those of the files where these were reduced."""
    given = dict(options.search)
    if "shift" in given:
        given["shift"] /= b.reduction
    if "scale" in given and not from_initial:  # otherwise it counts from the georeferences
        low, high = given["scale"]
        given["scale"] = low * a.reduction / b.reduction, high * a.reduction / b.reduction
    return Search(**given)


def _finer(image: ImageFile, bands: tuple[int, ...] | None) -> RasterParts | None:
    """What reads a raster that was reduced at its full resolution."""
    return RasterParts(image, image.on, bands) if image.on is not None and image.reduction > 1 else None


def _read(
    path: Path, mask: Path | None, bands: tuple[int, ...] | None, view: View | None = None, crs: str = ""
) -> ImageFile:
    image = read_raster(path, bands, view, crs) if is_raster(path) else read_image(path, bands)
    if mask is None:
        return image
    shown: NDArray[np.bool_] = read_raster_mask(mask) if is_raster(mask) else read_mask(mask)
    return with_mask(image, shown, mask)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Without OpenCV's own messages about files, which exceptions report in other words."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4, and of 5
    level = set_level(_FATAL_ALONE)
    try:
        yield
    finally:
        set_level(level)
