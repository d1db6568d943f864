"""The types that a user's type checker sees."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rrl_match
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
from rrl_match.export import export_onnx, export_torch
from rrl_match.selftest import run_checks, versions

ROOT = Path(__file__).resolve().parents[1]
USER = ROOT / "tests" / "helpers" / "typed_user.py"


@pytest.mark.slow
def test_a_users_file_is_typed():
    """Its assert_type fails for Any, and for an array instead of a tensor."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), str(USER)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_file_uses_everything_public():
    """Every public name, and every method, property and field of the public classes."""
    nodes = list(ast.walk(ast.parse(USER.read_text(encoding="utf-8"))))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    members = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert set(rrl_match.__all__) <= names
    for name in rrl_match.__all__:
        thing = getattr(rrl_match, name)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            fields = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
            assert fields | {method.partition(".")[2] for method in public(thing)} <= members, name


def public(thing):
    """A public function, or the methods and properties of a public class."""
    if not inspect.isclass(thing):
        return {thing.__name__: thing}
    members = {k: getattr(v, "__func__", getattr(v, "fget", v)) for k, v in vars(thing).items()}
    return {f"{thing.__name__}.{k}": v for k, v in members.items() if k[0] != "_" and inspect.isfunction(v)}


CLASSES = [RRLMatcher, Features, Matches, Near, Registration]
FUNCTIONS = [extract_patches, percentile_range, register, export_onnx, export_torch, run_checks, versions]


@pytest.mark.parametrize("thing", [*CLASSES, *FUNCTIONS])
def test_no_any_in_a_public_signature(thing):
    for name, function in public(thing).items():
        for parameter in list(inspect.signature(function).parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)
                assert "Any" not in parameter.annotation, (name, parameter.name)
        assert "Any" not in inspect.signature(function).return_annotation, name
