"""The demo at its smallest: it runs from end to end, goes on where it stopped, and does nothing twice."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import raddraft
from raddraft.studies import read_studies
from scripts.demo import CONTROLS
from tests.test_cli import run

SMALLEST = {
    "count": 40,
    "size": 64,
    "tower_width": 32,
    "tower_layers": 1,
    "lm_width": 32,
    "lm_layers": 1,
    "train.stages": '[{"epochs": 1, "lm": "full"}]',
    "warm.epochs": 1,
    "train.workers": 0,
    "decode.max_new_tokens": 20,
}
SYSTEMS = ("model", *CONTROLS)


def demo(out: Path, **changes: object) -> tuple[int, str]:
    options = {"out": out} | SMALLEST | changes
    return run("demo", *(word for name, value in options.items() for word in (f"--{name}", value)))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(out: Path) -> dict[str, bytes]:
    """Everything that a run which had nothing left to do must leave as it was."""
    names = [f"{system}.jsonl" for system in SYSTEMS]
    names += ["config.yaml", "log.jsonl", "phantom/studies.jsonl", "lm/model.safetensors"]
    names += ["tower/model.safetensors", "warm/model.safetensors"]
    names += ["scores/scores.json", "scores/per_study.csv", "scores/report.html"]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished demo, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    with redirect_stdout(io.StringIO()) as printed:
        assert demo(out) == (0, "")
    return out, printed.getvalue()


@pytest.fixture
def finished(first: tuple[Path, str]) -> Path:
    return first[0]


def test_the_demo_leaves_a_model_drafts_and_scores_beside_controls(finished) -> None:
    wanted = read_studies(finished / "phantom" / "studies.jsonl", "test")
    assert (finished / "model" / "config.json").is_file()
    for system in SYSTEMS:
        rows = read(finished / f"{system}.jsonl")
        assert [row["study_id"] for row in rows] == [study.study_id for study in wanted]
        assert [row["reference"] for row in rows] == [study.sections["findings"] for study in wanted]
        assert [row["subject_id"] for row in rows] == [study.subject_id for study in wanted]
    scores = json.loads((finished / "scores" / "scores.json").read_text())
    assert scores["n"] == len(wanted) > 2
    assert tuple(scores["others"]) == CONTROLS
    page = (finished / "scores" / "report.html").read_text(encoding="utf-8")
    assert "Drafts by model, on synthetic data" in page
    assert page.count("data:image/jpeg;base64,") == len(wanted)
    assert all(study.study_id in page for study in wanted)


def test_started_again_it_does_nothing_twice(finished, capsys) -> None:
    before = results(finished)
    kept = [finished / "model" / "model.safetensors", finished / "lm" / "model.safetensors"]
    kept += [
        finished / "phantom" / "studies.jsonl",
        finished / "log.jsonl",
        *finished.glob("phantom/files/*/*/*/*.jpg"),
    ]
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert len(times) == 4 + 40
    assert demo(finished) == (0, "")
    assert results(finished) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    shown = capsys.readouterr().out
    assert "$ raddraft train" not in shown
    assert "$ raddraft prepare" not in shown
    assert "n = " in shown, "the table is shown again"


def test_without_its_model_the_demo_saves_the_trained_one_again(finished) -> None:
    before, trained = results(finished), load_file(finished / "model" / "model.safetensors")
    shutil.rmtree(finished / "model")
    assert demo(finished) == (0, "")
    assert results(finished) == before
    again = load_file(finished / "model" / "model.safetensors")
    assert again.keys() == trained.keys()
    assert all(torch.equal(again[name], value) for name, value in trained.items())


def test_the_commands_it_prints_are_commands(first) -> None:
    finished, printed = first
    commands = [shlex.split(line)[2:] for line in printed.splitlines() if line.startswith("$ raddraft ")]
    assert [action for action, *_ in commands] == ["prepare", "train", *["generate"] * 4, "score"]
    for action, *words in commands:
        assert run(action, *words, "--print_config") == (0, ""), f"raddraft {action} {shlex.join(words)}"
    assert str(finished / "scores" / "report.html") in printed
    assert "The data are synthetic." in printed


def test_its_drafts_say_that_the_model_knows_synthetic_data_only(first, capsys) -> None:
    out, _ = first
    rows = read(out / "model.jsonl")
    assert rows[0]["model"].endswith("(trained on synthetic data only)")
    image = read_studies(out / "phantom" / "studies.jsonl")[0].main_image.path
    assert "synthetic data only" in raddraft.load_model(out / "model").draft(image, max_new_tokens=2).banner
    assert run("draft", out / "model", image, "--decode.max-new-tokens", 2) == (0, "")
    assert "trained on synthetic data only: the draft says nothing about a patient" in capsys.readouterr().out
