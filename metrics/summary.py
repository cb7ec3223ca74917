"""Scores of systems with intervals, and how the first system differs from each other one.

    summarize({"model": measures, "control": others}, subjects=subjects)

docs/statistics.md says which intervals and p-values these are, and how far they can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.jackknife import (
    FEW_DIFFER,
    POWER,
    Swapped,
    doubts,
    effective_studies,
    jackknife,
    sign_flips,
    standard_error,
    t_interval,
)
from raddraft.stats import UNBOUNDED, Interval, Measure, holm, interval, p_value, resample

Intervals = Literal["jackknife", "percentile"]
"""By `raddraft.jackknife.t_interval`, or percentiles of the resamples as papers print them."""
Subjects = Sequence[str] | None
"""Of the studies [n]; None where each study counts as its own."""


@dataclass
class Sampled:
    """A metric, or the difference of two, on all studies, on resamples, and without each subject."""

    value: float
    resampled: np.ndarray
    """[resamples]; NaN where it is undefined."""
    deviations: np.ndarray
    """As by `raddraft.jackknife.jackknife` [subjects]."""
    bounds: tuple[float, float]

    @classmethod
    def of(cls, measure: Measure, resampled: np.ndarray, subjects: Subjects) -> Sampled:
        """A measure and its resamples."""
        return cls(measure.value, resampled, jackknife(measure, subjects), measure.bounds)

    def __sub__(self, other: Sampled) -> Sampled:
        return Sampled(
            self.value - other.value,
            self.resampled - other.resampled,
            self.deviations - other.deviations,
            UNBOUNDED,
        )

    def interval(self, intervals: Intervals) -> Interval | None:
        """Ends of the interval and median of the resamples; None where the value is undefined in all of them."""
        found = interval(self.resampled)
        if found and intervals == "jackknife":
            bias = float(np.nanmean(self.resampled)) - self.value
            found.low, found.high = t_interval(self.value, self.deviations, self.bounds, bias)
        return found


def summarize(
    systems: Mapping[str, Mapping[str, Measure]],
    resamples: int = 500,
    seed: int = 0,
    skipped: Mapping[str, dict[str, str]] | None = None,
    subjects: Subjects = None,
    intervals: Intervals = "jackknife",
) -> dict[str, Any]:
    """Scores with intervals of systems on the same studies, and how the first differs from each other one.

    Args:
        systems: system -> metric -> measure; the first is the system under test.
        resamples, seed: of the bootstrap.
        skipped: system -> metric -> why it was not measured.
        subjects: of the studies: those of one subject are drawn, left out and swapped together.
        intervals: which.

    Returns:
        What scores.json holds, that of the first system as by `score`; with others also "others": {system: the same}
        and "differences": {system: {metric: {"value", "low", "high", "p", "p_holm", "p_bootstrap", "differ",
        "detectable"}}}, the first system minus the other. p is that of random swaps, p_holm the same corrected for all
        of these, p_bootstrap that of paired resamples; "differ" counts the subjects (or studies) in which the systems
        differ, "detectable" is the difference that four of five such tables would tell from 0.

    Raises:
        RadDraftError: subjects of another number of studies.
    """
    keys = [(system, name) for system, measures in systems.items() for name in measures]
    measures = [systems[system][name] for system, name in keys]
    if subjects is not None and {one.n for one in measures} != {len(subjects)}:
        raise RadDraftError(f"{len(subjects)} subjects of {measures[0].n} studies: the numbers must be equal")
    if intervals not in get_args(Intervals):
        raise RadDraftError(f"Unknown intervals {intervals!r}. Choices: {', '.join(get_args(Intervals))}")
    for number, one in enumerate(subjects if subjects is not None else (), 1):
        if not isinstance(one, str | Integral):  # NaN of several studies would be one subject
            raise RadDraftError(f"subjects, item {number}: expected a text or a whole number, got {one!r}")
    if subjects is not None:
        subjects = np.unique(subjects, return_inverse=True)[1].tolist()  # numbers are sorted faster
    drawn = resample(measures, resamples, seed, subjects)
    values = {
        key: Sampled.of(one, resampled, subjects) for key, one, resampled in zip(keys, measures, drawn, strict=True)
    }

    def part(system: str) -> dict[str, Any]:
        n = next(iter(systems[system].values())).n
        drawing = f"{sign(n, subjects, intervals)}|bootstrap:{resamples} seed {seed}"
        scores = {}
        for name, one in systems[system].items():
            bounds = values[system, name].interval(intervals) or Interval(math.nan, math.nan, math.nan)
            scores[name] = {"value": one.value, **vars(bounds), "signature": one.signature + drawing}
            scores[name] |= _tell(one, values[system, name], subjects)
        return {"n": n, **_count(n, subjects), "metrics": scores, "skipped": (skipped or {}).get(system, {})}

    def minus(other: str) -> dict[str, Any]:
        names = [name for name in systems[first] if name in systems[other]]
        ours, theirs = ([systems[system][name] for name in names] for system in (first, other))
        swaps = sign_flips(ours, theirs, subjects, seed=seed)
        found = {}
        for name, swapped in zip(names, swaps, strict=True):
            if one := tell_apart(values[first, name], values[other, name], swapped, intervals):
                found[name] = one
        return found

    first, *others = systems
    if not others:
        return part(first)
    differences = {other: minus(other) for other in others}
    tests = {(other, name): one["p"] for other, found in differences.items() for name, one in found.items()}
    for (other, name), p in holm(tests).items():
        differences[other][name]["p_holm"] = p
    return part(first) | {"others": {other: part(other) for other in others}, "differences": differences}


def tell_apart(
    ours: Sampled, theirs: Sampled, swapped: Swapped, intervals: Intervals = "jackknife"
) -> dict[str, float] | None:
    """A difference as `summarize` gives it, but for p_holm; None where it is undefined in all resamples."""
    apart = ours - theirs
    bounds = apart.interval(intervals)
    if bounds is None:
        return None
    resampled = apart.resampled[~np.isnan(apart.resampled)]
    return {
        **{"value": apart.value, "low": bounds.low, "high": bounds.high},
        **{"p": swapped.p, "p_bootstrap": p_value(resampled), "differ": swapped.differ},
        "detectable": POWER * standard_error(apart.deviations),
    }


def sign(n: int, subjects: Subjects, intervals: Intervals = "jackknife") -> str:
    """What is drawn and how, for signatures: a percentile interval by study is signed as it always was."""
    unit, of = ("study", "") if subjects is None else ("subject", f"|subjects:{len(set(subjects))}")
    return (f"|interval:jackknife t by {unit}" if intervals == "jackknife" else "") + f"|n:{n}{of}"


def _count(n: int, subjects: Subjects) -> dict[str, float]:
    if subjects is None:
        return {}
    return {"subjects": len(set(subjects)), "studies_per_subject": n / len(set(subjects))}


def _tell(measure: Measure, sampled: Sampled, subjects: Subjects) -> dict[str, Any]:
    """How many independent studies the studies are worth, if subjects are known, and why the interval may not hold."""
    worth = {} if subjects is None else {"effective_n": effective_studies(measure, sampled.deviations)}
    doubtful = doubts(measure, subjects)
    return worth | ({"doubts": doubtful} if doubtful else {})


def tell_statistics(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What stands below a table of scores: what was drawn, which intervals may not hold, and what can be told apart.

    Args:
        systems: name -> its part of scores.json; the first may have "differences".
    """
    first = next(iter(systems.values()))
    lines = [_tell_sample(first), *tell_doubts(systems)]
    tests = {
        (metric, other): one
        for other, found in first.get("differences", {}).items()
        for metric, one in found.items()
        if "differ" in one  # scores of 0.2.0 have no such test
    }
    few = [
        f"{metric} of {other} ({one['differ']})"
        for (metric, other), one in tests.items()
        if 0 < one["differ"] < FEW_DIFFER
    ]
    if few:
        unit = "subjects" if "subjects" in first else "studies"
        lines.append(f"too few {unit} differ for a test: {', '.join(few)}")
    detectable: dict[str, float] = {}
    for (metric, _), one in tests.items():
        detectable[metric] = max(detectable.get(metric, 0.0), one["detectable"])
    if detectable:
        told = ", ".join(f"{metric} {value:.3f}" for metric, value in detectable.items())
        lines.append(f"differences that a table like this tells from 0 with 80 % power: {told}")
    return lines


