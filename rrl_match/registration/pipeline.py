"""From two images to the transform between them, or a refusal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import numpy as np
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from rrl_match.errors import ScoringError
from rrl_match.matcher import RRLMatcher
from rrl_match.patches import ValueRanges
from rrl_match.registration.advice import advise, one_grey
from rrl_match.registration.block_matching import Blocks, align
from rrl_match.registration.candidates import Candidates
from rrl_match.registration.config import Config, Search
from rrl_match.registration.dense_blocks import tie_points
from rrl_match.registration.dense_search import Region, propose, stages
from rrl_match.registration.images import Frame, Images, prepare_frames
from rrl_match.registration.local import bent
from rrl_match.registration.overlay import overlap_of
from rrl_match.registration.refinement import Freedom, Refined, fit
from rrl_match.registration.result import Registration, Thumbnails, TiePoints
from rrl_match.registration.task import Task
from rrl_match.registration.tiles import Reader, Source, refine_on_tiles
from rrl_match.registration.verification import Evidence, Verdict
from rrl_match.transforms import (
    Affine,
    DisplacementField,
    MatrixTransform,
    Transform,
    Translation,
    as_matrix,
    matrix_kind,
)

SMALLEST = 32  # pixels, of either side of an image


def register(
    matcher: RRLMatcher,
    image_a: Images,
    image_b: Images,
    model: str = "affine",
    *,
    mask_a: Images | None = None,
    mask_b: Images | None = None,
    value_range: ValueRanges | None = None,
    search: Search = Search(),  # noqa: B008
    initial: Transform | None = None,
    simplify: bool = True,
    reference: Literal["a", "b"] = "b",
    progress: bool = False,
    finer: tuple[Source | None, Source | None] = (None, None),
    config: Config = Config(),  # noqa: B008
) -> Registration:
    """Estimate the transform that takes image A to image B.

    Dense search proposes hypotheses: orientation channels are correlated over shift, rotation, scale and stretch.
    RRL-Net judges them. Block matching refines the best ones, on ever finer levels, by what all blocks together say.
    The result is verified by how many locations RRL-Net's descriptors tell from all others, and by how far its edges
    agree better than those of other transforms.

    Lists of images are frames of a rig, two cameras that do not move against each other: one transform is estimated
    from all frames.

    Args:
        matcher: its modalities are those of A and B.
        image_a, image_b: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); uint8, uint16 or floating point; at least
            32 pixels wide and high. Other than uint8, they are mapped from their :func:`percentile_range` if no
            `value_range` is given. NaN and transparent pixels show nothing. Or lists of as many such images, all
            images of a band of one size.
        model: "translation", where scale and rotation are known, "similarity", "affine", "homography" or "local": an
            affine transform and, where parts of the images that were held out confirm it, a smooth displacement on top
            of it, for relief, lenses and scanners.
        mask_a, mask_b: (H, W), zero where an image shows nothing, as outside its footprint or under clouds; one for all
            frames, or a list. If not given, borders of one value with a straight outline count as showing nothing.
        value_range: as in :meth:`RRLMatcher.score`.
        search: how far to look.
        initial: a transform that is known beforehand, such as that of the last frame of a video: the search starts
            there, and `search` counts from there.
        simplify: whether a simpler model may be taken where it explains the images as well, since freedom that is not
            needed costs accuracy at the corners.
        reference: the image that stays. Which of both is moved is free: "a" gives :meth:`Registration.inverse`, which
            takes B to A, so that image B is warped onto A. Other arguments are from A to B all the same.
        progress: show a bar of the steps done; how many there will be depends on the images.
        finer: where images were reduced, what reads parts of A and B at full resolution, on which the transform is
            refined at last; for single images.
        config: numbers of the method.

    Returns:
        The transform, or why there is none to trust. Mistakes in the arguments apart, this never raises.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    kind, bends = _checked(model, search, initial)
    if reference not in ("a", "b"):
        raise ValueError(f'reference must be "a" or "b", the image that stays, got {reference!r}')
    frames = prepare_frames((image_a, image_b), (mask_a, mask_b), value_range)
    for refusal in (_too_small(frames), one_grey(frames)):
        if refusal is not None:
            return refusal
    search = _possible(search, kind)
    base = initial if isinstance(initial, MatrixTransform) else Translation(np.eye(3))
    region = Region(base, initial is not None, math.inf if search.shift is None else search.shift)
    with tqdm(desc="registering", unit=" steps") if progress else nullcontext() as bar:
        step = bar.update if bar is not None else _nothing
        task = Task(matcher, frames, Freedom(kind, base, simplify, search.aspect), region, bends, config, step)
        try:
            found = _at_full_resolution(_with_second_tries(task, search), task, finer)
            return found if reference == "b" else found.inverse()
        except ScoringError as error:
            return Registration(reason=f"the patches could not be scored: {error}")


def _too_small(frames: Sequence[Frame]) -> Registration | None:
    """A refusal if an image has too few pixels."""
    smallest = min(*frames[0].a.shape, *frames[0].b.shape)
    if smallest >= SMALLEST:
        return None
    return Registration(reason=f"an image is {smallest} pixels wide or high, less than {SMALLEST}")


def _possible(search: Search, kind: type[MatrixTransform]) -> Search:
    """The part of a search that a kind of transform can reach."""
    if not kind.rotates:
        search = dataclasses.replace(search, rotation=0.0, scale=(1.0, 1.0), mirrored=False)
    return search if kind.stretches else dataclasses.replace(search, aspect=1.0)


def _nothing() -> None:
    """No progress bar."""


