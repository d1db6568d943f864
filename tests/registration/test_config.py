"""Mistakes in what bounds a search, and in numbers of the method, are named."""

import dataclasses

import pytest

from rrl_match import Search
from rrl_match.registration import Config


@pytest.mark.parametrize(
    "bounds",
    [
        *({"rotation": -1}, {"rotation": 181}, {"rotation": True}),
        *({"scale": (2, 1)}, {"scale": (0, 1)}, {"scale": 1.2}, {"scale": (1, float("inf"))}),
        *({"aspect": 0.9}, {"aspect": 2.1}, {"shift": -1}, {"shift": float("nan")}),
    ],
)
def test_search_that_holds_nothing(bounds):
    with pytest.raises(ValueError, match=f"{next(iter(bounds))} must be"):
        Search(**bounds)


def test_numbers_of_the_method_are_positive():
    for step in dataclasses.fields(Config):
        defaults = getattr(Config(), step.name)
        name = next(f.name for f in dataclasses.fields(defaults) if isinstance(getattr(defaults, f.name), (int, float)))
        with pytest.raises(ValueError, match=f"{name} must not be negative"):
            dataclasses.replace(defaults, **{name: -1})
