"""Recipes of `raddraft compare`: what they ask of a source are names that its converter writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from generator.corpora import candid_ptx, lung_masks, nih, phantom, rsna, vindr_ribcxr
from raddraft.grammar import CONFIGS
from raddraft.studies import Study, read_studies
from tests.test_benchmarks import candid, montgomery, nih_root, ribs, rsna_root, shenzhen  # noqa: F401 - fixtures

RECIPES = sorted(path.name for path in (CONFIGS / "compare").glob("*.yaml"))
# As published in the header of its table, which the converter takes as it is.
VINDR = (
    "Aortic enlargement, Atelectasis, Calcification, Cardiomegaly, Clavicle fracture, Consolidation, Edema, Emphysema, "
    "Enlarged PA, ILD, Infiltration, Lung Opacity, Lung cavity, Lung cyst, Mediastinal shift, Nodule/Mass, "
    "Pleural effusion, Pleural thickening, Pneumothorax, Pulmonary fibrosis, Rib fracture, Other lesion, COPD, "
    "Lung tumor, Pneumonia, Tuberculosis, Other diseases, No finding"
)
PATIENT = {f"patient.{name}" for name in ("sex", "age", "weight", "bmi")}  # MIMIC-CXR's are those of MIMIC-IV
CONVERTERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "candid-ptx": ("candid", candid_ptx.convert),
    "montgomery": ("montgomery", lambda root: lung_masks.convert("montgomery", root)),
    "jsrt": ("montgomery", lambda root: lung_masks.convert("montgomery", root)),  # whose masks have the same names
    "shenzhen": ("shenzhen", lambda root: lung_masks.convert("shenzhen", root)),
    "nih": ("nih_root", nih.convert),
    "rsna": ("rsna_root", rsna.convert),
    "vindr-ribcxr": ("ribs", vindr_ribcxr.convert),
}


def names_of(studies: Iterable[Study]) -> set[str]:
    """All that a task may name as a target: labels, fields, masks, sections."""
    names = {"image.view"}
    for study in studies:
        names |= {*study.labels, *study.sections, *(f"patient.{field}" for field in study.patient)}
        names |= {mask for image in study.images for mask in image.masks}
    return names


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the demo's phantoms."""
    root = tmp_path_factory.mktemp("phantoms")
    return names_of(phantom.convert(root, count=12, size=32, processes=1).studies)


def written(source: str | None, text: str, request: pytest.FixtureRequest) -> set[str]:
    """The names of a source, or without one of the whole manifest, of the recipe of this text."""
    if "$CXR" in text:
        studies = read_studies(request.getfixturevalue("cxr") / "studies.jsonl")  # skips without it
        return names_of(study for study in studies if source in (None, study.source))
    if source == "vindr-cxr":
        return set(VINDR.split(", "))
    if source == "mimic-cxr":
        return {"findings", "impression"} | PATIENT
    if source is None:
        return request.getfixturevalue("phantoms")
    fixture, convert = CONVERTERS[source]
    root = request.getfixturevalue(fixture)
    convert(root)
    return names_of(read_studies(root / "studies.jsonl"))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "decoders.yaml"])
def test_targets_are_names_that_the_sources_converter_writes(name: str, request) -> None:
    text = (CONFIGS / "compare" / name).read_text(encoding="utf-8")
    sections = set(re.findall(r"prepare labels .*--section (\w+)", text) or ["findings"] * ("prepare labels" in text))
    known: dict[str | None, set[str]] = {}
    missing = []
    for task in yaml.safe_load(text)["tasks"]:
        for source in task.get("sources", [None]):
            if source not in known:
                known[source] = written(source, text, request) | sections
            missing += [f"{task['name']}: {source} has no {target}" for target in set(task["targets"]) - known[source]]
    assert missing == []
