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
    """Three towers that differ; the name of all of them."""
    for fold in FOLDS:
        shutil.copytree(tower_folder, tmp_path / f"tower-{fold}")
        torch.manual_seed(fold)
        model = AutoModel.from_pretrained(tower_folder)
        AutoModel.from_config(model.config).save_pretrained(tmp_path / f"tower-{fold}")
    return str(tmp_path / "tower-{fold}")


def list_films(manifests: dict[int, Path], split: str) -> str:
    """Write the digests of the films that the split of each fold has; the name of these lists."""
    for fold, manifest in manifests.items():
        films = [study.main_image.path for study in read_studies(manifest, split)]
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in films]
        (manifest.parent / f"{split}-{fold}.sha256").write_text("".join(lines))
    return str(manifests[1].parent / f"{split}-{{fold}}.sha256")


def read_result(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "compare.json").read_text())


def test_manifests_of_folds_hold_all_studies_with_other_splits(manifests, studies) -> None:  # noqa: F811
    before = {study.study_id: study for study in read_studies(studies)}
    tested = []
    for manifest in manifests.values():
        part = read_studies(manifest, check_images=True)
        assert [study.study_id for study in part] == list(before)
        assert all(study.images == before[study.study_id].images for study in part)
        assert {study.split for study in part} == {"train", "val", "test"}
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
    own = {"tower": towers, "label": "own", "seen": list_films(manifests, "train")}
    single = [{"tower": towers.format(fold=fold), "label": f"tower {fold}"} for fold in FOLDS]
    config = write_config(tmp_path, studies, [own, *single], TASKS[3:], folds=3)
    assert run("compare", "--config", config) == (0, "")
    assert "Warning" not in capsys.readouterr().out
    result = read_result(tmp_path)
    assert (result["warning"], result["warnings"], result["seen"]) == ("", {}, {})
    for task in ("Square", "Note"):
        cells = {row: cells[task] for row, cells in result["towers"].items()}
        others = [cells[f"tower {fold}"]["details"]["folds"][fold - 1] for fold in FOLDS]
        assert cells["own"]["details"]["folds"] == others
        assert (cells["own"]["n"], cells["own"]["sample"]) == (60, cells["tower 1"]["sample"])
    assert set(result["differences"]["tower 1"]) == {"Square", "Note"}
    assert len({fold["value"] for fold in cells["own"]["details"]["folds"]}) > 1
    assert (
        "Another encoder in each fold, measured on that fold alone: own." in (tmp_path / "out" / "table.md").read_text()
    )

    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*.json")}
    left = tmp_path / "out" / "cells" / "own--fold-2--Note.json"
    left.unlink()
    assert run("compare", "--config", config) == (0, "")
    assert {path for path, then in stored.items() if path.stat().st_mtime_ns != then} == {left}
    assert read_result(tmp_path)["towers"] == result["towers"]


def test_films_that_a_tower_has_seen_are_told_in_the_first_line(
    tmp_path,
    studies,  # noqa: F811
    manifests,
    towers,
    capsys,
) -> None:
    """Of a tower for each fold what that tower has seen of its fold counts; of one tower what it has seen of all."""
    rows = [
        {"tower": "pixels", "label": "one", "seen": list_films(manifests, "val").format(fold=1)},
        {"tower": towers, "label": "own", "seen": list_films(manifests, "test")},
    ]
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
    ],
)
def test_a_name_for_each_fold_needs_folds(tmp_path, studies, tower, folds, reason) -> None:  # noqa: F811
    status, message = run("compare", "--config", write_config(tmp_path, studies, [tower], TASKS[:1], folds=folds))
    assert (status, reason in message) == (1, True)
