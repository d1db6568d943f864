"""Exceptions of rrl-match. Wrong arguments raise plain `TypeError` and `ValueError`."""

from __future__ import annotations


class RRLMatchError(Exception):
    """Base class of the exceptions of rrl-match."""


class WeightsError(RRLMatchError, ValueError):
    """The files of a weights folder are truncated, changed, incomplete or of another network."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """There are no weights of this name, in this folder or in this Hub repo, or the Hub cannot be reached."""


class DataError(RRLMatchError, ValueError):
    """A list of pairs, a manifest, a recipe or a benchmark cannot be used; the message names the file and the row."""


class ImageError(RRLMatchError, ValueError):
    """An image file cannot be read or used; the message names it."""


class MissingExtraError(RRLMatchError, ImportError):
    """A package is missing that comes with an extra; the message is the command that installs it."""


class ScoringError(RRLMatchError, ValueError):
    """The network gave no scores, as where float16 overflows."""


class ExportError(RRLMatchError, ValueError):
    """An exported file does not compute the same as PyTorch; it was deleted."""
