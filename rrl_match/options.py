"""Keywords that several methods of :class:`RRLMatcher` share; their signatures and docstrings have the defaults."""

from __future__ import annotations

import os

from typing_extensions import TypedDict

from rrl_match.matching import IndexPairs, Near
from rrl_match.patches import ValueRanges


class BatchOptions(TypedDict, total=False):
    """Keywords of all methods that compute, see :meth:`RRLMatcher.score`."""

    batch_size: int | None
    progress: bool


class PatchOptions(BatchOptions, total=False):
    """Keywords of the methods that take patches of both bands, see :meth:`RRLMatcher.score`."""

    value_range: ValueRanges | None


class MatchOptions(PatchOptions, total=False):
    """Keywords of :meth:`RRLMatcher.match`."""

    candidates: int | None
    mutual: bool
    threshold: float | None
    near: Near | None
    index_pairs: IndexPairs | None


class DownloadOptions(TypedDict, total=False):
    """Keywords of ``huggingface_hub.hf_hub_download``, for weights from the Hub."""

    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    force_download: bool
    local_files_only: bool


class UploadOptions(TypedDict, total=False):
    """Keywords of :meth:`RRLMatcher.push_to_hub`."""

    revision: str | None
    token: str | bool | None
    private: bool | None
    commit_message: str
