"""The page people read after scoring: how the systems compare, and the drafts beside their images and references.

    html = render_report("Test split", {"model": scores, "shuffled images": control_scores}, cases, observations)

One HTML file that loads nothing from anywhere, so that it can be opened, mailed or archived as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

NO_FINDING = "No Finding"
LABEL_WORDS = {1: "positive", 0: "negative", -1: "uncertain", None: "not mentioned"}

# Label and short explanation of each metric, in the order of the page.
METRICS = {
    "rouge_l": ("ROUGE-L", "longest common sequence of words"),
    "bleu_1": ("BLEU-1", "shared words"),
    **{f"bleu_{n}": (f"BLEU-{n}", f"shared runs of up to {n} words") for n in (2, 3, 4)},
    "radgraph_e": ("RadGraph E", "clinical entities"),
    "radgraph_er": ("RadGraph ER", "entities, and whether they have a relation"),
    "radgraph_bar_er": ("RadGraph bar-ER", "entities with their relations"),
    **{
        f"{labeler}_{average}_f1_{count}": (f"{average.title()}-F1-{count}, {name}", f"{count} observations, {how}")
        for labeler, name in (("chexbert", "CheXbert"), ("rule", "rules"))
        for count in (14, 5)
        for average, how in (("macro", "averaged"), ("micro", "pooled"))
    },
}
PLOTTED = ("rouge_l", "bleu_4", "radgraph_er", "chexbert_macro_f1_14", "rule_macro_f1_14", "rule_micro_f1_14")


@dataclass
class Case:
    """One study to show."""

    study_id: str
    image: bytes | None
    """JPEG file, at most about 512 pixels a side; None if there is no picture."""
    view: str | None
    reference: str
    drafts: dict[str, str]
    """System -> draft; the first is the system under test."""
    reference_labels: dict[str, int | None]
    """Observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned; by the rule-based labeler."""
    draft_labels: dict[str, int | None]
    """The same of the first system's draft."""
    scores: dict[str, float]
    """Per-report scores of the first system's draft."""


def compare_labels(reference: Mapping[str, int | None], draft: Mapping[str, int | None]) -> list[tuple[str, str]]:
    """Compare two reports by their labels: (observation, state), errors first.

    States: `missed` (positive in the reference, negative or not mentioned in the draft), `invented` (the reverse),
    `uncertain` (uncertain in at least one), `positive` and `negative` (stated alike in both). Observations that
    neither report calls positive or uncertain are listed only if both deny them. `No Finding` sums up the others:
    a difference in it is listed only where it is the only one, or every error would count twice.
    """
    found: dict[str, list[str]] = {state: [] for state in ("missed", "invented", "uncertain", "positive", "negative")}
    for observation in dict.fromkeys([*reference, *draft]):
        pair = (reference.get(observation), draft.get(observation))
        if -1 in pair:
            found["uncertain"].append(observation)
        elif pair == (1, 1):
            found["positive"].append(observation)
        elif pair == (0, 0):
            found["negative"].append(observation)
        elif 1 in pair:
            found["missed" if pair[0] == 1 else "invented"].append(observation)
    differing = [found[state] for state in ("missed", "invented", "uncertain")]
    if sum(map(len, differing)) > 1:
        for names in differing:
            if NO_FINDING in names:
                names.remove(NO_FINDING)
    return [(observation, state) for state, names in found.items() for observation in names]


def render_report(
    title: str,
    systems: dict[str, dict[str, Any]],
    cases: list[Case],
    observations: dict[str, dict[str, float]] | None = None,
) -> str:
    """Return the page as self-contained HTML; every text is escaped.

    Args:
        title: heading of the page; says so if the data are synthetic.
        systems: name -> {"n": studies, "metrics": {name: {"value", "low", "high", "signature"}},
            "skipped": {name: reason}}; the first is the system under test, the others stand beside it as controls.
            Values lie in 0..1, higher is better; low and high bound the 95 % interval.
        cases: the studies to show.
        observations: observation -> {"precision", "recall", "f1", "support"} of the first system.

    Raises:
        ValueError: `systems` is empty.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not systems:
        raise ValueError("systems is empty: the page needs at least the system under test")
    rank = {name: position for position, name in enumerate(METRICS)}
    names = dict.fromkeys(name for system in systems.values() for name in system["metrics"])
    rows = [_table_row(name, systems) for name in sorted(names, key=lambda name: rank.get(name, len(rank)))]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        systems=systems,
        first=next(iter(systems)),
        rows=rows,
        panels=[_panel(row) for row in rows if row["name"] in PLOTTED],
        skipped=_by_text({name: system.get("skipped", {}) for name, system in systems.items()}),
        signatures=_by_text(
            {
                name: {metric: score["signature"] for metric, score in system["metrics"].items()}
                for name, system in systems.items()
            }
        ),
        observations=sorted((observations or {}).items(), key=lambda item: -item[1]["support"]),
        cards=[_card(case) for case in cases],
        words=LABEL_WORDS,
        no_finding=NO_FINDING,
        label=lambda name: METRICS.get(name, (name, ""))[0],
    )


def _table_row(metric: str, systems: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One metric of all systems, and where the first one's interval lies against the others'."""
    scores = {name: system["metrics"].get(metric) for name, system in systems.items()}
    own, *others = scores.values()
    compared = own is not None and any(others)
    below, overlapping = [], []
    for name, other in list(scores.items())[1:]:
        if own and other and other["low"] > own["high"]:
            below.append(name)
        elif own and other and other["high"] >= own["low"]:
            overlapping.append(name)
    label, explanation = METRICS.get(metric, (metric, ""))
    return {
        "name": metric,
        "label": label,
        "explanation": explanation,
        "scores": scores,
        "best": max(score["value"] for score in scores.values() if score),
        "below": below,
        "overlapping": overlapping,
        "compared": compared,
        "above": compared and not below and not overlapping,
    }


def _panel(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a plot from 0 to `top`, with about four ticks."""
    highest = max(max(score["high"], score["value"]) for score in row["scores"].values() if score)
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if highest / step <= 5), 0.25)
    count = max(1, ceil(highest / step))
    return row | {"top": count * step, "ticks": [step * number for number in range(count + 1)]}


def _by_text(texts: dict[str, dict[str, str]]) -> dict[str, dict[str, list[str]]]:
    """{system: {metric: text}} -> {metric: {text: systems}}, so that what all systems share is printed once."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for system, by_metric in texts.items():
        for metric, text in by_metric.items():
            grouped.setdefault(metric, {}).setdefault(text, []).append(system)
    return grouped


def _card(case: Case) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for observation, state in compare_labels(case.reference_labels, case.draft_labels):
        found.setdefault(state, []).append(observation)
    return {
        "case": case,
        "image": base64.b64encode(case.image).decode("ascii") if case.image else None,
        "found": found,
        "differs": "missed" in found or "invented" in found,
    }
