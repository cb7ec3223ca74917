"""Words of the page of `raddraft compare`: numbers as text, and how to read its table."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from generator.compare_seen import explain_marks

SIGNIFICANT = 0.05
MARK = "†"
SUMS = {"segmentation": "masks", "retrieval": "retrieved reports", "report": "drafted reports"}
"""Kinds of tasks whose values are made of statistics that add up, see `generator.cells.Sums`, and what they measure."""


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


def explain(result: Mapping[str, Any], kinds: Collection[str]) -> list[str]:
    """How to read the table, by the kinds of its tasks."""
    resamples, count = result["resamples"], sum(len(row) for row in result["differences"].values())
    sums = " and ".join(name for kind, name in SUMS.items() if kind in kinds)
    probes = set(kinds) - set(SUMS)
    brackets = [f"of {sums} Student's t of the jackknife by test subject"] if sums else []
    if probes:
        brackets = [f"percentiles of {resamples:,} bootstrap resamples of the test subjects", *brackets]
    sentences = [
        f"Brackets: 95 % intervals, {'; '.join(brackets)}. They reflect the choice of test images, not that of the "
        "training images.",
        "↑ higher is better, ↓ lower is better. Bold: the best of the column, however small its lead.",
    ]
    if "report" in kinds:
        sentences.append(
            "Reports: drafts of the test split by a model that the same recipe trained on each encoder. With several "
            "seeds the value is their mean; sd is the standard deviation over seeds, which tells how much a new run "
            "would differ, and brackets tell how much other test subjects would. Neither stands for the other."
        )
    if result.get("writers"):
        sentences.append(
            "Tokens per second: written while the test split was drafted, 16 studies at a time, the images read and "
            "encoded included; the mean over seeds. It holds for the machine that drafted."
        )
    if ranks := result.get("ranks"):
        n = max(one["n"] for row in ranks.values() for one in row.values())
        sentences.append(
            f"ρ: Spearman's rank correlation over {n} encoders; brackets: over other test subjects; p: share of all "
            "orders that agree or disagree as much. It tells of these encoders on these studies. With so few, only "
            "what is near 1 or −1 is more than chance, and another choice of encoders may give another ρ."
        )
    if folds := result.get("folds"):
        sentences.append(
            f"Cross-validated: subjects of all splits in {folds} folds, each the test split once. Values are means "
            "over the folds."
        )
    if own := result.get("towers_of_folds"):
        sentences.append(f"Another encoder in each fold, measured on that fold alone: {', '.join(own)}.")
    tests = [f"of {sums} by swapping both at random subject by subject (p is 0.0001 or more)"] if sums else []
    if probes:
        tests = ["in pairs on the same resamples", *tests]
    if count:
        sentences.append(
            f"{MARK} differs from the baseline, {result['baseline']}: p < .05, {'; '.join(tests)}, after Holm's "
            f"correction for all {count} comparisons of the table. No mark does not mean no difference."
        )
    # By resamples, no p is below 2 / (resamples + 1), see raddraft.stats.p_value; Holm multiplies the smallest.
    if probes and count * 2 / (resamples + 1) >= SIGNIFICANT:
        sentences.append(
            f"{resamples} resamples are too few to mark any probe: the smallest corrected p of {count} comparisons is "
            f"{format_p(min(1, count * 2 / (resamples + 1)))} or more. It takes {round(count * 2 / SIGNIFICANT)}."
        )
    return sentences + explain_marks(result)
