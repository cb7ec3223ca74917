"""Score drafts against reports: a table with intervals and p-values, files to go on with, and a page to read.

    raddraft score runs/demo/model.jsonl runs/demo/shuffled-images.jsonl --studies runs/demo/phantom/studies.jsonl
    raddraft score other_system.jsonl --metrics rouge_l bleu_4 radgraph --out scores/other
    raddraft score drafts.txt --references reports.txt
    raddraft score runs/x/model.jsonl runs/x/shuffled-images.jsonl --model_card runs/x/model
    raddraft score model.jsonl --studies studies.jsonl --by view sex age normal Pneumothorax

The first file is the system under test; the others, such as its controls, stand beside it on the same studies. Any
system's drafts can be scored: {"study_id", "prediction", "reference"} a line, or with --references a table or plain
text with a report a line. A name of a metric means one definition for good; the README's table tells which.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from generator.card import add_scores, check_card
from metrics.labels import per_observation
from metrics.models import Models
from metrics.read import Prediction, read_predictions
from metrics.report import LOWER_IS_BETTER, Case, compare_labels, render_report
from metrics.rules import OBSERVATIONS
from metrics.scoring import LABELERS, Labels, check_resamples, choose, measure, summarize
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.stats import Measure
from raddraft.studies import Study, read_studies

POSITIONAL = ("predictions",)
LABELER_NAMES = {"rule": "the rule-based labeler", "chexbert": "CheXbert"}
STATES = {1: "positive", 0: "negative", -1: "uncertain", None: "not mentioned"}

Systems = dict[str, list[Prediction]]
LabelsOf = dict[str, dict[str, list[Labels]]]
"""Labeler -> system, or "" for the references -> labels of each study."""


def main(
    predictions: list[Path],
    out: Path | None = None,
    references: Path | None = None,
    studies: Path | None = None,
    metrics: list[str] | None = None,
    by: list[str] | None = None,
    rank_by: str | None = None,
    models: Models = Models(),  # noqa: B008 - the parser reads its fields and defaults from here
    resamples: int = 500,
    seed: int = 0,
    cases: int = 36,
    title: str | None = None,
    model_card: Path | None = None,
) -> None:
    """Score one or more systems on the same studies: raddraft score A.jsonl [B.jsonl …] [options].

    Writes scores.json (of the first system; the others under "others"), per_study.csv, per_observation.csv and
    report.html.

    Args:
        predictions: Files of drafts; the first is the system under test.
        out: Folder to write to; by default `scores` beside the first file.
        references: The reports, if the files of drafts do not hold them: .jsonl, .csv, .tsv, or text with a report a
            line, joined by study_id or by line.
        studies: The manifest; with it the page shows the images, and --by knows view, sex and age.
        metrics: Names of metrics or of families (rouge, bleu, radgraph, chexbert, rule, coco …), or all. By default
            the first five of these, without those whose weights are missing.
        by: Score strata too: view, sex, age, normal (against abnormal), or an observation such as Edema.
        rank_by: Which metric tells the worst and the best studies; by default radgraph_er, else rouge_l.
        models: Where the learned metrics find their weights, and how they run.
        resamples: Bootstrap resamples of the 95 % intervals and p-values.
        seed: Seed of the resamples.
        cases: How many studies the page shows: worst, best, and some between.
        title: Heading of the page.
        model_card: Folder of a trained model, the first system; the scores go into its README.md too.
    """
    if model_card:
        check_card(model_card)
    names = choose(metrics)
    if rank_by not in (None, *names):
        raise RadDraftError(f"--rank_by {rank_by!r} is none of the metrics asked for: {', '.join(names)}")
    check_resamples(resamples, seed)
    systems = _read_systems(predictions, references)
    first = next(iter(systems))
    known = {study.study_id: study for study in read_studies(studies)} if studies else {}
    reports = [row.reference for row in systems[first]]
    if known and (n_strange := sum(row.study_id not in known for row in systems[first])):
        print(f"{n_strange} of {len(reports)} studies are not in {studies}: no image, and no stratum of theirs")
    labels_of_reports = LABELERS["rule"](reports, models) if by else []
    groups = {one: _groups(one, systems[first], known, labels_of_reports) for one in by or []}
    measures: dict[str, dict[str, Measure]] = {}
    skipped: dict[str, dict[str, str]] = {}
    for name, rows in systems.items():
        measures[name], skipped[name] = measure([row.prediction for row in rows], reports, metrics, models)
    labels = _label(systems, reports, models, measures[first])
    scores = _as_json(summarize(measures, resamples, seed), len(reports), skipped)
    strata = {one: _score_strata(measures, group, resamples, seed) for one, group in groups.items()}
    observations = {
        (labeler, system): per_observation(found[system], found[""], OBSERVATIONS)
        for labeler, found in labels.items()
        for system in systems
    }

    sources = {study.source for study in known.values()}
    title = title or f"Drafts by {first}" + (", on synthetic data" if sources == {"phantom"} else "")
    out = out or predictions[0].parent / "scores"
    everyone = {first: scores, **scores.get("others", {})}
    page = render_report(
        title,
        everyone,
        _choose_cases(systems, labels, measures[first], known, cases, rank_by),
        {LABELER_NAMES[labeler]: observations[labeler, first] for labeler in labels},
        scores.get("differences", {}),
        strata,
    )
    _write(out / "scores.json", json.dumps(scores | ({"strata": strata} if strata else {}), indent=2) + "\n")
    _write(out / "per_study.csv", _per_study_csv(systems, measures, labels))
    _write(out / "per_observation.csv", _per_observation_csv(labels, systems))
    _write(out / "report.html", page)
    if model_card:
        add_scores(model_card, title, everyone)
    print(format_table(everyone, scores.get("differences", {})))
    for one, group_scores in strata.items():
        print(f"\n{first} by {one}\n{format_table(group_scores)}")
    print("".join(f"\n{what}: {out / name}" for what, name in WRITTEN.items()))


WRITTEN = {
    "scores": "scores.json",
    "per study": "per_study.csv",
    "per observation": "per_observation.csv",
    "page": "report.html",
}


def _read_systems(paths: list[Path], references: Path | None) -> Systems:
    systems: Systems = {}
    for path in paths:
        if path.stem in systems:
            raise RadDraftError(f"Two files are named {path.stem!r}; systems are told apart by file name")
        systems[path.stem], left_out = read_predictions(path, references)
        print("".join(f"{sentence}\n" for sentence in left_out), end="")
    return keep_common_studies(systems)


def _label(systems: Systems, reports: list[str], models: Models, measures: Mapping[str, Measure]) -> LabelsOf:
    """Labels by the rules, and by CheXbert where it was among the metrics."""
    labelers = ["rule", *(["chexbert"] if any(name.startswith("chexbert") for name in measures) else [])]
    texts = {name: [row.prediction for row in rows] for name, rows in systems.items()} | {"": reports}
    return {one: {name: LABELERS[one](part, models) for name, part in texts.items()} for one in labelers}


def _as_json(summary: dict[str, Any], n: int, skipped: Mapping[str, dict[str, str]]) -> dict[str, Any]:
    """A summary as scores.json holds it: the first system's metrics, the others' under "others"."""
    parts = {
        name: {"n": n, "metrics": scores, "skipped": skipped.get(name, {})}
        for name, scores in summary["systems"].items()
    }
    first, *others = parts
    if not others:
        return parts[first]
    return parts[first] | {"others": {name: parts[name] for name in others}, "differences": summary["differences"]}


def _score_strata(
    measures: Mapping[str, Mapping[str, Measure]], groups: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Group -> scores of the systems on its studies, from the statistics that are there already."""
    scores = {}
    for group in sorted(set(groups)):
        index = np.flatnonzero(np.array(groups) == group)
        part = {name: {metric: one.subset(index) for metric, one in found.items()} for name, found in measures.items()}
        scores[group] = _as_json(summarize(part, resamples, seed), len(index), {})
    return scores