def _tell_sample(scores: Mapping[str, Any]) -> str:
    if "subjects" not in scores:
        return (
            "each study counts by itself: where patients have several, intervals are too narrow and p-values too "
            "small; subjects come from --studies, or a subject_id in the predictions"
        )
    worth = {name: one["effective_n"] for name, one in scores["metrics"].items()}
    least, most = min(worth, key=worth.__getitem__), max(worth, key=worth.__getitem__)
    shown = [f"{worth[least]:,.0f} ({least})", f"{worth[most]:,.0f} ({most})"]
    return (
        f"drawn by subject: {scores['n']:,} studies of {scores['subjects']:,} subjects, "
        f"{scores['studies_per_subject']:.1f} each, tell as much as {' to '.join(dict.fromkeys(shown))} of one each"
    )


def tell_doubts(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each doubt about intervals of a table: in which columns (systems, strata), or of which metrics."""
    cells = {
        (column, metric): score.get("doubts", [])
        for column, one in columns.items()
        for metric, score in one["metrics"].items()
    }
    lines = []
    for doubt in dict.fromkeys(doubt for found in cells.values() for doubt in found):
        whole = [one for one in columns if all(doubt in found for (column, _), found in cells.items() if column == one)]
        rest = {metric: None for (column, metric), found in cells.items() if doubt in found and column not in whole}
        named = "" if len(whole) == len(columns) else f" of {', '.join([*whole, *rest])}"
        lines.append(f"{doubt}: the intervals{named} may not hold")
    return lines
