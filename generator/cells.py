"""Cells of the table of `raddraft compare`: stored, joined over folds, and compared with the baseline's in pairs."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoder.measures import bounds
from metrics.scoring import compute
from metrics.summary import Sampled, tell_apart
from raddraft.files import digest_json, remove_left, write_json
from raddraft.jackknife import FEW_DIFFER, doubts, sign_flips
from raddraft.json_text import is_whole, sealed
from raddraft.stats import Measure, average, difference, holm, resample


@dataclass
class Sums:
    """What a cell is made of, where it is made of statistics of each study that add up: tested by swapping them."""

    measures: list[Measure]
    """One for each run (of a report task), over the same studies; the value is their mean."""
    subjects: list[str]
    """Of the studies [n]."""

    def repeat(self, count: int) -> Measure:
        """The mean of the measures as one, made of `count` of them; a run that copies reports is the same each time."""
        return average(self.measures * (count // len(self.measures)))


@dataclass
class Cell:
    """One tower on one task."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None  # test images
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    resamples: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)  # by test subject: [R]
    sample: str = ""  # digest of test subjects and labels; towers with the same one share their resamples
    sums: Sums | None = field(default=None, repr=False)

    def doubts(self) -> list[str]:
        """A note for each reason why the interval may not hold."""
        found = doubts(average(self.sums.measures), self.sums.subjects) if self.sums else []
        return [f"{doubt}: the interval may not hold" for doubt in found]

    def public(self) -> dict[str, Any]:
        """The cell in compare.json."""
        return {name: value for name, value in vars(self).items() if name not in ("resamples", "sums")}


def cell_of_sums(
    measures: Sequence[Measure], subjects: Sequence[str], resamples: int, sample: str, details: dict[str, Any]
) -> Cell:
    """The mean of measures over the same studies, with its interval by subject."""
    one = average(measures)
    [drawn] = resample([one], resamples, subjects=subjects)
    found = Sampled.of(one, drawn, subjects).interval("jackknife")
    low, high = (found.low, found.high) if found else (None, None)
    return Cell(one.value, low, high, one.n, [], details, drawn, sample, Sums(list(measures), list(subjects)))


def write_cell(path: Path, cell: Cell, made_of: str) -> None:
    """Store a cell, with a digest of what it is made of; only one process at a time may do so."""
    remove_left(path)
    row = vars(cell) | {"resamples": cell.resamples.tolist(), "made_of": made_of}
    if cell.sums:
        statistics = [one.statistics.astype(np.float64).tolist() for one in cell.sums.measures]
        row["sums"] = {"statistics": statistics, "subjects": cell.sums.subjects}
    write_json(path, sealed(row))


def read_cell(path: Path, made_of: str, metric: str) -> Cell | None:
    """The stored cell of this metric, if it is made of the same; None, with a warning, for one that cannot be read."""
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if not is_whole(row):
            raise ValueError("wrong check sum")
        if row.pop("made_of", None) != made_of:
            return None
        if sums := row["sums"]:
            measures = [_restore(metric, np.array(one)) for one in sums["statistics"]]
            row["sums"] = Sums(measures, sums["subjects"])
        return Cell(**(row | {"resamples": np.array(row["resamples"], dtype=float)}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is damaged or of another version, and is measured again: {error!r}", stacklevel=2)
        return None


def _restore(metric: str, statistics: np.ndarray) -> Measure:
    """A measure to be compared, from its stored statistics [n, k], reduced as those of a metric that needs no weights.

    All means are of two columns, and CheXbert's labels are counted as the rules' are.
    """
    like = "rouge_l" if statistics.shape[1] == 2 else metric.replace("chexbert_", "rule_")
    return replace(compute([""], [""], [like], None, None)[0][like], statistics=statistics)


def join_folds(cells: Sequence[Cell]) -> Cell:
    """The mean of the cells of all folds; resampled within each fold, because each has a probe of its own."""
    if len(cells) == 1:
        return cells[0]
    notes = list(dict.fromkeys(note for cell in cells for note in cell.notes))
    n = sum(cell.n or 0 for cell in cells) or None
    if any(cell.value is None for cell in cells):
        return Cell(None, n=n, notes=notes)
    # Each fold's resamples in an order of their own: they all draw alike, and images may be ordered alike in all folds.
    shuffled = [np.random.default_rng(fold).permutation(cell.resamples) for fold, cell in enumerate(cells)]
    values = np.mean(shuffled, axis=0)
    details = {"folds": [{"value": cell.value, "n": cell.n} for cell in cells]}
    sample = digest_json([cell.sample for cell in cells])
    value = float(np.mean([cell.value for cell in cells]))
    sums = _join_sums([cell.sums for cell in cells if cell.sums])
    if sums is None:
        return Cell(value, *bounds(values), n, notes, details, values, sample)
    joined = cell_of_sums(sums.measures, sums.subjects, len(values), sample, details)
    return replace(joined, n=n, notes=notes, resamples=values)


def _join_sums(folds: Sequence[Sums]) -> Sums | None:
    """The folds' studies one after the other, as a measure for each fold that is 0 for the studies of the others.

    None if there is none, or a fold has a single subject: nothing is left of it without that one.
    """
    if not folds or any(len(set(one.subjects)) < 2 for one in folds):
        return None
    ends = np.cumsum([0, *(len(one.subjects) for one in folds)])
    measures = []
    for start, one in zip(ends, folds, strict=False):
        [own] = one.measures  # what has runs, report tasks, has no folds
        padded = np.zeros((ends[-1], own.statistics.shape[1]))
        padded[start : start + own.n] = own.statistics
        measures.append(replace(own, statistics=padded))
    return Sums(measures, [subject for one in folds for subject in one.subjects])


def compare_with(baseline: str, cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, dict[str, float]]]:
    """Each tower minus the baseline on each task, in pairs: value, low, high, p, and p_holm (Holm, 1979).

    Where both are made of sums, p is that of random swaps by subject, with "p_bootstrap", "differ" and "detectable" as
    in `metrics.summary`; else of the paired bootstrap. The correction is over all towers and tasks of the table. Cells
    that cannot be compared get a note, and so do those of which too few subjects differ.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for tower, row in cells.items():
        for task, cell in row.items():
            other = cells[baseline][task]
            if tower == baseline or cell.value is None or other.value is None or len(cell.resamples) == 0:
                continue
            if cell.sample != other.sample:
                cell.notes.append(f"no difference to {baseline}: not measured on the same test images")
            elif one := _difference(cell, other):
                found[tower, task] = one
                if 0 < (differ := int(one.get("differ", 0))) < FEW_DIFFER:
                    cell.notes.append(f"too few subjects differ from {baseline} for a test: {differ}")
    for key, p in holm({key: one["p"] for key, one in found.items()}).items():
        found[key]["p_holm"] = p
    return {tower: {task: found[tower, task] for task in row if (tower, task) in found} for tower, row in cells.items()}


def _difference(cell: Cell, other: Cell) -> dict[str, float] | None:
    if cell.value is None or other.value is None:
        return None
    if not cell.sums or not other.sums:
        return difference(cell.value - other.value, cell.resamples - other.resamples)
    subjects, count = cell.sums.subjects, math.lcm(len(cell.sums.measures), len(other.sums.measures))
    ours, theirs = cell.sums.repeat(count), other.sums.repeat(count)
    [swapped] = sign_flips([ours], [theirs], subjects)
    drawn = Sampled.of(ours, cell.resamples, subjects), Sampled.of(theirs, other.resamples, subjects)
    return tell_apart(*drawn, swapped)