def _groups(by: str, rows: list[Prediction], known: Mapping[str, Study], labels: list[Labels]) -> list[str]:
    """The stratum of each study: of a field of the manifest, or of what its reference says."""
    if by == "normal":
        return ["normal" if one["No Finding"] == 1 else "abnormal" for one in labels]
    if by in ("view", "sex", "age"):
        if not known:
            raise RadDraftError(f"--by {by} needs the manifest: --studies studies.jsonl")
        return [_field(by, known.get(row.study_id)) for row in rows]
    if any(by in study.labels for study in known.values()):
        found = [known[row.study_id].labels.get(by) if row.study_id in known else None for row in rows]
    elif by in OBSERVATIONS:
        found = [one[by] for one in labels]
    else:
        raise RadDraftError(f"Unknown --by {by!r}. Choices: view, sex, age, normal, {', '.join(OBSERVATIONS)}")
    return [STATES[value] for value in found]


def _field(by: str, study: Study | None) -> str:
    value = None if study is None else study.main_image.view if by == "view" else study.patient.get(by)
    if study is None or value is None:
        return "not stated"
    if by != "age":
        return str(value)
    try:
        age = float(value)
    except ValueError:
        raise RadDraftError(f"Study {study.study_id!r}: its age is to be a number of years, got {value!r}") from None
    band = next((band for band in ((0, 17), (18, 39), (40, 59), (60, 79)) if age < band[1] + 1), None)
    return f"{band[0]}–{band[1]}" if band else "80+"


