"""A registration to look at in a browser: a page without network access for a pair, and an index of many."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray

from rrl_match.io.images import bgr
from rrl_match.io.pairs import outcome, summary
from rrl_match.registration import Registration

REPORT = "report.html"
THUMBNAIL = "thumbnail.jpg"
INDEX = "index.html"
_PAGE = "page.html"  # what all pages share
_SIDE = 1200  # pixels of the longer side of the images of a page
_THUMBNAIL_SIDE = 240
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 88]
_COLOURS = {"ok": "#2a7d4f", "refused": "#b3261e", "error": "#b3261e"}
_ERROR = "Expected error of the transform in pixels of B, from dark blue to yellow; grey where A shows nothing"
_FIGURES = (
    ("model", "Model", "{}"),
    ("probability", "Probability that the transform is right", "{:.0%}"),
    ("expected_error", "Pixels of B that 90 % of the overlap is expected to be within", "{:.2g}"),
    ("overlap", "Part of A that B shows", "{:.0%}"),
    ("agreement", "Part of the overlap that agrees", "{:.0%}"),
    ("tie_points", "Tie points", "{}"),
    ("inliers", "of which agree with the transform", "{}"),
    ("matrix", "Matrix from pixels of A to B", "{}"),
    ("map_offset", "Displacement on the map", "{}"),
    ("size_a", "Size of A", "{0[0]} x {0[1]} pixels"),
    ("size_b", "Size of B", "{0[0]} x {0[1]} pixels"),
)


def write_report(
    folder: Path, record: dict[str, Any], result: Registration, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
) -> None:
    """Write ``report.html``, and a thumbnail for :func:`write_index`.

    Args:
        folder: where they go.
        record: as in ``registration.json``.
        result: of the images.
        image_a, image_b: RGB (H, W, 3), of the sizes that were registered.
    """
    height, width = image_b.shape[:2]
    before = np.asarray(cv2.resize(image_a, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    layers = [_layer("before", "Image A before registration, stretched to the size of B", before, wiped=True)]
    views = [("before", "before")]
    thumbnail = np.hstack([before, image_b])
    if result.ok:
        warped = np.asarray(result.warp(image_a, image_b.shape), np.uint8)
        thumbnail = result.checkerboard(image_a, image_b)
        layers.append(_layer("after", "Image A, registered to B", warped, wiped=True))
        layers.append(_layer("checkerboard", "Alternating squares of registered A and of B", thumbnail))
        layers.append(_layer("error", _ERROR, result.error_map(image_b)))
        layers.append(_tie_points(result, width, height))
        views = [("after", "registered"), *views, ("checkerboard", "checkerboard")]
        views += [("error", "error"), ("tie-points", "tie points")]
    names = [Path(record[f"image_{band}"]).name for band in "ab"]
    verdict = "Registered." if result.ok else f"Refused: {result.reason}."
    page = _page(
        REPORT,
        title=escape(f"{names[0]} registered to {names[1]}"),
        colour=_COLOURS[outcome(record)],
        verdict=escape(verdict),
        advice=f"<p>{escape(result.advice)}</p>" if result.advice else "",
        width=width,
        height=height,
        views="".join(_radio(value, label, k == 0) for k, (value, label) in enumerate(views)),
        image_b=_embedded(_reduced(image_b, _SIDE)),
        layers="\n  ".join(layers),
        figures="".join(_figure(record, *figure) for figure in _FIGURES),
        notes=_list_of(record["notes"]),
    )
    (folder / REPORT).write_text(page, encoding="utf-8")
    (folder / THUMBNAIL).write_bytes(_encoded(_reduced(thumbnail, _THUMBNAIL_SIDE)))


def write_index(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write ``index.html``, which shows all pairs of a list, the doubtful ones first.

    Args:
        folder: of the list; each pair has a folder of its name in it.
        records: of all pairs.
    """
    order = sorted(records, key=lambda one: (("error", "refused", "ok").index(outcome(one)), one.get("probability", 0)))
    page = _page(
        INDEX,
        title=escape(f"{len(records)} pairs"),
        summary=escape(summary(records)),
        rows="\n".join(_row(folder, record) for record in order),
    )
    (folder / INDEX).write_text(page, encoding="utf-8")


def _page(name: str, title: str, **values: Any) -> str:
    """A page of the body that a file of this package has, with values in their places."""
    body, page = (
        Template(resources.files("rrl_match.io").joinpath(file).read_text(encoding="utf-8")) for file in (name, _PAGE)
    )
    return page.substitute(title=title, body=body.substitute(values))


def _row(folder: Path, record: dict[str, Any]) -> str:
    name, link = escape(record["name"]), quote(record["name"])
    has_report = "error" not in record and (folder / record["name"] / REPORT).is_file()
    image = f'<img src="{link}/{THUMBNAIL}" alt="Checkerboard of {name}" loading="lazy">' if has_report else ""
    cells = [image, f'<a href="{link}/{REPORT}">{name}</a>' if has_report else name, outcome(record)]
    cells += [f"{record[key]:.0%}" if key in record else "" for key in ("probability", "agreement")]
    cells.append(escape(record.get("error", record.get("reason", ""))))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _layer(view: str, text: str, image: NDArray[np.uint8], wiped: bool = False) -> str:
    data = _embedded(_reduced(image, _SIDE))
    return f'<img data-view="{view}" {"data-wipe=1 " if wiped else ""}alt="{escape(text)}" src="{data}">'


def _tie_points(result: Registration, width: int, height: int) -> str:
    """Where tie points lie in B, and in red how far the transform misses them, ten times as long."""
    points, radius = result.tie_points, max(width, height) / 250
    moved = result.transform(points.a) if result.transform is not None else points.b
    marks = []
    for (x, y), (to_x, to_y), inlier in zip(points.b + 0.5, moved + 0.5, points.inliers, strict=True):
        colour = "#4fd1c5" if inlier else "#f6ad55"
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="none" stroke="{colour}"/>')
        end_x, end_y = x + 10 * (to_x - x), y + 10 * (to_y - y)
        if inlier:
            marks.append(f'<path d="M{x:.1f} {y:.1f}L{end_x:.1f} {end_y:.1f}" stroke="#e53e3e"/>')
    text = f"{len(points)} tie points, {int(points.inliers.sum())} of which agree; ten times their residuals in red"
    return (
        f'<svg data-view="tie-points" role="img" aria-label="{text}" viewBox="0 0 {width} {height}" '
        f'stroke-width="{radius / 2:.1f}"><title>{text}</title>{"".join(marks)}</svg>'
    )


def _radio(value: str, label: str, checked: bool) -> str:
    state = " checked" if checked else ""
    return f'<label><input type="radio" name="view" value="{value}"{state}> {label}</label>'


def _figure(record: dict[str, Any], key: str, label: str, form: str) -> str:
    value = record.get(key)
    if value is None or value == "":
        return ""
    if key == "matrix":
        text = "<br>".join(escape("  ".join(f"{number:.6g}" for number in row)) for row in value)
    else:
        shown = ", ".join(f"{number:.2f}" for number in value) if key == "map_offset" else value
        text = escape(form.format(shown))
    return f'<tr><th scope="row">{label}</th><td>{text}</td></tr>'


def _list_of(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section aria-label="Notes"><h2>Notes</h2><ul>{items}</ul></section>' if items else ""


def _reduced(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image whose longer side has at most so many pixels."""
    factor = side / max(image.shape[:2])
    if factor >= 1:
        return image
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _encoded(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(bgr(image)), _QUALITY)[1].tobytes()


def _embedded(image: NDArray[np.uint8]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(_encoded(image)).decode("ascii")
