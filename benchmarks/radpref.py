"""How well metrics follow radiologists: on RadPref, which stands in the repository rajpurkarlab/CRIMSON (MIT license).

    git clone https://github.com/rajpurkarlab/CRIMSON
    python -m benchmarks.radpref CRIMSON/RadPref

Three cardiothoracic radiologists rated two drafts, of a GPT and of MedGemma, of each of 100 chest X-rays from 1 to 5,
and marked what is wrong or missing in them (Baharoon et al. 2026, arXiv 2603.06183). Printed is Kendall's tau-b of each
metric with the mean rating, and with the mean number of errors (its sign turned, so that 1 is perfect agreement). 95 %
percentile intervals are by study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metrics.models import Models
from metrics.scoring import compute, per_report
from metrics.text import Once
from raddraft.errors import RadDraftError
from raddraft.stats import interval
from raddraft.text import format_estimate, format_table

POSITIONAL = ("folder",)
CANDIDATES = ("C1", "C2")


def main(
    folder: Path,
    metrics: list[str] = ["all"],  # noqa: B006 - read only
    resamples: int = 500,
    models: Models = Models(),  # noqa: B008 - read only
) -> None:
    """Print the agreement of every metric that can run.

    Args:
        folder: RadPref's: preference_data.json and radiologist_annotations.
        metrics: Names of metrics or families, or all.
        resamples: Bootstrap resamples of the studies.
        models: Models of learned metrics
    """
    drafts, reports, ratings, errors = read(folder)
    once = Once()
    names = list(compute(drafts[:2], reports[:2], metrics, models, once)[0])
    rows = [["", "rating", "errors"]]
    generator = np.random.default_rng(0)
    n = len(drafts) // len(CANDIDATES)
    studies = generator.integers(0, n, (resamples, n))
    drawn = (studies[..., None] * len(CANDIDATES) + np.arange(len(CANDIDATES))).reshape(resamples, -1)
    for name, scores in per_report(drafts, reports, names, models, once).items():
        cells = []
        for opinion in (ratings, -errors):
            found = interval(np.array([agreement(scores[rows_of], opinion[rows_of]) for rows_of in drawn]))
            value = agreement(scores, opinion)
            cells.append(format_estimate(value, found.low, found.high) if found else "-")
        rows.append([name, *cells])
    print(f"{len(drafts)} drafts of {n} studies; Kendall's tau-b")
    print(format_table(rows))


def agreement(scores: np.ndarray, opinion: np.ndarray) -> float:
    """Kendall's tau-b, which counts ties; NaN where either side is the same for all."""
    from scipy.stats import kendalltau

    return float(kendalltau(scores, opinion).statistic)


def read(folder: Path) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Drafts and their reports, study by study, with the mean rating and mean number of errors of each draft [n].

    Raises:
        RadDraftError: no such files.
    """
    data, annotations = folder / "preference_data.json", sorted(folder.glob("radiologist_annotations/*.json"))
    if not data.is_file() or not annotations:
        missing = "preference_data.json or radiologist_annotations"
        raise RadDraftError(f"{folder} has no {missing}: they stand in RadPref of the repository rajpurkarlab/CRIMSON")
    readers = [json.loads(path.read_text(encoding="utf-8"))["annotations"] for path in annotations]
    drafts, reports, ratings, errors = [], [], [], []
    for study in json.loads(data.read_text(encoding="utf-8")):
        for candidate in CANDIDATES:
            found: list[Mapping[str, Any]] = [one[study["id"]][candidate] for one in readers if study["id"] in one]
            drafts.append(study[f"{candidate}_report"])
            reports.append(study["ground_truth_report"])
            ratings.append(np.mean([one["rating"] for one in found]))
            errors.append(np.mean([len(one["finding_errors"]) + len(one["missing_findings"]) for one in found]))
    return drafts, reports, np.array(ratings), np.array(errors)


if __name__ == "__main__":
    from raddraft.cli import run

    run("radpref", package="benchmarks")