def format_table(
    scores: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
) -> str:
    """Systems or strata x metrics with 95 % intervals, and p of the difference to the first system, as text."""
    differences = differences or {}
    names = list(dict.fromkeys(name for one in scores.values() for name in one["metrics"]))
    width = max(map(len, names), default=8)
    heads = {name: f"{name} (n = {one['n']})" for name, one in scores.items()}
    sizes = {name: max(27 if name in differences else 19, len(head)) for name, head in heads.items()}
    lines = [f"{'':{width}}  " + "  ".join(f"{heads[name]:>{size}}" for name, size in sizes.items())]
    for metric in names:
        cells = []
        for name, size in sizes.items():
            one, difference = scores[name]["metrics"].get(metric), differences.get(name, {}).get(metric)
            cell = f"{one['value']:.3f} [{one['low']:.3f} {one['high']:.3f}]" if one else "-"
            cell += f" p {difference['p']:.3f}" if difference else ""
            cells.append(f"{cell:>{size}}")
        lines.append(f"{metric:{width}}  " + "  ".join(cells))
    if differences:
        lines.append(f"p: paired bootstrap, of the difference to {next(iter(scores))}; not corrected for many tests")
    return "\n".join(lines + _why_skipped(scores))


def _why_skipped(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    metrics_of: dict[str, dict[str, None]] = {}
    for one in scores.values():
        for name, reason in one["skipped"].items():
            metrics_of.setdefault(reason, {})[name] = None
    return [f"skipped {', '.join(names)}: {reason}" for reason, names in metrics_of.items()]


def keep_common_studies(systems: Systems) -> Systems:
    """The studies that every system holds, in the order of the first system; those left out are named.

    An image that cannot be read leaves one system without a draft; it must not cost the comparison of all others.

    Raises:
        ValueError: a study has different references in two systems, or there is no common study.
    """
    first = next(iter(systems))
    rows = {name: {row.study_id: row for row in part} for name, part in systems.items()}
    common = [study_id for study_id in rows[first] if all(study_id in part for part in rows.values())]
    if not common:
        raise RadDraftError(f"No study is in all of {', '.join(systems)}: do they come from the same split?")
    for name, part in rows.items():
        for study_id in common:
            if part[study_id].reference != rows[first][study_id].reference:
                raise RadDraftError(f"Study {study_id!r} has one reference in {first} and another in {name}")
        if left_out := sorted(part.keys() - set(common)):
            named = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
            print(f"left out of {name}, since not every system holds them: {len(left_out)} studies ({named})")
    return {name: [part[study_id] for study_id in common] for name, part in rows.items()}


def _per_study_csv(systems: Systems, measures: Mapping[str, Mapping[str, Measure]], labels: LabelsOf) -> str:
    """A row for each system and study: the metrics that a study has by itself, observations missed and invented."""
    metrics = [name for name, one in next(iter(measures.values())).items() if one.is_mean]
    columns = [f"{labeler}_{state}" for labeler in labels for state in ("missed", "invented")]
    rows = []
    for system, found in systems.items():
        values = np.array([measures[system][name].per_study for name in metrics]).T.reshape(len(found), len(metrics))
        for i, row in enumerate(found):
            named = []
            for by_system in labels.values():
                states = compare_labels(by_system[""][i], by_system[system][i])
                named += [";".join(name for name, state in states if state == one) for one in ("missed", "invented")]
            rows.append([row.study_id, system, *(f"{value:.6f}" for value in values[i]), *named])
    return _csv(["study_id", "system", *metrics, *columns], rows)


def _per_observation_csv(labels: LabelsOf, systems: Systems) -> str:
    """Precision, recall, F1 and support of each observation, by both rules for what is uncertain."""
    rows: list[list[object]] = []
    for labeler, found in labels.items():
        for system in systems:
            for rule in ("negative", "positive"):
                table = per_observation(found[system], found[""], OBSERVATIONS, rule)  # type: ignore[arg-type]
                rows += [[system, labeler, rule, name, *one.values()] for name, one in table.items()]
    return _csv(["system", "labeler", "uncertain_as", "observation", "precision", "recall", "f1", "support"], rows)


def _csv(header: list[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def _choose_cases(
    systems: Systems,
    labels: LabelsOf,
    measures: Mapping[str, Measure],
    known: Mapping[str, Study],
    count: int,
    rank_by: str | None,
) -> list[Case]:
    """The worst and the best studies by a metric that studies have by themselves, and some at equal ranks between."""
    ranking = [name for name, one in measures.items() if one.is_mean]
    if rank_by not in (None, *ranking):
        raise RadDraftError(f"--rank_by {rank_by!r} is no score of single studies. Choices: {', '.join(ranking)}")
    by = rank_by or next((name for name in ("radgraph_er", "rouge_l", *ranking) if name in ranking), None)
    first = next(iter(systems))
    n = len(systems[first])
    values = measures[by].statistics[:, 0] if by else np.zeros(n)
    order = np.argsort(-values if by in LOWER_IS_BETTER else values, kind="stable")
    count = min(count, n)
    ends = count // 3 if by else 0
    between = np.linspace(ends, n - 1 - ends, count - 2 * ends).round().astype(int)
    ranks: dict[str, Sequence[int]] = {
        "Worst": range(ends),
        "Best": range(n - 1, n - 1 - ends, -1),
        "Between": between.tolist(),
    }
    return [
        _case(int(order[rank]), group + (f" by {by}" if by else ""), systems, labels["rule"], measures, known)
        for group, part in ranks.items()
        for rank in part
    ]


def _case(
    i: int,
    group: str,
    systems: Systems,
    labels: dict[str, list[Labels]],
    measures: Mapping[str, Measure],
    known: Mapping[str, Study],
) -> Case:
    first = next(iter(systems))
    row = systems[first][i]
    study = known.get(row.study_id)
    return Case(
        row.study_id,
        _thumbnail(study.main_image.path) if study else None,
        study.main_image.view if study else None,
        row.reference,
        {name: rows[i].prediction for name, rows in systems.items()},
        labels[""][i],
        labels[first][i],
        {name: float(one.statistics[i, 0]) for name, one in measures.items() if one.is_mean},
        group,
    )


def _thumbnail(path: Path, side: int = 512) -> bytes | None:
    """The picture as a JPEG of at most `side` pixels; None if it cannot be read."""
    from raddraft.images import ImageError, load_image

    try:
        image = load_image(path)
    except (ImageError, OSError):
        return None
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def _write(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        # JSON can hold half a surrogate pair, UTF-8 cannot.
        temporary.write_text(text, encoding="utf-8", errors="replace")


if __name__ == "__main__":
    run("score")
