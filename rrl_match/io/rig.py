"""Two fixed cameras: one transform from frames that both took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rrl_match.errors import ImageError
from rrl_match.io.batch import Options, Record, arguments_of, quiet_opencv, read_pair
from rrl_match.io.images import ImageFile
from rrl_match.io.pairs import Pair
from rrl_match.io.results import FileRegistration
from rrl_match.matcher import RRLMatcher
from rrl_match.registration import register

FRAMES = 12  # that are registered at most


def register_rig(
    matcher: RRLMatcher, pairs: Sequence[Pair], options: Options, folder: Path | None = None, progress: bool = False
) -> Record:
    """Register the frames of two cameras that do not move against each other.

    Args:
        matcher: its modalities are those of A and B.
        pairs: the frames, at most :data:`FRAMES` of which are used, evenly spread over the list.
        options: how to read and register them.
        folder: where the results go, as of one pair, with the warped image of the middle frame; None writes none.
        progress: show a bar.

    Returns:
        the registration as from :func:`~rrl_match.io.batch.register_files`, and the `frames` that were used.

    Raises:
        OSError, RRLMatchError: a file cannot be read, used or written, or the images of a camera differ in size.
    """
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(FRAMES, len(pairs))).round().astype(int))
    used, options = [pairs[row] for row in rows], replace(options, whole=True)
    with quiet_opencv():
        read = [read_pair(pair, options)[:2] for pair in used]
        bands = [[frame[band] for frame in read] for band in (0, 1)]
        for images in bands:
            _check_sizes(images)
        result = register(
            matcher,
            [image.pixels for image in bands[0]],
            [image.pixels for image in bands[1]],
            mask_a=_masks(bands[0]),
            mask_b=_masks(bands[1]),
            progress=progress,
            **arguments_of(options, bands[0][0], bands[1][0], None),
        )
        middle = len(used) // 2
        found = FileRegistration(result, *read[middle])
        record = {
            "image_a": str(used[middle].image_a),
            "image_b": str(used[middle].image_b),
            **found.describe(),
            "frames": [[str(pair.image_a), str(pair.image_b)] for pair in used],
            "modalities": list(matcher.modalities),
            "settings": options.settings(used[middle]),
        }
        if folder is not None:
            found.write(folder, record, options.resampling, options.grid)
    return record


def _check_sizes(images: Sequence[ImageFile]) -> None:
    first = images[0]
    for image in images:
        if image.pixels.shape[:2] != first.pixels.shape[:2]:
            sizes = [" x ".join(map(str, one.size)) for one in (image, first)]
            raise ImageError(f"{image.path} is {sizes[0]} pixels, but {first.path} of the same camera is {sizes[1]}")


def _masks(images: Sequence[ImageFile]) -> list[NDArray[np.bool_]] | None:
    """Those of all images, if any has one."""
    if all(image.mask is None for image in images):
        return None
    return [np.ones(image.pixels.shape[:2], bool) if image.mask is None else image.mask for image in images]
