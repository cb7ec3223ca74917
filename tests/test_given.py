"""`raddraft score --extra`: per-study scores made elsewhere get intervals and tests, and what is amiss a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metrics.given import read_given
from metrics.read import Prediction
from metrics.systems import score_systems
from raddraft.errors import RadDraftError
from tests.test_cli import run

STUDIES = [f"s{i}" for i in range(6)]
ONE = {"model": [Prediction(study, "The heart is big.", "The heart is normal.") for study in STUDIES]}
TWO = ONE | {"other": ONE["model"]}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_scores_join_by_study_and_system_whatever_their_order(tmp_path) -> None:
    rows = [
        f"{study},{name},{i + shift},{-i},p{i}"
        for name, shift in (("other", 0.5), ("model", 0))
        for i, study in enumerate(STUDIES)
    ]
    text = "\n".join(["study_id,system,green,crimson,subject_id", *reversed(rows), "s99,model,,,p", ""])
    found = read_given(write(tmp_path / "judge.csv", text), TWO)
    assert {name: list(part) for name, part in found.items()} == {name: ["green", "crimson"] for name in TWO}
    np.testing.assert_array_equal(found["model"]["green"].per_study, range(6))
    np.testing.assert_array_equal(found["other"]["green"].per_study, np.arange(6) + 0.5)
    np.testing.assert_array_equal(found["other"]["crimson"].per_study, -np.arange(6))
    assert found["model"]["green"].signature.startswith("per-study scores from judge.csv")


@pytest.mark.parametrize(("suffix", "text"), [("csv", "study,Lunguage\n{}"), ("tsv", "Study ID\tLunguage\n{}")])
def test_one_system_needs_no_column_of_systems(tmp_path, suffix, text) -> None:
    blank = "," if suffix == "csv" else "\t"
    lines = "\n".join(f"{study}{blank}{i}" for i, study in enumerate(STUDIES))
    found = read_given(write(tmp_path / f"judge.{suffix}", text.format(lines)), ONE)
    assert found["model"]["Lunguage"].value == 2.5


def test_they_are_scored_ranked_and_compared_like_the_others(tmp_path) -> None:
    lines = [f"{study},{name},{i + (name == 'model') * 2}" for name in TWO for i, study in enumerate(STUDIES)]
    given = read_given(write(tmp_path / "judge.csv", "\n".join(["study_id,system,green", *lines])), TWO)
    scored = score_systems(TWO, ["rouge_l"], by=["normal"], resamples=50, rank_by="green", given=given)
    green = scored.scores["metrics"]["green"]
    assert list(scored.scores["metrics"]) == ["rouge_l", "green"]
    assert green["low"] < green["value"] == 4.5 < green["high"]
    assert scored.scores["differences"]["other"]["green"]["value"] == 2
    assert "green" in scored.scores["strata"]["normal"]["normal"]["metrics"]
    assert scored.choose_cases(3)[0].group == "Worst by green"
    assert "green" in scored.tables()


def test_the_command(tmp_path, capsys) -> None:
    drafts = "".join(
        json.dumps({"study_id": study, "prediction": "a b", "reference": "a c"}) + "\n" for study in STUDIES
    )
    extra = write(tmp_path / "judge.csv", "study_id,green\n" + "".join(f"{study},0.5\n" for study in STUDIES))
    arguments = (write(tmp_path / "model.jsonl", drafts), "--metrics", "rouge_l", "--extra", extra)
    assert run("score", *arguments) == (0, "")
    assert "green" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert scores["metrics"]["green"]["value"] == 0.5
    assert "green" in (tmp_path / "scores" / "per_study.csv").read_text(encoding="utf-8").splitlines()[0]


ALL = "".join(f"{study},model,1\n" for study in STUDIES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"expected the columns study_id, system and one for each metric, got \[\]"),
        ("study_id,system\n", "expected the columns"),
        ("name,green\n", "expected the columns"),
        ("study_id,system,rouge_l\n" + ALL, "'rouge_l' cannot name a metric"),
        ("study_id,system,,\n", "'' cannot name a metric"),
        ("study_id,system,green,green\n", "'green' cannot name a metric"),
        ("study_id,green\ns1,1\n", "has no column system, which must tell model, other apart"),
        ("study_id,system,green\ns1,moddel1,1\n", r"line 2: unknown system 'moddel1'\. Choices: .*Did you mean model"),
        ("study_id,system,green\n" + ALL + "s1,model,2\n", "line 8: study 's1' of model is listed twice"),
        ("study_id,system,green\ns1,model,good\n", "line 2, green: expected a number, got 'good'"),
        ("study_id,system,green\ns1,model,inf\n", "line 2, green: expected a number, got 'inf'"),
        ("study_id,system,green\ns1,model\n", "line 2 has 2 cells, the header has 3"),
        ("study_id,system,green\n" + ALL, "no green of 6 of 6 studies of other"),
        ("study_id,system,green\n" + ALL.replace("s3,model,1", "s3,model,NA"), r"no green of 1 of 6 .* model \(s3\)"),
    ],
)
def test_what_is_amiss_is_named(tmp_path, text, reason) -> None:
    with pytest.raises(RadDraftError, match=reason):
        read_given(write(tmp_path / "judge.csv", text), TWO)
