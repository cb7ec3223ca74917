"""Converters on real tables: what they write against what code that shares nothing with them counts.

    pip download --no-deps torchxrayvision==1.5.7
    unzip torchxrayvision-1.5.7-py3-none-any.whl -d wheel
    mkdir clones
    for name in rajpurkarlab/{cheXpert-test-set-labels,cheXlocalize} Deepwise-AILab/ChestX-Det{,10}-Dataset; do
        git -C clones clone https://github.com/$name; done
    python -m benchmarks tables --wheel wheel --clones clones

The wheel has the tables and no images. Each converter reads the table beside a tree in the official layout whose files
are links to one picture of a pixel; where it reads headers, RSNA's are written from their table. What the wheel lacks
is stood in for, and not counted as real: the lists of ChestX-ray14 (every fifth patient is test), RSNA's classes (its
No Finding is left out), VinDr-CXR's table of labels (made of Kaggle's table of boxes; it has 14 findings) and its test
part. `benchmarks/table_counts.py` counts.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import table_counts as counted
from generator.corpora import chestx_det, chexlocalize, chexpert, iu_xray, nih, padchest, rsna, siim, vindr_cxr
from generator.corpora.common import Conversion
from raddraft.errors import RadDraftError
from raddraft.studies import Study, read_studies
from raddraft.text import format_table, progress

DIRECTIONS = ("frontal", "lateral", "other", None)


@dataclass
class Table:
    """A real table: how a tree is made of it, read by its converter, and counted."""

    name: str
    file: str
    make: Callable[[Path, Path, Path], None]
    """Takes the folder of tables, the root to fill and a picture of one pixel."""
    convert: Callable[[Path], Conversion]
    count: Callable[[Path], Iterator[counted.Film]]
    left_out: tuple[str, ...] = ()
    """Labels that the table does not give."""


def bench_tables(wheel: Path | None, clones: Path | None = None) -> bool:
    """Print a row for each table of the wheel and the clones, and what differs; whether nothing does.

    Args:
        wheel: the folder of the unzipped wheel.
        clones: the folder of the authors' repositories.

    Raises:
        RadDraftError: they hold no such tables.
    """
    folders = ([wheel / "torchxrayvision" / "data"] if wheel else []) + ([clones] if clones else [])
    tables = [(table, folder) for table in TABLES for folder in folders if (folder / table.file).is_file()]
    if not tables:
        places = " and ".join(map(str, folders))
        raise RadDraftError(f"{places}: none of {', '.join(table.file for table in TABLES)}; unzip the wheel first")
    rows: list[list[str | int]] = [
        ["", "films", "studies", "subjects", "train", "val", "test", "F", "M", "?"],
    ]
    rows[0] += ["frontal", "lateral", "no view", "labels", "label 1", "label -1", "numbers", "differ"]
    differing: list[str] = []
    for table, data in progress(tables, "tables"):
        with tempfile.TemporaryDirectory() as folder:
            root, pixel = Path(folder) / "set", Path(folder) / "one.png"
            root.mkdir()
            Image.new("L", (1, 1)).save(pixel)
            table.make(data, root, pixel)
            table.convert(root)
            studies = read_studies(root / "studies.jsonl")
            ours = counted.tally(_films(studies, table.left_out))
        theirs = counted.tally(table.count(data))
        differing += (found := list(_differences(table.name, ours, theirs)))
        n_numbers = sum(len(part) for part in theirs.values())
        rows.append([table.name, *_row(studies, ours), n_numbers, len(found)])
    print(format_table(rows))
    print("\n".join(["", *differing]) if differing else "\nAll numbers are equal.")
    return not differing


def _films(studies: Iterable[Study], left_out: tuple[str, ...]) -> Iterator[counted.Film]:
    """What a manifest says."""
    for study in studies:
        labels = {name: value for name, value in study.labels.items() if name not in left_out}
        for image in study.images:
            pixels = sum(int((np.asarray(Image.open(mask)) > 0).sum()) for mask in image.masks.values())
            yield counted.Film(
                study.study_id,
                study.subject_id,
                study.split,
                study.patient.get("sex"),
                study.patient.get("age"),
                image.view,
                labels,
                tuple(study.sections),
                pixels,
            )


def _differences(name: str, ours: dict[str, Counter[str]], theirs: dict[str, Counter[str]]) -> Iterator[str]:
    for kind in theirs.keys() | ours.keys():
        a, b = ours.get(kind, Counter()), theirs.get(kind, Counter())
        for value in sorted(a.keys() | b.keys()):
            if a[value] != b[value]:
                yield f"{name}, {kind} {value}: {a[value]:,} in the manifest, {b[value]:,} counted"


def _row(studies: list[Study], found: dict[str, Counter[str]]) -> list[str | int]:
    directions = Counter(image.direction for study in studies for image in study.images)
    values = Counter[str]()
    for label, count in found["labels"].items():
        values[label.rpartition(": ")[2]] += count
    return [
        *(found[kind]["all"] for kind in ("films", "studies", "subjects")),
        *(found["splits"][split] for split in ("train", "val", "test")),
        *(found["sexes"][sex] for sex in ("F", "M", "None")),
        *(directions[direction] for direction in ("frontal", "lateral", None)),
        *(len({label.rpartition(": ")[0] for label in found["labels"]}), values["1"], values["-1"]),
    ]


def _link(paths: Iterable[Path], target: Path) -> None:
    folders: set[Path] = set()
    for path in paths:
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        os.symlink(target, path)


def _make_padchest(data: Path, root: Path, pixel: Path) -> None:
    shutil.copy(data / counted.PADCHEST, root)
    rows = counted.read_rows(data / counted.PADCHEST)
    _link((root / row["ImageDir"] / row["ImageID"] for row in rows), pixel)


def _make_nih(data: Path, root: Path, pixel: Path) -> None:
    shutil.copy(data / counted.NIH, root)
    patient_of = {row["Image Index"]: row["Patient ID"] for row in counted.read_rows(data / counted.NIH)}
    for name, tested in (("test", True), ("train_val", False)):
        listed = [image for image, patient in patient_of.items() if counted.in_standin_list(patient) == tested]
        (root / f"{name}_list.txt").write_text("\n".join(listed), encoding="utf-8")
    _link((root / "images" / image for image in patient_of), pixel)


def _make_rsna(data: Path, root: Path, pixel: Path) -> None:
    with open(root / "stage_2_train_labels.csv", "w", encoding="utf-8", newline="") as file:
        rows = list(counted.read_rows(data / counted.RSNA))
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with open(root / "stage_2_detailed_class_info.csv", "w", encoding="utf-8") as file:
        file.write("patientId,class\n" + "".join(f"{row['patientId']},Lung Opacity\n" for row in rows))
    (root / "stage_2_train_images").mkdir()
    for row in counted.read_rows(data / counted.RSNA_HEADERS):
        path = root / "stage_2_train_images" / f"{row['PatientID']}.dcm"
        path.write_bytes(_header(row["PatientSex"], row["PatientAge"], row["ViewPosition"]))


def _header(sex: str = "", age: str = "", view: str = "") -> bytes:
    """A DICOM data set (implicit VR, little endian) of these elements and 1,024 rows."""
    elements = [(0x0010, 0x0040, sex), (0x0010, 0x1010, age), (0x0018, 0x5101, view)]
    values = [(group, element, (text + " " * (len(text) % 2)).encode("ascii")) for group, element, text in elements]
    values.append((0x0028, 0x0010, struct.pack("<H", 1024)))
    return b"".join(struct.pack("<HHI", group, element, len(value)) + value for group, element, value in values)


def _make_siim(data: Path, root: Path, pixel: Path) -> None:
    shutil.copy(data / counted.SIIM, root / "train-rle.csv.gz")
    film = root.parent / "film"
    film.write_bytes(_header())
    names = {row["ImageId"] for row in counted.read_rows(data / counted.SIIM)}
    _link((root / "dicom-images-train" / f"{name}.dcm" for name in names), film)


def _make_chexpert(data: Path, root: Path, pixel: Path) -> None:
    shutil.copy(data / counted.CHEXPERT, root / "train.csv.gz")
    paths = (row["Path"].partition("/")[2] for row in counted.read_rows(data / counted.CHEXPERT))
    _link((root / path for path in paths), pixel)


def _make_vindr(data: Path, root: Path, pixel: Path) -> None:
    rows = list(counted.read_rows(data / counted.VINDR))
    names = sorted({row["class_name"] for row in rows})
    named = {(row["image_id"], row["rad_id"]): dict.fromkeys(names, 0) for row in rows}
    for row in rows:
        named[row["image_id"], row["rad_id"]][row["class_name"]] = 1
    (root / "annotations").mkdir()
    with open(root / "annotations" / "image_labels_train.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image_id", "rad_id", *names])
        writer.writeheader()
        writer.writerows({"image_id": image, "rad_id": reader} | row for (image, reader), row in named.items())
    # A test table must have a row; the film of this one does not exist, and is dropped.
    test = f"{','.join(['image_id', *names])}\nnone,{','.join('0' * len(names))}\n"
    (root / "annotations" / "image_labels_test.csv").write_text(test, encoding="utf-8")
    _link((root / "train" / f"{image}.png" for image in {image for image, _ in named}), pixel)


def _make_iu(data: Path, root: Path, pixel: Path) -> None:
    shutil.copy(data / counted.IU, root)


def _make_chexpert_test(data: Path, root: Path, pixel: Path) -> None:
    shutil.copy(data / counted.CHEXPERT_TEST, root)
    studies = (row["Study"].partition("/")[2] for row in counted.read_rows(data / counted.CHEXPERT_TEST))
    _link((root / study / "view1_frontal.jpg" for study in studies), pixel)


def _make_chexlocalize(data: Path, root: Path, pixel: Path) -> None:
    shutil.copytree(
        (data / counted.CHEXLOCALIZE).parent, root, dirs_exist_ok=True, ignore=lambda *_: {"gradcam_maps_val"}
    )


def _make_det(file: str) -> Callable[[Path, Path, Path], None]:
    def make(data: Path, root: Path, pixel: Path) -> None:
        film = root.parent / "film.png"
        Image.new("L", (1024, 1024)).save(film)
        for part in ("train", "test"):
            table = data / file.format(part)
            shutil.copy(table, root)
            entries = json.loads(table.read_text(encoding="utf-8"))
            _link((root / "films" / entry["file_name"] for entry in entries), film)

    return make


TABLES = (
    Table(
        "PadChest",
        counted.PADCHEST,
        _make_padchest,
        lambda root: padchest.convert(root, views="all"),
        counted.padchest,
    ),
    Table("ChestX-ray14", counted.NIH, _make_nih, nih.convert, counted.nih),
    Table("RSNA", counted.RSNA, _make_rsna, rsna.convert, counted.rsna, ("No Finding",)),
    Table("SIIM-ACR", counted.SIIM, _make_siim, siim.convert, counted.siim),
    Table(
        "CheXpert",
        counted.CHEXPERT,
        _make_chexpert,
        lambda root: chexpert.convert(root, views="all"),
        counted.chexpert,
    ),
    Table("VinDr-CXR", counted.VINDR, _make_vindr, vindr_cxr.convert, counted.vindr),
    Table(
        "IU X-ray",
        counted.IU,
        _make_iu,
        lambda root: iu_xray.convert(root, sections=(), missing="keep"),
        counted.iu_xray,
    ),
    Table("CheXpert, test", counted.CHEXPERT_TEST, _make_chexpert_test, chexpert.convert, counted.chexpert_test),
    Table(
        "CheXlocalize, sample",
        counted.CHEXLOCALIZE,
        _make_chexlocalize,
        chexlocalize.convert,
        counted.chexlocalize,
    ),
    Table("ChestX-Det", counted.DET.format("train"), _make_det(counted.DET), chestx_det.convert, counted.chestx_det),
    Table(
        "ChestX-Det10",
        counted.DET_10.format("train"),
        _make_det(counted.DET_10),
        chestx_det.convert,
        counted.chestx_det_10,
    ),
)
