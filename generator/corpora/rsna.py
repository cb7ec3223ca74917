"""RSNA Pneumonia Detection Challenge 2018 -> studies.

stage_2_train_labels.csv           patientId, x, y, width, height, Target; one row per box, or one without box
stage_2_detailed_class_info.csv    patientId, class
stage_2_train_images/ID.dcm        names are patientId; view, sex and age stand in the headers
"""

from __future__ import annotations

import json
from pathlib import Path

from generator.corpora.common import Conversion, CorpusError, find_file, hash_split, progress, read_table
from generator.corpora.nih import blank_ages, parse_age
from raddraft.studies import Study, StudyImage

TEST_FRACTION = 0.2
"""About the share of the 5,337 test images, of 26,684, that are reported for RAD-DINO; by hash it comes to 5,390."""
VAL_FRACTION = 0.1

_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_ORIGIN = "It is part of https://www.kaggle.com/c/rsna-pneumonia-detection-challenge (stage 2)."
_WITHOUT_HEADER = {".png", ".jpg", ".jpeg"}
_TAGS = ["Rows", "PatientSex", "PatientAge", "ViewPosition"]


def convert(root: Path, out: Path | None = None, images: Path | None = None, mapping: Path | None = None) -> Conversion:
    """RSNA Pneumonia: Pneumonia (Target: an opacity that suggests it) and No Finding (class Normal), each 1 or 0.

    The labels of the challenge's test images are not public, so its train images are split: 70, 10 and 20 % of the
    subjects are train, val and test, by a hash of the subject (`hash_split` in generator/corpora/common.py). It has
    about the size of the test split reported for RAD-DINO, not its images. A patientId is one image. The images come
    from ChestX-ray14, where a patient may have several: only with --mapping is no patient in two splits.

    Args:
        root: Folder that holds the two tables and stage_2_train_images/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder of the images, DICOM, or PNG or JPEG of the same name. By default stage_2_train_images in root.
        mapping: The RSNA's pneumonia-challenge-dataset-mappings_2018.json: a list of objects with subset_img_id (the
            patientId) and img_id (the file's name in ChestX-ray14). Subjects are then the patients of ChestX-ray14.
    """
    table = find_file(root, ["stage_2_train_labels.csv"], _ORIGIN)
    classes = _read_classes(find_file(root, ["stage_2_detailed_class_info.csv"], _ORIGIN))
    patients = _read_mapping(mapping) if mapping else {}
    targets: dict[str, int] = {}
    for where, row in read_table(table, ["patientId", "Target"]):
        if row["Target"] not in ("0", "1"):
            raise CorpusError(f"{where}: Target {row['Target']!r}. Choices: 0, 1")
        if row["patientId"] not in classes:
            raise CorpusError(f"{where}: patientId {row['patientId']!r} is not in stage_2_detailed_class_info.csv")
        targets[row["patientId"]] = int(row["Target"])
    studies = []
    for name, target in targets.items():
        if patients and name not in patients:
            raise CorpusError(f"{mapping}: no subset_img_id is {name!r}, which {table.name} holds")
        subject = patients.get(name, name)
        split = hash_split(subject, (1 - VAL_FRACTION - TEST_FRACTION, VAL_FRACTION, TEST_FRACTION))
        labels: dict[str, int | None] = {"Pneumonia": target, "No Finding": int(classes[name] == "Normal")}
        image = StudyImage((images or root / "stage_2_train_images") / f"{name}.dcm")
        studies.append(Study(name, subject, split, [image], labels=labels))
    conversion = Conversion("rsna", studies)
    conversion.keep_files((".png", ".jpg", ".jpeg"))
    read_headers(conversion)
    blank_ages(conversion)
    return conversion.write(out or root / "studies.jsonl")


def read_headers(conversion: Conversion) -> None:
    """Take view, sex and age of every study from the DICOM header of its first image; nothing else is read from it.

    Studies whose header cannot be read are dropped, with a count and the first file's name. PNG and JPEG files are
    passed over.
    """
    unreadable: dict[str, Path] = {}
    for study in progress(conversion.studies, "DICOM headers"):
        path = study.images[0].path
        if path.suffix.lower() not in _WITHOUT_HEADER and not _read_header(study):
            unreadable[study.study_id] = path
    first = f", {next(iter(unreadable.values())).name} first" if unreadable else ""
    conversion.keep_studies(f"no readable DICOM header{first}", lambda study: study.study_id not in unreadable)


def _read_header(study: Study) -> bool:
    """Fill in what the header of the first image tells; False if it is none."""
    import warnings

    from pydicom import dcmread

    image = study.images[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ages without unit, as RSNA and SIIM have them, one warning each
            header = dcmread(image.path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            if "Rows" not in header:
                return False
            sex, age, view = (str(header.get(name) or "").strip() for name in _TAGS[1:])
    except Exception:  # broken bytes make the parser raise anything
        return False
    image.view = image.view or view or None
    try:
        years = parse_age(age, image.path.name)
    except CorpusError:  # free text in an age is no reason to lose the image
        years = None
    study.patient |= {"sex": sex if sex in ("M", "F") else None, "age": years}
    return True


def _read_classes(path: Path) -> dict[str, str]:
    classes = {}
    for where, row in read_table(path, ["patientId", "class"]):
        if row["class"] not in _CLASSES:
            raise CorpusError(f"{where}: unknown class {row['class']!r}. Choices: {', '.join(_CLASSES)}")
        classes[row["patientId"]] = row["class"]
    return classes


def _read_mapping(path: Path) -> dict[str, str]:
    """patientId -> patient number of ChestX-ray14."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["subset_img_id"]: str(int(entry["img_id"].split("_")[0])) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorpusError(f"{path}: expected a list of objects with subset_img_id and img_id: {error!r}") from None
