"""The folder of a training run: checkpoint, log and curves, from which an interrupted run resumes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from rrl_match.errors import DataError

logger = logging.getLogger(__name__)


class RunFolder:
    """``checkpoint.pt``, ``log.jsonl``, ``recipe.json`` and TensorBoard's files.

    Args:
        path: the folder, created if it does not exist.
        writable: whether this process writes; of several, only the main one does.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self._writable = writable
        self._writer: SummaryWriter | None = None
        path.mkdir(parents=True, exist_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Replace a small file."""
        if self._writable:
            (self.path / name).write_text(text, encoding="utf-8")

    def open_log(self, step: int) -> None:
        """Drop what an interrupted run logged after its last checkpoint at `step`, and go on from there."""
        if not self._writable:
            return
        path = self.path / "log.jsonl"
        if path.is_file():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > step:  # the last line may be torn
                    break
                kept.append(line)
            partial = self.path / "log.jsonl.partial"
            partial.write_text("".join(kept), encoding="utf-8")
            os.replace(partial, path)
        self._writer = SummaryWriter(str(self.path), purge_step=step + 1)

    def log(self, step: int, phase: str, values: dict[str, float]) -> None:
        """One line of the log, and a point of each of TensorBoard's curves."""
        if self._writer is None:
            return
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, "phase": phase, **values}) + "\n")
        for key, value in values.items():
            if key != "seconds":
                self._writer.add_scalar(f"{phase}/{key}", value, step)

    def close_log(self) -> None:
        """Flush and close TensorBoard's files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a run killed meanwhile keeps the previous one."""
        if self._writable:
            partial = self.path / "checkpoint.pt.partial"
            torch.save(state, partial)
            os.replace(partial, self.path / "checkpoint.pt")

    def read_checkpoint(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The last checkpoint, or None.

        Args:
            identity: what a run must have in common with a checkpoint to resume from it, by name.

        Raises:
            DataError: the checkpoint is of another run.
        """
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        other = [name for name, value in identity.items() if state.get(name) != value]
        if other:
            raise DataError(
                f"{path} is of a run with another {' and '.join(other)}: choose another folder or delete it"
            )
        return state
