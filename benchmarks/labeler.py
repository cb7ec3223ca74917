"""Measure the rule-based labeler against the hand-made labels of IU X-ray.

    python -m benchmarks.labeler --reports iu/indiana_reports.csv --gold iu/openi_gld_std14.csv \\
        --held-out iu/openi-testset.txt

The files are those of the Open-i collection (reports as a table: uid, findings, impression, …) and of NegBio (labels:
filename = CXR + uid and 14 findings of 1 or 0; test list: one file name a line). Rules were written on the reports
outside the test list; the figures inside it are what counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from metrics.rules import VERSION, label
from raddraft.errors import RadDraftError

# Observation -> the gold columns that speak of it; any of them positive makes it positive.
GOLD = {
    "Cardiomegaly": ("Cardiomegaly",),
    "Lung Lesion": ("Mass", "Nodule"),
    "Edema": ("Edema",),
    "Consolidation": ("Consolidation",),
    "Pneumonia": ("Pneumonia",),
    "Atelectasis": ("Atelectasis",),
    "Pneumothorax": ("Pneumothorax",),
    "Pleural Effusion": ("Effusion",),
    "Pleural Other": ("Pleural_Thickening",),
    "No Finding": ("normal",),
}
# Without counterpart: Infiltration (Lung Opacity is far wider), Emphysema, Fibrosis, Hernia.


def main(
    reports: Path,
    gold: Path,
    held_out: Path | None = None,
    uncertain: Literal["negative", "positive"] = "negative",
) -> None:
    """Print precision, recall and F1 of every observation that the gold labels know, outside and inside the test list.

    Three gold labels are not quite the observation beside them: Lung Lesion also takes nodular opacities, Pleural Other
    also pleural scars but no bronchial thickening, and No Finding also reports with trifles such as low lung volumes.

    Args:
        reports: Table of reports (CSV) with the columns uid, findings, impression. Findings and impression are labeled.
        gold: Table of labels (CSV) with a column filename (CXR + uid) and one column of 1 or 0 for each finding.
        held_out: List of the file names that are the test set; without it there is one table, of all reports.
        uncertain: What a mention in doubt counts as. Negative is closer to these gold labels: on reports outside the
            test list it gives the higher F1 on seven of nine findings, and the same on one.
    """
    texts = read_reports(reports)
    truth = read_gold(gold)
    if missing := sorted(set(truth) - set(texts)):
        raise RadDraftError(f"{reports}: no report for {len(missing)} labels of {gold}, among them {missing[0]}")
    print(f"Rules {VERSION}; uncertain counts as {uncertain}; text: findings and impression.")
    if held_out is None:
        print(table("All reports", texts, truth, uncertain))
        return
    listed = {line.strip() for line in held_out.read_text(encoding="utf-8").splitlines() if line.strip()}
    if unknown := sorted(listed - set(truth)):
        raise RadDraftError(f"{held_out}: {unknown[0]!r} and {len(unknown) - 1} others have no label in {gold}")
    for side, names in (("Outside", set(truth) - listed), ("Inside", listed)):
        part = {name: truth[name] for name in sorted(names)}
        print(table(f"{side} {held_out.name}", texts, part, uncertain))


def read_reports(path: Path) -> dict[str, str]:
    """File name (CXR + uid) -> findings and impression, a blank line between them."""
    rows = _rows(path, {"uid", "findings", "impression"})
    return {f"CXR{row['uid']}": f"{row['findings']}\n\n{row['impression']}" for row in rows}


def read_gold(path: Path) -> dict[str, dict[str, bool]]:
    """File name -> observation (the keys of GOLD) -> whether it is positive."""
    columns = {column for columns in GOLD.values() for column in columns}
    truth = {}
    for row in _rows(path, {"filename"} | columns):
        for column in sorted(columns):
            if row[column] not in ("0", "1"):
                raise RadDraftError(f"{path}: {row['filename']}: {column} is {row[column]!r}. Choices: 0, 1")
        truth[row["filename"]] = {name: any(row[column] == "1" for column in GOLD[name]) for name in GOLD}
    return truth


def table(title: str, texts: dict[str, str], truth: dict[str, dict[str, bool]], uncertain: str) -> str:
    """Precision, recall, F1 and support of each observation over the reports in `truth`."""
    from sklearn.metrics import precision_recall_fscore_support

    if not truth:
        return f"\n{title}: no reports"
    positive = (1, -1) if uncertain == "positive" else (1,)
    predicted = [[value in positive for value in _pick(label(texts[name]))] for name in truth]
    actual = [list(_pick(values)) for values in truth.values()]
    scores = zip(*precision_recall_fscore_support(actual, predicted, average=None, zero_division=0.0), strict=True)
    lines = [f"\n{title}: {len(truth)} reports", f"{'':18}{'precision':>10}{'recall':>8}{'F1':>8}{'support':>9}"]
    for name, (precision, recall, f1, support) in zip(GOLD, scores, strict=True):
        lines.append(f"{name:18}{precision:10.3f}{recall:8.3f}{f1:8.3f}{support:9d}")
    return "\n".join(lines)


def _pick(values: Mapping[str, int | None]) -> Iterator[int | None]:
    return (values[name] for name in GOLD)


def _rows(path: Path, needed: set[str]) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if absent := sorted(needed - set(reader.fieldnames or ())):
            raise RadDraftError(f"{path}: no column {absent[0]!r}. Columns: {', '.join(reader.fieldnames or ())}")
        yield from reader


if __name__ == "__main__":
    from raddraft.cli import run

    run("labeler", package="benchmarks")
