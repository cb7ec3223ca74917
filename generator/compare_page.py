"""What `raddraft compare` writes: numbers, a table as in a paper, a figure of every column, and an HTML page.

write_page(result, tasks, Path("runs/compare"), "Which encoder?")
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from generator.compare_config import Task
from generator.compare_explain import MARK, SIGNIFICANT, explain, format_number, format_p
from generator.compare_ranks import LOWER, rank
from metrics.report import METRICS
from raddraft.files import remove_left, write_json, write_text, write_whole
from raddraft.pages import embed, render_template
from raddraft.text import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"auroc": "AUROC", "auprc": "AUPRC", "r2": "R²", "mae": "MAE", "dice": "Dice", "iou": "IoU"}
NO_SKILL = {"auroc": 0.5, "r2": 0.0}
"""What a probe that ignores the images reaches."""
TEXT_MINED = {"nih", "chexpert", "mimic-cxr"}
"""Sources whose findings were read from reports by software (chexpert: those of its train split)."""
INK, MUTED, ACCENT = "#1c1e20", "#5d6368", "#0a5c99"
MARKERS = "osD^vP*X"
WIDTH, DPI = 6.2, 160


@dataclass
class Shown:
    """A cell as text."""

    value: str
    interval: str
    best: bool
    marked: bool  # whether it differs from the baseline by corrected p
    seen: str  # mark of films that the encoder had in training, see `encoder.seen`


@dataclass
class Column:
    """One task over all towers."""

    task: Task
    measure: str  # with an arrow in the direction of better values
    n: str
    cells: dict[str, dict[str, Any]]  # tower -> value, low, high, n, notes, details
    shown: dict[str, Shown | None]  # None where there is no value
    seen: dict[str, str]  # tower -> mark, where it had films in training

    @property
    def title(self) -> str:
        """The task's name without the measure, to stand beside it."""
        return self.task.name.removesuffix(f": {self.task.shown}")


def write_page(result: dict[str, Any], tasks: Sequence[Task], out: Path, title: str) -> None:
    """Write compare.json, table.md, report.html and figures/*.png, as `_write` does, while no other process does so;
    and remove what killed ones have left of them."""
    with FileLock(out / "page.lock"):
        for name in ("figures", "compare.json", "table.md", "report.html"):
            remove_left(out / name)
        _write(result, tasks, out, title)


def _write(result: dict[str, Any], tasks: Sequence[Task], out: Path, title: str) -> None:
    """Write compare.json, table.md, report.html, and figures/*.png, which the page embeds.

    Args:
        result: what `generator.compare.compare` returns.
        tasks: the columns.
        out: folder to write to.
        title: heading of the page.
    """
    columns = [_column(result, task) for task in tasks]
    images: dict[str, list[tuple[str, str]]] = {column.task.name: [] for column in columns}  # caption, address
    for number, column in enumerate(columns, 1):
        figures = {"": _draw_column(column, result["baseline"])}
        if any(cell["details"].get("curve") for cell in column.cells.values()):
            figures["-curve"] = _draw_curves(column)
        for suffix, figure in figures.items():
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=DPI, facecolor="white")
            with write_whole(out / "figures" / f"{number}-{slug(column.task.name.lower())[:60]}{suffix}.png") as path:
                path.write_bytes(file.getvalue())
            images[column.task.name].append(("learning curve" if suffix else "", embed(file.getvalue())))
    write_json(out / "compare.json", result)
    write_text(out / "table.md", _markdown(result, columns))
    sizes = [cell["n"] for column in columns for cell in column.cells.values() if cell["n"] is not None]
    mined = [
        task.name for task in tasks if TEXT_MINED & set(task.sources or []) and task.kind in ("multilabel", "binary")
    ]
    page = render_template(
        Path(__file__).with_name("compare.html.j2"),
        title=title,
        result=result,
        columns=columns,
        images=images,
        parts={column.task.name: _parts(column) for column in columns},
        writers=_writers(result),
        orders=_orders(result, columns),
        explained=explain(result, {column.task.kind for column in columns}),
        notes=_notes(columns),
        sizes=sizes,
        mined=mined,
        lower=LOWER,
        mark=MARK,
        significant=SIGNIFICANT,
        number=format_number,
        p_text=format_p,
    )
    write_text(out / "report.html", page)


def _column(result: Mapping[str, Any], task: Task) -> Column:
    cells = {tower: row[task.name] for tower, row in result["towers"].items()}
    p = {tower: row[task.name]["p_holm"] for tower, row in result["differences"].items() if task.name in row}
    marked = {tower for tower, corrected in p.items() if corrected < SIGNIFICANT}
    counts = sorted({cell["n"] for cell in cells.values() if cell["n"] is not None})
    n = "–" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    rows = result.get("seen", {}).items()
    seen = {tower: row[task.name]["mark"] for tower, row in rows if task.name in row}
    return Column(task, _label(task.shown), n, cells, _show(cells, task.shown, marked, seen), seen)


