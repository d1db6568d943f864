"""Tables: lists of pairs and manifests, and images as numbers, as programs and spreadsheets write them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rrl_match.errors import DataError, ImageError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


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

    Encoded in UTF-8, with or without a byte order mark, or in UTF-16 with one. Names of columns may be in capitals;
    spaces around cells, empty lines and lines that start with # do not count.

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


def read_numbers(path: Path) -> NDArray[Any]:
    """An image as an array in a .npy file, or as a table of numbers, as thermal cameras' programs export temperatures.

    In a table, lines with other contents count as a header; the decimal sign may be a comma.

    Returns:
        (H, W) or (H, W, C); float32 from a table.

    Raises:
        ImageError: there is no such image in the file.
    """
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ImageError(f"{path} is no array of numbers as NumPy saves them") from error
        if array.ndim not in (2, 3) or array.dtype.kind not in "biufc" or not array.size:
            raise ImageError(f"{path} must hold numbers (H, W) or (H, W, C), got {array.dtype} {array.shape}")
        return np.asarray(array.astype(np.uint8) if array.dtype == bool else array)
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in _UTF_16 else "utf-8-sig", "replace")
    delimiter = max(";\t,", key=text.count) if ";" not in text else ";"
    if delimiter != ",":
        text = text.replace(",", ".")
    rows = [_numbers(line.split(delimiter)) for line in text.splitlines()]
    widths = Counter(len(row) for row in rows if len(row) > 1)
    if not widths:
        raise ImageError(f"{path} is no table of numbers")
    width = widths.most_common(1)[0][0]
    return np.array([row for row in rows if len(row) == width], np.float32)


def _numbers(cells: list[str]) -> list[float]:
    """The numbers of a line, without empty cells at its end; none if anything else is in it."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return []


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in _UTF_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not encoded in UTF-8: save it as UTF-8, as 'CSV UTF-8'") from error
