"""COVID-19 Image Data Collection (Cohen et al. 2020) -> studies: the X-rays, with their clinical notes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion
from generator.corpora.odd_rows import REPEATED, join_subjects
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing

_ORIGIN = "It is part of https://github.com/ieee8023/covid-chestxray-dataset. Name the file with --table."
_COLUMNS = ("patientid", "finding", "view", "modality", "folder", "filename")
# The page of a whole collection, which says nothing about a patient: all films from Hannover have one such address.
_COLLECTION = re.compile(r"https?://(www\.)?github\.com/")


def convert(root: Path, out: Path | None = None, table: Path | None = None) -> Conversion:
    """COVID-19 Image Data Collection: the X-rays; the diagnosis as labels, the clinical notes as section note.

    No official split: 70, 10 and 20 % of the subjects are train, val and test, by a hash. The table has some cases
    under two patientids, so rows with the same file, clinical note or web address (but for addresses on GitHub, which
    are of whole collections) are of one subject, named after its first patientid. A film that two rows list is in the
    study of the first. Images of one patientid with the same offset (days) are one study; one without offset is a
    study of its own. Different notes of one study are joined. Every level of a finding is a label that is 1
    (Pneumonia/Viral/COVID-19: Pneumonia, Viral, COVID-19); there are no negatives but through No Finding. The labels
    are the diagnosis of the case, not what the image shows. The license of each image is kept. Rows that list a film
    again, whose sex or age differs from the first row of their study (which counts), other sexes than M and F, and ages
    that cannot be read (both unknown) are counted.

    Args:
        root: The repository's folder, which holds metadata.csv and images/.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default metadata.csv in root.
    """
    table = table or common.find_file(root, ["metadata.csv"], _ORIGIN)
    # Earlier tables have "clinical notes" and " url".
    rows = [
        (where, {name.strip().replace(" ", "_"): cell for name, cell in row.items()})
        for where, row in common.read_table(table, _COLUMNS)
    ]
    subject_of = join_subjects(_same_subjects([row for _, row in rows]))
    studies: dict[str, Study] = {}
    notes: dict[str, list[str]] = defaultdict(list)
    counts = Counter[str]()
    study_of: dict[Path, str] = {}
    skipped = {}
    for where, row in rows:
        is_film = row["modality"].strip().lower() == "x-ray"
        study = _study(row, root, counts if is_film else Counter(), subject_of[_patient(row)])
        if not is_film:
            study.study_id = f"{study.study_id}, {where}"
            skipped[study.study_id] = study
            continue
        path = study.images[0].path
        if row["filename"].strip():  # else the path is that of the folder
            if path in study_of:
                counts[REPEATED] += 1
                study.study_id, study.images = study_of[path], []
            study_of[path] = study.study_id
        note = study.sections.pop("note", "")
        common.add_image(studies, study, where, counts)
        if not is_nothing(note) and note not in notes[study.study_id]:
            notes[study.study_id].append(note)
    for name, study in studies.items():
        study.sections = clean_sections({"note": " ".join(notes[name])})
        if len(study.labels) > 1:
            study.labels.pop("No Finding", None)  # what one film shows counts, though another shows nothing
    conversion = Conversion("covid", [*studies.values(), *skipped.values()], out or root / "studies.jsonl", counts)
    n_subjects = len(set(subject_of.values()))
    conversion.notes.append(f"patientids: {len(subject_of):,}, subjects by file, note and address: {n_subjects:,}")
    conversion.keep_studies("modality is not X-ray", lambda study: study.study_id not in skipped)
    conversion.keep_files()
    return conversion.write()


def _patient(row: dict[str, str]) -> str:
    return row["patientid"].strip()


def _same_subjects(rows: Sequence[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs of patientids that share a file, a note or an address, and each patientid with itself."""
    first: dict[tuple[str, str], str] = {}
    for row in rows:
        patient = _patient(row)
        yield patient, patient
        address = re.sub(r"[?&]lang=\w+", "", row.get("url", "").strip()).rstrip("/")
        shared = {
            "file": row["filename"] and f"{row['folder']}/{row['filename']}",
            "note": " ".join(row.get("clinical_notes", "").split()),
            "address": "" if _COLLECTION.match(address) else address,
        }
        yield from ((first.setdefault(key, patient), patient) for key in shared.items() if not is_nothing(key[1]))


def _study(row: dict[str, str], root: Path, counts: Counter[str], subject: str) -> Study:
    offset = row.get("offset", "").strip()
    license_name = row.get("license", "").strip()
    levels = [level.strip() for level in re.split("[/,]", row["finding"])]
    image = StudyImage(root / row["folder"] / row["filename"], row["view"].strip() or None)
    image.extra = {"license": license_name} if license_name else {}
    return Study(
        f"{_patient(row)}_{offset or Path(row['filename']).stem}",
        subject,
        common.hash_split(subject),
        [image],
        clean_sections({"note": row.get("clinical_notes", "")}),
        {level: 1 for level in levels if not is_nothing(level) and level.lower() not in ("todo", "unknown")},
        common.parse_patient(row.get("sex", ""), row.get("age", ""), counts),
    )
