"""Scores of cross-spectral image patches with RRL-Net: do these two show the same place?

>>> import numpy as np
>>> from rrl_match import RRLMatcher
>>> matcher = RRLMatcher.from_pretrained()
>>> patches = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
>>> matcher.score(patches, patches).shape
(3,)
"""

from rrl_match._version import __version__
from rrl_match.errors import DataError, RRLMatchError, WeightsError, WeightsNotFoundError
from rrl_match.matcher import Codes, RRLMatcher
from rrl_match.matching import Matches
from rrl_match.patches import extract_patches, percentile_range
from rrl_match.pretrained import ModelConfig
from rrl_match.registration import Registration, register

__all__ = [
    "Codes",
    "DataError",
    "Matches",
    "ModelConfig",
    "RRLMatchError",
    "RRLMatcher",
    "Registration",
    "WeightsError",
    "WeightsNotFoundError",
    "__version__",
    "extract_patches",
    "percentile_range",
    "register",
]
