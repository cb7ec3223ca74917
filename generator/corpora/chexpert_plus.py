"""CheXpert Plus (Stanford AIMI) -> studies: the table with the reports, and the PNG, JPEG or DICOM tree.

df_chexpert_plus_240401.csv                       one row per image
train/patient42142/study5/view1_frontal.jpg       images; .png or .dcm in the other trees
chexbert_labels/impression_fixed.json             optional labels, JSON lines by path_to_image
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from generator.corpora.common import Conversion, CorpusError, add_image, find_file, parse_label, parse_split, read_table
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage

_ORIGIN = (
    "It is part of CheXpert Plus, https://aimi.stanford.edu/datasets/chexpert-plus (free registration). "
    "Name the file with --table."
)
# section_accession_number stays out: it identifies; section_clinical_history and section_history are one section in
# two columns, of which a report has either.
_SECTION_COLUMNS = {
    "narrative": "section_narrative",
    "technique": "section_technique",
    "comparison": "section_comparison",
    "procedure comments": "section_procedure_comments",
    "findings": "section_findings",
    "impression": "section_impression",
    "end of impression": "section_end_of_impression",
    "summary": "section_summary",
}
_SEXES = {"male": "M", "female": "F"}


def convert(
    root: Path,
    out: Path | None = None,
    table: Path | None = None,
    images: Path | None = None,
    views: Literal["frontal", "all"] = "frontal",
    sections: tuple[str, ...] = ("findings",),
    labels: Path | None = None,
) -> Conversion:
    """CheXpert Plus: the sections as its table gives them, its own split.

    The official valid split becomes val. There is no test split: the test images of CheXpert came out without reports.
    A study is named patient42142_study5; where the rows of one study differ in their text, the first row counts. The
    clinical history, which stands in two columns, becomes the section history. Sex, age and body mass index are taken
    along, and the order of a patient's reports as study_order. Images that are not on disk are left out and counted.

    Args:
        root: Folder that holds df_chexpert_plus_240401.csv, and train/ and valid/ with the images.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default df_chexpert_plus*.csv in root.
        images: Folder with train/ and valid/, of JPEG, PNG or DICOM files. By default root, or PNG in root if it is
            there. The official valid part becomes the split val; there is no test split with reports.
        views: frontal keeps images whose frontal_lateral is Frontal; all keeps every image.
        sections: Sections that a study must have, e.g. [findings,impression]; [] asks for none.
        labels: A file of labels in JSON lines, e.g. chexbert_labels/impression_fixed.json; a study has the labels of
            its first image. By default no labels.
    """
    table = table or find_file(root, ["df_chexpert_plus_240401.csv", "df_chexpert_plus*.csv"], _ORIGIN)
    images = images or (root / "PNG" if (root / "PNG").is_dir() else root)
    label_of = _read_labels(labels) if labels else {}
    studies: dict[str, Study] = {}
    for where, row in read_table(table, ["path_to_image", "frontal_lateral", "deid_patient_id", "split"]):
        name = row["path_to_image"]
        patient, study_folder = _patient_and_study(name, where)
        image = StudyImage(images / name, _view(row))
        study = Study(
            f"{patient}_{study_folder}",
            row["deid_patient_id"],
            parse_split(row["split"], where),
            [image],
            _sections(row),
            label_of.get(name, {}),
            _patient(row, where),
            extra={"study_order": _number(row, "patient_report_date_order", where)},
        )
        add_image(studies, study, where)
    conversion = Conversion("chexpert-plus", list(studies.values()))
    if views == "frontal":
        conversion.keep_images("no frontal image", lambda image: image.frontal)
    conversion.keep_files((".png", ".dcm"))
    conversion.require(sections)
    return conversion.write(out or root / "studies.jsonl")


def _patient_and_study(name: str, where: str) -> tuple[str, str]:
    parts = name.split("/")
    if len(parts) < 4 or not parts[-3].startswith("patient") or not parts[-2].startswith("study"):
        raise CorpusError(f"{where}: path_to_image must end like patient1/study1/view1_frontal.jpg, got {name!r}")
    return parts[-3], parts[-2]


def _view(row: dict[str, str]) -> str | None:
    """AP or PA of a frontal image where the table tells; else FRONTAL or LATERAL."""
    view = row["frontal_lateral"].upper()
    if view == "FRONTAL" and row.get("ap_pa", "").upper() in ("AP", "PA"):
        return row["ap_pa"].upper()
    return view or None


def _sections(row: dict[str, str]) -> dict[str, str]:
    texts = {name: row.get(column, "") for name, column in _SECTION_COLUMNS.items()}
    return clean_sections({"history": row.get("section_clinical_history") or row.get("section_history", "")} | texts)


def _patient(row: dict[str, str], where: str) -> dict[str, Any]:
    return {
        "sex": _SEXES.get(row.get("sex", "").lower()),
        "age": _number(row, "age", where),
        "bmi": _number(row, "recent_bmi", where),
    }


def _number(row: dict[str, str], column: str, where: str) -> float | int | None:
    value = row.get(column, "")
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        raise CorpusError(f"{where}: {column} must be a number, got {value!r}") from None
    return int(number) if number.is_integer() else number


def _read_labels(path: Path) -> dict[str, dict[str, int | None]]:
    """path_to_image -> its labels."""
    labels = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name} line {number}"
            try:
                row = json.loads(line)
                name = row.pop("path_to_image")
            except (json.JSONDecodeError, AttributeError, KeyError):
                raise CorpusError(f"{where}: expected a JSON object with path_to_image, got {line[:80]!r}") from None
            labels[name] = {finding: parse_label(value, f"{where}, {finding}") for finding, value in row.items()}
    return labels
