"""Report tasks of `raddraft compare`: one recipe on every tower, seeds, controls as rows, resumed and shared out."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from transformers import AutoModelForCausalLM

import raddraft
from generator import compare_report
from generator.config import DecodeConfig
from raddraft.files import read_jsonl
from raddraft.studies import read_studies, write_studies
from tests.test_cli import run
from tests.test_compare import studies, write_config  # noqa: F401 - a fixture

# ruff: noqa: F811

EDEMA = {"name": "Edema", "kind": "binary", "targets": ["Edema"]}
PIXELS, RANDOM = {"tower": "pixels", "label": "pixels"}, {"tower": "$TOWER", "label": "tiny"}


@pytest.fixture
def recipe(tmp_path: Path, lm_folder: Path, tower_folder: Path, monkeypatch) -> Path:
    """A recipe that learns to write notes, on any tower, in seconds."""
    monkeypatch.setenv("TOWER", str(tower_folder))
    monkeypatch.setattr(compare_report, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr("generator.api.DecodeConfig", partial(DecodeConfig, max_new_tokens=30))
    stage = {"epochs": 8, "lr": 0.005, "lm": "full"}
    train = {"stages": [stage], "batch_size": 12, "micro_batch_size": 12, "workers": 0, "eval_every": 0}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": {"tower": "pixels", "lm": str(lm_folder)}, "train": train}))
    return path


def task(recipe: Path, **rest) -> dict:
    return {"name": "Notes", "kind": "report", "targets": ["note"], "recipe": str(recipe), **rest}


def score_file(drafts: Path) -> float:
    rows = [row for _, row in read_jsonl(drafts, ("study_id", "prediction"))]
    scores = raddraft.score([row["prediction"] for row in rows], [row["reference"] for row in rows], ["bleu_1"])
    return scores["metrics"]["bleu_1"]["value"]


def test_towers_controls_and_seeds_become_rows_and_columns(tmp_path, studies, recipe) -> None:
    tasks = [
        EDEMA,
        task(recipe, measures=["rouge_l", "bleu_1"], seeds=2),
    ]
    config = write_config(tmp_path, studies, [PIXELS, RANDOM], tasks)
    assert run("compare", "--config", config) == (0, "")
    out = tmp_path / "out"
    result = json.loads((out / "compare.json").read_text())
    rows = result["towers"]
    assert list(rows) == ["pixels", "tiny", "pixels, shuffled images", "pixels, nearest report", "most frequent report"]
    assert rows["pixels, nearest report"]["Notes: rouge_l"]["value"] == 1.0
    frequent = rows["most frequent report"]["Notes: rouge_l"]["value"]
    assert frequent == pytest.approx((1 + 3 / 4) / 2), "one of two notes, which share three of four words"
    assert rows["most frequent report"]["Edema"]["value"] is None
    for row, file in (("pixels", "drafts"), ("pixels, shuffled images", "shuffled-images")):
        assert rows[row]["Notes: bleu_1"]["details"]["seeds"] == pytest.approx(
            [score_file(path) for path in sorted(out.glob(f"reports/pixels*/seed-*/{file}.jsonl"))]
        )
    cell = rows["tiny"]["Notes: bleu_1"]
    assert len(cell["details"]["seeds"]) == 2
    assert cell["value"] == pytest.approx(sum(cell["details"]["seeds"]) / 2)
    assert cell["n"] == 14
    assert cell["notes"][0] == "the language model has no chat template: it is prompted in plain text"
    assert result["controls"] == list(rows)[2:]
    assert result["writers"] == {}, "all rows have the same decoder"
    assert "Notes: rouge_l" in result["differences"]["pixels, shuffled images"]
    table = (out / "table.md").read_text()
    assert "sd over" not in table
    assert "sd is the standard deviation over seeds" in table
    runs = sorted(path.parent.name for path in out.glob("reports/*/seed-*/model"))
    assert runs == ["seed-0", "seed-0", "seed-1", "seed-1"], "two columns share the runs"
    configs = [yaml.safe_load(path.read_text()) for path in sorted(out.glob("reports/*/seed-*/config.yaml"))]
    assert [one["train"]["seed"] for one in configs] == [0, 1, 0, 1]
    assert all(one["train"]["cached"] for one in configs)
    assert len(list(read_jsonl(next(out.glob("reports/tiny*/seed-1/drafts.jsonl")), ("study_id",)))) == 14


def test_what_is_there_is_kept_and_what_another_command_makes_is_waited_for(
    tmp_path, studies, recipe, monkeypatch
) -> None:
    tasks = [task(recipe, seeds=1, overrides={"train.stages.0.epochs": 2})]
    config = write_config(tmp_path, studies, [PIXELS, RANDOM], tasks)
    assert run("compare", "--config", config) == (0, "")
    out = tmp_path / "out"
    drafts = [next(out.glob(f"reports/{row}--*/seed-0/drafts.jsonl")) for row in ("pixels", "tiny")]
    model = drafts[0].parent / "model" / "model.safetensors"
    before, text = model.stat().st_mtime_ns, drafts[0].read_text()
    for file in drafts:
        file.with_suffix(".done").unlink()
    drafts[0].write_text("".join(text.splitlines(keepends=True)[:5]))  # a run that was killed while it drafted
    for cell in (out / "cells").glob("*.json"):
        cell.unlink()
    held = FileLock(drafts[0].parent / "run.lock")
    held.acquire()
    others = []

    def let_go(seconds: float) -> None:
        others.append(drafts[1].with_suffix(".done").is_file())
        held.release()

    with monkeypatch.context() as patched:
        patched.setattr(compare_report.time, "sleep", let_go)
        assert run("compare", "--config", config) == (0, "")
    assert others == [True], "the other row was done before the one that is taken was waited for"
    assert drafts[0].read_text() == text
    assert model.stat().st_mtime_ns == before
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    config = write_config(tmp_path, studies, [PIXELS], tasks)
    assert run("compare", "--config", config) == (0, "")
    assert len(list(out.glob("reports/pixels*/seed-0/model"))) == 2, "other images, another run"


def test_rows_may_differ_in_the_language_model(tmp_path, studies, recipe, lm_folder, monkeypatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():  # launched: each works for itself
        monkeypatch.setenv(name, value)
    known = read_studies(studies)
    known[-1].extra["synthetic"] = ["note"]
    write_studies(studies, known)
    rows = [PIXELS, {"tower": "pixels", "lm": str(lm_folder), "label": "another"}]
    config = write_config(
        tmp_path,
        studies,
        rows,
        [task(recipe, seeds=1, overrides={"train.stages.0.epochs": 1, "train.precision": "no", "train.shard": True})],
    )
    assert run("compare", "--config", config) == (0, "")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    cells = [result["towers"][row]["Notes"] for row in ("pixels", "another")]
    assert all(cell["details"].pop("tokens_per_second") > 0 for cell in cells)
    assert cells[0] == cells[1], "the same model under another name"
    assert cells[0]["notes"][0] == "synthetic: 1 of 14 test studies"
    lm = AutoModelForCausalLM.from_pretrained(lm_folder)
    assert cells[0]["details"]["parameters"]["lm"] == lm.num_parameters() + 2 * lm.config.hidden_size, (
        "and the image token"
    )
    assert [one["lm"] for one in result["writers"].values()] == [cells[0]["details"]["parameters"]["lm"]] * 2
    head = (tmp_path / "out" / "table.md").read_text().splitlines()[0]
    assert [part.strip() for part in head.split("|")[1:4]] == ["Encoder", "Parameters that write", "Tokens per second"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"recipe": "nope.yaml"}, "Task 'Notes', recipe nope.yaml: --config: there is no file nope.yaml"),
        ({"recipe": None}, "tasks of the kind report, and only they, need a recipe"),
        ({"overrides": {"train.sed": "1"}}, "unknown option --train.sed"),
        ({"overrides": {"train.seed": "1"}}, "overrides has train.seed, which the table decides"),
        ({"overrides": {"train.stages.0.tower": "full"}}, "trains the tower; a comparison freezes it"),
        ({"seeds": 0}, "task 'Notes'.seeds must be at least 1, got 0"),
        ({"measures": ["rouge"]}, "report has no measure 'rouge'"),
        ({"measure": "rouge_l", "measures": ["bleu_4"]}, "give measure or measures, not both"),
        ({"fractions": [0.5, 1.0]}, "learning curves (fractions) are of probes"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, studies, recipe, change, sentence) -> None:
    config = write_config(tmp_path, studies, [PIXELS], [task(recipe) | change])
    status, told = run("compare", "--config", config)
    assert status
    assert sentence in told
    assert not (tmp_path / "out" / "reports").exists()


def test_reports_that_are_all_empty_are_one_sentence_and_train_nothing(tmp_path, studies, recipe) -> None:
    known = read_studies(studies)
    for study in known:
        study.sections = {"note": "", "other": "Words."} if study.split == "test" else study.sections
    write_studies(studies, known)
    tasks = [task(recipe, seeds=1), EDEMA]
    assert run("compare", "--config", write_config(tmp_path, studies, [PIXELS], tasks)) == (0, "")
    row = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]["pixels"]
    assert row["Notes"]["value"] is None
    assert row["Notes"]["notes"] == ["no test study has the sections note"]
    assert row["Edema"]["value"] == 1.0
    assert "- Notes (all): no test study has the sections note" in (tmp_path / "out" / "table.md").read_text()
    assert not list(tmp_path.glob("out/reports/*/*/model"))


def test_a_row_that_cannot_be_drafted_says_why_and_leaves_the_others(tmp_path, studies, recipe, capsys) -> None:
    """A recipe that does not fit a tower; then folders of another version of this project."""
    overrides = {"train.stages.0.epochs": 1, "model.feature_layer": -2}
    tasks = [task(recipe, seeds=1, overrides=overrides), EDEMA]
    config = write_config(tmp_path, studies, [PIXELS, RANDOM], tasks, baseline="tiny")

    def notes() -> dict[str, list[str]]:
        assert run("compare", "--config", config) == (0, "")
        result = json.loads((tmp_path / "out" / "compare.json").read_text())
        assert result["towers"]["pixels"]["Edema"]["value"] == 1.0
        found = {row: cells["Notes"] for row, cells in result["towers"].items()}
        return {row: cell["notes"] for row, cell in found.items() if cell["value"] is None}

    sentence = "model.feature_layer is -2. Choices for pixels: -1, its final output"
    assert notes() == {"pixels": [sentence]}
    folder = next(tmp_path.glob("out/reports/tiny--*/seed-0"))
    cells = {path.name: path for path in (tmp_path / "out" / "cells").glob("*.json")}
    assert "pixels--Notes.json" not in cells, "tried again when what is at fault has changed"
    before = cells["tiny--Edema.json"].stat().st_mtime_ns
    cells["pixels--Edema.json"].write_text("{")
    cells["tiny--Notes.json"].unlink()
    (folder / "drafts.done").unlink()
    sidecar = folder / "model" / "raddraft.json"
    saved = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(saved | {"prompt": saved["prompt"] | {"style": "terse"}}))
    capsys.readouterr()
    found = notes()
    assert "pixels--Edema.json is damaged or of another version, and is measured again" in capsys.readouterr().err
    assert list(found) == ["pixels", "tiny"]
    assert found["tiny"][0].startswith(f"{folder / 'model'} was written by another version of RadDraft (its prompt has")
    shutil.rmtree(folder / "model")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "style: terse\n")
    assert "seed-0 holds a run of another version of RadDraft (config.yaml has style" in notes()["tiny"][0]
    assert cells["tiny--Edema.json"].stat().st_mtime_ns == before
