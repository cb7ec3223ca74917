"""What `raddraft compare` writes: numbers, a table as in a paper, a figure of every column, and an HTML page.

write_page(result, tasks, Path("runs/compare"), "Which encoder?")
"""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.compare_config import Task
from metrics.report import LOWER_IS_BETTER, METRICS, render_template
from raddraft.files import write_json, write_text, write_whole
from raddraft.text import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05
MARK = "†"
LOWER = LOWER_IS_BETTER | {"mae"}
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


@dataclass
class Column:
    """One task over all towers."""

    task: Task
    measure: str  # with an arrow in the direction of better values
    n: str
    cells: dict[str, dict[str, Any]]  # tower -> value, low, high, n, notes, details
    shown: dict[str, Shown | None]  # None where there is no value


def write_page(result: dict[str, Any], tasks: Sequence[Task], out: Path, title: str) -> None:
    """Write compare.json, table.md, report.html, and figures/*.png, which the page embeds.

    Args:
        result: what `generator.compare.compare` returns.
        tasks: the columns.
        out: folder to write to.
        title: heading of the page.
    """
    columns = [_column(result, task) for task in tasks]
    images: dict[str, list[tuple[str, str]]] = {column.task.name: [] for column in columns}  # caption, base64
    for number, column in enumerate(columns, 1):
        figures = {"": _draw_column(column, result["baseline"])}
        if any(cell["details"].get("curve") for cell in column.cells.values()):
            figures["-curve"] = _draw_curves(column)
        for suffix, figure in figures.items():
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=DPI, facecolor="white")
            with write_whole(out / "figures" / f"{number}-{slug(column.task.name.lower())[:60]}{suffix}.png") as path:
                path.write_bytes(file.getvalue())
            encoded = base64.b64encode(file.getvalue()).decode("ascii")
            images[column.task.name].append(("learning curve" if suffix else "", encoded))
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
        explained=_explain(result),
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


def format_number(value: float, digits: int = 3, sign: str = "", zero: bool = True) -> str:
    """With a typographic minus; what rounds to zero has no sign; without `zero`, .85 for 0.85."""
    text = f"{value:{sign}z.{digits}f}".replace("-", "−")
    text = text[1:] if float(f"{value:.{digits}f}") == 0 and text.startswith("+") else text
    return text if zero else re.sub(r"^([−+]?)0\.", r"\1.", text)


def format_p(p: float) -> str:
    """Three digits; p below the threshold is never rounded to it."""
    if p < 0.0005:
        return "< .001"
    return "< .05" if p < SIGNIFICANT <= round(p, 3) else format_number(p, zero=False)


def _column(result: Mapping[str, Any], task: Task) -> Column:
    cells = {tower: row[task.name] for tower, row in result["towers"].items()}
    p = {tower: row[task.name]["p_holm"] for tower, row in result["differences"].items() if task.name in row}
    marked = {tower for tower, corrected in p.items() if corrected < SIGNIFICANT}
    counts = sorted({cell["n"] for cell in cells.values() if cell["n"] is not None})
    n = "–" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Column(task, _label(task.shown), n, cells, _show(cells, task.shown, marked))


def _label(measure: str) -> str:
    known = METRICS[measure][0].removesuffix(" ↓") if measure in METRICS else measure.replace("_", " ")
    return f"{MEASURES.get(measure, known)} {'↓' if measure in LOWER else '↑'}"


def _show(cells: Mapping[str, Mapping[str, Any]], measure: str, marked: Iterable[str] = ()) -> dict[str, Shown | None]:
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
        shown[tower] = Shown(text, interval, text == best and len(values) > 1, tower in marked)
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


def _explain(result: Mapping[str, Any]) -> list[str]:
    """How to read the table."""
    resamples, count = result["resamples"], sum(len(row) for row in result["differences"].values())
    sentences = [
        f"Brackets: 95 % percentile interval, {resamples} bootstrap resamples of the test subjects. They reflect the "
        "choice of test images, not that of the training images.",
        "↑ higher is better, ↓ lower is better. Bold: the best of the column, however small its lead.",
    ]
    if any(task["kind"] in ("report", "retrieval") for task in result["tasks"]) and not result.get("folds"):
        sentences.append("Brackets of texts (retrieval and reports): Student's t interval of the jackknife by subject.")
    if any(task["kind"] == "report" for task in result["tasks"]):
        sentences.append(
            "Reports: drafts of the test split by a model that the same recipe trained on each encoder. With several "
            "seeds the value is their mean; sd is the standard deviation over seeds, which tells how much a new run "
            "would differ, and brackets tell how much other test subjects would. Neither stands for the other."
        )
    if folds := result.get("folds"):
        sentences.append(
            f"Cross-validated: subjects of all splits in {folds} folds, each the test split once. Values are means "
            "over the folds; brackets resample within each."
        )
    if count:
        sentences.append(
            f"{MARK} differs from the baseline, {result['baseline']}: p < .05 in pairs on the same resamples, after "
            f"Holm's correction for all {count} comparisons of the table. No mark does not mean no difference."
        )
    # No p is below 2 / (resamples + 1), see raddraft.stats.p_value; Holm multiplies the smallest by their number.
    if count * 2 / (resamples + 1) >= SIGNIFICANT:
        sentences.append(
            f"{resamples} resamples are too few to mark anything: the smallest corrected p of {count} comparisons is "
            f"{format_p(min(1, count * 2 / (resamples + 1)))} or more. It takes {round(count * 2 / SIGNIFICANT)}."
        )
    return sentences


def _markdown(result: Mapping[str, Any], columns: Sequence[Column]) -> str:
    heads = [f"{_plain(column.task.name)}, {column.measure}, n = {column.n}" for column in columns]
    lines = [["Encoder", *heads], ["---", *["---:"] * len(columns)]]
    for tower in result["towers"]:
        name = _plain(tower) + (" (baseline)" if tower == result["baseline"] else "")
        lines.append([name, *(_markdown_cell(column.shown[tower]) for column in columns)])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    table = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    notes = [*_explain(result), *(f"{where}: {note}" for note, where in _notes(columns).items())]
    warned = [f"Warning, {tower}: {text}" for tower, texts in result["warnings"].items() for text in texts]
    return "\n".join([*table, "", *(f"- {_plain(note)}" for note in [*warned, *notes]), ""])


def _markdown_cell(shown: Shown | None) -> str:
    if shown is None:
        return "–"
    value = f"**{shown.value}**" if shown.best else shown.value
    return f"{value}{MARK if shown.marked else ''} {shown.interval}".strip()


def _plain(text: str) -> str:
    """One line with Markdown markup escaped."""
    return re.sub(r"([\\`*|\[]|<(?=[\w/!?]))", r"\\\1", " ".join(text.split()))


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
        _label(measure): {part: {"cells": cells, "shown": _show(cells, measure)} for part, cells in rows.items()}
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
        text = f"{shown.value}{MARK if shown.marked else ''} {shown.interval}" if shown else "–"
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
            label=textwrap.fill(name, 40).lstrip("_"),  # a leading underscore would keep it out of the legend
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
