"""`raddraft compare`: one table over towers and tasks, resumable, with paired differences; leaks are told."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import raddraft
from encoder.config import ComputeConfig
from generator import compare_features
from generator.compare import Cell, Task, compare_with
from raddraft.studies import Study, StudyImage, read_studies, write_studies
from tests.test_cli import run


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """60 pictures: a bright square at the left or right (Edema), its size (age), its mask, and a note on it."""
    generator = np.random.default_rng(0)
    found = []
    for i in range(60):
        side, size = i % 2, 8 + i % 9
        picture, mask = generator.normal(90, 12, (56, 56)), np.zeros((56, 56), np.uint8)
        x = 4 + 28 * side
        mask[20 : 20 + size, x : x + size] = 255
        picture[mask > 0] += 110
        path, mask_path = tmp_path / f"{i}.png", tmp_path / f"{i}-mask.png"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
        Image.fromarray(mask).save(mask_path)
        found.append(
            Study(
                f"s{i}",
                f"p{i // 2}" if i < 4 else f"p{i}",
                "train" if i < 36 else "val" if i < 46 else "test",
                [StudyImage(path, "PA" if i % 3 else "AP", {"square": mask_path})],
                {"note": "Opacity on the right." if side else "Opacity on the left."},
                {"Edema": side},
                {"sex": "F" if side else "M", "age": 3.0 * size},
                "made",
            )
        )
    write_studies(tmp_path / "studies.jsonl", found)
    return tmp_path / "studies.jsonl"


TASKS = [
    {"name": "Edema", "kind": "binary", "targets": ["Edema"]},
    {"name": "Sex", "kind": "multiclass", "targets": ["patient.sex"], "fractions": [0.4, 1.0]},
    {"name": "Age", "kind": "regression", "targets": ["patient.age"]},
    {"name": "Square", "kind": "segmentation", "targets": ["square"]},
    {"name": "Note", "kind": "retrieval", "targets": ["note"]},
]


def write_config(folder: Path, studies: Path, towers: list[dict], tasks: list[dict] = TASKS, **rest: object) -> Path:
    config = {"studies": str(studies), "towers": towers, "tasks": tasks, "workers": 0, "resamples": 100, **rest}
    config |= {"out": str(folder / "out"), "features": str(folder / "features")}
    (folder / "compare.yaml").write_text(yaml.safe_dump(config))
    return folder / "compare.yaml"


def test_towers_and_tasks_become_one_table(tmp_path, studies, tower_folder, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TOWER", str(tower_folder))
    towers = [
        {"tower": "pixels", "label": "16 × 16 pixels"},
        {"tower": "$TOWER", "label": "tiny"},
        {"tower": "random:$TOWER"},
    ]
    config = write_config(tmp_path, studies, towers)
    assert run("compare", "--config", config) == (0, "")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(result["towers"]) == ["16 × 16 pixels", "tiny", "random:$TOWER"]
    pixels, tiny = result["towers"]["16 × 16 pixels"], result["towers"]["tiny"]
    assert pixels["Edema"]["value"] == pixels["Sex"]["value"] == 1.0, "left and right are plain in 16 x 16 pixels"
    assert pixels["Note"]["value"] == 1.0
    assert [point["n"] for point in pixels["Sex"]["details"]["curve"]] == [14, 34]
    assert pixels["Sex"]["details"]["curve"][1]["value"] == 1.0
    assert pixels["Square"]["value"] is None
    assert "no patches" in pixels["Square"]["notes"][0]
    assert 0 < tiny["Square"]["value"] <= 1
    assert pixels["Age"]["value"] > 0.5
    for row in result["towers"].values():
        for cell in row.values():
            if cell["value"] is not None:
                assert cell["low"] <= cell["high"]
    assert set(result["differences"]["tiny"]) == {"Edema", "Sex", "Age", "Note"}
    for row in result["differences"].values():
        for one in row.values():
            assert one["p"] <= one["p_holm"] <= 1
    table = (tmp_path / "out" / "table.md").read_text()
    assert "16 × 16 pixels" in table
    assert table in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_front_door_takes_names_of_towers(tmp_path, studies) -> None:
    compute = ComputeConfig(workers=0, features=tmp_path / "features")
    task = Task("Edema", "binary", ["Edema"])
    result = raddraft.compare(studies, ["pixels"], [task], tmp_path / "out", compute=compute, resamples=20)
    assert result["towers"]["pixels"]["Edema"]["value"] == 1.0
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(json.dumps(result, default=str))


def test_a_finished_cell_is_not_computed_again(tmp_path, studies, monkeypatch) -> None:
    config = write_config(tmp_path, studies, [{"tower": "pixels"}], TASKS[:2])
    assert run("compare", "--config", config) == (0, "")
    cells = sorted((tmp_path / "out" / "cells").glob("*.json"))
    assert len(cells) == 2
    before = [path.stat().st_mtime_ns for path in cells]
    first = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]
    config = write_config(tmp_path, studies, [{"tower": "pixels"}], TASKS[:3])
    assert run("compare", "--config", config) == (0, "")
    assert [path.stat().st_mtime_ns for path in cells] == before
    again = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]["pixels"]
    assert len(again) == 3
    assert {name: again[name]["value"] for name in ("Edema", "Sex")} == {
        name: first["pixels"][name]["value"] for name in ("Edema", "Sex")
    }
    config = write_config(tmp_path, studies, [{"tower": "pixels"}], TASKS[:1], resamples=50)
    assert run("compare", "--config", config) == (0, "")
    first_cell = cells[0].stat().st_mtime_ns
    assert first_cell != before[0], "other settings, another cell"
    monkeypatch.setattr("generator.compare.RULES", 0)
    assert run("compare", "--config", config) == (0, "")
    first_cell, before_rules = cells[0].stat().st_mtime_ns, first_cell
    assert first_cell != before_rules, "other rules of measuring, another cell"
    (tmp_path / "59.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert run("compare", "--config", config, "--leaks", "tell") == (0, "")
    assert cells[0].stat().st_mtime_ns != first_cell, "another picture under the same name, another cell"


def test_towers_compute_in_the_type_that_is_asked_for(tmp_path, studies, tower_folder) -> None:
    config = write_config(tmp_path, studies, [{"tower": str(tower_folder), "label": "tiny"}], TASKS[2:3])
    values = []
    for precision in ("float32", "bfloat16"):
        assert run("compare", "--config", config, "--precision", precision) == (0, "")
        values.append(json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]["tiny"]["Age"]["value"])
    assert values[0] != values[1], "features of their own, a cell of its own"
    assert values[1] == pytest.approx(values[0], abs=0.05)


def test_folds_measure_on_every_subject_once(tmp_path, studies, tower_folder) -> None:
    towers = [{"tower": "pixels"}, {"tower": str(tower_folder), "label": "tiny"}]
    tasks = [*TASKS[:1], *TASKS[2:]]
    config = write_config(tmp_path, studies, towers, tasks, folds=5)
    assert run("compare", "--config", config) == (0, "")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {cell["n"] for cell in result["towers"]["tiny"].values()} == {60}
    assert result["towers"]["pixels"]["Square"]["n"] is None, "it has no patches"
    age = result["towers"]["pixels"]["Age"]
    assert age["value"] == pytest.approx(np.mean([fold["value"] for fold in age["details"]["folds"]]))
    assert age["low"] < age["value"] < age["high"]
    assert result["towers"]["pixels"]["Edema"]["value"] == 1.0
    assert set(result["differences"]["tiny"]) == {"Edema", "Age", "Note"}
    assert "Cross-validated: subjects of all splits in 5 folds" in (tmp_path / "out" / "table.md").read_text()
    status, sentence = run("compare", "--config", write_config(tmp_path, studies, towers, folds=5))
    assert status == 1
    assert "Task 'Sex': learning curves (fractions) are of probes" in sentence


def test_folds_tell_of_pictures_that_two_subjects_share(tmp_path, studies) -> None:
    for number in range(50, 56):
        shutil.copy(tmp_path / "10.png", tmp_path / f"{number}.png")
    config = write_config(tmp_path, studies, [{"tower": "pixels"}], TASKS[:1], folds=3)
    status, message = run("compare", "--config", config)
    assert status == 1
    assert re.search(r"7 test films are also train films, e\.g\. study s\d+ of fold \d", message)
    assert run("compare", "--config", config, "--leaks", "tell") == (0, "")
    content, films = json.loads((tmp_path / "out" / "compare.json").read_text())["warnings"]["pixels"]
    assert "1 images are in more than one split with the same content" in content
    assert "fold" in content
    assert films.startswith("7 test films are also train films")


def test_what_cannot_be_measured_leaves_the_others_to_go_on(tmp_path, studies) -> None:
    rows = read_studies(studies)
    for study in rows:
        if study.split == "val":
            study.labels = {}
        if study.split == "train":
            study.sections = {}
    write_studies(studies, rows)
    config = write_config(tmp_path, studies, [{"tower": "pixels"}], [TASKS[0], TASKS[2], TASKS[4]])
    assert run("compare", "--config", config) == (0, "")
    row = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]["pixels"]
    assert row["Age"]["value"] > 0.5
    assert row["Edema"]["value"] is row["Note"]["value"] is None
    assert "can be scored on the 0 images of val" in row["Edema"]["notes"][0]
    assert "train and test need studies with note" in row["Note"]["notes"][0]


def test_retrieval_resamples_subjects(tmp_path, studies) -> None:
    """Eight studies of each test subject, all alike, say no more than one."""
    rows = read_studies(studies)
    for study in rows:  # notes that the picture does not tell, so that they are found or not by chance
        study.sections["note"] = f"Finding {int(study.study_id[1:]) // 3 % 5}."
    write_studies(studies, rows)
    found = []
    for number in (1, 8):
        copies = [
            replace(study, study_id=f"{study.study_id}-{copy}")
            for study in rows
            for copy in range(number if study.split == "test" else 1)
        ]
        write_studies(studies, copies)
        config = write_config(tmp_path, studies, [{"tower": "pixels"}], [TASKS[4]])
        assert run("compare", "--config", config) == (0, "")
        cell = json.loads((tmp_path / "out" / "compare.json").read_text())["towers"]["pixels"]["Note"]
        found.append([cell["value"], cell["low"], cell["high"]])
    assert found[0][1] < found[0][0] < found[0][2]
    assert found[1] == pytest.approx(found[0])


def test_leaks_are_told(tmp_path, studies) -> None:
    """A tower that has seen test images, and one picture in two splits."""
    test_images = [tmp_path / f"{i}.png" for i in range(46, 50)]
    seen = tmp_path / "seen.txt"
    seen.write_text("".join(hashlib.sha256(path.read_bytes()).hexdigest() + "\n" for path in test_images))
    (tmp_path / "0.png").write_bytes((tmp_path / "59.png").read_bytes())
    config = write_config(tmp_path, studies, [{"tower": "pixels", "seen": str(seen)}], TASKS[:1], leaks="tell")
    assert run("compare", "--config", config) == (0, "")
    warnings = json.loads((tmp_path / "out" / "compare.json").read_text())["warnings"]["pixels"]
    assert any("4" in sentence and "test" in sentence for sentence in warnings)
    assert len(warnings) >= 2
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(sentence in table for sentence in warnings)


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"towers": [{"tower": "pixels"}, {"tower": "pixels"}]}, "towers need one or more different names"),
        ({"baseline": "rad-dino"}, "Unknown baseline 'rad-dino'. Choices: pixels"),
        ({"towers": [{"tower": "rad-din"}]}, "Unknown tower 'rad-din'"),
        ({"towers": [{"tower": "$NOWHERE/model"}]}, "the environment variable NOWHERE is not set"),
        ({"tasks": [TASKS[0] | {"sources": ["mimic"]}]}, "Task 'Edema': no study of source mimic"),
        ({"tasks": [TASKS[0] | {"targets": ["Oedema"]}]}, "Oedema"),
        ({"tasks": [TASKS[3] | {"measure": "auroc"}]}, "segmentation has no measure 'auroc'. Choices: dice, iou"),
        ({"tasks": [TASKS[4] | {"measure": "bleu"}]}, "retrieval has no measure 'bleu'. Choices: rouge_l, bleu_1"),
        ({"tasks": [TASKS[4] | {"fractions": [0.1]}]}, "learning curves (fractions) are of probes"),
        (
            {"tasks": [TASKS[0] | {"measure": "r2"}]},
            "binary has no measure 'r2'. Choices: auroc, auprc, balanced_accuracy",
        ),
        ({"tasks": [TASKS[3] | {"targets": ["ribs"]}]}, "Task 'Square': No image has masks of ribs. Choices: square"),
    ],
)
def test_faults_are_one_sentence(tmp_path, studies, changes, culprit) -> None:
    settings = {"towers": [{"tower": "pixels"}], "tasks": TASKS[:1]} | changes
    config = write_config(tmp_path, studies, settings.pop("towers"), settings.pop("tasks"), **settings)
    status, message = run("compare", "--config", config)
    assert status == 1
    assert culprit in message


def test_only_the_same_test_images_are_compared(tmp_path, studies, monkeypatch) -> None:
    """Where a tower cannot read one of the test images, its resamples draw other subjects."""
    config = write_config(tmp_path, studies, [{"tower": "pixels"}, {"tower": "pixels", "label": "again"}], TASKS[:1])
    assert run("compare", "--config", config) == (0, "")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["differences"]["again"]["Edema"]["value"] == 0
    opened, calls = compare_features.open_stores, []

    def without_one(*arguments, **options):
        stores = opened(*arguments, **options)
        calls.append(stores)
        if len(calls) == 2:
            (store,) = stores.values()
            del store.rows[str(tmp_path / "50.png")]
        return stores

    monkeypatch.setattr(compare_features, "open_stores", without_one)
    for cell in (tmp_path / "out" / "cells").iterdir():
        cell.unlink()
    assert run("compare", "--config", config) == (0, "")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["differences"]["again"] == {}
    assert "not measured on the same test images" in "".join(result["towers"]["again"]["Edema"]["notes"])


def test_p_values_are_corrected_after_holm() -> None:
    resamples = {"a": np.zeros(200), "b": np.full(200, 0.1), "c": np.linspace(-0.05, 0.1, 200), "d": np.full(200, -0.2)}
    cells = {name: {"t": Cell(0.5, 0.4, 0.6, 10, resamples=values)} for name, values in resamples.items()}
    cells["e"] = {"t": Cell(None, notes=["no patches"])}
    found = compare_with("a", cells)
    assert found["a"] == found["e"] == {}
    p = {name: found[name]["t"]["p"] for name in "bcd"}
    assert p["b"] == p["d"] == pytest.approx(2 / 201)
    assert found["b"]["t"]["p_holm"] == pytest.approx(3 * 2 / 201)
    assert found["d"]["t"]["p_holm"] == pytest.approx(3 * 2 / 201), "no smaller than that of the rank before"
    assert found["c"]["t"]["p_holm"] == pytest.approx(max(p["c"], 3 * 2 / 201))
