"""The figure of `raddraft sensitivity`: what each corruption costs each metric, with intervals.

draw(sensitivity(reports)).savefig("sensitivity.png")
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metrics.corruptions import CONTROLS, EDITS
from metrics.report import METRICS
from metrics.scoring import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "swapped_side": "Side\nswapped",
    "removed_finding": "Finding\nremoved",
    "changed_severity": "Severity\nchanged",
    "added_negation": "Finding\ndenied",
    "removed_negation": "Finding\ninvented",
    "shuffled_sentences": "Sentences\nshuffled",
    "paraphrase": "Said in\nother words",
}
INK, MUTED, HARM, CONTROL, FLOOR = "#1c1e20", "#5d6368", "#0a5c99", "#a8501b", "#7d8389"
LEFT, TOP, BOTTOM = 2.1, 1.14, 0.3
"""Inches beside, over and under the panels of the figure."""


def draw(measured: Mapping[str, Any]) -> Figure:
    """A row for each metric; a panel for each kind of corruption with what it costs, and one for the order of pairs.

    Metrics whose numbers read alike, in percent, are drawn once; those left out are named under the panels.
    """
    from matplotlib.figure import Figure

    counts = measured["applies"]
    rows, alike = _distinct(measured["metrics"])
    note = textwrap.wrap(f"Like a row above, in percent: {'; '.join(map(_label, alike))}.", 185) if alike else []
    kinds = [kind for kind in (*EDITS, *CONTROLS) if counts[kind]]
    places, headings = _places(rows)
    bottom = max(places.values(), default=0.0) + 0.7
    below = BOTTOM + 0.16 * len(note)
    width, height = LEFT + 0.98 * (len(kinds) + 1), TOP + 0.19 * (bottom + 0.7) + below
    figure = Figure(figsize=(width, height), dpi=160)  # its own: no pyplot, no backend to choose
    panels = figure.subplots(1, len(kinds) + 1, sharey=True, squeeze=False)[0]
    figure.subplots_adjust(LEFT / width, below / height, 1 - 0.1 / width, 1 - TOP / height, wspace=0.12)
    for kind, axes in zip(kinds, panels, strict=False):
        for name, row in rows.items():
            if (drop := row["drops"].get(kind)) and drop["relative"]:
                floor = "floor" in row
                color = FLOOR if floor else CONTROL if kind in CONTROLS else HARM
                _dot(axes, places[name], drop["relative"], color, hollow=floor)
                _number(axes, places[name], drop["relative"], color)
        axes.set_title(f"{LABELS[kind]}\nn = {counts[kind]:,}", fontsize=8, color=INK, linespacing=1.35)
    for name, row in rows.items():
        for control, estimate in row["order"].items():
            _dot(panels[-1], places[name], estimate, INK, hollow=control == CONTROLS[0], marker="s")
    panels[-1].axvline(0.5, color=MUTED, lw=0.8, ls=":")
    panels[-1].set_title("□ shuffled\n■ other words", fontsize=8, color=INK, linespacing=1.35)
    for axes in panels:
        axes.set_xlim(-0.07, 1.07)
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        axes.tick_params(colors=MUTED, labelsize=7, length=0)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)  # or it would hide the headings
        axes.grid(color="#e4e5e3", lw=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylim(bottom, -0.7)
    panels[0].set_yticks([*places.values()], [*map(_label, places)], fontsize=8, color=INK)
    for place, heading in headings:
        panels[0].text(-0.07, place, heading, fontsize=8, color=MUTED, va="center", style="italic")
    _title(figure, panels, [kind in CONTROLS for kind in kinds])
    figure.text(0.1 / width, 0.08 / height, "\n".join(note), fontsize=7, color=MUTED, va="bottom", linespacing=1.5)
    return figure


def _label(name: str) -> str:
    return METRICS.get(name, (name,))[0]


def _distinct(rows: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rows that differ in what is drawn, rounded to percent, and the names of the others."""
    seen: dict[Any, str] = {}
    for name, row in rows.items():
        drawn = [(kind, drop["relative"]) for kind, drop in row["drops"].items()] + [*row["order"].items()]
        seen.setdefault((row.get("floor"), *((kind, one and round(one["value"], 2)) for kind, one in drawn)), name)
    return {name: rows[name] for name in seen.values()}, [name for name in rows if name not in seen.values()]


def _places(rows: Mapping[str, Any]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each metric stands, a gap between families, those with a floor's note under it; and these headings."""
    family_of = {name: number for number, family in enumerate(FAMILIES.values()) for name in family.names}
    places: dict[str, float] = {}
    headings = []
    place, last, note = 0.0, None, None
    for name in sorted(rows, key=lambda name: "floor" in rows[name]):
        if rows[name].get("floor") != note:
            note = rows[name]["floor"]
            place += 1.1
            headings.append((place, note))
            place += 1
        elif last is not None and family_of.get(name) != last:
            place += 0.45
        places[name], last = place, family_of.get(name)
        place += 1
    return places, headings


def _dot(axes: Axes, place: float, estimate: Mapping[str, float], color: str, hollow: bool, marker: str = "o") -> None:
    axes.plot([estimate["low"], estimate["high"]], [place, place], color=color, lw=1.1, solid_capstyle="butt")
    axes.plot(estimate["value"], place, marker, color=color, mfc="white" if hollow else color, ms=4, mew=0.9)


def _number(axes: Axes, place: float, estimate: Mapping[str, float], color: str) -> None:
    """The value in percent, on the side of the interval where there is room."""
    right = estimate["value"] < 0.6
    text = f"{100 * estimate['value']:z.0f}".replace("-", "−")
    x = estimate["high"] + 0.07 if right else estimate["low"] - 0.07
    axes.text(x, place, text, color=color, fontsize=6.5, va="center_baseline", ha="left" if right else "right")


def _title(figure: Figure, panels: Sequence[Axes], harmless: Sequence[bool]) -> None:
    """What the numbers are, over all panels; a line over those that change the meaning, and over those that do not."""
    width, height = figure.get_size_inches()
    text = "Score lost, in % of what another patient's report costs, with 95 % intervals"
    figure.text(LEFT / width, 1 - 0.2 / height, text, fontsize=9.5, color=INK, weight="bold", va="center")
    groups = ["the report says something else" if not one else "it says the same" for one in harmless]
    groups.append("pairs in order, %")
    for group, color in zip(dict.fromkeys(groups), (HARM, CONTROL, INK), strict=False):
        inside = [axes.get_position() for axes, one in zip(panels, groups, strict=True) if one == group]
        y, left, right = 1 - 0.56 / height, inside[0].x0, inside[-1].x1
        figure.text(left, y + 0.11 / height, group, fontsize=8, color=color, va="center")
        figure.add_artist(_line([left, right], [y, y], color))


def _line(xs: list[float], ys: list[float], color: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(xs, ys, color=color, lw=1.2)
