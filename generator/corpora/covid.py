"""COVID-19 Image Data Collection (Cohen et al. 2020) -> studies: the X-rays, with their clinical notes."""

from __future__ import annotations

import re
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing

_ORIGIN = "It is part of https://github.com/ieee8023/covid-chestxray-dataset. Name the file with --table."
_COLUMNS = ("patientid", "finding", "view", "modality", "folder", "filename")


def convert(root: Path, out: Path | None = None, table: Path | None = None) -> Conversion:
    """COVID-19 Image Data Collection: the X-rays; the diagnosis as labels, the clinical note as section note.

    No official split: 70, 10 and 20 % of the patients are train, val and test, by a hash. Images of one patient with
    the same offset (days) are one study; one without offset is a study of its own. Every level of a finding is a label
    that is 1 (Pneumonia/Viral/COVID-19: Pneumonia, Viral, COVID-19); there are no negatives but through No Finding. The
    labels are the diagnosis of the case, not what the image shows. Some cases were entered under two patientids; the
    table does not tell which. The license of each image is kept.

    Args:
        root: The repository's folder, which holds metadata.csv and images/.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default metadata.csv in root.
    """
    table = table or common.find_file(root, ["metadata.csv"], _ORIGIN)
    studies: dict[str, Study] = {}
    skipped = {}
    for where, row in common.read_table(table, _COLUMNS):
        study = _study(row, root, where)
        if row["modality"].strip().lower() == "x-ray":
            common.add_image(studies, study, where)
        else:
            study.study_id = f"{study.study_id}, {where}"
            skipped[study.study_id] = study
    conversion = Conversion("covid", [*studies.values(), *skipped.values()], out or root / "studies.jsonl")
    conversion.keep_studies("modality is not X-ray", lambda study: study.study_id not in skipped)
    conversion.keep_files()
    return conversion.write()


def _study(row: dict[str, str], root: Path, where: str) -> Study:
    patient, offset = row["patientid"].strip(), row.get("offset", "").strip()
    license_name = row.get("license", "").strip()
    levels = [level.strip() for level in re.split("[/,]", row["finding"])]
    image = StudyImage(root / row["folder"] / row["filename"], row["view"].strip() or None)
    image.extra = {"license": license_name} if license_name else {}
    return Study(
        f"{patient}_{offset or Path(row['filename']).stem}",
        patient,
        common.hash_split(patient),
        [image],
        clean_sections({"note": row.get("clinical_notes", "")}),
        {level: 1 for level in levels if not is_nothing(level) and level.lower() not in ("todo", "unknown")},
        common.parse_patient(row.get("sex", ""), row.get("age", ""), where),
    )
