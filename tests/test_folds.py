"""A tower for each fold: `prepare folds` and `compare --folds` deal the same; films that were seen are told first."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from encoder.probe_config import SegmentConfig
from raddraft.studies import read_studies
from tests.test_cli import run
from tests.test_compare import TASKS, studies, write_config  # noqa: F401 - a fixture

FOLDS = (1, 2, 3)


@pytest.fixture
def manifests(studies: Path, tmp_path: Path) -> dict[int, Path]:  # noqa: F811 - the fixture
    """Fold -> the manifest of it."""
    assert run("prepare", "folds", "--studies", studies, "--folds", 3, "--out", tmp_path / "folds") == (0, "")
    return {fold: tmp_path / "folds" / f"fold-{fold}.jsonl" for fold in FOLDS}


@pytest.fixture
def towers(tower_folder: Path, tmp_path: Path) -> str:
    """Three towers that differ, where pretraining puts them; the name of all of them."""
    for fold in FOLDS:
        shutil.copytree(tower_folder, tmp_path / f"run-{fold}" / "model")
        change_tower(tmp_path / f"run-{fold}" / "model", seed=fold)
    return str(tmp_path / "run-{fold}" / "model")


def change_tower(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    AutoModel.from_config(AutoModel.from_pretrained(folder).config).save_pretrained(folder)


def list_films(manifests: dict[int, Path], split: str) -> str:
    """Write the digests of the films that the split of each fold has beside its tower; the name of these lists."""
    name = str(manifests[1].parents[1] / "run-{fold}" / "images.sha256")
    for fold, manifest in manifests.items():
        films = [study.main_image.path for study in read_studies(manifest, split)]
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in films]
        Path(name.format(fold=fold)).write_text("".join(lines))
    return name


def read_result(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "compare.json").read_text())


def test_folds_replace_neither_their_manifest_nor_other_folds(manifests, tmp_path) -> None:
    before = manifests[2].read_bytes()
    status, message = run("prepare", "folds", "--studies", manifests[2], "--folds", 3, "--out", tmp_path / "folds")
    assert status
    assert "this would replace the manifest" in message
    (tmp_path / "folds" / "fold-4.jsonl").write_bytes(before)
    status, message = run("prepare", "folds", "--studies", manifests[1], "--folds", 3, "--out", tmp_path / "folds")
    assert status
    assert "holds another number of folds (fold-4.jsonl)" in message
    assert manifests[2].read_bytes() == before


def test_manifests_of_folds_hold_all_studies_with_other_splits(manifests, studies) -> None:  # noqa: F811
    before = {study.study_id: study for study in read_studies(studies)}
    tested = []
    for manifest in manifests.values():
        part = read_studies(manifest, check_images=True)
        assert [study.study_id for study in part] == list(before)
        assert all(study.images == before[study.study_id].images for study in part)
        assert {study.split for study in part} == {"train", "val", "test"}
        subjects = {split: {study.subject_id for study in part if study.split == split} for split in ("train", "test")}
        assert subjects["train"].isdisjoint(subjects["test"])
        tested += [study.study_id for study in part if study.split == "test"]
    assert sorted(tested) == sorted(before), "each is tested on once"


def test_a_tower_of_its_own_is_measured_on_each_fold(
    tmp_path,
    studies,  # noqa: F811
    manifests,
    towers,
    monkeypatch,
    capsys,
) -> None:
    monkeypatch.setattr("generator.compare_measure.SegmentConfig", partial(SegmentConfig, epochs=1))
    shutil.copytree(tmp_path / "run-1" / "model", tmp_path / "copy")  # its films are listed nowhere
    list_films(manifests, "train")
    own = {"tower": towers, "label": "own"}
    copy = {"tower": str(tmp_path / "copy"), "label": "own, fold 1"}  # no label may be taken for a fold
    tasks = [TASKS[0], *TASKS[2:]]
    config = write_config(tmp_path, studies, [own, copy], tasks, folds=3)
    assert run("compare", "--config", config) == (0, "")
    assert "Warning" not in capsys.readouterr().out
    result = read_result(tmp_path)
    assert (result["warning"], result["warnings"], result["seen"]) == ("", {}, {})
    assert result["training_unknown"] == ["own, fold 1"]
    for task in (task["name"] for task in tasks):
        ours, other = (result["towers"][row][task] for row in ("own", "own, fold 1"))
        folds, others = ours["details"]["folds"], other["details"]["folds"]
        assert folds[0] == others[0], "the same tower on the same fold"
        assert folds[1:] != others[1:]
        assert (ours["n"], other["n"], ours["sample"]) == (60, 60, other["sample"])
        mean = sum(fold["value"] - our["value"] for fold, our in zip(others, folds, strict=True)) / 3
        assert result["differences"]["own, fold 1"][task]["value"] == pytest.approx(mean)
    assert (
        "Another encoder in each fold, measured on that fold alone: own." in (tmp_path / "out" / "table.md").read_text()
    )

    cells = tmp_path / "out" / "cells"
    stored = {path: path.stat().st_mtime_ns for path in cells.rglob("*.json")}
    left = cells / "folds" / "3" / "own--Note.json"
    left.unlink()
    change_tower(Path(towers.format(fold=2)), seed=4)
    assert run("compare", "--config", config) == (0, "")
    changed = {path for path, then in stored.items() if path.stat().st_mtime_ns != then}
    assert changed == {left, *(cells / "folds" / "2").iterdir()}
    again = read_result(tmp_path)["towers"]
    assert again["own, fold 1"] == result["towers"]["own, fold 1"]
    assert [again["own"]["Note"]["details"]["folds"][fold] for fold in (0, 2)] == [folds[0], folds[2]]


def test_films_that_a_tower_has_seen_are_told_in_the_first_line(
    tmp_path,
    studies,  # noqa: F811
    manifests,
    towers,
    capsys,
) -> None:
    """Of a tower for each fold what that tower has seen of its fold counts; of one tower what it has seen of all."""
    rows = [
        {"tower": "pixels", "label": "one", "seen": str(tmp_path / "val.sha256")},
        {"tower": towers, "label": "own"},
    ]
    shutil.copy(list_films(manifests, "val").format(fold=1), tmp_path / "val.sha256")
    list_films(manifests, "test")
    n_val = len(read_studies(manifests[1], "val"))
    config = write_config(tmp_path, studies, rows, [TASKS[0], TASKS[4]], folds=3)
    assert run("compare", "--config", config) == (0, "")
    first = (
        f"Warning: tested on films that the encoder had in training: one, {n_val} of 60 films (Edema, Note); "
        "own, 60 of 60 films (Edema, Note)."
    )
    assert capsys.readouterr().out.startswith(f"{first}\n")
    assert (tmp_path / "out" / "table.md").read_text().startswith(f"**{first}**\n\n|")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index(first) < page.index("<table>")
    seen = read_result(tmp_path)["seen"]
    assert {(row, task): one["mark"] for row, found in seen.items() for task, one in found.items()} == {
        (row, task): "‡" for row in ("one", "own") for task in ("Edema", "Note")
    }


@pytest.mark.parametrize(
    ("tower", "folds", "reason"),
    [
        ({"tower": "runs/{fold}"}, None, "{fold} stands for the number of a fold; give folds, e.g. 5"),
        ({"tower": "pixels", "seen": "{fold}.sha256"}, None, "{fold} stands for the number of a fold; give folds"),
        ({"tower": "pixels", "seen": "{fold}.sha256"}, 3, "the tower is the same in all of them; put {fold} into both"),
        ({"tower": "runs/{fold}", "seen": "images.sha256"}, 3, "but seen names one list; put {fold} into both"),
    ],
)
def test_a_name_for_each_fold_needs_folds(tmp_path, studies, tower, folds, reason) -> None:  # noqa: F811
    status, message = run("compare", "--config", write_config(tmp_path, studies, [tower], TASKS[:1], folds=folds))
    assert (status, reason in message) == (1, True)


def test_towers_of_folds_without_a_list_are_told(tmp_path, studies, manifests, towers) -> None:  # noqa: F811
    list_films(manifests, "train")
    (tmp_path / "run-2" / "images.sha256").unlink()
    config = write_config(tmp_path, studies, [{"tower": towers, "label": "own"}], [TASKS[4]], folds=3)
    assert run("compare", "--config", config) == (0, "")
    [sentence] = read_result(tmp_path)["warnings"]["own"]
    assert sentence.startswith("there is no list of training images (seen) for the encoder of fold 2: whether it")
    assert read_result(tmp_path)["training_unknown"] == ["own"]


def test_a_tower_that_is_missing_is_told_before_others_are_measured(tmp_path, studies, towers) -> None:  # noqa: F811
    shutil.rmtree(tmp_path / "run-3")
    rows = [{"tower": "pixels"}, {"tower": towers}]
    status, message = run("compare", "--config", write_config(tmp_path, studies, rows, TASKS[4:], folds=3))
    assert (status, f"There is no folder {towers.format(fold=3)} here" in message) == (1, True)
    assert not (tmp_path / "out").exists()
