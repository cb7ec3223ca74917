"""VinDr-CXR 1.0.0 (PhysioNet) -> studies. The train table has three rows per image, one per radiologist."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage

Readers = Literal["majority", "union", "adjudicated"]

_READER = ("rad_id", "rad_ID")
_ORIGIN = "It is part of VinDr-CXR, https://physionet.org/content/vindr-cxr (credentialed access)."


def convert(
    root: Path, out: Path | None = None, images: Path | None = None, readers: Readers = "majority"
) -> Conversion:
    """VinDr-CXR: 28 labels, each 1 or 0; every image is a study, and a subject, for the set names no patients.

    Train: 1 where more than half of the radiologists who read the image say so (two of three), or as --readers says;
    labels on which they differ are counted. Test: the published consensus of five. Val is a tenth of the official train
    images, by a hash of the image's name. All images are PA, as the authors say. Sex and age come from the headers,
    where they exist. Boxes are not read.

    Odd rows are counted: a second row of one radiologist for an image is left out, a blank is no vote; other sexes than
    M and F, ages that cannot be read, and ages of 0, which these adults cannot have, are unknown.

    Args:
        root: Folder that holds annotations/image_labels_train.csv, annotations/image_labels_test.csv, train/ and test/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder that holds train/ and test/, of .dicom files, or of DICOM (.dcm), PNG or JPEG files of the same
            name. By default root.
        readers: Which label counts where the radiologists of a train image differ: that of the majority, or union, a
            finding that any of them names. adjudicated leaves the train images out: only test has a consensus.
    """
    counts = Counter[str]()
    studies = read_studies(root, root / "annotations", images, "PA", _ORIGIN, readers, counts)
    conversion = Conversion("vindr-cxr", studies, out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    if readers == "adjudicated":
        conversion.keep_studies("labels not adjudicated", lambda study: study.split == "test")
    conversion.keep_files(".dcm", *common.PIXELS)
    conversion.read_headers()
    conversion.blank_newborns()
    return conversion.write()


def read_studies(
    root: Path,
    tables: Path,
    images: Path | None,
    view: str | None,
    origin: str,
    readers: Readers,
    counts: Counter[str],
) -> list[Study]:
    """A study for each image of image_labels_train.csv and image_labels_test.csv, of whichever set of VinDr.

    Args:
        root: the folder that holds train/ and test/, unless `images` is given.
        tables: the folder of the two tables.
        images: another folder with train/ and test/.
        view: of all images, if it is known.
        origin: where the tables come from, for the error.
        readers: whose labels count.
        counts: of odd rows.

    Raises:
        CorpusError: a table is missing, or not as it should be, or an image is in both.
    """
    studies: dict[str, Study] = {}
    for part in ("train", "test"):
        table = common.find_file(tables, [f"image_labels_{part}.csv"], origin)
        for name, (where, labels) in _read_labels(table, readers, counts).items():
            split = "test" if part == "test" else common.hash_split(name, common.NO_VAL)
            image = StudyImage((images or root) / part / f"{name}.dicom", view)
            common.add_image(studies, Study(name, name, split, [image], labels=labels), where, counts)
    return list(studies.values())


def _read_labels(table: Path, readers: Readers, counts: Counter[str]) -> dict[str, tuple[str, dict[str, int | None]]]:
    """Image -> its first row's place, and label by the rows of its readers; None where no row says anything."""
    places: dict[str, str] = {}
    votes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    seen: set[tuple[str, str]] = set()
    for where, row in common.read_table(table, ["image_id", "No finding"]):
        name = row["image_id"]
        places.setdefault(name, where)
        reader = (name, next((row[column] for column in _READER if row.get(column)), ""))
        if reader in seen:
            counts["Rows that repeat a reader of an image, left out"] += 1
            continue
        seen.add(reader)
        for label, vote in common.parse_labels(where, row, skip=("image_id", *_READER)).items():
            if vote == -1:
                raise CorpusError(f"{where}, {label}: label '-1'. Choices: 0, 1")
            # The test table and the train table spell one label differently.
            label = "Other diseases" if label == "Other disease" else label
            votes[name][label] += [] if vote is None else [vote]
    counts["Labels on which the readers of an image differ"] += sum(
        len(set(said)) > 1 for labels in votes.values() for said in labels.values()
    )
    return {
        name: (places[name], {label: _settle(said, readers) if said else None for label, said in labels.items()})
        for name, labels in votes.items()
    }


def _settle(votes: list[int], readers: Readers) -> int:
    """One label of the votes 0 and 1."""
    return max(votes) if readers == "union" else int(2 * sum(votes) > len(votes))
