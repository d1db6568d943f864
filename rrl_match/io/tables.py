"""Tables of text: lists of pairs and manifests, as programs and spreadsheets write them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from rrl_match.errors import DataError


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        line: of the file, from 1.
        cells: by the names of their columns, without spaces around; "" if the row is too short.
    """

    line: int
    cells: dict[str, str]


def read_table(path: Path, columns: set[str]) -> list[Row]:
    """The rows of a file of values separated by commas, semicolons or tabs, whose first row names the columns.

    Encoded in UTF-8, with or without a byte order mark. Names of columns may be in capitals; spaces around cells,
    empty lines and lines that start with # do not count.

    Args:
        path: of the file.
        columns: that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no such table or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    lines = [line if not line.startswith("#") else "" for line in _decoded(path).splitlines()]
    header = next((line for line in lines if line.strip()), "")
    reader = csv.reader(lines, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    names: list[str] = []
    rows = []
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not names:
            names = [cell.lower() for cell in cells]
            continue
        cells += [""] * (len(names) - len(cells))
        rows.append(Row(reader.line_num, dict(zip(names, cells, strict=False))))
    if columns - set(names):
        raise DataError(f"{path} lacks the columns {', '.join(sorted(columns - set(names)))}, got: {header.strip()!r}")
    return rows


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not encoded in UTF-8: save it as UTF-8, as 'CSV UTF-8'") from error
