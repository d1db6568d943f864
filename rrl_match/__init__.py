"""Match patches of images from different sensors with RRL-Net: do two patches show the same location?

>>> import numpy as np
>>> from rrl_match import RRLMatcher
>>> matcher = RRLMatcher.from_pretrained()
>>> patches = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
>>> matcher.score(patches, patches).shape
(3,)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rrl_match._version import __version__

if TYPE_CHECKING:
    from rrl_match.errors import (
        DataError,
        ExportError,
        ImageError,
        MissingExtraError,
        RRLMatchError,
        ScoringError,
        WeightsError,
        WeightsNotFoundError,
    )
    from rrl_match.extraction import extract_patches
    from rrl_match.features import Features
    from rrl_match.matcher import RRLMatcher
    from rrl_match.matching import Matches, Near
    from rrl_match.patches import percentile_range
    from rrl_match.registration import Registration, Search, register
    from rrl_match.transforms import Transform

__all__ = [
    "DataError",
    "ExportError",
    "Features",
    "ImageError",
    "Matches",
    "MissingExtraError",
    "Near",
    "RRLMatchError",
    "RRLMatcher",
    "Registration",
    "ScoringError",
    "Search",
    "Transform",
    "WeightsError",
    "WeightsNotFoundError",
    "__version__",
    "extract_patches",
    "percentile_range",
    "register",
]

# Imported on first use, so that `rrl-match --version` and `--help` do not wait for PyTorch.
_NAMES_OF = {
    "errors": (
        "DataError",
        "ExportError",
        "ImageError",
        "MissingExtraError",
        "RRLMatchError",
        "ScoringError",
        "WeightsError",
        "WeightsNotFoundError",
    ),
    "extraction": ("extract_patches",),
    "features": ("Features",),
    "matcher": ("RRLMatcher",),
    "matching": ("Matches", "Near"),
    "patches": ("percentile_range",),
    "registration": ("Registration", "Search", "register"),
    "transforms": ("Transform",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
