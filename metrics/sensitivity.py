"""How sensitive metrics are: what a score loses when a report is changed in one clinically different way.

    measured = sensitivity(reports)
    print(tables(measured))
    write(measured, Path("sensitivity"))

Each report stands for the truth, and the same report, corrupted by `metrics.corruptions`, for the draft. The score lost
against the untouched report is the drop. A good metric loses much where the meaning changes and little where it does
not; what another patient's report costs is the yardstick, so that metrics with different ranges compare.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metrics.corruptions import CONTROLS, EDITS, KINDS, OTHER, corrupt
from metrics.models import Models
from metrics.report import LOWER_IS_BETTER
from metrics.scoring import compute
from metrics.sensitivity_figure import draw
from metrics.text import Once, check_texts
from raddraft.errors import RadDraftError
from raddraft.files import write_json, write_whole
from raddraft.stats import Measure, check_resamples, interval, mean_measure, resample
from raddraft.text import format_estimate, format_table

TOLERANCE = 1e-6
"""Smaller changes of a report's score are rounding: of float32 in batches of different lengths."""


def sensitivity(
    reports: Sequence[str],
    metrics: Sequence[str] | None = None,
    models: Models | None = None,
    resamples: int = 500,
    seed: int = 0,
    subjects: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Corrupt reports in every way of `metrics.corruptions.KINDS`, and measure what each metric makes of it.

    Args:
        reports: one text a study, in English.
        metrics: as for `metrics.score`; by default all that can run.
        models: where the learned metrics find their weights.
        resamples: bootstrap resamples for the 95 % percentile intervals.
        seed: of the corruptions and the resamples.
        subjects: of the reports; they are drawn whole, and another patient's report is one of another subject. By
            default every report is a subject of its own.

    Returns:
        {"n", "seed", "resamples", "applies": {kind: reports}, "metrics": {name: {"clean", "n", "signature", "drops",
        "order"}}, "skipped": {name: reason}}. "clean" is the score of the untouched reports. "drops" has for each kind
        that applies to a report:
        "value", "low", "high": score lost by the reports it applies to, all of them corrupted; below 0 it is gained;
        "relative": the same as a share of what another patient's report costs these reports; None where that is 0;
        "changed": share of the reports whose corruption alone changes the score.
        "order" has for each control the share of pairs of one report in which the control scores above an edit that
        changes the meaning (EDITS), with ties as half, so that .5 is chance; mean over reports.

    Raises:
        RadDraftError: as `metrics.score`, or unequal numbers of reports and subjects.
    """
    check_resamples(resamples, seed)
    texts, _ = check_texts(reports, reports)
    if subjects is not None and len(subjects) != len(texts):
        raise RadDraftError(f"{len(texts)} reports and {len(subjects)} subjects: the numbers must be equal")
    drafts = _corrupt_all(texts, subjects, seed)
    once = Once()
    clean, skipped = compute(texts, texts, ["all"] if metrics is None else metrics, models, once)
    models = models or Models()
    names = list(clean)
    scored = {
        kind: compute([new or old for new, old in zip(changed, texts, strict=True)], texts, names, models, once)[0]
        for kind, changed in drafts.items()
    }
    applies = {kind: np.array([new is not None for new in changed]) for kind, changed in drafts.items()}
    settings = (resamples, seed, None if subjects is None else np.asarray(subjects))
    effects = {
        name: {kind: np.where(applies[kind], _effects(clean[name], scored[kind][name], name), np.nan) for kind in KINDS}
        for name in names
    }
    drops = {kind: _drops(kind, clean, scored, effects, applies[kind], *settings) for kind in KINDS}
    order = {control: _order(control, effects, *settings) for control in CONTROLS}
    found = {
        name: {
            "clean": clean[name].value,
            "n": len(texts),
            "signature": clean[name].signature,
            "drops": {kind: drops[kind][name] for kind in KINDS if drops[kind]},
            "order": {control: order[control][name] for control in CONTROLS if order[control]},
        }
        for name in names
    }
    counts = {kind: int(one.sum()) for kind, one in applies.items()}
    return {
        "n": len(texts), "seed": seed, "resamples": resamples, "applies": counts, "metrics": found, "skipped": skipped
    }  # fmt: skip


def _corrupt_all(texts: list[str], subjects: Sequence[str] | None, seed: int) -> dict[str, list[str | None]]:
    """Kind -> each report corrupted, None where the kind does not apply."""
    of = list(subjects) if subjects is not None else [*map(str, range(len(texts)))]
    counts = Counter(of)
    found: dict[str, list[str | None]] = {}
    for kind in KINDS:
        found[kind] = []
        for text, subject in zip(texts, of, strict=True):
            others: Sequence[str] = texts
            if kind == OTHER and counts[subject] > 1:
                others = [other for other, whose in zip(texts, of, strict=True) if whose != subject]
            found[kind].append(corrupt(text, kind, seed, others))
    return found


def _sign(name: str) -> int:
    return -1 if name in LOWER_IS_BETTER else 1


def _effects(clean: Measure, corrupted: Measure, name: str) -> np.ndarray:
    """What the score gains where one report alone is corrupted, times the number of reports [n].

    For a mean over reports this is the change of the report's own score; corpus metrics have no such score.
    """
    total = clean.statistics.sum(0, keepdims=True, dtype=np.float64)
    alone = corrupted.reduce(total - clean.statistics + corrupted.statistics)
    return _sign(name) * clean.n * (alone - clean.reduce(total))


def _drops(
    kind: str,
    clean: Mapping[str, Measure],
    scored: Mapping[str, Mapping[str, Measure]],
    effects: Mapping[str, Mapping[str, np.ndarray]],
    applies: np.ndarray,
    resamples: int,
    seed: int,
    subjects: np.ndarray | None,
) -> dict[str, dict[str, Any]]:
    """What one kind costs each metric on the reports it applies to; nothing if there are none."""
    if not applies.any():
        return {}
    versions = [clean, scored[kind], scored[OTHER]]
    subsets = [version[name].subset(applies) for version in versions for name in clean]
    drawn = resample(subsets, resamples, seed, None if subjects is None else subjects[applies])
    values = np.array([one.value for one in subsets]).reshape(3, -1, 1)
    drawn = drawn.reshape(3, len(clean), resamples)
    signs = np.array([_sign(name) for name in clean])[:, None]
    (drop, cost), (drops, costs) = ((signs * (x[0] - x[1]), signs * (x[0] - x[2])) for x in (values, drawn))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative, relatives = (np.where(b > TOLERANCE, a / b, np.nan) for a, b in ((drop, cost), (drops, costs)))
    return {
        name: _estimate(drop[i, 0], drops[i])
        | {
            "relative": _estimate(relative[i, 0], relatives[i]),
            "changed": float((np.abs(effects[name][kind][applies]) > TOLERANCE).mean()),
        }
        for i, name in enumerate(clean)
    }


def _estimate(value: float, drawn: np.ndarray) -> Any:
    bounds = interval(drawn)
    return (
        None if bounds is None or np.isnan(value) else {"value": float(value), "low": bounds.low, "high": bounds.high}
    )


def _order(
    control: str,
    effects: Mapping[str, Mapping[str, np.ndarray]],
    resamples: int,
    seed: int,
    subjects: np.ndarray | None,
) -> dict[str, dict[str, float]]:
    """How often each metric scores a control above the edits of the same report; nothing without such a pair."""
    measures: dict[str, Measure] = {}
    paired = np.zeros(0, bool)
    for name, effect in effects.items():
        gaps = effect[control] - np.array([effect[kind] for kind in EDITS])  # [edits, n], NaN without a pair
        right = np.where(np.isnan(gaps), np.nan, (gaps > TOLERANCE) + 0.5 * (np.abs(gaps) <= TOLERANCE))
        paired = np.asarray(~np.isnan(right).all(0))
        measures[name] = mean_measure(np.nanmean(right[:, paired], axis=0), "order")
    if not paired.any():
        return {}
    drawn = resample([*measures.values()], resamples, seed, None if subjects is None else subjects[paired])
    return {name: _estimate(one.value, row) for (name, one), row in zip(measures.items(), drawn, strict=True)}


def read_reports(
    path: Path, section: str | None = None, n: int | None = None, seed: int = 0
) -> tuple[list[str], list[str] | None]:
    """Reports that are not blank, and their subjects if the file names them.

    Args:
        path: a manifest, or reports as `metrics.read.read_texts` reads them.
        section: of the manifest, by default findings; column or key of a table, by default reference, report or text.
        n: draw so many reports at random; by default all.
        seed: of that draw.

    Raises:
        RadDraftError: no report, n < 1, or as `read_texts` and `read_studies`.
    """
    from metrics.read import JSON_LINES, read_texts
    from raddraft.files import read_jsonl
    from raddraft.studies import read_studies

    if n is not None and n < 1:
        raise RadDraftError(f"Need at least 1 report, got n = {n}")
    subjects: list[str] | None = None
    if path.suffix.lower() in JSON_LINES and "images" in next(read_jsonl(path), ("", {}))[1]:
        section = section or "findings"
        studies = [study for study in read_studies(path) if study.sections.get(section, "").strip()]
        texts = [study.sections[section] for study in studies]
        subjects = [study.subject_id for study in studies]
        what = f"with the section {section!r}"
    else:
        texts = [text for text in read_texts(path, section or "reference").values() if text.strip()]
        what = "that is not blank"
    if not texts:
        raise RadDraftError(f"{path}: no report {what}")
    if n is not None and n < len(texts):
        drawn = sorted(random.Random(seed).sample(range(len(texts)), n))
        texts = [texts[i] for i in drawn]
        subjects = [subjects[i] for i in drawn] if subjects else None
    return texts, subjects


def write(measured: Mapping[str, Any], out: Path) -> list[Path]:
    """Write sensitivity.json and sensitivity.png to a folder, and return their paths."""
    paths = [out / "sensitivity.json", out / "sensitivity.png"]
    write_json(paths[0], measured)
    with write_whole(paths[1]) as path:
        draw(measured).savefig(path, format="png", facecolor="white")
    return paths


def tables(measured: Mapping[str, Any]) -> str:
    """The drops, the shares of reports changed and the order of pairs as text, and why metrics were skipped."""
    kinds = [kind for kind in KINDS if measured["applies"][kind]]
    found = measured["metrics"]
    heads = [f"{kind} ({measured['applies'][kind]:,})" for kind in kinds]
    drops = [["drop [95 %] of", *heads]]
    drops += [[name, *(_shown(one["drops"].get(kind)) for kind in kinds)] for name, one in found.items()]
    shares = [["changed, order of", *kinds, *(f"order: {control}" for control in CONTROLS)]]
    shares += [
        [
            name,
            *(f"{one['drops'][kind]['changed']:.0%}" if kind in one["drops"] else "-" for kind in kinds),
            *(_shown(one["order"].get(control)) for control in CONTROLS),
        ]
        for name, one in found.items()
    ]
    unapplied = [f"{kind} applies to no report" for kind in KINDS if kind not in kinds]
    reasons: dict[str, list[str]] = {}
    for name, reason in measured["skipped"].items():
        reasons.setdefault(reason, []).append(name)
    skipped = [f"skipped: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n\n".join(
        [format_table(drops), format_table(shares), *(["\n".join(unapplied + skipped)] * bool(unapplied + skipped))]
    )


def _shown(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else format_estimate(estimate["value"], estimate["low"], estimate["high"])
