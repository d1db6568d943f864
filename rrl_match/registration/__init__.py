"""Registration of two images: dense search proposes, RRL-Net judges, block matching refines, evidence decides."""

from rrl_match.registration.config import Config, Search
from rrl_match.registration.error import ErrorMap
from rrl_match.registration.pipeline import register
from rrl_match.registration.result import Registration, Thumbnails, TiePoints

__all__ = ["Config", "ErrorMap", "Registration", "Search", "Thumbnails", "TiePoints", "register"]
