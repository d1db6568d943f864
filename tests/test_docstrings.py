"""The examples in docstrings run as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import rrl_match
from rrl_match import Matches, Near, RRLMatcher, extract_patches

MODULES = [
    "rrl_match",
    *(m.name for m in pkgutil.walk_packages(rrl_match.__path__, "rrl_match.") if not m.name.endswith("__main__")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:  # an extra is not installed
        pytest.skip(str(error))
    examples = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    if not examples:
        return
    matcher = RRLMatcher.from_pretrained(device="cpu", dtype="float32")  # used by the examples of its methods
    for test in examples:
        test.globs["matcher"] = matcher
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


@pytest.mark.parametrize(
    "what", [rrl_match, RRLMatcher.score, RRLMatcher.score_features, RRLMatcher.match, Matches, Near, extract_patches]
)
def test_main_functions_have_an_example(what):
    assert ">>> " in what.__doc__