def _label(measure: str) -> str:
    known = METRICS[measure][0].removesuffix(" ↓") if measure in METRICS else measure.replace("_", " ")
    return f"{MEASURES.get(measure, known)} {'↓' if measure in LOWER else '↑'}"


def _show(
    cells: Mapping[str, Mapping[str, Any]], measure: str, marked: Collection[str], seen: Mapping[str, str]
) -> dict[str, Shown | None]:
    """Cells of one column as text, all with the same number of digits; those that read like the best one are bold."""
    values = {tower: cell["value"] for tower, cell in cells.items() if cell["value"] is not None}
    digits = 3 if all(abs(value) < 10 for value in values.values()) else 2
    texts = {tower: format_number(value, digits) for tower, value in values.items()}
    best = texts[(min if measure in LOWER else max)(values, key=lambda tower: values[tower])] if values else ""
    shown: dict[str, Shown | None] = dict.fromkeys(cells)
    for tower, text in texts.items():
        bounds = [cells[tower][end] for end in ("low", "high")]
        interval = "" if None in bounds else f"[{' '.join(format_number(end, digits, zero=False) for end in bounds)}]"
        if (spread := cells[tower].get("details", {}).get("sd")) is not None:
            interval += f" sd {format_number(spread, digits, zero=False)}"
        shown[tower] = Shown(text, interval, text == best and len(values) > 1, tower in marked, seen.get(tower, ""))
    return shown


def _notes(columns: Sequence[Column]) -> dict[str, str]:
    """Note -> the cells it applies to, so that a note that many share is printed once."""
    found: dict[str, dict[str, list[str]]] = {}
    for column in columns:
        for tower, cell in column.cells.items():
            for note in cell["notes"] or (["no value"] if cell["value"] is None else []):
                found.setdefault(note, {}).setdefault(column.task.name, []).append(tower)
    n_towers = len(columns[0].cells)
    return {
        note: "; ".join(f"{task} ({'all' if len(who) == n_towers else ', '.join(who)})" for task, who in where.items())
        for note, where in found.items()
    }


def _markdown(result: Mapping[str, Any], columns: Sequence[Column]) -> str:
    heads = [f"{_plain(column.title)}, {column.measure}, n = {column.n}" for column in columns]
    writers = _writers(result)
    lines = [["Encoder", *writers, *heads]]
    for tower in result["towers"]:
        name = _plain(tower) + (" (baseline)" if tower == result["baseline"] else "")
        written = [texts.get(tower, "–") for texts in writers.values()]
        lines.append([name, *written, *(_markdown_cell(column.shown[tower]) for column in columns)])
    table = _markdown_table(lines)
    if orders := _orders(result, columns):
        head, *body = orders
        table += ["", *_markdown_table([[*map(_plain, head)], *([_plain(name), *rest] for name, *rest in body)])]
    notes = [
        *explain(result, {column.task.kind for column in columns}),
        *(f"{where}: {note}" for note, where in _notes(columns).items()),
    ]
    first = [f"**{_plain(result['warning'])}**", ""] if result.get("warning") else []
    warned = [f"Warning, {tower}: {text}" for tower, texts in result["warnings"].items() for text in texts]
    return "\n".join([*first, *table, "", *(f"- {_plain(note)}" for note in [*warned, *notes]), ""])


def _markdown_table(lines: list[list[str]]) -> list[str]:
    """A table whose first line is its head, and whose first column is text."""
    lines = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]


def _markdown_cell(shown: Shown | None) -> str:
    if shown is None:
        return "–"
    value = f"**{shown.value}**" if shown.best else shown.value
    return f"{value}{MARK if shown.marked else ''}{shown.seen} {shown.interval}".strip()


def _plain(text: str) -> str:
    """One line with Markdown markup escaped."""
    return re.sub(r"([\\`*|\[]|<(?=[\w/!?]))", r"\\\1", " ".join(text.split()))


def _writers(result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Heading -> row -> what its language model is like; empty unless rows name language models."""
    found = result.get("writers") or {}
    columns = {"Parameters that write": "lm", "Tokens per second": "tokens_per_second"} if found else {}
    return {head: {row: _short(one[key]) for row, one in found.items()} for head, key in columns.items()}


def _short(number: float | None) -> str:
    """Three digits or more, from ten thousand on in k, M or B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number and number >= max(size, 1e4):
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}" if number else "–"


