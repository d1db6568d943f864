"""Measured figures as data: rows, and what is needed to measure them again."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from rrl_match._version import __version__

Row = Mapping[str, Any]


def save_results(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON, with the version, git commit, command line, machine and date of this process.

    Args:
        path: file to write; its folder must exist.
        rows: flat, of plain values; one line of the file each.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    about = {
        "version": __version__,
        "commit": _commit(),
        "command": _command(sys.argv),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }
    Path(path).write_text(to_json(about, rows), encoding="utf-8")


def to_json(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The text of a file of results: what they were measured with, then a line for each row."""
    head = json.dumps(dict(about), indent=2, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join(f"    {json.dumps(dict(row), ensure_ascii=False)}" for row in rows)
    return f'{head},\n  "rows": [\n{lines}\n  ]\n}}\n'


def load_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file that :func:`save_results` wrote."""
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    return rows


def machine() -> dict[str, Any]:
    """Processors, threads and versions of the libraries that decide about speed and rounding."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def cpu_model() -> str:
    """Name of the processor and its instruction set, as PyTorch uses it."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _command(arguments: Sequence[str]) -> str:
    """The command line; of absolute paths, which differ between machines, only the last part."""
    script, *rest = arguments
    words = [Path(word).name if Path(word).is_absolute() else word for word in rest]
    return " ".join([Path(script).name, *words])


def _commit() -> str | None:
    """Short hash of the checkout, "+" if files other than results differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)weights/results")
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
