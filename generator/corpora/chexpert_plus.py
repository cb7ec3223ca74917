"""CheXpert Plus (Stanford AIMI) -> studies: the table with the reports, and the PNG, JPEG or DICOM tree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from generator.sections import clean_sections
from raddraft.files import read_jsonl
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing

_ORIGIN = (
    "It is part of CheXpert Plus, https://aimi.stanford.edu/datasets/chexpert-plus (free registration). "
    "Name the file with --table."
)
# section_accession_number stays out: it identifies; section_clinical_history and section_history are one section in
# two columns, of which a report has either.
_SECTIONS = (
    *("narrative", "technique", "comparison", "procedure comments", "findings", "impression", "end of impression"),
    "summary",
)


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

    valid becomes val. There is no test split: the test images of CheXpert came out without reports. A study is named
    patient42142_study5. The clinical history, which has two columns, becomes the section history. Sex, age and body
    mass index are included, and the order of a patient's reports as study_order.

    Odd rows are counted: where the rows of a study differ in text, labels, sex or age the first counts, an image that
    stands twice is taken once, and a study of two patients is left out; a sex but Male and Female, and an age of 0,
    which these adults cannot have, are unknown.

    Args:
        root: Folder that holds df_chexpert_plus_240401.csv, and train/patient42142/study5/view1_frontal.jpg etc.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default df_chexpert_plus*.csv in root.
        images: Folder with train/ and valid/, of JPEG, PNG or DICOM files. By default PNG in root, else root.
        views: frontal keeps images whose frontal_lateral is Frontal; all keeps every image.
        sections: Sections that a study must have, e.g. findings impression; [] for none.
        labels: A file of labels in JSON lines, e.g. chexbert_labels/impression_fixed.json; a study has the labels of
            its first image. By default no labels.
    """
    table = table or common.find_file(root, ["df_chexpert_plus_240401.csv", "df_chexpert_plus*.csv"], _ORIGIN)
    images = images or (root / "PNG" if (root / "PNG").is_dir() else root)
    label_of = {}
    for where, row in read_jsonl(labels, ["path_to_image"], error=CorpusError) if labels else ():
        label_of[row["path_to_image"]] = common.parse_labels(where, row, skip=["path_to_image"])
    if labels and not label_of:
        raise CorpusError(f"{labels}: it holds nothing")
    counts = Counter[str]()
    studies: dict[str, Study] = {}
    for where, row in common.read_table(table, ["path_to_image", "frontal_lateral", "deid_patient_id", "split"]):
        name = row["path_to_image"]
        parts = name.split("/")
        if len(parts) < 4 or not parts[-3].startswith("patient") or not parts[-2].startswith("study"):
            raise CorpusError(f"{where}: path_to_image must end like patient1/study1/view1_frontal.jpg, got {name!r}")
        texts = {section: row.get(f"section_{section.replace(' ', '_')}", "") for section in _SECTIONS}
        histories = (row.get(f"section_{kind}", "") for kind in ("clinical_history", "history"))
        history = next((text for text in histories if not is_nothing(text)), "")
        bmi, order = (common.parse_number(row, column, where) for column in ("recent_bmi", "patient_report_date_order"))
        study = Study(
            f"{parts[-3]}_{parts[-2]}",
            row["deid_patient_id"],
            common.parse_split(row["split"], where),
            [StudyImage(images / name, _view(row))],
            clean_sections({"history": history} | texts),
            label_of.get(name, {}),
            common.parse_patient(row.get("sex", ""), row.get("age", ""), counts) | {"bmi": bmi},
            extra={"study_order": order},
        )
        common.add_image(studies, study, where, counts)
    conversion = Conversion("chexpert-plus", studies.values(), out or root / "studies.jsonl", counts)
    conversion.blank_newborns()
    conversion.keep_views(views)
    conversion.keep_files(".png", ".dcm")
    conversion.require(sections)
    return conversion.write()


def _view(row: dict[str, str]) -> str | None:
    """AP or PA of a frontal image where the table tells; else FRONTAL or LATERAL."""
    view, position = row["frontal_lateral"].upper(), row.get("ap_pa", "").upper()
    return position if view == "FRONTAL" and position in ("AP", "PA") else view or None
