"""VinDr-CXR 1.0.0 (PhysioNet) -> studies. The train table has three rows per image, one per radiologist."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage

_ORIGIN = "It is part of VinDr-CXR, https://physionet.org/content/vindr-cxr (credentialed access)."


def convert(root: Path, out: Path | None = None, images: Path | None = None) -> Conversion:
    """VinDr-CXR: 28 labels, each 1 or 0; every image is a study, and a subject, for the set names no patients.

    Train: 1 where more than half of the radiologists who read the image say so (two of three). Test: the published
    consensus of five. Val is a tenth of the official train images, by a hash of the image's name. All images are PA, as
    the authors say. Sex and age come from the headers, where they exist; an age of 0, which these adults cannot have,
    counts as unknown. Boxes are not read.

    Args:
        root: Folder that holds annotations/image_labels_train.csv, annotations/image_labels_test.csv, train/ and test/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder that holds train/ and test/, of .dicom files, or of DICOM (.dcm), PNG or JPEG files of the same
            name. By default root.
    """
    conversion = Conversion(
        "vindr-cxr", read_studies(root, root / "annotations", images, "PA", _ORIGIN), out or root / "studies.jsonl"
    )
    conversion.mark_unknown_patients()
    conversion.keep_files(".dcm", *common.PIXELS)
    conversion.read_headers()
    for study in conversion.studies:
        if study.patient.get("age") == 0:
            study.patient["age"] = None
    return conversion.write()


def read_studies(root: Path, tables: Path, images: Path | None, view: str | None, origin: str) -> list[Study]:
    """A study for each image of image_labels_train.csv and image_labels_test.csv, of whichever set of VinDr.

    Args:
        root: the folder that holds train/ and test/, unless `images` is given.
        tables: the folder of the two tables.
        images: another folder with train/ and test/.
        view: of all images, if it is known.
        origin: where the tables come from, for the error.

    Raises:
        CorpusError: a table is missing, or not as it should be.
    """
    studies = []
    for part in ("train", "test"):
        table = common.find_file(tables, [f"image_labels_{part}.csv"], origin)
        for name, labels in _read_labels(table).items():
            split = "test" if part == "test" else common.hash_split(name, common.NO_VAL)
            image = StudyImage((images or root) / part / f"{name}.dicom", view)
            studies.append(Study(name, name, split, [image], labels=labels))
    return studies


def _read_labels(table: Path) -> dict[str, dict[str, int | None]]:
    """Image -> label by the majority of its rows; None where no row says anything."""
    votes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for where, row in common.read_table(table, ["image_id", "No finding"]):
        for label, vote in common.parse_labels(where, row, skip=("image_id", "rad_id", "rad_ID")).items():
            if vote == -1:
                raise CorpusError(f"{where}, {label}: label '-1'. Choices: 0, 1")
            # The test table and the train table spell one label differently.
            label = "Other diseases" if label == "Other disease" else label
            votes[row["image_id"]][label] += [] if vote is None else [vote]
    return {
        image: {label: int(2 * sum(said) > len(said)) if said else None for label, said in labels.items()}
        for image, labels in votes.items()
    }
