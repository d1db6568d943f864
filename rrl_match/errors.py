"""The exceptions of rrl-match. Mistakes in arguments are plain `TypeError` and `ValueError`."""

from __future__ import annotations


class RRLMatchError(Exception):
    """Base of everything that rrl-match raises on its own account."""


class WeightsError(RRLMatchError, ValueError):
    """A weights folder that cannot be used: cut off, changed, incomplete or of another network."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """No weights under this name, in this folder or in this Hub repo, or none that can be reached."""


class DataError(RRLMatchError, ValueError):
    """Training or benchmark data that cannot be used; names the file, and the row where there is one."""


class ExportError(RRLMatchError, ValueError):
    """A file for another runtime that does not compute what PyTorch does; it was not kept."""
