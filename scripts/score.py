"""Score drafts against reports: a table with intervals, scores.json, per-study values, and a page to read.

    raddraft score runs/first/model.jsonl runs/first/shuffled-images.jsonl --studies data/phantom/studies.jsonl
    raddraft score other_system.jsonl --metrics rouge_l bleu_4 --out scores/other

The first file is the system under test; the others, such as its controls, stand beside it on the same studies. Each
line of a file is {"study_id", "prediction", "reference"}: any system's drafts can be scored.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from encoder.studies import Study, read_studies, write_whole
from metrics.labels import Uncertain, per_observation
from metrics.report import Case, compare_labels, render_report
from metrics.rules import OBSERVATIONS, label
from metrics.score import Prediction, read_predictions, score
from metrics.text import rouge_l
from scripts import run

POSITIONAL = ("predictions",)


def main(
    predictions: list[Path],
    out: Path | None = None,
    studies: Path | None = None,
    metrics: list[str] | None = None,
    uncertain: Uncertain = "negative",
    resamples: int = 500,
    seed: int = 0,
    cases: int = 36,
    title: str | None = None,
) -> None:
    """Score one or more predictions.jsonl on the same studies: raddraft score A.jsonl [B.jsonl …] [options].

    Writes scores.json (of the first system; the others under "others"), per_study.csv and report.html.

    Args:
        predictions: Files of drafts; the first is the system under test.
        out: Folder to write to; by default `scores` beside the first file.
        studies: The manifest; with it the page shows the images.
        metrics: Names of metrics; by default all that can run.
        uncertain: What an uncertain observation counts as in the F1s. Papers differ; negative is commoner.
        resamples: Bootstrap resamples of the 95 % intervals.
        seed: Seed of the resamples.
        cases: How many studies the page shows.
        title: Heading of the page.
    """
    systems: dict[str, list[Prediction]] = {}
    for path in predictions:
        if path.stem in systems:
            raise ValueError(f"Two files are named {path.stem!r}; systems are told apart by file name")
        systems[path.stem], n_without = read_predictions(path)
        if n_without:
            print(f"{path}: {n_without} predictions without a reference are left out")
    systems = keep_common_studies(systems)
    first = next(iter(systems))
    known = {study.study_id: study for study in read_studies(studies)} if studies else {}
    scores = {
        name: score(
            [row.prediction for row in rows], [row.reference for row in rows], metrics, uncertain, resamples, seed
        )
        for name, rows in systems.items()
    }
    out = out or predictions[0].parent / "scores"
    sources = {study.source for study in known.values()}
    title = title or f"Drafts by {first}" + (", on synthetic data" if sources == {"phantom"} else "")
    others = {name: one for name, one in scores.items() if name != first}
    labels = [(label(row.reference), label(row.prediction)) for row in systems[first]]
    table = per_observation([ours for _, ours in labels], [theirs for theirs, _ in labels], OBSERVATIONS, uncertain)
    page = render_report(title, scores, _choose_cases(systems, labels, known, cases), table)
    _write(out / "scores.json", json.dumps(scores[first] | ({"others": others} if others else {}), indent=2) + "\n")
    _write(out / "per_study.csv", _per_study_csv(systems[first], labels))
    _write(out / "report.html", page)
    print(format_table(scores))
    print(f"\nscores: {out / 'scores.json'}\nper study: {out / 'per_study.csv'}\npage: {out / 'report.html'}")


def format_table(scores: dict[str, dict[str, Any]]) -> str:
    """Systems x metrics with 95 % intervals, as text."""
    names = list(dict.fromkeys(name for one in scores.values() for name in one["metrics"]))
    width = max(map(len, names))
    columns = {name: max(19, len(name)) for name in scores}
    n = next(iter(scores.values()))["n"]
    lines = [f"{f'n = {n}':{width}}  " + "  ".join(f"{name:>{size}}" for name, size in columns.items())]
    for name in names:
        cells = []
        for system, size in columns.items():
            one = scores[system]["metrics"].get(name)
            cell = f"{one['value']:.3f} [{one['low']:.3f} {one['high']:.3f}]" if one else "-"
            cells.append(f"{cell:>{size}}")
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    skipped = {name: reason for one in scores.values() for name, reason in one["skipped"].items()}
    return "\n".join(lines + [f"skipped {name}: {reason}" for name, reason in skipped.items()])


def keep_common_studies(systems: dict[str, list[Prediction]]) -> dict[str, list[Prediction]]:
    """The studies that every system holds, in the order of the first system; those left out are named.

    An image that cannot be read leaves one system without a draft; it must not cost the comparison of all others.

    Raises:
        ValueError: a study has different references in two systems, or there is no common study.
    """
    first = next(iter(systems))
    rows = {name: {row.study_id: row for row in part} for name, part in systems.items()}
    common = [study_id for study_id in rows[first] if all(study_id in part for part in rows.values())]
    if not common:
        raise ValueError(f"No study is in all of {', '.join(systems)}: do they come from the same split?")
    for name, part in rows.items():
        for study_id in common:
            if part[study_id].reference != rows[first][study_id].reference:
                raise ValueError(f"Study {study_id!r} has one reference in {first} and another in {name}")
        if left_out := sorted(part.keys() - set(common)):
            named = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
            print(f"left out of {name}, since not every system holds them: {len(left_out)} studies ({named})")
    return {name: [part[study_id] for study_id in common] for name, part in rows.items()}


def _per_study_csv(rows: list[Prediction], labels: list[tuple[dict[str, int | None], dict[str, int | None]]]) -> str:
    """ROUGE-L of each study, and the observations that its draft misses and invents."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study_id", "rouge_l", "rule_missed", "rule_invented"])
    values = rouge_l([row.prediction for row in rows], [row.reference for row in rows]).statistics[:, 0]
    for row, value, (theirs, ours) in zip(rows, values, labels, strict=True):
        states = compare_labels(theirs, ours)
        named = [";".join(name for name, state in states if state == wanted) for wanted in ("missed", "invented")]
        writer.writerow([row.study_id, f"{value:.6f}", *named])
    return text.getvalue()


def _choose_cases(
    systems: dict[str, list[Prediction]],
    labels: list[tuple[dict[str, int | None], dict[str, int | None]]],
    known: dict[str, Study],
    count: int,
) -> list[Case]:
    """Studies at equal distances through the file, so that neither the best nor the worst are picked."""
    first = next(iter(systems))
    n = len(systems[first])
    count = min(count, n)
    cases = []
    for i in (round(k * (n - 1) / max(1, count - 1)) for k in range(count)):
        row = systems[first][i]
        study = known.get(row.study_id)
        drafts = {name: rows[i].prediction for name, rows in systems.items()}
        value = rouge_l([row.prediction], [row.reference]).value
        theirs, ours = labels[i]
        image, view = (_thumbnail(study.main_image.path), study.main_image.view) if study else (None, None)
        cases.append(Case(row.study_id, image, view, row.reference, drafts, theirs, ours, {"rouge_l": value}))
    return cases


def _thumbnail(path: Path, side: int = 512) -> bytes | None:
    """The picture as a JPEG of at most `side` pixels; None if it cannot be read."""
    from encoder.images import ImageError, load_image

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
