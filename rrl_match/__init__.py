"""Match patches of images from different sensors with RRL-Net: do two patches show the same location?

>>> import numpy as np
>>> from rrl_match import RRLMatcher
>>> matcher = RRLMatcher.from_pretrained()
>>> patches = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
>>> matcher.score(patches, patches).shape
(3,)
"""

from rrl_match._version import __version__
from rrl_match.errors import DataError, ExportError, RRLMatchError, ScoringError, WeightsError, WeightsNotFoundError
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
    "Matches",
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
