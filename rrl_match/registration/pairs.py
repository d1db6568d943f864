"""A list of pairs to register, as CSV, and the table of what became of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

TABLE = "registrations.csv"


class Pair(NamedTuple):
    """Files of a pair, and the name that its results go by."""

    name: str
    image_a: Path
    image_b: Path
    mask_a: Path | None = None
    mask_b: Path | None = None


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a CSV file with columns image_a, image_b and, if there are, name, mask_a and mask_b.

    Paths are relative to the file's folder. A pair without a name is called after its images.

    Raises:
        OSError, ValueError: the file is missing, or a row cannot be used; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    text = path.read_text(encoding="utf-8-sig")
    header = text.partition("\n")[0]
    rows = list(csv.DictReader(text.splitlines(), delimiter=";" if header.count(";") > header.count(",") else ","))
    missing = {"image_a", "image_b"} - set(rows[0] if rows else header.split(","))
    if missing or not rows:
        raise ValueError(
            f"{path} must have columns image_a and image_b and a row for each pair, got: {header.strip()!r}"
        )
    pairs, seen, folder = [], set(), path.parent.resolve()
    for number, row in enumerate(rows, 2):
        files = {key: folder / row[key] if row.get(key) else None for key in Pair._fields[1:]}
        image_a, image_b = files["image_a"], files["image_b"]
        if image_a is None or image_b is None:
            raise ValueError(f"{path}, line {number}: image_a or image_b is empty")
        name = row.get("name") or f"{image_a.stem}_{image_b.stem}"
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name:
            raise ValueError(f"{path}, line {number}: {name!r} cannot be the name of a folder for the results")
        if name in seen:
            raise ValueError(f"{path}, line {number}: a second pair is called {name!r}: add a column name")
        seen.add(name)
        pairs.append(Pair(name, image_a, image_b, files["mask_a"], files["mask_b"]))
    return pairs


def outcome(record: dict[str, Any]) -> str:
    return "error" if "error" in record else "ok" if record["ok"] else "refused"


def write_table(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """The records of all pairs as CSV, with their matrices (3, 3)."""
    numbers = ("matched_fraction", "matches", "inliers", "median_residual")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        cells = [f"m{row}{column}" for row in range(3) for column in range(3)]
        writer.writerow(["name", "image_a", "image_b", "outcome", "reason", *numbers, *cells])
        for record in records:
            start = [record["name"], record["image_a"], record["image_b"], outcome(record)]
            rows = record.get("matrix") or []
            matrix = [value for row in rows for value in row] + ([0, 0, 1] if len(rows) == 2 else [])
            matrix = matrix or [""] * len(cells)
            reason = record.get("error", record.get("reason"))
            writer.writerow([*start, reason, *(record.get(number) for number in numbers), *matrix])


def table(records: Sequence[dict[str, Any]]) -> str:
    """The records of all pairs, a line each, and a summary."""
    width = max(len("name"), *(len(record["name"]) for record in records))
    lines = [f"{'name':{width}s}  outcome  matched  inliers  residual"]
    for record in records:
        line = f"{record['name']:{width}s}  {outcome(record):7s}"
        if "error" not in record:
            residual = record["median_residual"]
            line += f"  {record['matched_fraction']:7.0%}  {record['inliers']:7d}  "
            line += f"{'' if residual is None else f'{residual:.2f} px':>8s}"
        lines.append((line + "  " + record.get("error", record.get("reason", ""))).rstrip())
    outcomes = [outcome(record) for record in records]
    counts = [outcomes.count(one) for one in ("ok", "refused", "error")]
    return "\n".join([*lines, f"{counts[0]} registered, {counts[1]} refused, {counts[2]} with errors"])
