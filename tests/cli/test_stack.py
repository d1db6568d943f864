"""``rrl-match stack``: what it passes on, prints and says."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rrl_match import RRLMatcher
from rrl_match.cli.main import main

FILES = ("blue.tif", "red.tif", "nir.tif")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """What `stack_files` is called with; the transforms that it finds are the list `transforms`."""

    def stack_files(matcher, paths, reference, options, out):
        calls.append(SimpleNamespace(paths=paths, reference=reference, options=options, out=out))
        files = zip(paths, calls.transforms, strict=True)
        return {"out": str(out), "files": [{"file": str(path), "transform": found} for path, found in files]}

    class Calls(list):
        """With attributes."""

    calls = Calls()
    calls.transforms = [{"kind": "affine"}] * 3
    monkeypatch.setattr("rrl_match.io.stack.stack_files", stack_files)
    monkeypatch.setattr(RRLMatcher, "from_pretrained", lambda *_, **__: SimpleNamespace())
    return calls


def run(*arguments):
    return main(["stack", *map(str, arguments)])


def test_options_reach_stack_files(calls, capsys):
    assert run(*FILES, "--reference", 2, "--out", "stack.tif", "--model", "homography", "--max-shift", 40) == 0
    (call,) = calls
    assert call.paths == [Path(file) for file in FILES]
    assert (call.reference, call.out) == (1, Path("stack.tif"))
    assert (call.options.model, call.options.search, call.options.weights) == ("homography", {"shift": 40}, "universal")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["out"] == "stack.tif"
    assert printed.err == ""


def test_what_is_left_out_is_told(calls, capsys):
    calls.transforms[2] = None
    assert run(*FILES, "--out", "stack.tif") == 1
    assert capsys.readouterr().err == "left out: nir.tif could not be registered to the others\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blue.tif", "--out", "stack.tif"], "name two files or more"),
        ([*FILES, "--out", "stack.png"], "--out must be a file whose name ends with .tif, got stack.png"),
        ([*FILES, "--out", "stack.tif", "--reference", 4], "--reference must be from 1 to 3, the number of files"),
        ([*FILES, "--out", "stack.tif", "--reference", 0], "must be at least 1"),
    ],
)
def test_mistakes_are_told(arguments, message, calls, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert calls == []
