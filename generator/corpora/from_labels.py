"""Synthetic findings from a manifest's labels, so that films without reports can train and test a report generator.

    "There is cardiomegaly. Possible pneumonia. No pleural effusion or pneumothorax."

Such sections say what the labels say and nothing else: no side, no size, none of the words of a radiologist. They are
marked in the manifest, `"synthetic": ["findings"]`, and pages that show them say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.studies import Study, read_studies, write_studies

WORDS = {
    "Effusion": "pleural effusion",
    "Edema": "pulmonary edema",
    "Infiltration": "infiltrate",
    "Mass": "lung mass",
    "Nodule": "lung nodule",
    "Lung Lesion": "lung lesion",
    "Pleural_Thickening": "pleural thickening",
    "Pleural Other": "pleural thickening",
    "Fibrosis": "pulmonary fibrosis",
    "Hernia": "hiatal hernia",
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Support Devices": "support device",
    "Bacterial": "bacterial infection",
    "Viral": "viral infection",
}
"""What a label is called in a sentence, where its own name would not do."""
NORMAL = "No abnormality is seen."


def write_findings(labels: Mapping[str, int | None], terse: bool = False) -> str:
    """Findings in plain sentences from labels: 1 positive, 0 negative, -1 uncertain, None not mentioned.

    With `terse` what is absent is named only where there is nothing else to say.

    >>> write_findings({"Cardiomegaly": 1, "Effusion": 0, "Pneumothorax": 0, "Edema": -1, "Fracture": None})
    'There is cardiomegaly. Possible pulmonary edema. No pleural effusion or pneumothorax.'
    >>> write_findings({"Cardiomegaly": 1, "Effusion": 0}, terse=True)
    'There is cardiomegaly.'
    """
    named: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for name, value in labels.items():
        if value is not None and name != "No Finding":
            named[value].append(WORDS.get(name, name.replace("_", " ").lower()))
    sentences = [f"There is {word}." for word in named[1]] + [f"Possible {word}." for word in named[-1]]
    if not sentences and labels.get("No Finding") == 1:
        sentences.append(NORMAL)
    if named[0] and not (terse and sentences):
        *others, last = dict.fromkeys(named[0])
        sentences.append(f"No {', '.join(others)} or {last}." if others else f"No {last}.")
    return " ".join(sentences)


def add_findings(studies: Sequence[Study], section: str = "findings", terse: bool = False) -> tuple[list[Study], int]:
    """The studies with a synthetic section where they have labels and no such section of their own.

    Returns:
        All studies, and how many got a section.
    """
    done, count = [], 0
    for study in studies:
        text = "" if study.sections.get(section) else write_findings(study.labels, terse)
        if text:
            mark = {"synthetic": [*study.extra.get("synthetic", []), section]}
            study = replace(study, sections={**study.sections, section: text}, extra=study.extra | mark)
            count += 1
        done.append(study)
    return done, count


def convert(studies: Path, out: Path, section: str = "findings", terse: bool = False) -> str:
    """Give studies that have labels and no findings a synthetic section of them, in plain sentences.

    It says what the labels say and no more, and is marked as synthetic in the manifest.

    Args:
        studies: The manifest with labels.
        out: The manifest to write.
        section: Name of the section; studies that have one keep it.
        terse: Name what is absent only where there is nothing else to say; a small model learns that sooner.

    Raises:
        RadDraftError: no study has labels, or `out` is `studies`.
    """
    if out.resolve() == studies.resolve():
        raise RadDraftError(f"{out} is the manifest that is read; choose another --out")
    done, count = add_findings(read_studies(studies), section, terse)
    if not count:
        raise RadDraftError(f"{studies}: no study has labels and no section {section!r}; name another --section")
    write_studies(out, done)
    return f"{count} of {len(done)} studies got a synthetic section {section!r}, made from their labels: {out}"