def _orders(result: Mapping[str, Any], columns: Sequence[Column]) -> list[list[str]]:
    """Ranks of the encoders in report tasks and in the others, and below how the two agree; a table, or nothing."""
    if not (found := result.get("ranks")):
        return []
    reports = [column for column in columns if column.task.name in found]
    others = [column for column in columns if any(column.task.name in row for row in found.values())]
    shown = [*reports, *others]
    encoders = [row for row in result["towers"] if row not in result["controls"]]
    ranks = [rank([column.cells[row]["value"] for row in encoders], column.task.shown) for column in shown]
    order = sorted(range(len(encoders)), key=lambda i: ranks[0][i] or len(encoders))
    lines = [[encoders[i], *("–" if one[i] is None else f"{one[i]:g}" for one in ranks)] for i in order]
    for report in reports:
        agreement = [found[report.task.name].get(column.task.name) for column in others]
        lines.append([f"ρ with {report.title}, {report.measure}", *[""] * len(reports), *map(_agreement, agreement)])
    return [["Rank, 1 is best", *(f"{column.title}, {column.measure}" for column in shown)], *lines]


def _agreement(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "–"
    ends = [format_number(found[end], 2, zero=False) for end in ("low", "high") if found[end] is not None]
    return f"{format_number(found['rho'], 2)} [{' '.join(ends)}] p {format_p(found['p'])}"


def _parts(column: Column) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure -> finding or structure -> each tower's cell and its text; the column's measure first.

    Empty unless the task has several.
    """
    if column.task.kind not in ("multilabel", "segmentation") or len(column.task.targets) < 2:
        return {}
    found: dict[str, dict[str, dict[str, Any]]] = {column.task.shown: {}}
    for tower, cell in column.cells.items():
        for part, measures in (cell["details"].get("measures") or cell["details"].get("scores") or {}).items():
            for measure, estimate in measures.items() if part not in ("macro", "mean") else ():
                found.setdefault(measure, {}).setdefault(part, {})[tower] = estimate
    return {
        _label(measure): {
            part: {"cells": cells, "shown": _show(cells, measure, (), column.seen)} for part, cells in rows.items()
        }
        for measure, rows in found.items()
        if rows
    }


def _draw_column(column: Column, baseline: str) -> Figure:
    """Each tower's value with its interval; the baseline's is also a line and a band through all rows."""
    names, own = list(column.cells), column.cells[baseline]
    labels = [textwrap.fill(name, 28) + ("\n(baseline)" if name == baseline else "") for name in names]
    figure, axes = _axes(1.0 + sum(0.26 + 0.16 * (label.count("\n") + 1) for label in labels))
    if own["value"] is not None:
        axes.axvline(own["value"], color=MUTED, lw=0.8)
    if own["low"] is not None and own["high"] is not None:
        axes.axvspan(own["low"], own["high"], color="#eeeeeb", lw=0, zorder=0)
    if column.task.shown in NO_SKILL:
        axes.axvline(NO_SKILL[column.task.shown], color=MUTED, lw=0.9, ls=":")
    for row, (name, shown) in enumerate(column.shown.items()):
        if shown:
            color = INK if name == baseline else ACCENT
            face = color if shown.marked or name == baseline else "white"
            style: dict[str, Any] = {"fmt": "s" if name == baseline else "o", "mfc": face, "ms": 7, "mew": 1.4}
            cell = column.cells[name]
            axes.errorbar(cell["value"], row, xerr=_bars([cell]), color=color, capsize=3.5, zorder=3, **style)
        text = f"{shown.value}{MARK if shown.marked else ''}{shown.seen} {shown.interval}" if shown else "–"
        axes.text(1.02, row, text, color=INK, va="center", fontsize=9, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(names)), labels, parse_math=False, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(column.measure, color=MUTED)
    return figure


def _draw_curves(column: Column) -> Figure:
    """Each tower's value by the fraction of training subjects."""
    figure, axes = _axes(4.4)
    counts: dict[float, int] = {}
    for number, (name, cell) in enumerate(column.cells.items()):
        points = [point for point in cell["details"].get("curve") or [] if point["value"] is not None]
        points.sort(key=lambda point: point["fraction"])
        counts |= {point["fraction"]: point["n"] for point in points}
        shift = 1.02 ** (number - len(column.cells) / 2)  # or the bars of one fraction would hide each other
        axes.errorbar(
            [point["fraction"] * shift for point in points],
            [point["value"] for point in points],
            yerr=_bars(points),
            fmt=f"{MARKERS[number % len(MARKERS)]}-",
            capsize=2.5,
            label=textwrap.fill(f"{name} {column.seen.get(name, '')}".rstrip(), 40).lstrip(
                "_"
            ),  # a leading underscore would keep it out of the legend
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(counts), [f"{100 * fraction:g} %\nn = {n}" for fraction, n in sorted(counts.items())])
    axes.minorticks_off()
    axes.set_xlabel("share and number of training subjects", color=MUTED)
    axes.set_ylabel(column.measure, color=MUTED)
    for text in figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5).get_texts():
        text.set_parse_math(False)
    return figure


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of error bars below and above the values; 0 where there is no interval, or it excludes the value."""
    return [
        [0.0 if row[end] is None else max(0.0, sign * (row[end] - row["value"])) for row in rows]
        for end, sign in (("low", -1), ("high", 1))
    ]


def _axes(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")  # its own: no pyplot, no backend to choose
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(axis="x", color="#dcdddb", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes
