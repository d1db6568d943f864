"""Registration of two images: dense search proposes, RRL-Net judges, block matching refines."""

from rrl_match.registration.register import register
from rrl_match.registration.result import Registration, TiePoints
from rrl_match.registration.settings import Search, Settings

__all__ = ["Registration", "Search", "Settings", "TiePoints", "register"]
