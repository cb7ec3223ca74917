"""benchmarks/radpref.py on a made-up folder in RadPref's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.radpref import agreement, main, read
from raddraft.errors import RadDraftError

TRUTH = "Small left pleural effusion."


def write(folder: Path) -> None:
    """Three studies; the first draft is the report, the second is worse the later the study."""
    drafts = ["Small left effusion.", "Left lung base.", "Clear."]
    studies = [{"id": f"s{i}", "ground_truth_report": TRUTH, "C1_report": TRUTH} for i in range(3)]
    for study, draft in zip(studies, drafts, strict=True):
        study["C2_report"] = draft
    (folder / "preference_data.json").write_text(json.dumps(studies))
    (folder / "radiologist_annotations").mkdir()
    for reader in range(2):
        found = {
            f"s{i}": {
                "C1": {"rating": 5, "finding_errors": {}, "missing_findings": {}},
                "C2": {
                    "rating": 4 - i - reader,
                    "finding_errors": {"0": {}},
                    "missing_findings": dict.fromkeys("ab"[:i]),
                },
            }
            for i in range(3 - reader)  # the second reader has not seen the last study
        }
        (folder / "radiologist_annotations" / f"user_{reader}.json").write_text(json.dumps({"annotations": found}))


def test_metrics_are_compared_with_the_mean_of_the_readers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RadDraftError, match="has no preference_data"):
        read(tmp_path)
    write(tmp_path)
    drafts, reports, ratings, errors = read(tmp_path)
    assert drafts == [TRUTH, "Small left effusion.", TRUTH, "Left lung base.", TRUTH, "Clear."]
    assert reports == [TRUTH] * 6
    assert ratings.tolist() == [5, 3.5, 5, 2.5, 5, 2]
    assert errors.tolist() == [0, 1, 0, 2, 0, 3]
    main(tmp_path, ["rouge_l"], resamples=5)
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("rouge_l ")]
    assert row[1] == "1.000", "ROUGE-L ranks these drafts as the readers do"
    assert np.isnan(agreement(np.ones(3), np.arange(3)))
