"""Views as the corpora, DICOM and people write them, and the image that a study is read by."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.prompts import PromptConfig
from metrics.read import Prediction
from metrics.systems import score_systems
from raddraft.studies import Study, StudyImage
from raddraft.views import WORDS, direction
from tests.conftest import ROOT

VIEWS = {
    "MIMIC-CXR": {
        "frontal": ["PA", "AP", "AP AXIAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD"],
        "lateral": ["LATERAL", "LL", "XTABLE LATERAL"],
        "other": ["SWIMMERS", "LAO", "RAO", "LPO", "RPO", "L5 S1"],
        None: [""],
    },
    "MIMIC-CXR, ViewCodeSequence_CodeMeaning": {
        "frontal": ["postero-anterior", "antero-posterior"],
        "lateral": ["lateral", "left lateral"],
        None: ["Erect"],
    },
    "PadChest, Projection": {
        "frontal": ["PA", "AP", "AP_horizontal"],
        "lateral": ["L"],
        "other": ["COSTAL", "EXCLUDE"],
        None: ["UNK"],
    },
    "PadChest, ViewPosition_DICOM": {"frontal": ["POSTEROANTERIOR", "ANTEROPOSTERIOR"], "lateral": ["LL"], None: [""]},
    "BRAX": {"frontal": ["PA", "AP", "RLD", "LLD"], "lateral": ["LL", "RL", "RLO", "LLO"], None: [""]},
    "CheXpert": {"frontal": ["AP", "PA", "Frontal"], "lateral": ["Lateral", "LL", "RL"]},
    "IU X-ray": {"frontal": ["Frontal"], "lateral": ["Lateral"]},
    "NIH, VinDr-CXR": {"frontal": ["PA", "AP"]},
    "COVID-19 Image Data Collection": {
        "frontal": ["PA", "AP", "AP Supine", "AP semi erect", "AP erect"],
        "lateral": ["L"],
        "other": ["Axial", "Coronal"],
    },
    "ReXGradient-160K": {
        "frontal": ["PA", "AP", "AP AXIAL", "POSTERO_ANTERIOR", "ANTERO_POSTERIOR", "DECUBITUS"],
        "lateral": ["LAT", "LATERAL", "LL"],
        "other": ["KUB", "LAO", "LPO", "OBLIQUE", "OTHER", "PICC LINE", "RAO", "RPO"],
        None: ["ERECT", "SUPINE", "UNKNOWN", "N/A", "None"],
    },
    "free text": {
        "frontal": [
            *("A_P", "CHEST_POSTERO_ANTERIOR"),
            *("Chest PA", "W033 CHEST AP", "chest ap portable", "AP/PA", "P.A.", "A-P", "pa view", "AP ERECT", "Pa."),
            *("Left lateral decubitus", "LAT DECUB", "AP LORDOTIC", "FRONTAL_1"),
        ],
        "lateral": [
            "Chest Lat",
            "LAT.",
            "X-TABLE LAT",
            "cross-table lateral",
            "CHEST_LATERAL",
            "RT LAT",
            "lateral oblique",
        ],
        "other": ["AP OBLIQUE", "Abdomen", "KNEE", "SWIMMERS VIEW"],
        None: ["Chest", "CHEST 2 VIEWS", "PA AND LATERAL", "PORTABLE", "Unknown", "1", "nan", "None", "N/A", None],
    },
}


@pytest.mark.parametrize(
    ("corpus", "view", "expected"),
    [(corpus, view, kind) for corpus, kinds in VIEWS.items() for kind, views in kinds.items() for view in views],
)
def test_every_spelling_has_its_direction(corpus: str, view: str | None, expected: str | None) -> None:
    for spelled in {view, view and view.upper(), view and view.lower(), view and f" {view} "}:
        assert direction(spelled) == expected, corpus
        image = StudyImage(Path("x.png"), spelled)
        assert (image.frontal, image.lateral) == (expected in ("frontal", None), expected == "lateral")


@pytest.mark.parametrize(
    ("views", "main"),
    [
        (["", "PA"], 1),
        ([None, "LATERAL", "AP_horizontal"], 2),
        (["UNK", "POSTEROANTERIOR"], 1),
        (["XTABLE LATERAL", "AP"], 1),
        (["PA AND LATERAL", "LLD"], 1),
        (["LATERAL", ""], 1),
        (["XTABLE LATERAL", None], 1),
        (["SWIMMERS", "LL", "Chest"], 2),
        (["AP", "PA"], 0),
        (["LL", "SWIMMERS"], 0),
        (["KNEE", "LL"], 0),
        ([None, ""], 0),
    ],
)
def test_a_stated_frontal_is_read_before_an_unstated_view_and_that_before_all_others(views, main) -> None:
    study = Study("s", "p", "test", [StudyImage(Path(f"{i}.png"), view) for i, view in enumerate(views)])
    assert study.main_image is study.images[main]
    assert PromptConfig().choose_images(study) == [study.images[main]]
    assert PromptConfig(images="pair").choose_images(study)[0] is study.images[main]
    kinds = [image.direction for image in PromptConfig(images="all").choose_images(study)]
    assert kinds == sorted(kinds, key=["frontal", None, "lateral", "other"].index)
    assert len(kinds) == len(views)


def test_prompts_and_strata_name_the_view_of_the_image_that_is_read() -> None:
    studies = [
        Study(f"s{i}", "p", "test", [StudyImage(Path("a.png")), StudyImage(Path("b.png"), view)])
        for i, view in enumerate(["PA", "AP", "LATERAL"])
    ]
    prompt = PromptConfig(context=["view"])
    texts = [prompt.messages(study)[0]["content"][-1]["text"].splitlines()[0] for study in studies]
    assert texts == ["View: PA", "View: AP", "Describe the findings of this chest X-ray."]
    rows = [Prediction(study.study_id, "Clear.", "Clear.") for study in studies]
    scored = score_systems({"one": rows}, ["rouge_l"], by=["view"], studies=studies, resamples=10)
    assert set(scored.scores["strata"]["view"]) == {"PA", "AP", "not stated"}


def test_the_documentation_lists_every_word() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("\n## Views\n")[2].partition("\n## ")[0]
    rows = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("| ")}
    for kind, words in WORDS.items():
        listed = set(rows[kind].split("|")[3].replace("`", "").replace(",", "").split())
        assert listed == set(words), kind
