"""For maintainers: the tables of the pages and the plot, made from ``weights/results/*.json``.

``python weights/tools/tables.py`` writes the tables between ``<!-- table: NAME -->`` and ``<!-- end -->``, and
``examples/images/speed_accuracy.png``. What was not measured yet is left out, with the words around it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "weights" / "results"
PLOT = ROOT / "examples" / "images" / "speed_accuracy.png"
CURVES = ROOT / "examples" / "images" / "calibration.png"
PAGES = [
    ROOT / page for page in ("README.md", "weights/README.md", "examples/README.md", "rrl_match/training/README.md")
]
UNIVERSAL = ("universal", "universal-lite")
BANDS = {
    "universal": "visible, any other",
    "universal-lite": "the same, faster",
    "vis-nir": "visible, near infrared",
    "vis-lwir": "visible, thermal",
    "optical-sar": "optical, radar",
}
OWN = ("vis-nir", "vis-lwir", "optical-sar")  # weights, and the data that they were trained for

BENT = ("relief", "barrel", "depths")  # kinds of pairs that no matrix explains: registered with "local"
KINDS = {
    "real": "4K visible beside thermal, handheld",
    "plain": "as they are",
    "a-larger": "A 2.5, 4 and 6 times larger",
    "b-larger": "B 2 and 3 times larger, or both 3 times",
    "both-larger": "B 2 and 3 times larger, or both 3 times",
    "b-width": "B 160 and 80 pixels wide",
    "crop": "B shows 45, 20 and 10 % of its area",
    "aspect": "stretched by 1.1, 1.25 and 1.5, or sheared",
    "affine": "stretched by 1.1, 1.25 and 1.5, or sheared",
    "nan": "isolated pixels (0.2 and 1 %) or lines (12 %) missing",
    "stripes": "isolated pixels (0.2 and 1 %) or lines (12 %) missing",
    "clouds": "cloud mask, 10 and 30 %",
    "dark": "darkest 30 and 50 % clipped",
    "relief": "relief of 0.4 and 1 % of the side, `local`",
    "barrel": "lens of 5 and 10 % at the corner, `local`",
    "depths": "two depths 3 % of the width apart, `local`",
}
OUTCOMES = ("right", "refused", "partly", "wrong")

Row: TypeAlias = dict[str, Any]
Lines: TypeAlias = Iterator[str]


def results(name: str) -> Row:
    """What ``weights/results/NAME.json`` holds; no rows if it does not exist yet."""
    path = RESULTS / f"{name}.json"
    held: Row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    return held


def rows_of(name: str) -> list[Row]:
    """Rows of ``weights/results/NAME.json``."""
    rows: list[Row] = results(name)["rows"]
    return rows


def find(rows: Iterable[Row], **values: Any) -> Row | None:
    """The first row that has these values."""
    return next((row for row in rows if all(row.get(key) == value for key, value in values.items())), None)


def table(header: Sequence[str], body: Iterable[Sequence[str]], words: int = 1) -> Lines:
    """Lines of a Markdown table, the first `words` columns of it to the left, the others to the right."""
    yield f"| {' | '.join(header)} |"
    yield "|" + " --- |" * words + " ---: |" * (len(header) - words)
    for cells in body:
        yield f"| {' | '.join(cells)} |"


def fpr95(name: str, data: str) -> str:
    """FPR95 against random and near negatives, "" if it was not measured; `name` as in ``patches_NAME.json``."""
    rows = [row for row in rows_of(f"patches_{name}") if row["data"] == data and row["category"] == "mean"]
    found = [find(rows, negatives=kind) for kind in ("random", "near")]
    return " / ".join(f"{row['FPR95']:.2f}" for row in found if row)


def patches() -> Lines:
    """FPR95 and the recall of 16 candidates of all test sets."""
    recall = [row for row in rows_of("shortlist_recall") if row["candidates"] == 16 and row["category"] == "mean"]

    def body() -> Iterator[list[str]]:
        for data in sorted({row["data"] for row in rows_of("patches_universal")}):
            own = fpr95(data, data) if data in OWN else ""
            found = [find(recall, weights=name, data=data) for name in UNIVERSAL]
            recalled = " / ".join(f"{row['recall']:.1f}" for row in found if row)
            yield [data, *(fpr95(name, data) for name in ("sift", *UNIVERSAL)), own, recalled]

    header = ["test patches", "SIFT", *(f"`{name}`" for name in UNIVERSAL), "weights of that name", "recall"]
    return table(header, body())


def _outcome(row: Row | None, pairs: int) -> str:
    """AUC@10px / refused / wrong, and of how many pairs if not of all."""
    if row is None:
        return ""
    of = f" of {row['pairs']}" if row["pairs"] != pairs else ""
    return f"{row['auc10']:.1f} / {row['refused']} / {row['wrong']}{of}"


METHODS = {
    ("register", "universal"): "`register`, `universal`",
    ("register", "universal-lite"): "`register`, `universal-lite`",
    ("dense", None): "dense search",
    ("sift", None): "SIFT",
    ("orb", None): "ORB",
    ("aliked-lightglue", None): "ALIKED + LightGlue",
    ("disk-lightglue", None): "DISK + LightGlue",
    ("elastix", None): "elastix",
}


def registration() -> Lines:
    """All test pairs of each set."""
    rows = [row for row in rows_of("registration") if row["scene"] == "all"]
    columns = [column for column in METHODS if find(rows, method=column[0], weights=column[1])]

    def body() -> Iterator[list[str]]:
        for data in sorted({row["data"] for row in rows}):
            of_set = [row for row in rows if row["data"] == data]
            pairs = max(row["pairs"] for row in of_set)
            found = (find(of_set, method=method, weights=weights) for method, weights in columns)
            yield [data, str(pairs), *(_outcome(row, pairs) for row in found)]

    return table(["AUC@10px / refused / wrong", "pairs", *(METHODS[column] for column in columns)], body())


def compared() -> list[Row]:
    """One row for each method, on the same few pairs of each set: means over the sets, sums of refused and wrong.

    The pairs are those that `register` was measured on; a method that was measured on others is left out.
    """
    ours = [row for row in rows_of("registration_register") if row["scene"] == "all"]
    rows = ours + [row for row in rows_of("registration_baselines") if row["scene"] == "all"]
    pairs = {row["data"]: row["pairs"] for row in ours}
    result = []
    for method, weights in METHODS:
        of_sets = {row["data"]: row for row in reversed(rows) if (row["method"], row["weights"]) == (method, weights)}
        if pairs and {data: row["pairs"] for data, row in of_sets.items()} == pairs:
            total = {key: sum(row[key] for row in of_sets.values()) for key in ("pairs", "refused", "wrong")}
            mean = {key: sum(row[key] for row in of_sets.values()) / len(of_sets) for key in ("auc10", "seconds")}
            result.append({"method": method, "weights": weights, "label": METHODS[method, weights]} | total | mean)
    return result


def weights() -> Lines:
    """What the released weights are for, and their FPR95 on the sets that have weights of their own."""
    body = (
        [
            f"[`{name}`](weights/{name}/README.md)",
            bands,
            *(fpr95(name, data) for data in OWN),
        ]
        for name, bands in BANDS.items()
    )
    header = ["name", "band A, band B", "near infrared", "thermal", "radar"]
    return table(header, body, 2)


def field() -> Lines:
    """How good `register` is on pairs as people bring them, but for those that no matrix explains."""
    rows = [row for row in rows_of("field") if row["kind"].partition(":")[0] not in BENT]
    counts = {key: sum(row[key] for row in rows) for key in ("pairs", *OUTCOMES)}
    told = (
        "{pairs} pairs as people bring them, of any size and overlap: {right} right, {refused} refused, {partly} partly"
    )
    yield f"{told.format(**counts)} off, {counts['wrong'] or 'none'} wrong ([details](weights/README.md#registration))."


def kinds() -> Iterator[list[str]]:
    """The same by kind, and how often the stated error tells those that are off."""
    rows = rows_of("field")
    labels = [KINDS[row["kind"].partition(":")[0]] for row in rows]
    for label in dict.fromkeys(labels):
        of_kind = [row for row, own in zip(rows, labels, strict=True) if own == label]
        yield [label, *(str(sum(row.get(key, 0) for row in of_kind)) for key in (*OUTCOMES, "told"))]


def by_kind() -> Lines:
    """A table of all kinds."""
    return table(["pairs", *OUTCOMES, "told"], kinds())


def plot() -> Lines:
    """All methods on the same pairs, as a plot."""
    rows = compared()
    if not rows:
        return
    yield f"![AUC@10px over seconds a pair]({PLOT.relative_to(ROOT).as_posix()})"
    yield ""
    yield f"*Area under the curve of the corner error up to 10 pixels, {rows[0]['pairs']} test pairs of eight sets.*"


def methods() -> Lines:
    """All methods on the same pairs, as a plot and a table."""
    rows = compared()
    if not rows:
        return
    yield f"![AUC@10px over seconds a pair]({os.path.relpath(PLOT, ROOT / 'weights')})"
    yield ""
    yield f"{rows[0]['pairs']} test pairs: mean AUC over the sets, and seconds a pair of processor time on one core."
    if find(rows, method="aliked-lightglue"):
        yield "ALIKED has 2,048 keypoints, which LightGlue matches; elastix maximises mutual information."
    yield ""
    body = ([row["label"], _outcome(row, row["pairs"]), f"{row['seconds']:.1f}"] for row in rows)
    yield from table(["", "AUC@10px / refused / wrong", "seconds"], body)


def rig() -> Lines:
    """One displacement, found from several frames."""
    rows = rows_of("registration_rig")
    frames = sorted({row["frames"] for row in rows})
    body = (
        [METHODS[method], *(_outcome(find(rows, method=method[0], weights=method[1], frames=n), 6) for n in frames)]
        for method in METHODS
        if find(rows, method=method[0], weights=method[1])
    )
    return table(["AUC@10px / refused / wrong", *(f"{n} frame{'s' * (n > 1)}" for n in frames)], body)


def false_acceptance() -> Lines:
    """Sums over the sources."""
    rows = rows_of("false_acceptance")

    def body() -> Iterator[list[str]]:
        for partner in dict.fromkeys(row["partner"] for row in rows):
            of_partner = [row for row in rows if row["partner"] == partner]
            counted = ([row[key] for row in of_partner] for key in ("calls", "accepted", "wrong"))
            yield [partner, *("not counted" if None in counts else str(sum(counts)) for counts in counted)]

    return table(["image B", "calls", "accepted", "of these wrong"], body())


def calibration() -> Lines:
    """How far the probability and the expected error of `register` can be believed."""
    rows = rows_of("calibration")
    curve = [row for row in rows if row.get("curve") == "probability in use"]
    error = find(rows, curve="error")
    if error is None:
        return
    calls = sum(row["calls"] for row in curve)
    off = sum(row["calls"] * abs(row["stated"] - row["true"]) for row in curve) / calls
    yield f"![Stated and true probability, stated and true error]({os.path.relpath(CURVES, ROOT / 'weights')})"
    yield ""
    count, held, twice = error["calls"], error["held"], error["within a factor of 2"]
    yield (
        f"{calls} calls on changed training pairs, with right and wrong partners. The expected calibration error of "
        f"the probability is {off:.2f}. In the {count} calls whose result is within 20 pixels, an error fitted to "
        f"other sources holds {held:.0%} of the overlap in the mean, and is within a factor of 2 of the true one in "
        f"{twice:.0%}."
    )


def left_out() -> Lines:
    """FPR95 on sensors that short training did not see."""
    body = (
        [row["data"], f"{row['left_out_random']:.1f} / {row['left_out_near']:.1f}", fpr95("universal", row["data"])]
        for row in rows_of("left_out_sensors")
    )
    return table(["test patches", "trained without this kind of sensor", "`universal`"], body)


def arms() -> Lines:
    """What short runs of training were compared by."""
    body = (
        [row["arm"], *(f"{row[key]:.2f}" for key in ("known", "left out", "score"))]
        for row in rows_of("training_arms")
        if "score" in row
    )
    return table(["", "known sources", "left out", "score"], body)


def speed() -> Lines:
    """Calls a second, of both universal weights."""
    rows = rows_of("speed")
    if not rows:
        return
    machine = results("speed")["machine"]
    threads = "one thread, processor time" if machine["threads"] == 1 else f"{machine['threads']} threads"
    yield f"{machine['gpu'] or machine['cpu']}, {threads}; `register` takes the [NAIP pair](images/README.md):"
    yield ""
    keys = dict.fromkeys((row["call"], row["size"], row["dtype"]) for row in rows)

    def body() -> Iterator[list[str]]:
        for call, size, dtype in keys:
            found = [find(rows, weights=name, call=call, size=size, dtype=dtype) for name in UNIVERSAL]
            yield [_call(call, size), dtype, *(_rate(row) for row in found)]

    yield from table(["", "dtype", *(f"`{name}`" for name in UNIVERSAL)], body(), 2)


def _call(call: str, size: int) -> str:
    if call == "score":
        return f"`score`, batch size {size}"
    return f"`{call}`, {size} x {size} patches" if call in ("score_matrix", "match") else call


def _rate(row: Row | None) -> str:
    if row is None:
        return ""
    if row["call"] in ("score", "score_matrix"):
        pairs = row["size"] ** (2 if row["call"] == "score_matrix" else 1)
        return f"{pairs / row['seconds']:,.0f} pairs/s"
    return f"{row['seconds']:.2f} s"


TABLES: dict[str, Callable[[], Lines]] = {
    "weights": weights,
    "patches": patches,
    "registration": registration,
    "field": field,
    "by kind": by_kind,
    "plot": plot,
    "methods": methods,
    "rig": rig,
    "false acceptance": false_acceptance,
    "calibration": calibration,
    "left out": left_out,
    "arms": arms,
    "speed": speed,
}


def rendered(page: str) -> str:
    """The text of a page with its tables made anew."""

    def replaced(match: re.Match[str]) -> str:
        return "\n".join([f"<!-- table: {match[1]} -->", *TABLES[match[1]](), "<!-- end -->"])

    return re.sub(r"<!-- table: ([\w ]+) -->\n.*?<!-- end -->", replaced, page, flags=re.DOTALL)


def draw(path: Path) -> None:
    """Plot AUC@10px over seconds a pair, a dot for each method."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.size"] = 9
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for row in compared():
        place, ours = (row["seconds"], row["auc10"]), row["method"] == "register"
        axes.scatter(*place, s=60, color="tab:red" if ours else "tab:grey", zorder=2)
        weight = "bold" if ours else "normal"
        axes.annotate(row["label"].replace("`", ""), place, (7, 3), textcoords="offset points", fontweight=weight)
    axes.set(xscale="log", xlabel="seconds a pair, one CPU core", ylabel="AUC@10px in percent", ylim=(0, 100))
    low, high = axes.get_xlim()
    axes.set_xlim(low, 3 * high)  # room for the labels
    axes.grid(alpha=0.3)
    figure.savefig(path)


