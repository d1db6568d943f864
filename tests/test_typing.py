"""The types that a user's type checker sees."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from rrl_match import (
    Features,
    Matches,
    Near,
    Registration,
    RRLMatcher,
    extract_patches,
    percentile_range,
    register,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_users_file_is_typed():
    """Its assert_type fails for Any, and for an array in place of a tensor."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "tests/helpers/typed_user.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def public(thing):
    """A public function, or the methods and properties of a public class."""
    if not inspect.isclass(thing):
        return {thing.__name__: thing}
    members = {k: getattr(v, "__func__", getattr(v, "fget", v)) for k, v in vars(thing).items()}
    return {f"{thing.__name__}.{k}": v for k, v in members.items() if k[0] != "_" and inspect.isfunction(v)}


@pytest.mark.parametrize(
    "thing", [RRLMatcher, Features, Matches, Near, Registration, extract_patches, percentile_range, register]
)
def test_no_any_in_a_public_signature(thing):
    for name, function in public(thing).items():
        for parameter in list(inspect.signature(function).parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)
                assert "Any" not in parameter.annotation, (name, parameter.name)
        assert "Any" not in inspect.signature(function).return_annotation, name
