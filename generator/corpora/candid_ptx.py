"""CANDID-PTX (Feng et al. 2021) -> studies with reports and masks.

The column names come from code that reads the set: it agrees on those of the first table, while for the other two both
spellings (SOPInstanceUID, anon_SOPUID; EncodedPixels, mask_rle) are accepted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from generator.corpora.odd_rows import OTHER_TEXT, gather_runs
from generator.sections import clean_sections, parse_plain
from raddraft.splits import UNKNOWN_PATIENT
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing

_ORIGIN = "It is part of CANDID-PTX, https://doi.org/10.17608/k6.auckland.14173982 (on application)."
_REPORTS = "Pneumothorax_reports.csv"
_TABLES = {
    "pneumothorax": [_REPORTS],
    "chest tube": ["chest_tube.csv"],
    "rib fracture": ["acute_rib_fracture.csv", "Rib_fracture_mask_rle.csv"],
}
_IMAGE_FOLDERS = ("dataset", "chest_radiographs")


def convert(
    root: Path, out: Path | None = None, images: Path | None = None, sections: tuple[str, ...] = ()
) -> Conversion:
    """CANDID-PTX: Pneumothorax, Chest Tube and Rib Fracture, each 1 or 0, masks (PNG) where 1, reports; image by image.

    An image is a study; its StudyInstanceUID is kept as study. No official split: 70, 10 and 20 % of the subjects are
    train, val and test, by a hash. The subject is what the column filename begins with (P0001 of P0001_1.jpg), else the
    StudyInstanceUID, else the image, which the manifest marks ("unknown_patient"); an image under two subjects is left
    out. An image that chest_tube.csv or acute_rib_fracture.csv does not name counts as negative. Odd rows are counted:
    a mask counts, though another row of its image says -1, a blank cell is -1, a row that repeats a mask is left out,
    and so is a mask that leaves the image or is no list of pairs, though the label stays 1; of two reports of an image
    the first counts.

    Args:
        root: Folder that holds Pneumothorax_reports.csv, chest_tube.csv, acute_rib_fracture.csv and the images.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder of the images, named by SOPInstanceUID: DICOM, with or without suffix, or PNG or JPEG, of
            1024 x 1024 pixels. By default dataset or chest_radiographs in root.
        sections: Sections that a study must have, e.g. findings. By default none.
    """
    rows: dict[str, dict[str, str]] = {}
    counts = Counter[str]()
    subjects: dict[str, set[str]] = defaultdict(set)
    for _, row in common.read_table(common.find_file(root, [_REPORTS], _ORIGIN), ["SOPInstanceUID", "Report"]):
        name = row["SOPInstanceUID"]
        patient, mark, _ = row.get("filename", "").partition("_")
        subjects[name].add(patient if mark and patient else row.get("StudyInstanceUID") or name)
        kept = rows.setdefault(name, row)
        if is_nothing(kept["Report"]):
            kept["Report"] = row["Report"]
        counts[OTHER_TEXT] += not is_nothing(row["Report"]) and row["Report"] != kept["Report"]
    codes: dict[str, dict[str, list[str]]] = defaultdict(lambda: {structure: [] for structure in _TABLES})
    for structure, names in _TABLES.items():
        for image, runs in gather_runs(_read_cells(common.find_file(root, names, _ORIGIN)), counts).items():
            codes[image][structure] = runs
    folder = images or next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise MissingFileError(f"{root}: there is no folder {' or '.join(_IMAGE_FOLDERS)}. Name it with --images.")
    paths = _find_images(folder)
    studies = []
    for name, row in rows.items():
        subject = min(subjects[name])
        study = Study(name, subject, common.hash_split(subject), [StudyImage(paths.get(name, folder / name))])
        study.sections = clean_sections(parse_plain(row["Report"]))
        study.labels = {structure.title(): int(bool(found)) for structure, found in codes[name].items()}
        study.extra = {"study": row["StudyInstanceUID"]} if row.get("StudyInstanceUID") else {}
        if subject in (name, row.get("StudyInstanceUID")):
            study.extra[UNKNOWN_PATIENT] = True
        studies.append(study)
    conversion = Conversion("candid-ptx", studies, out or root / "studies.jsonl", counts)
    conversion.keep_studies("under two subjects", lambda study: len(subjects[study.study_id]) == 1)
    conversion.keep_files()
    conversion.read_headers()
    conversion.require(sections)
    conversion.add_masks(codes, (1024, 1024))
    return conversion.write()


def _read_cells(table: Path) -> Iterator[tuple[str, str]]:
    """Image and run lengths of each row."""
    for where, row in common.read_table(table):
        image = row.get("SOPInstanceUID", row.get("anon_SOPUID"))
        code = row.get("EncodedPixels", row.get("mask_rle"))
        if image is None or code is None:
            raise CorpusError(
                f"{where}: needs a column SOPInstanceUID or anon_SOPUID, and EncodedPixels or mask_rle. "
                f"Columns: {', '.join(row)}"
            )
        yield image, code


def _find_images(folder: Path) -> dict[str, Path]:
    """SOPInstanceUID -> file. A UID has dots of its own, so only suffixes of images are removed."""
    paths = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "masks" not in path.relative_to(folder).parts:  # those are written by an earlier run
            known = path.suffix.lower() in (".dcm", ".dicom", *common.PIXELS)
            paths[path.stem if known else path.name] = path
    return paths
