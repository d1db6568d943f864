"""The command line, except for what its commands do."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from rrl_match import __main__, __version__
from rrl_match.__main__ import main


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: rrl-match")
    for command in ("train", "evaluate", "convert", "selftest", "export"):
        assert f"\n    {command} " in output


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"rrl-match {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["export"]])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: rrl-match" in capsys.readouterr().err


def test_a_command_returns_its_exit_code(monkeypatch):
    def add_command(subparsers):
        subparsers.add_parser("fail").set_defaults(run=lambda args: 3)

    monkeypatch.setattr(__main__, "COMMANDS", (add_command,))
    assert main(["fail"]) == 3


@pytest.mark.parametrize("error", [ValueError("wrong"), OSError("no file"), ImportError("pip install x")])
def test_an_expected_error_is_one_line(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr(__main__, "COMMANDS", (lambda subparsers: subparsers.add_parser("fail").set_defaults(run=run),))
    with pytest.raises(SystemExit, match=f"^error: {error}$"):
        main(["fail"])


def test_console_script():
    (script,) = (entry for entry in metadata.distribution("rrl-match").entry_points if entry.name == "rrl-match")
    assert script.load() is main


@pytest.mark.slow
def test_runs_as_a_module():
    command = [sys.executable, "-m", "rrl_match", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"rrl-match {__version__}\n"