def draw_calibration(path: Path) -> None:
    """Plot the true part of right transforms over the stated probability, and true over stated errors."""
    from matplotlib.figure import Figure

    rows = rows_of("calibration")
    figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in (row for row in rows if row.get("curve") == "probability in use"):
        left.scatter(row["stated"], row["true"], s=10 + 3 * row["calls"], color="tab:red")
    left.plot((0, 1), (0, 1), color="tab:grey")
    left.set(xlabel="stated probability", ylabel="part of the calls that is right")
    pairs = [(row["stated"], row["true"]) for row in rows if "source" in row]
    right.scatter(*zip(*pairs, strict=True), s=10, color="tab:red")
    low, high = 0.8 * min(map(min, pairs)), 1.25 * max(map(max, pairs))
    for factor, style in ((1, "-"), (0.5, ":"), (2, ":")):
        right.plot((low, high), (factor * low, factor * high), style, color="tab:grey")
    right.set(xscale="log", yscale="log", xlabel="stated error in pixels", ylabel="true 90 % radius in pixels")
    figure.savefig(path)


def main() -> None:
    """Write the tables of all pages, and the plots."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        path.write_text(rendered(text), encoding="utf-8")
    if compared():
        draw(PLOT)
    if rows_of("calibration"):
        draw_calibration(CURVES)


if __name__ == "__main__":
    main()
