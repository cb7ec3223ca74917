"""VinDr-CXR 1.0.0 (PhysioNet) -> studies.

annotations/image_labels_train.csv    image_id, rad_id, 28 labels; three rows per image, one per radiologist
annotations/image_labels_test.csv     image_id, 28 labels; one row per image, the consensus of five
train/IMAGE_ID.dicom, test/IMAGE_ID.dicom
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from generator.corpora.common import Conversion, CorpusError, find_file, hash_split, parse_label, read_table
from generator.corpora.nih import blank_ages
from generator.corpora.rsna import read_headers
from raddraft.studies import Study, StudyImage

VAL_FRACTION = 0.1
"""Share of the official train images that becomes val."""

_ORIGIN = "It is part of VinDr-CXR, https://physionet.org/content/vindr-cxr (credentialed access)."
_RENAMED = {"Other disease": "Other diseases"}  # the test table and the train table differ
_CHECKED = ["image_id", "No finding"]


def convert(root: Path, out: Path | None = None, images: Path | None = None) -> Conversion:
    """VinDr-CXR: 28 labels, each 1 or 0; every image is a study, and a subject, for the set names no patients.

    Train: 1 where more than half of the radiologists who read the image say so (two of three). Test: the consensus,
    as published; it is the official test split. Val is a tenth of the official train images, by a hash of the image's
    name (`hash_split` in generator/corpora/common.py). All images are PA, as the authors say. Sex and age come from the
    headers, where they are there; an age of 0, which these adults cannot have, is taken for unknown. Boxes are not
    read. Images that are not on disk are left out and counted.

    Args:
        root: Folder that holds annotations/, train/ and test/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder that holds train/ and test/, of .dicom files, or of DICOM (.dcm), PNG or JPEG files of the same
            name. By default root.
    """
    studies = []
    for part in ("train", "test"):
        table = find_file(root / "annotations", [f"image_labels_{part}.csv"], _ORIGIN)
        for name, labels in _read_labels(table).items():
            split = "test" if part == "test" else hash_split(name, (1 - VAL_FRACTION, VAL_FRACTION, 0))
            image = StudyImage((images or root) / part / f"{name}.dicom", "PA")
            studies.append(Study(name, name, split, [image], labels=labels))
    conversion = Conversion("vindr-cxr", studies)
    conversion.keep_files((".dcm", ".png", ".jpg", ".jpeg"))
    read_headers(conversion)
    for study in conversion.studies:
        if study.patient.get("age") == 0:
            study.patient["age"] = None
    blank_ages(conversion)
    return conversion.write(out or root / "studies.jsonl")


def _read_labels(table: Path) -> dict[str, dict[str, int | None]]:
    """Image -> label by the majority of its rows; None where no row says anything."""
    votes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for where, row in read_table(table, _CHECKED):
        for column, value in row.items():
            if column in ("image_id", "rad_id"):
                continue
            vote = parse_label(value, f"{where}, {column}")
            if vote == -1:
                raise CorpusError(f"{where}, {column}: label {value!r}. Choices: 0, 1")
            votes[row["image_id"]][_RENAMED.get(column, column)] += [] if vote is None else [vote]
    return {
        image: {label: int(2 * sum(said) > len(said)) if said else None for label, said in labels.items()}
        for image, labels in votes.items()
    }
