"""Registration of images: :func:`register` and what it returns."""

from rrl_match.registration.register import Registration, Search, register

__all__ = ["Registration", "Search", "register"]
