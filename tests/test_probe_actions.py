"""`raddraft probe` and `raddraft segment`: one tower, one target; their numbers are those of `raddraft compare`."""

from __future__ import annotations

import json
import re

import pytest

from tests.test_cli import run
from tests.test_compare import TASKS, studies, write_config

__all__ = ["studies"]


def test_a_probe_of_a_tower_of_its_store_and_of_the_comparison_are_the_same(tmp_path, studies, capsys) -> None:
    task = TASKS[2]
    assert run("compare", "--config", write_config(tmp_path, studies, [{"tower": "pixels"}], [task])) == (0, "")
    cell = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]["pixels"]["Age"]
    common = ["--studies", studies, "--kind", "regression", "--targets", "patient.age", "--workers", 0]
    common += ["--probe.pooling", "both", "--probe.resamples", 100]
    store = next((tmp_path / "features").glob("*/meta.json")).parent
    files = (tmp_path / "a.json", tmp_path / "b.json")
    capsys.readouterr()
    first = ["--tower", "pixels", "--features", tmp_path / "features", "--fractions", "0.5", "1", "--out", files[0]]
    assert run("probe", *common, *first) == (0, "")
    shown = capsys.readouterr().out
    assert run("probe", *common, "--features", store, "--out", files[1]) == (0, "")
    found = [json.loads(path.read_text()) for path in files]
    for row in found:
        assert row["measures"]["macro"]["r2"]["value"] == pytest.approx(cell["value"], abs=1e-9)
        assert row["measures"]["macro"]["r2"]["low"] == pytest.approx(cell["low"], abs=1e-9)
    r2 = found[0]["measures"]["patient.age"]["r2"]
    assert re.search(rf"patient.age +14 +{r2['value']:.3f} \[{r2['low']:.3f} {r2['high']:.3f}\]", shown)
    assert [point["n"] for point in found[0]["curve"]["r2"]] == [17, 34]
    assert f"1 of train, 34 subjects: macro r2 {r2['value']:.3f}" in shown
    assert found[1]["tower"] == str(store)


def test_blocks_are_fine_tuned_and_leaks_are_told(tmp_path, studies, tower_folder, capsys) -> None:
    (tmp_path / "0.png").write_bytes((tmp_path / "59.png").read_bytes())
    arguments = ["--studies", studies, "--kind", "binary", "--targets", "Edema", "--tower", tower_folder]
    arguments += ["--features", tmp_path / "features", "--out", tmp_path / "probe.json", "--blocks", 1]
    quick = [
        "--probe.solver",
        "adamw",
        "--probe.weight_decays",
        "[0.01]",
        "--probe.epochs",
        1,
        "--probe.seeds",
        "[0, 1]",
    ]
    status, message = run("probe", *arguments, *quick)
    assert status == 1
    assert "study s59 of test (59.png) shows study s0 of train (0.png): the same file" in message
    assert not (tmp_path / "probe.json").exists()
    assert run("probe", *arguments, *quick, "--leaks", "tell") == (0, "")
    shown = capsys.readouterr().out
    assert "warning: 1 images are in more than one split" in shown
    assert "warning: 1 test films are also train films" in shown
    assert re.search(r"Edema +14 +7 +0\.\d+ \[.*\] ± 0\.\d+", shown)
    assert json.loads((tmp_path / "probe.json").read_text())["blocks"] == 1


def test_segmentation_is_that_of_the_comparison(tmp_path, studies, tower_folder, capsys) -> None:
    config = write_config(tmp_path, studies, [{"tower": str(tower_folder)}], [TASKS[3]])
    assert run("compare", "--config", config) == (0, "")
    cell = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"][str(tower_folder)]["Square"]
    arguments = ["--studies", studies, "--structures", "square", "--tower", tower_folder, "--grid", "image"]
    arguments += ["--features", tmp_path / "features", "--out", tmp_path / "segment.json", "--resamples", 100]
    assert run("segment", *arguments) == (0, "")
    score = json.loads((tmp_path / "segment.json").read_text())["scores"]["square"]["dice"]
    assert (score["value"], score["low"]) == pytest.approx((cell["value"], cell["low"]))
    assert f"square  {score['value']:.3f} [{score['low']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "words", "culprit"),
    [
        ("probe", ["--targets", "Oedema"], "is not a feature store"),
        ("probe", ["--tower", "pixels", "--targets", "Oedema"], "Oedema"),
        ("probe", ["--targets", "Edema", "--blocks", "1"], "--blocks needs a --tower"),
        ("segment", ["--tower", "pixels", "--structures", "square"], "pixels has no patches"),
        ("segment", ["--tower", "pixels", "--structures", "ribs"], "No image has masks of ribs. Choices: square"),
    ],
)
def test_faults_are_one_sentence(tmp_path, studies, action, words, culprit, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if culprit == "is not a feature store":
        words = ["--targets", "Edema"]
    status, message = run(action, "--studies", studies, *words)
    assert (status, culprit in message) == (1, True), message
    assert culprit != "is not a feature store" or not (tmp_path / "files.jsonl").exists(), "no picture was read"


@pytest.mark.parametrize(
    ("old", "new"),
    [("--probe.learning-rate", "--probe.lr"), ("--probe.neighbours", "--probe.neighbors")],  # codespell:ignore
)
def test_renamed_options_are_refused(studies, old, new, capsys) -> None:
    assert run("probe", "--studies", studies, "--targets", "Edema", "--tower", "pixels", old, "1")[0] == 2
    assert f"renamed to {new}" in capsys.readouterr().err
