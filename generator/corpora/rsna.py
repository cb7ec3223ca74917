"""RSNA Pneumonia Detection Challenge 2018 -> studies. A row of the labels is a box, or one image without box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from generator.corpora import common, nih
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing

_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_ORIGIN = "It is part of https://www.kaggle.com/c/rsna-pneumonia-detection-challenge (stage 2)."
_LIST = f"{nih.ORIGIN} Name it with --test-list."


def convert(
    root: Path,
    out: Path | None = None,
    images: Path | None = None,
    mapping: Path | None = None,
    test_list: Path | None = None,
) -> Conversion:
    """RSNA Pneumonia: Pneumonia (Target: an opacity that suggests it) and No Finding (class Normal), each 1 or 0.

    The labels of the challenge's test images are not public, so its train images are split. They come from
    ChestX-ray14, where a patient may have several; a patientId is one image. With --mapping every image has the split
    that `raddraft prepare nih` gives it, so that no patient is in two splits, nor a film in train of the one set and in
    test of the other. Without, 70, 10 and 20 % of the images are train, val and test, by a hash: patients of test are
    then in train, too, and films of test in train of ChestX-ray14; the manifest marks such studies
    ("unknown_patient"), and what is measured on them says so. View, sex and age come from the headers; boxes are not
    read. Odd rows are counted: of a Target of 0 and of 1 for one image the 1 counts, a blank one says nothing; of two
    classes the first counts; other sexes than M and F, ages that cannot be read and ages above 120 are unknown.

    Args:
        root: Folder that holds stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder of the images, DICOM, or PNG or JPEG of the same name. By default stage_2_train_images in root.
        mapping: pneumonia-challenge-dataset-mappings_2018.json, from the page of the challenge at rsna.org: a list of
            objects with subset_img_id (the patientId) and img_id (the file's name in ChestX-ray14). Subjects are then
            the patients of ChestX-ray14.
        test_list: With --mapping: test_list.txt of ChestX-ray14. By default beside the mapping.
    """
    if test_list and not mapping:
        raise CorpusError("--test-list tells nothing without --mapping, which names the films of ChestX-ray14")
    table = common.find_file(root, ["stage_2_train_labels.csv"], _ORIGIN)
    counts = Counter[str]()
    classes: dict[str, str] = {}
    info = common.find_file(root, ["stage_2_detailed_class_info.csv"], _ORIGIN)
    for where, row in common.read_table(info, ["patientId", "class"]):
        if row["class"] not in _CLASSES:
            raise CorpusError(f"{where}: unknown class {row['class']!r}. Choices: {', '.join(_CLASSES)}")
        counts["Rows whose class differs from the first of their image, which counts"] += (
            classes.setdefault(row["patientId"], row["class"]) != row["class"]
        )
    names = _read_mapping(mapping) if mapping else {}
    tested = nih.read_list(test_list or common.find_file(mapping.parent, ["test_list.txt"], _LIST)) if mapping else ()
    studies: dict[str, Study] = {}
    for where, row in common.read_table(table, ["patientId", "Target"]):
        name = row["patientId"]
        if row["Target"] not in ("0", "1") and not is_nothing(row["Target"]):
            raise CorpusError(f"{where}: Target {row['Target']!r}. Choices: 0, 1")
        target = common.parse_label(row["Target"], where)
        counts["Rows without Target, which say nothing of Pneumonia"] += target is None
        if name not in classes:
            raise CorpusError(f"{where}: patientId {name!r} is not in {info.name}")
        if mapping and name not in names:
            raise CorpusError(f"{mapping}: no subset_img_id is {name!r}, which {table.name} holds")
        subject, split = _place(names[name], tested) if mapping else (name, common.hash_split(name))
        image = StudyImage((images or root / "stage_2_train_images") / f"{name}.dcm")
        study = studies.setdefault(name, Study(name, subject, split, [image]))
        known = study.labels.get("Pneumonia")
        counts["Images with a Target of 0 and of 1, of which the 1 counts"] += {known, target} == {0, 1}
        study.labels = {
            "Pneumonia": max((label for label in (known, target) if label is not None), default=None),
            "No Finding": int(classes[name] == "Normal"),
        }
    conversion = Conversion("rsna", studies.values(), out or root / "studies.jsonl", counts)
    if not mapping:
        conversion.mark_unknown_patients()
        conversion.notes.append("With --mapping every film has the patient and the split that it has in ChestX-ray14")
    conversion.keep_files(*common.PIXELS)
    conversion.read_headers()
    return conversion.write()


def _read_mapping(path: Path) -> dict[str, str]:
    """patientId -> name of the file in ChestX-ray14."""
    try:
        names = {entry["subset_img_id"]: entry["img_id"] for entry in common.read_json(path)}
        wrong = next((name for name in names.values() if not nih.NAME.fullmatch(name)), None)
    except (TypeError, KeyError) as error:
        raise CorpusError(f"{path}: expected a list of objects with subset_img_id and img_id: {error!r}") from None
    if wrong:
        raise CorpusError(f"{path}: expected an img_id like 00000013_005.png, got {wrong[:80]!r}")
    return names


def _place(name: str, tested: Collection[str]) -> tuple[str, str]:
    """Patient and split of a film of ChestX-ray14."""
    subject = str(int(name.partition("_")[0]))  # as in the table of ChestX-ray14
    return subject, nih.choose_split(name, subject, tested)
