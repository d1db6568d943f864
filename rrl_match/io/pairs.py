"""A list of pairs to register, as CSV, and the table of what became of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

from rrl_match.errors import DataError
from rrl_match.io.tables import read_table

_NUMBERS = ("probability", "expected_error", "overlap", "agreement", "tie_points", "inliers")
_CELLS = tuple(f"m{row}{column}" for row in range(3) for column in range(3))
_COLUMNS = ("name", "image_a", "image_b", "outcome", "model", "reason", *_NUMBERS, *_CELLS)


class Pair(NamedTuple):
    """Files of a pair, and the name that its results go by."""

    name: str
    image_a: Path
    image_b: Path
    mask_a: Path | None = None
    mask_b: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [path for path in self[1:] if path is not None]


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a CSV file with columns image_a, image_b and, if there are, name, mask_a and mask_b.

    Paths are relative to the file's folder. A pair without a name is called after its images.

    Raises:
        OSError, DataError: the file is missing, or a row cannot be used; the message names it.
    """
    rows = read_table(path, {"image_a", "image_b"})
    if not rows:
        raise DataError(f"{path} must have a row for each pair")
    pairs, seen, folder = [], set(), path.parent.resolve()
    for line, row in rows:
        files = {key: folder / row[key] if row.get(key) else None for key in Pair._fields[1:]}
        image_a, image_b = files["image_a"], files["image_b"]
        if image_a is None or image_b is None:
            raise DataError(f"{path}, line {line}: image_a or image_b is empty")
        name = row.get("name") or f"{image_a.stem}_{image_b.stem}"
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise DataError(f"{path}, line {line}: {name!r} cannot be the name of a folder for the results")
        if name in seen:
            raise DataError(f"{path}, line {line}: a second pair is called {name!r}: add a column name")
        seen.add(name)
        pairs.append(Pair(name, image_a, image_b, files["mask_a"], files["mask_b"]))
    return pairs


def outcome(record: dict[str, Any]) -> str:
    """Of a pair: "ok", "refused" or "error"."""
    return "error" if "error" in record else "ok" if record["ok"] else "refused"


class Table:
    """The records of pairs as CSV, with their matrices (3, 3), which grows row by row.

    Args:
        file: to write to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        self._writer.writeheader()

    def add(self, record: dict[str, Any]) -> None:
        """Write the row of a pair at once."""
        rows = record.get("matrix") or []
        values = [value for row in rows for value in row] + ([0, 0, 1] if len(rows) == 2 else [])
        told = {"outcome": outcome(record), "reason": record.get("error", record.get("reason"))}
        self._writer.writerow({**record, **told, **dict(zip(_CELLS, values, strict=False))})
        self._file.flush()


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records of all pairs, a line each, and a summary."""
    width = max(len("name"), *(len(record["name"]) for record in records))
    lines = [f"{'name':{width}s}  outcome  probability  expected error  agreement"]
    for record in records:
        line = f"{record['name']:{width}s}  {outcome(record):7s}"
        if "error" not in record:
            within = record.get("expected_error")
            within = "" if within is None else f"{within:.2g}"
            line += f"  {record['probability']:11.0%}  {within:>14s}  {record['agreement']:9.0%}"
        lines.append((line + "  " + record.get("error", record.get("reason", ""))).rstrip())
    return "\n".join([*lines, summary(records)])


def summary(records: Sequence[dict[str, Any]]) -> str:
    """How many pairs had which outcome."""
    outcomes = [outcome(record) for record in records]
    counts = [outcomes.count(one) for one in ("ok", "refused", "error")]
    return f"{counts[0]} registered, {counts[1]} refused, {counts[2]} with errors"
