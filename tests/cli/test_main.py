"""The command line, except for what its commands do."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import metadata

import pytest

from rrl_match import DataError, MissingExtraError, __version__
from rrl_match.cli import main as module
from rrl_match.cli.main import main
from rrl_match.hub import bundled_names


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


class Command:
    """Stands in for a module of a command, which does `run`."""

    def __init__(self, run):
        self.run = run

    def add_parser(self, subparsers):
        subparsers.add_parser("fail").set_defaults(run=self.run)


def raising(error):
    def run(args):
        raise error

    return Command(run)


def test_a_command_returns_its_exit_code(monkeypatch):
    monkeypatch.setattr(module, "COMMANDS", [Command(lambda args: 3)])
    assert main(["fail"]) == 3


@pytest.mark.parametrize("error", [DataError("wrong"), OSError("no file"), MissingExtraError("pip install x")])
def test_an_expected_error_is_one_line(monkeypatch, capsys, error):
    monkeypatch.setattr(module, "COMMANDS", [raising(error)])
    assert main(["fail"]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), ImportError("no module named 'scipy'")])
def test_a_bug_is_a_traceback(monkeypatch, capsys, error):
    monkeypatch.setattr(module, "COMMANDS", [raising(error)])
    assert main(["fail"]) == 3  # no code that says something about the images
    assert capsys.readouterr().err.startswith("Traceback (most recent call last)")


@pytest.mark.parametrize("command", [one.__name__.rpartition(".")[2] for one in module.COMMANDS])
def test_help_tells_defaults(capsys, command):
    """Of all options with a value."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("vis-\n", "vis-").split())
    subparsers = argparse.ArgumentParser().add_subparsers()
    next(one for one in module.COMMANDS if one.__name__.endswith(f".{command}")).add_parser(subparsers)
    for action in subparsers.choices[command]._actions:
        if action.option_strings and action.default not in (None, [], False, argparse.SUPPRESS):
            default = action.default if isinstance(action.default, tuple) else [action.default]
            assert f"(default: {' '.join(map(str, default))})" in text, action.option_strings
        if action.dest == "weights":
            assert all(name in "".join(text.split()) for name in bundled_names())


def test_interruption_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(module, "COMMANDS", [raising(KeyboardInterrupt())])
    assert main(["fail"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["register", "--help"]])
def test_help_does_not_wait_for_pytorch(arguments):
    code = (
        "import atexit, sys; from rrl_match.cli.main import main; "
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules))); main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "False"


def test_console_script():
    (script,) = (entry for entry in metadata.distribution("rrl-match").entry_points if entry.name == "rrl-match")
    assert script.load() is main


@pytest.mark.slow
def test_runs_as_a_module():
    command = [sys.executable, "-m", "rrl_match", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"rrl-match {__version__}\n"
