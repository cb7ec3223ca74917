"""RSNA Pneumonia Detection Challenge 2018 -> studies. A row of the labels is a box, or one image without box."""

from __future__ import annotations

from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage

_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_ORIGIN = "It is part of https://www.kaggle.com/c/rsna-pneumonia-detection-challenge (stage 2)."


def convert(root: Path, out: Path | None = None, images: Path | None = None, mapping: Path | None = None) -> Conversion:
    """RSNA Pneumonia: Pneumonia (Target: an opacity that suggests it) and No Finding (class Normal), each 1 or 0.

    The labels of the challenge's test images are not public, so its train images are split: 70, 10 and 20 % of the
    subjects by a hash. Of the 26,684 images 5,390 are test: about as many as the 5,337 reported for RAD-DINO, but not
    the same. A patientId is one image. The images come from ChestX-ray14, where a patient may have several: only
    --mapping keeps every patient in one split. View, sex and age come from the headers; boxes are not read.

    Args:
        root: Folder that holds stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder of the images, DICOM, or PNG or JPEG of the same name. By default stage_2_train_images in root.
        mapping: The RSNA's pneumonia-challenge-dataset-mappings_2018.json: a list of objects with subset_img_id (the
            patientId) and img_id (the file's name in ChestX-ray14). Subjects are then the patients of ChestX-ray14.
    """
    table = common.find_file(root, ["stage_2_train_labels.csv"], _ORIGIN)
    classes = {}
    info = common.find_file(root, ["stage_2_detailed_class_info.csv"], _ORIGIN)
    for where, row in common.read_table(info, ["patientId", "class"]):
        if row["class"] not in _CLASSES:
            raise CorpusError(f"{where}: unknown class {row['class']!r}. Choices: {', '.join(_CLASSES)}")
        classes[row["patientId"]] = row["class"]
    patients = _read_mapping(mapping) if mapping else {}
    studies: dict[str, Study] = {}
    for where, row in common.read_table(table, ["patientId", "Target"]):
        name = row["patientId"]
        if row["Target"] not in ("0", "1"):
            raise CorpusError(f"{where}: Target {row['Target']!r}. Choices: 0, 1")
        if name not in classes:
            raise CorpusError(f"{where}: patientId {name!r} is not in {info.name}")
        if patients and name not in patients:
            raise CorpusError(f"{mapping}: no subset_img_id is {name!r}, which {table.name} holds")
        subject = patients.get(name, name)
        image = StudyImage((images or root / "stage_2_train_images") / f"{name}.dcm")
        studies[name] = Study(name, subject, common.hash_split(subject), [image])
        studies[name].labels = {"Pneumonia": int(row["Target"]), "No Finding": int(classes[name] == "Normal")}
    conversion = Conversion("rsna", studies.values(), out or root / "studies.jsonl")
    conversion.keep_files(*common.PIXELS)
    conversion.read_headers()
    return conversion.write()


def _read_mapping(path: Path) -> dict[str, str]:
    """patientId -> patient number of ChestX-ray14."""
    try:
        return {entry["subset_img_id"]: str(int(entry["img_id"].split("_")[0])) for entry in common.read_json(path)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorpusError(f"{path}: expected a list of objects with subset_img_id and img_id: {error!r}") from None