def _at_full_resolution(found: Registration, task: Task, finer: tuple[Source | None, Source | None]) -> Registration:
    """An accepted registration, refined where its images have more pixels than were looked at."""
    overlap = None if found.transform is None else overlap_of(task.frames[0], found.transform)
    if overlap is None:
        return found
    readers = [(Reader(a, finer[0]), Reader(b, finer[1])) for a, b in task.frames]

    def fitted(blocks: Blocks, around: Transform, config: Config) -> tuple[Transform, str] | None:
        if isinstance(around, DisplacementField):  # blocks of a coarser level have confirmed it
            field = bent(blocks, around.base, overlap, 0.0, config)
            return None if field is None else (field, field.kind)
        plain = fit(blocks, as_matrix(around), task.freedom, config)
        if plain is None:
            return None
        field = bent(blocks, plain[0], overlap, config.local.certain[1], config) if task.bends else None
        return (plain[0], plain[1].kind) if field is None else (field, field.kind)

    return refine_on_tiles(found, readers, overlap, fitted, task.config)


def _with_second_tries(task: Task, search: Search) -> Registration:
    """The registration; if it is refused, also with borders that were only guessed, and with advice."""
    found, notes = searched(task, search), _notes(task.frames)
    if not found and notes:
        whole = [Frame(a.without_guess(), b.without_guess()) for a, b in task.frames]
        again = searched(dataclasses.replace(task, frames=whole), search, near=True)
        found, notes = (again, ()) if again else (found, notes)
    advice = "" if found else advise(found, task, search, searched)
    return dataclasses.replace(found, notes=notes, advice=advice, thumbnails=_thumbnails(task.frames[0]))


def _thumbnails(frame: Frame) -> Thumbnails:
    sizes = [(image.shape[1], image.shape[0]) for image in frame]
    return Thumbnails(frame.a.thumbnail(), frame.b.thumbnail(), *sizes)


def _notes(frames: Sequence[Frame]) -> tuple[str, ...]:
    """What was assumed about the images."""
    notes = []
    for band in ("a", "b"):
        guessed = [image.guessed.mean() for image in (getattr(f, band) for f in frames) if image.guessed is not None]
        if guessed:
            notes.append(f"image_{band}: a border of one value, {max(guessed):.0%} of it, counts as having no data")
    return tuple(notes)


def _checked(model: str, search: Search, initial: Transform | None) -> tuple[type[MatrixTransform], bool]:
    """The kind of global transform that is asked for, and whether a displacement field may be put on top of it."""
    if not isinstance(model, str) or model not in Transform.kinds:
        raise ValueError(f"model must be one of {', '.join(Transform.kinds)}, got {model!r}")
    if not isinstance(search, Search):
        raise TypeError(f"search must be a Search(rotation=..., scale=(low, high), ...), got {search!r}")
    if initial is not None and not isinstance(initial, MatrixTransform):
        raise TypeError(f"initial must be a Transform that a matrix describes, such as Affine(matrix), got {initial!r}")
    bends = not issubclass(Transform.kinds[model], MatrixTransform)
    return (Affine if bends else matrix_kind(model)), bends


def searched(task: Task, search: Search, near: bool = False) -> Registration:
    """The registration by the best candidate of all."""
    found = explored(task, search, near).best()
    if found is None:
        return Registration(reason="no transform was found under which the images agree")
    return _with_tie_points(_registration(*found), found[0].refined, task)


def explored(task: Task, search: Search, near: bool = False) -> Candidates:
    """Look at what is near first and, if it is not to end there, farther away if what is found is not beyond doubt."""
    candidates, config = Candidates(task), task.config
    grids = [grid for grid in stages(task.frames[0], search, task.region, config.search) if grid][: 1 if near else None]
    for number, grid in enumerate(grids):
        most = config.search.proposals if number else config.search.near_proposals
        hypotheses = propose(task.frames, grid, most, task.region, config)
        task.step()
        aligned = align(task.frames, hypotheses, task.freedom.kind.coarse(), config)
        task.step()
        for one in candidates.promising(aligned, last=number == len(grids) - 1):
            if one in candidates.waiting:
                candidates.refine(one)
            found = candidates.best()
            if found is not None and not found[1].reason and found[1].log_odds >= config.verify.certain:
                return candidates
    return candidates


def _with_tie_points(found: Registration, refined: Refined, task: Task) -> Registration:
    """An accepted registration with tie points up to the border of the overlap, beside those that were judged."""
    judged = found.tie_points
    if found.transform is None or len(judged) >= task.config.local.tie_points**2:
        return found
    more = tie_points(task.frames, found.transform, refined.overlap, refined.blocks.pixel, task.config)
    return dataclasses.replace(found, tie_points=judged.joined(more, apart=4 * refined.blocks.pixel))


def _registration(evidence: Evidence, verdict: Verdict) -> Registration:
    """What is said of the best candidate."""
    refined, blocks = evidence.refined, evidence.refined.blocks
    scores = np.full(len(blocks.points), np.nan, np.float32)
    scores[evidence.judgement.rows] = evidence.judgement.scores
    found, transform = blocks.found, refined.transform
    residuals = np.linalg.norm(transform(blocks.points) - blocks.matched, axis=1)
    points = TiePoints(
        blocks.points[found], blocks.matched[found], scores[found], residuals[found], evidence.agreeing[found]
    )
    ok = not verdict.reason
    return Registration(
        transform=transform if ok else None,
        rejected=None if ok else transform,
        model=refined.kind.kind,
        reason=verdict.reason,
        probability=1 / (1 + math.exp(-min(max(verdict.log_odds, -30.0), 30.0))),
        overlap=refined.overlap.of_a,
        agreement=float(evidence.agreeing.mean()) if len(evidence.agreeing) else 0.0,
        tie_points=points,
        errors=evidence.error,
    )
