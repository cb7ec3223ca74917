"""CANDID-PTX (Feng et al. 2021) -> studies with reports and masks.

Pneumothorax_reports.csv    SOPInstanceUID, StudyInstanceUID, filename, EncodedPixels, Report; -1: no pneumothorax
chest_tube.csv              anon_SOPUID, mask_rle; one row per tube
acute_rib_fracture.csv      anon_SOPUID, mask_rle; one row per fracture
dataset/SOPInstanceUID      DICOM files without suffix, 1024 x 1024

The names of the columns were taken from code that reads the set: that code agrees on those of the first table, while
for the other two both spellings (SOPInstanceUID, anon_SOPUID; EncodedPixels, mask_rle) are accepted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from generator.corpora.common import Conversion, CorpusError, find_file, hash_split, progress, read_table
from generator.corpora.nih import blank_ages
from generator.corpora.rsna import read_headers
from generator.corpora.siim import add_runs
from generator.sections import clean_sections, parse_plain
from raddraft.studies import Study, StudyImage

FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of train, val and test."""

_ORIGIN = "It is part of CANDID-PTX, https://doi.org/10.17608/k6.auckland.14173982 (on application)."
_STRUCTURES = {"pneumothorax": "Pneumothorax", "chest tube": "Chest Tube", "rib fracture": "Rib Fracture"}
_IMAGE_FOLDERS = ("dataset", "chest_radiographs")


def convert(
    root: Path, out: Path | None = None, images: Path | None = None, sections: tuple[str, ...] = ()
) -> Conversion:
    """CANDID-PTX: Pneumothorax, Chest Tube and Rib Fracture, each 1 or 0, masks (PNG) where 1, reports; image by image.

    An image is a study; its StudyInstanceUID is kept as study. There is no official split: 70, 10 and 20 % of the
    subjects are train, val and test, by a hash of the subject (`hash_split` in generator/corpora/common.py). The
    subject is what the column filename begins with (P0001 of P0001_1.jpg), else the StudyInstanceUID, else the image.
    An image under two subjects is left out and counted. An image that chest_tube.csv or acute_rib_fracture.csv does
    not name counts as negative. Masks go to masks/STRUCTURE/SOPInstanceUID.png beside the manifest.

    Args:
        root: Folder that holds the three tables and the folder of images.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder of the images, named by SOPInstanceUID: DICOM, with or without suffix, or PNG or JPEG, of
            1024 x 1024 pixels. By default dataset or chest_radiographs in root.
        sections: Sections that a study must have, e.g. [findings]. By default none.
    """
    out = out or root / "studies.jsonl"
    runs: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in _STRUCTURES}
    rows: dict[str, dict[str, str]] = {}
    subjects: dict[str, set[str]] = defaultdict(set)
    for _, row in read_table(find_file(root, ["Pneumothorax_reports.csv"], _ORIGIN), ["SOPInstanceUID", "Report"]):
        subjects[row["SOPInstanceUID"]].add(_subject(row))
        rows.setdefault(row["SOPInstanceUID"], row)
    tables = {
        "pneumothorax": ["Pneumothorax_reports.csv"],
        "chest tube": ["chest_tube.csv"],
        "rib fracture": ["acute_rib_fracture.csv", "Rib_fracture_mask_rle.csv"],
    }
    for structure, names in tables.items():
        for image_id, code in _read_runs(find_file(root, names, _ORIGIN)):
            runs[structure][image_id].append(code)
    paths = _find_images(images or _image_folder(root))
    studies = []
    for name, row in rows.items():
        subject = min(subjects[name])
        image = StudyImage(paths.get(name, (images or _image_folder(root)) / name))
        study = Study(name, subject, hash_split(subject, FRACTIONS), [image])
        study.sections = clean_sections(parse_plain(row["Report"]))
        study.labels = {label: int(bool(runs[structure].get(name))) for structure, label in _STRUCTURES.items()}
        study.extra = {"study": row["StudyInstanceUID"]} if row.get("StudyInstanceUID") else {}
        studies.append(study)
    conversion = Conversion("candid-ptx", studies)
    conversion.keep_studies("under two subjects", lambda study: len(subjects[study.study_id]) == 1)
    conversion.keep_files()
    read_headers(conversion)
    blank_ages(conversion)
    conversion.require(sections)
    for study in progress(conversion.studies, "masks"):
        for structure in _STRUCTURES:
            add_runs(study, structure, runs[structure].get(study.study_id, []), out.parent)
    return conversion.write(out)


def _subject(row: dict[str, str]) -> str:
    patient, mark, _ = row.get("filename", "").partition("_")
    return patient if mark and patient else row.get("StudyInstanceUID") or row["SOPInstanceUID"]


def _read_runs(path: Path) -> Iterator[tuple[str, str]]:
    """Image and run-length code of every row that has one."""
    for where, row in read_table(path):
        image = next((row[name] for name in ("SOPInstanceUID", "anon_SOPUID") if name in row), None)
        code = next((row[name] for name in ("EncodedPixels", "mask_rle") if name in row), None)
        if image is None or code is None:
            raise CorpusError(
                f"{where}: needs a column SOPInstanceUID or anon_SOPUID, and EncodedPixels or mask_rle. "
                f"Columns: {', '.join(row)}"
            )
        if code.strip() not in ("-1", ""):
            yield image, code


def _image_folder(root: Path) -> Path:
    for name in _IMAGE_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{root}: there is no folder {' or '.join(_IMAGE_FOLDERS)}. Name it with --images.")


def _find_images(folder: Path) -> dict[str, Path]:
    """SOPInstanceUID -> file. A UID has dots of its own, so only suffixes of images are taken off."""
    paths = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "masks" in path.relative_to(folder).parts:  # written by an earlier run
            continue
        known = path.suffix.lower() in (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
        paths[path.stem if known else path.name] = path
    return paths
