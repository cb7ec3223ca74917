"""Several systems scored on the same studies: scores, strata, tables and the files of `raddraft score`.

All that a table is made of stays in one file.

systems, notes = read_systems([Path("model.jsonl"), Path("control.jsonl")])
scored = score_systems(systems, by=["normal"])
scored.write(Path("scores"), "Test split")
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metrics.caveats import alike_caveats, describe, reading_caveats, tell_texts
from metrics.labels import Labels, Uncertain, per_observation
from metrics.models import Models
from metrics.read import Prediction, Systems
from metrics.reads import NOT_STATED, READ_METRICS, STRATA, Read, measure_reads
from metrics.report import LOWER_IS_BETTER, Case, compare_labels, render_report
from metrics.rules import OBSERVATIONS
from metrics.scoring import FAMILIES, choose, compute, read_labels
from metrics.summary import Intervals, Subjects, summarize, tell_doubts, tell_statistics
from metrics.text import Once
from raddraft.errors import RadDraftError
from raddraft.files import write_json, write_text, write_whole
from raddraft.locks import hold
from raddraft.splits import UNKNOWN_PATIENT, count_known, known_texts
from raddraft.stats import Measure, check_resamples, take
from raddraft.studies import MAX_AGE, Study, skim
from raddraft.tables import write_cells
from raddraft.text import format_estimate, format_table, suggest

LABELERS = {"rule": "the rule-based labeler", "chexbert": "CheXbert"}
STATES = {1: "positive", 0: "negative", -1: "uncertain", None: "not mentioned"}
Unit = Literal["subject", "study"]
FILES = ("scores.json", "per_study.csv", "per_observation.csv", "report.html")
Told = tuple[str, str, bool | None]
"""A draft, its reference, and whether it ended at the limit of tokens; None where that is not known."""
AGES = ((0, 17), (18, 39), (40, 59), (60, 79))


@dataclass
class Scored:
    """Systems scored on the same studies."""

    systems: Systems
    measures: dict[str, dict[str, Measure]]
    """System -> metric -> per-study statistics."""
    labels: dict[str, dict[str, list[Labels]]]
    """Labeler -> system, or "" for the references -> labels of each study."""
    scores: dict[str, Any]
    """What scores.json holds: as by `metrics.scoring.summarize`, with what `metrics.caveats.describe` tells of each
    system, and "warnings"; with strata also "strata": {by: {group: the same without warnings}}."""
    studies: dict[str, Study] = field(default_factory=dict)
    """study_id -> what the manifest knows of it."""
    ranked_by: str | None = None
    """The per-study metric that tells the worst and the best studies."""

    @property
    def first(self) -> str:
        """The system under test."""
        return next(iter(self.systems))

    def by_system(self) -> dict[str, Any]:
        """System -> its part of the scores; the first is the system under test."""
        return {self.first: self.scores, **self.scores.get("others", {})}

    def tables(self) -> str:
        """Metrics x systems, shares of blank, equal and cut drafts, then for each --by metrics x strata of the first
        system, and what makes scores void, as text."""
        strata = self.scores.get("strata", {})
        systems = self.by_system()
        whole = [_table(systems, self.scores.get("differences", {})), *tell_statistics(systems), _texts_table(systems)]
        parts = [
            "\n".join([f"{self.first} by {by}", _table(groups), *tell_doubts(groups)]) for by, groups in strata.items()
        ]
        warnings = [f"warning: {one}" for one in self.scores["warnings"]]
        return "\n\n".join(["\n".join(whole), *parts, *(["\n".join(warnings)] if warnings else [])])

    def title(self) -> str:
        """Heading of the page; says so if the data are synthetic."""
        synthetic = bool(self.studies) and all(study.is_synthetic for study in self.studies.values())
        first = f"{self.first}: what readers changed" if _is_read(self.systems) else f"Drafts by {self.first}"
        return first + (", on synthetic data" if synthetic else "")

    def write(self, folder: Path, title: str | None = None, cases: int = 36) -> list[Path]:
        """Write scores.json, per_study.csv, per_observation.csv and report.html, each whole or not at all.

        Args:
            folder: made if need be.
            title: heading of the page.
            cases: how many studies the page shows: worst, best, and some between.

        Returns:
            The paths of these files.
        """
        observations = {
            LABELERS[labeler]: per_observation(found[self.first], found[""], OBSERVATIONS)
            for labeler, found in self.labels.items()
        }
        page = render_report(title or self.title(), self.by_system(), self.choose_cases(cases), observations)
        scores, per_study, of_observations, report = paths = [folder / name for name in FILES]
        with hold(folder):
            write_json(scores, self.scores)
            _write_csv(per_study, self._per_study())
            _write_csv(of_observations, self._per_observation())
            write_text(report, page)
        return paths

    def choose_cases(self, count: int) -> list[Case]:
        """The worst and the best studies by `ranked_by`, and some at equal ranks between."""
        by, n = self.ranked_by, len(self.systems[self.first])
        values = self.measures[self.first][by].statistics[:, 0] if by else np.zeros(n)
        order = np.argsort(-values if by in LOWER_IS_BETTER else values, kind="stable")
        count = min(count, n)
        ends = count // 3 if by else 0
        between = np.linspace(ends, n - 1 - ends, count - 2 * ends).round().astype(int)
        ranks = {"Worst": range(ends), "Best": range(n - 1, n - 1 - ends, -1), "Between": between}
        return [
            self._case(int(order[rank]), f"{group} by {by}" if by else group)
            for group, part in ranks.items()
            for rank in part  # type: ignore[attr-defined]
        ]

    def _case(self, i: int, group: str) -> Case:
        row = self.systems[self.first][i]
        study = self.studies.get(row.study_id)
        return Case(
            row.study_id,
            _thumbnail(study.main_image.path) if study else None,
            study.main_image.view if study else None,
            row.reference,
            {name: rows[i].prediction for name, rows in self.systems.items()},
            self.labels["rule"][""][i],
            self.labels["rule"][self.first][i],
            {name: float(one.statistics[i, 0]) for name, one in self.measures[self.first].items() if one.is_mean},
            group,
        )

    def _per_study(self) -> Iterator[list[object]]:
        """A row for each system and study: the metrics that a study has by itself, observations missed and invented."""
        metrics = [name for name, one in self.measures[self.first].items() if one.is_mean]
        columns = [f"{labeler}_{state}" for labeler in self.labels for state in ("missed", "invented")]
        own = STRATA if _is_read(self.systems) else ()
        yield ["study_id", "system", *own, *metrics, *columns]
        for system, found in self.systems.items():
            for i, row in enumerate(found):
                named = []
                for by_system in self.labels.values():
                    states = compare_labels(by_system[""][i], by_system[system][i])
                    named += [
                        ";".join(name for name, state in states if state == one) for one in ("missed", "invented")
                    ]
                scores = [f"{self.measures[system][name].statistics[i, 0]:.6f}" for name in metrics]
                yield [row.study_id, system, *(getattr(row, one) for one in own), *scores, *named]

    def _per_observation(self) -> Iterator[list[object]]:
        """Precision, recall, F1 and support of each observation, uncertain counted as negative and as positive."""
        yield ["system", "labeler", "uncertain_as", "observation", "precision", "recall", "f1", "support"]
        rules: tuple[Uncertain, ...] = ("negative", "positive")
        for labeler, found in self.labels.items():
            for system in self.systems:
                for rule in rules:
                    table = per_observation(found[system], found[""], OBSERVATIONS, rule)
                    yield from ([system, labeler, rule, name, *one.values()] for name, one in table.items())


def score_systems(
    systems: Systems,
    metrics: Sequence[str] | None = None,
    by: Sequence[str] = (),
    studies: Sequence[Study] = (),
    models: Models | None = None,
    resamples: int = 500,
    seed: int = 0,
    rank_by: str | None = None,
    cut: Mapping[str, Mapping[str, bool]] | None = None,
    unit: Unit = "subject",
    intervals: Intervals = "jackknife",
    given: Mapping[str, Mapping[str, Measure]] | None = None,
) -> Scored:
    """Score systems on the same studies, and the parts that the studies fall into.

    Args:
        systems: as `metrics.read.read_systems` gives them.
        metrics: as for `metrics.scoring.choose`.
        by: what to divide the studies by: view, sex, age, normal (against abnormal), or an observation.
        studies: of the manifest; `by` takes view, sex, age and labels from it.
        models: where the learned metrics find their weights.
        resamples, seed: of the bootstrap.
        rank_by: metric that tells the worst and the best studies; by default radgraph_er, else rouge_l; of reads
            read_edits.
        cut: system -> study_id -> whether the draft ended at the limit of tokens, as by `read_cut`.
        unit: what is drawn, left out and swapped: subjects as far as the manifest or the predictions name them, or
            single studies in any case.
        intervals: as for `metrics.summary.summarize`.
        given: system -> metrics that were made elsewhere, as by `metrics.given.read_given`.

    Raises:
        RadDraftError: as `metrics.scoring.measure`, an unknown stratum, one that needs a manifest, or two files that
            name different subjects of a study.
    """
    read = tuple(READ_METRICS) if _is_read(systems) else ()
    names = (*read, *choose(metrics), *{metric: None for part in (given or {}).values() for metric in part})
    if rank_by not in (None, *names):
        raise RadDraftError(f"--rank-by {rank_by!r} is not among the metrics to compute: {', '.join(names)}")
    check_resamples(resamples, seed)
    models, once = models or Models(), Once()
    known = {study.study_id: study for study in studies}
    rows = next(iter(systems.values()))
    reports = [row.reference for row in rows]
    by = [*by, *(one for one in _told_apart(systems) if one not in by)]
    labels = read_labels("rule", [row.report for row in rows], models, once) if by else []
    groups = {one: np.array(_strata(one, rows, known, labels)) for one in by}

    texts = {name: [row.prediction for row in part] for name, part in systems.items()}
    measures, skipped = {}, {}
    for name, drafts in texts.items():
        measures[name], skipped[name] = compute(drafts, reports, metrics, models, once)
        reads = [row for row in systems[name] if isinstance(row, Read)]
        own = measure_reads(reads, once) if reads else {}
        measures[name] = {**own, **measures[name], **(given or {}).get(name, {})}
    first = next(iter(measures.values()))
    ranking = [name for name, one in first.items() if one.is_mean]
    if rank_by not in (None, *ranking):
        raise RadDraftError(f"--rank-by {rank_by!r} is not a score of single studies. Choices: {', '.join(ranking)}")
    default = next((name for name in ("read_edits", "radgraph_er", "rouge_l", *ranking) if name in ranking), None)

    told = {
        name: [(row.prediction, row.reference, (cut or {}).get(name, {}).get(row.study_id)) for row in part]
        for name, part in systems.items()
    }
    subjects = _find_subjects(systems, known) if unit == "subject" else None
    summed = partial(summarize, resamples=resamples, seed=seed, intervals=intervals)
    scores = _describe(summed(measures, skipped=skipped, subjects=subjects), told, once)
    if by:
        scores["strata"] = {
            one: _score_strata(measures, told, group, subjects, summed, once) for one, group in groups.items()
        }
    labelers = ["rule", *(["chexbert"] if any(name.startswith("chexbert") for name in first) else [])]
    found = {
        one: {name: read_labels(one, part, models, once) for name, part in (texts | {"": reports}).items()}
        for one in labelers
    }
    scored = Scored(systems, measures, found, scores, known, rank_by or default)
    scores["warnings"] = _caveats(scored.by_system(), [*first, *labelers]) + _split_caveats(rows, known)
    return scored


def _describe(scores: dict[str, Any], told: Mapping[str, Sequence[Told]], once: Once) -> dict[str, Any]:
    """Scores of systems, with what the texts of each are like."""
    first = next(iter(told))
    for name, part in told.items():
        found = describe([one[0] for one in part], [one[1] for one in part], [one[2] for one in part], once)
        (scores if name == first else scores["others"][name]).update(found)
    return scores


def _caveats(systems: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> list[str]:
    """What makes the scores of systems void or wrong; what holds for several is said once."""
    several = len(systems) > 1
    alike = [one for name, found in systems.items() for one in alike_caveats(found, name if several else "")]
    shares = {
        f"drafts of {name}" if several else "drafts": found["unreadable"]["drafts"] for name, found in systems.items()
    }
    shares["references"] = next(iter(systems.values()))["unreadable"]["references"]
    return alike + reading_caveats(shares, metrics)


def _split_caveats(rows: Sequence[Prediction], known: Mapping[str, Study]) -> list[str]:
    """What the train split of the manifest may have in common with the scored studies: patients, and reports."""
    train = [study for study in known.values() if study.split == "train"]
    scored = [known[row.study_id] for row in rows if row.study_id in known]
    unknown = sum(bool(study.extra.get(UNKNOWN_PATIENT)) for study in skim(scored)) if train else 0
    reports = [row.known if isinstance(row, Read) else row.reference for row in rows]  # not what readers wrote
    copied = count_known(reports, known_texts(train))
    share = copied / max(1, len(rows))
    told = {
        f"the patients of {unknown} of {len(rows)} studies are not known; train may hold others of theirs": unknown,
        f"{copied} of {len(rows)} references ({share:.0%}) stand in the manifest's train split word for word": copied,
    }
    return [sentence for sentence, count in told.items() if count]


def _score_strata(
    measures: Mapping[str, Mapping[str, Measure]],
    told: Mapping[str, Sequence[Told]],
    groups: np.ndarray,
    subjects: Subjects,
    summed: Callable[..., dict[str, Any]],
    once: Once,
) -> dict[str, dict[str, Any]]:
    """Group -> scores of the systems on its studies, from the statistics of all studies."""
    scores = {}
    for group in np.unique(groups):
        index = np.flatnonzero(groups == group)
        part = {name: take(found, index) for name, found in measures.items()}
        theirs = {name: [rows[i] for i in index.tolist()] for name, rows in told.items()}
        drawn = None if subjects is None else [subjects[i] for i in index.tolist()]
        scores[str(group)] = _describe(summed(part, subjects=drawn), theirs, once)
    return scores


def _find_subjects(systems: Systems, known: Mapping[str, Study]) -> Subjects:
    """Subject of each study by the manifest, or else by the predictions; a study without one is its own.

    None where no subject is known.
    """
    found: list[str] = []
    named = False
    for rows in zip(*systems.values(), strict=True):
        study = rows[0].study_id
        theirs = {row.subject_id: name for name, row in zip(systems, rows, strict=True) if row.subject_id}
        if len(theirs) > 1:
            (one, other), (subject, another) = list(theirs.values())[:2], list(theirs)[:2]
            raise RadDraftError(f"The subjects of study {study!r} differ: {subject!r} in {one}, {another!r} in {other}")
        subject = known[study].subject_id if study in known else next(iter(theirs), None)
        named |= subject is not None
        found.append(f"study {study}" if subject is None else subject)
    return found if named else None


def _is_read(systems: Systems) -> bool:
    return isinstance(next(iter(systems.values()))[0], Read)


def _told_apart(systems: Systems) -> list[str]:
    """What several readers or several models are told apart by."""
    rows = next(iter(systems.values()))
    return [by for by in STRATA if _is_read(systems) and len({getattr(row, by) for row in rows}) > 1]


def _strata(by: str, rows: Sequence[Prediction], known: Mapping[str, Study], labels: Sequence[Labels]) -> list[str]:
    """The stratum of each study: by a field of the manifest or the read, or by the labels of its report."""
    if by in STRATA and isinstance(rows[0], Read):
        return [getattr(row, by) for row in rows]
    if by == "normal":
        found = ["normal" if one["No Finding"] == 1 else "abnormal" for one in labels]
        return [one if row.report else NOT_STATED for row, one in zip(rows, found, strict=True)]
    if by in ("view", "sex", "age"):
        if not known:
            raise RadDraftError(f"--by {by} needs the manifest: --studies studies.jsonl")
        return [_field(by, known.get(row.study_id)) for row in rows]
    if any(by in study.labels for study in known.values()):
        return [STATES[known[row.study_id].labels.get(by) if row.study_id in known else None] for row in rows]
    if by not in OBSERVATIONS:
        choices = ("view", "sex", "age", "normal", *OBSERVATIONS)
        raise RadDraftError(f"Unknown --by {by!r}. Choices: {', '.join(choices)}.{suggest(by, choices)}")
    return [STATES[one[by]] for one in labels]


def _field(by: str, study: Study | None) -> str:
    value = None if study is None else study.main_image.view if by == "view" else study.patient.get(by)
    if study is None or value is None:
        return NOT_STATED
    if by != "age":
        return str(value)
    try:
        age = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        age = math.nan
    if not 0 <= age <= MAX_AGE:
        raise RadDraftError(f"Study {study.study_id!r}: age must be a number of years, got {value!r}")
    return next((f"{low}–{high}" for low, high in AGES if age < high + 1), "80+")


def _table(scores: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Any] | None = None) -> str:
    """Metrics x systems or strata with 95 % intervals, p of the difference to the first, and what was skipped."""
    differences = differences or {}
    rows = [["", *(f"{name} (n = {one['n']})" for name, one in scores.items())]]
    for metric in dict.fromkeys(metric for one in scores.values() for metric in one["metrics"]):
        cells = [metric]
        for name, one in scores.items():
            found = one["metrics"].get(metric)
            cell = format_estimate(found["value"], found["low"], found["high"]) if found else "-"
            compared = differences.get(name, {}).get(metric)
            cells.append(cell + (_p_text(compared) if compared else ""))
        rows.append(cells)
    lines = [format_table(rows)]
    if tests := sum(map(len, differences.values())):
        unit = "subject" if "subjects" in next(iter(scores.values())) else "study"
        lines.append(
            f"p: of the difference to {next(iter(scores))}, by swapping both at random {unit} by {unit}; *: below .05 "
            f"after Holm's correction for {tests} {'test' if tests == 1 else 'tests'}"
        )
    skipped = {name: reason for one in scores.values() for name, reason in one["skipped"].items()}
    return "\n".join([*lines, *_skipped_lines(skipped)])


def _p_text(compared: Mapping[str, float]) -> str:
    shown = "<.001" if compared["p"] < 0.0005 else f"{compared['p']:.3f}"
    return f" p {shown}" + "*" * (compared["p_holm"] < 0.05)


def _skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """A line for each reason, with families in place of their metrics; where weights are looked for is not repeated."""
    names_of: dict[str, list[str]] = {}
    for family, members in FAMILIES.items():
        names = [name for name in members.names if name in skipped]
        for reason in dict.fromkeys(skipped[name] for name in names):
            if " is missing (" in reason:  # as metrics.weights says it
                reason = "weights are missing; `raddraft weights` tells which, where they belong and how to get them"
            names_of.setdefault(reason, []).extend([family] if len(names) == len(members.names) else names)
    return [f"skipped {', '.join(names)}: {reason}" for reason, names in names_of.items()]


def _texts_table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """Shares of blank, equal and cut drafts, beside those of the references."""
    header = ["", "blank", "most frequent text", "repeated texts", "cut"]
    return format_table([header, *([name, *shares] for name, shares in tell_texts(systems).items())])


def _thumbnail(path: Path, side: int = 512) -> bytes | None:
    """The image as a JPEG of at most `side` pixels; None if it cannot be read."""
    from raddraft.images import ImageError, load_image

    try:
        image = load_image(path)
    except (ImageError, OSError):
        return None
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def _write_csv(path: Path, rows: Iterator[list[object]]) -> None:
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        write_cells(file, rows)
