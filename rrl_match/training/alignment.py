"""Registration of training pairs that are misaligned by a few pixels, by the edges that both bands show."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrl_match.registration.config import BlockConfig, Config
from rrl_match.registration.images import Frame, prepare
from rrl_match.registration.refinement import Freedom, refine
from rrl_match.training.datasets import ImagePair, PairSource, Source, footprint
from rrl_match.transforms import Affine, Similarity, as_matrix

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float64]  # (2, 3), as ImagePair.a_to_b
Known = dict[str, Any]  # by source and pair, the matrix as lists, or None for a pair to drop

_CONFIG = Config(blocks=BlockConfig(bound=2.0))  # pixels that edges may be off
_FREEDOM = Freedom(Similarity, Similarity(np.eye(3)), simplify=False)
_AGREE = 0.3  # fraction of the blocks that must agree on one transform
_SMALLEST_MOVE = 1.0  # pixels, the median over the locations: less is within the error of the edges
_LARGEST_MOVE = 12.0  # pixels: a pair that is farther off is dropped


def align(sources: Sequence[Source], cache: Path | None = None) -> list[PairSource]:
    """Register the image pairs of sources by their edges.

    A pair stays as it is if its edges do not agree on a transform, or if they are off by less than their own error. It
    is dropped if they are off by more than a training run should trust.

    Args:
        sources: of image pairs.
        cache: JSON file that keeps the matrices, because a run that resumes needs them again.
    """
    known: Known = {}
    if cache and cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    aligned = [_aligned(source, known) for source in sources]
    if cache:
        partial = cache.with_name(f"{cache.name}.{os.getpid()}")  # several processes may write at once
        partial.write_text(json.dumps(known) + "\n", encoding="utf-8")
        os.replace(partial, cache)
    return aligned


def _aligned(source: Source, known: Known) -> PairSource:
    """One source; what is found is added to `known`."""
    kept, moved = [], 0
    for pair in source.pairs:
        key = f"{source.name}/{pair.name}"
        if key not in known:
            matrix, distance = edge_move(pair)
            if distance <= _SMALLEST_MOVE:
                matrix = pair.a_to_b
            known[key] = matrix.tolist() if distance <= _LARGEST_MOVE else None
        if known[key] is not None:
            aligned = np.array(known[key])
            moved += not np.array_equal(aligned, pair.a_to_b)
            kept.append(dataclasses.replace(pair, a_to_b=aligned))
    dropped = len(source.pairs) - len(kept)
    logger.info("%s: of %d pairs, %d moved, %d dropped", source.name, len(source.pairs), moved, dropped)
    return PairSource(source.name, kept, source.weight)


def edge_move(pair: ImagePair) -> tuple[Matrix, float]:
    """The ``a_to_b`` (2, 3) under which the edges of both bands coincide, and how far it moves image A.

    Returns:
        the matrix, and the median distance in pixels of B; the pair's own matrix and 0.0 if too few edges agree.
    """
    frame = Frame(
        prepare(pair.image_a, footprint(pair.image_a), None, "a"),
        prepare(pair.image_b, footprint(pair.image_b), None, "b"),
    )
    before = Affine(pair.a_to_b)
    refined = refine([frame], before, _FREEDOM, _CONFIG)
    if refined is None:
        return pair.a_to_b, 0.0
    blocks, after = refined.blocks, as_matrix(refined.transform)
    if blocks.agreeing(after, _CONFIG.blocks.bound).mean() < _AGREE:
        return pair.a_to_b, 0.0
    move = np.linalg.norm(after(blocks.points) - before(blocks.points), axis=1)
    return after.matrix, float(np.median(move))
