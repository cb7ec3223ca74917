"""Per-study scores that were made elsewhere, such as by a large language model: intervals and tests are made here.

study_id,system,green,crimson
s1,model,0.5,-0.2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from metrics.read import Systems
from metrics.scoring import METRICS
from raddraft.errors import RadDraftError
from raddraft.files import digest_file
from raddraft.stats import UNBOUNDED, Measure, mean_measure
from raddraft.tables import STUDY, SUBJECT, find_column, is_nothing, plain_cell, read_cells
from raddraft.text import name_some, suggest

SYSTEM = ("system",)


def read_given(path: Path, systems: Systems) -> dict[str, dict[str, Measure]]:
    """System -> name of the metric -> measure, from a CSV (or TSV) of per-study scores; each is the mean over studies.

    Args:
        path: columns study_id, system (the name of the file of drafts without its suffix; may be missing if there is
            one system), and one of numbers for each metric, which it names. A column of subjects is not read, studies
            that are not scored are skipped.
        systems: as by `metrics.read.read_systems`.

    Raises:
        RadDraftError: no such columns, a name that another metric has, an unknown system, no finite number, a study
            that is listed twice, or one without a score.
    """
    rows = iter(read_cells(path))
    _, columns = next(rows, (0, []))
    study, system, subject = (find_column(columns, names) for names in (STUDY, SYSTEM, SUBJECT))
    metrics = [column for column in columns if column not in (study, system, subject)]
    if study is None or not metrics:
        raise RadDraftError(f"{path}: expected the columns study_id, system and one for each metric, got {columns}")
    for name in metrics:
        if not name.strip() or name in METRICS or metrics.count(name) > 1:
            raise RadDraftError(
                f"{path}: {name!r} cannot name a metric; take a name that no other column or metric has"
            )
    if system is None and len(systems) > 1:
        raise RadDraftError(f"{path} has no column system, which must tell {', '.join(systems)} apart")
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in systems}
    for line, cells in rows:
        if not any(cells):
            continue
        where = f"{path} line {line}"
        if len(cells) != len(columns):
            raise RadDraftError(f"{where} has {len(cells)} cells, the header has {len(columns)}")
        row = dict(zip(columns, map(plain_cell, cells), strict=True))
        name = row[system] if system else next(iter(systems))
        if name not in found:
            hint = f"Choices: {', '.join(found)}.{suggest(name, tuple(found))}"
            raise RadDraftError(f"{where}: unknown system {name!r}. {hint}")
        if row[study] in found[name]:
            raise RadDraftError(f"{where}: study {row[study]!r} of {name} is listed twice")
        found[name][row[study]] = {metric: _number(row[metric], f"{where}, {metric}") for metric in metrics}
    signature = f"per-study scores from {path.name} sha256:{(digest_file(path) or '')[:12]}|mean over reports"
    return {
        name: {
            metric: mean_measure(_column(metric, found[name], name, systems, path), signature, UNBOUNDED)
            for metric in metrics
        }
        for name in systems
    }


def _number(cell: str, where: str) -> float:
    """NaN where a cell is blank: a study that is not scored may lack its number."""
    if is_nothing(cell):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise RadDraftError(f"{where}: expected a number, got {cell!r}")
    return value


def _column(
    metric: str, scores: Mapping[str, Mapping[str, float]], name: str, systems: Systems, path: Path
) -> list[float]:
    studies = [row.study_id for row in systems[name]]
    values = [scores.get(study, {}).get(metric, math.nan) for study in studies]
    lacking = [study for study, value in zip(studies, values, strict=True) if math.isnan(value)]
    if lacking:
        raise RadDraftError(
            f"{path} has no {metric} of {len(lacking)} of {len(studies)} studies of {name} ({name_some(lacking)}): an "
            "interval needs a score of each"
        )
    return values
