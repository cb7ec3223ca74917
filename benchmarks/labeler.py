"""Measure the rule-based labeler against the hand-made labels of IU X-ray, and against the labels of radlabels.

    python -m benchmarks.labeler --reports iu/indiana_reports.csv --gold iu/openi_gld_std14.csv \\
        --held-out iu/openi-testset.txt
    python -m benchmarks.labeler --radlabels site-packages/radlabels/samples
    python -m benchmarks.labeler --radlabels site-packages/radlabels/samples --against rules_2.py

The files of the first are those of the Open-i collection (reports as a table: uid, findings, impression, …) and of
NegBio (labels: filename = CXR + uid and 14 findings of 1 or 0; test list: one file name a line). Rules were written on
the reports outside the test list; the figures inside it are what counts.

The folder of the second comes with the package radlabels (0.2.0): 1,000 reports and labels that a model, RadGraph-XL,
and lists of phrases made of them. Rules were written on every other report (of even index, the files by name); the
figures of the others are what counts.

With another version's file (metrics/rules.py of another commit) its F1 and its speed stand beside.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

from metrics import rules
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

# Observation -> the labels of radlabels that speak of it.
RADLABELS = {
    "Enlarged Cardiomediastinum": ("enlarged_cardiomediastinum",),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": (
        "lung_opacity",
        "air_space_opacity",
        "ground_glass_opacity",
        "infiltration",
        "interstitial_thickening",
        "peribronchial_cuffing",
    ),
    "Lung Lesion": ("lung_lesion", "lung_nodule_or_mass"),
    "Edema": ("pulmonary_edema",),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural_effusion",),
    "Pleural Other": ("pleural_other", "pleural_thickening"),
    "Fracture": ("fracture_generic", "acute_rib_fracture", "non_acute_rib_fracture"),
    "Support Devices": (
        "central_venous_catheter",
        "endotracheal_tube",
        "enteric_tube",
        "implantable_electronic_device",
        "intercostal_drain",
        "pacemaker_electronic_cardiac_device_or_wires",
        "support_devices_generic",
        "tracheostomy_tube",
    ),
}

Truth = Mapping[str, Mapping[str, bool]]
"""Name of a report -> observation -> whether it is positive."""


def main(
    reports: Path | None = None,
    gold: Path | None = None,
    held_out: Path | None = None,
    radlabels: Path | None = None,
    uncertain: Literal["negative", "positive"] = "negative",
    against: Path | None = None,
) -> None:
    """Print precision, recall and F1 of every observation that the gold labels know, on both sides of a test list.

    Three gold labels are not quite the observation beside them: Lung Lesion also takes nodular opacities, Pleural Other
    also pleural scars but no bronchial thickening, and No Finding also reports with trifles such as low lung volumes.
    The labels of radlabels call present much that the report only suspects, read no history and no indication, and make
    every consolidation an opacity.

    Args:
        reports: Table of reports (CSV) with the columns uid, findings, impression. Findings and impression are labeled.
        gold: Table of labels (CSV) with a column filename (CXR + uid) and one column of 1 or 0 for each finding.
        held_out: List of the file names that are the test set; without it there is one table, of all reports.
        radlabels: Folder with synthetic_labels.json and synthetic_reports/, as in the package radlabels. Whole reports
            are labeled.
        uncertain: What a mention in doubt counts as. Negative is closer to these gold labels: on reports outside the
            test list it gives the higher F1 on seven of nine findings, and the same on one.
        against: metrics/rules.py of another version, to stand beside this one.
    """
    if (reports is None) != (gold is None) or not (reports or radlabels):
        raise RadDraftError("Nothing to measure: give --reports with --gold, or --radlabels, or all three")
    labelers = {f"rules {rules.VERSION}": rules.label}
    if against:
        other = load_rules(against)
        labelers[f"rules {other.VERSION} of {against}"] = other.label
    print(f"{' | '.join(labelers)}; uncertain counts as {uncertain}.")
    texts: dict[str, str] = {}
    if reports and gold:
        iu, truth = read_reports(reports), read_gold(gold)
        if missing := sorted(set(truth) - set(iu)):
            raise RadDraftError(f"{reports}: no report for {len(missing)} labels of {gold}, among them {missing[0]}")
        for title, names in sides(truth, held_out):
            print(table(title, iu, {name: truth[name] for name in names}, uncertain, labelers))
        texts |= iu
    if radlabels:
        whole, truth = read_radlabels(radlabels)
        for title, names in (("Even", sorted(truth)[::2]), ("Odd", sorted(truth)[1::2])):
            print(table(f"{title} of radlabels", whole, {name: truth[name] for name in names}, uncertain, labelers))
        texts |= whole
    print(speed(list(texts.values()), [rules, *([other] if against else [])]))


def sides(truth: Truth, held_out: Path | None) -> list[tuple[str, list[str]]]:
    """Title and names of the reports outside and inside a test list, or of all."""
    if held_out is None:
        return [("All reports", sorted(truth))]
    listed = {line.strip() for line in held_out.read_text(encoding="utf-8").splitlines() if line.strip()}
    if unknown := sorted(listed - set(truth)):
        raise RadDraftError(f"{held_out}: {unknown[0]!r} and {len(unknown) - 1} others have no label")
    return [(f"Outside {held_out.name}", sorted(set(truth) - listed)), (f"Inside {held_out.name}", sorted(listed))]


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


def read_radlabels(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, bool]]]:
    """Name -> whole report, and name -> observation (the keys of RADLABELS) -> whether it is "definitely present"."""
    labels = json.loads((folder / "synthetic_labels.json").read_text(encoding="utf-8"))
    texts = {name: (folder / "synthetic_reports" / f"{name}.txt").read_text(encoding="utf-8") for name in labels}
    truth = {}
    for name, found in labels.items():
        present = {label for label, status in found.items() if status == "definitely present"}
        truth[name] = {observation: not present.isdisjoint(RADLABELS[observation]) for observation in RADLABELS}
    return texts, truth


def load_rules(path: Path) -> Any:
    """The module of another version's metrics/rules.py, which needs nothing but the standard library."""
    spec = spec_from_file_location(f"rules_at_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RadDraftError(f"{path} is no Python file, such as metrics/rules.py of another version")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(
    title: str,
    texts: Mapping[str, str],
    truth: Truth,
    uncertain: str,
    labelers: Mapping[str, Callable[[str], Mapping[str, int | None]]],
) -> str:
    """Precision, recall, F1 and support of each observation over the reports in `truth`; then F1 of other labelers."""
    from sklearn.metrics import precision_recall_fscore_support

    if not truth:
        return f"\n{title}: no reports"
    positive = (1, -1) if uncertain == "positive" else (1,)
    names = list(next(iter(truth.values())))
    actual = [[row[name] for name in names] for row in truth.values()]
    columns = []
    for label in labelers.values():
        found = [label(texts[report]) for report in truth]
        predicted = [[labels[name] in positive for name in names] for labels in found]
        columns.append(precision_recall_fscore_support(actual, predicted, average=None, zero_division=0.0))
    head = f"{'':26}{'precision':>10}{'recall':>8}{'F1':>8}{'support':>9}" + f"{'F1 then':>9}" * (len(columns) - 1)
    lines = [f"\n{title}: {len(truth)} reports", head]
    for i, name in enumerate(names):
        precision, recall, f1, support = (values[i] for values in columns[0])
        line = f"{name:26}{precision:10.3f}{recall:8.3f}{f1:8.3f}{support:9d}"
        lines.append(line + "".join(f"{scores[2][i]:9.3f}" for scores in columns[1:]))
    return "\n".join(lines)


def speed(texts: list[str], modules: list[Any], rounds: int = 5) -> str:
    """Reports a second with nothing read before, best of some rounds in turn; the ratio if there are two versions."""
    best = [float("inf")] * len(modules)
    for module in modules:
        module.label("")  # compiles
    for _ in range(rounds):
        for i, module in enumerate(modules):
            module._read.cache_clear()
            started = time.perf_counter()
            for text in texts:
                module.label(text)
            best[i] = min(best[i], time.perf_counter() - started)
    rates = " | ".join(f"{len(texts) / seconds:,.0f} reports/s" for seconds in best)
    ratio = f" ({best[1] / best[0]:.2f} times as fast)" if len(best) > 1 else ""
    return f"\n{len(texts)} reports: {rates}{ratio}"


def _rows(path: Path, needed: set[str]) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if absent := sorted(needed - set(reader.fieldnames or ())):
            raise RadDraftError(f"{path}: no column {absent[0]!r}. Columns: {', '.join(reader.fieldnames or ())}")
        yield from reader


if __name__ == "__main__":
    from raddraft.cli import run

    run("labeler", package="benchmarks")
