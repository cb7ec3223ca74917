"""Real tables of chest X-ray sets, read with csv, json, re and zipfile alone: what a converter should find in them.

Each function is the rules of one converter (see its help) written a second time, from the table in the wheel of
torchxrayvision 1.5.7, or in the authors' repository, to one row a film. Nothing here imports what the converters are
made of. Outlines are filled by Pillow, COCO's run lengths are counted by pycocotools.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
NIH = "Data_Entry_2017_v2020.csv.gz"
RSNA = "kaggle_stage_2_train_labels.csv.zip"
RSNA_HEADERS = "kaggle_stage_2_train_images_dicom_headers.csv.gz"
SIIM = "siim-pneumothorax-train-rle.csv.gz"
CHEXPERT = "chexpert_train.csv.gz"
VINDR = "vinbigdata-train.csv.gz"
IU = "NLMCXR_reports.tgz"
CHEXPERT_TEST = "cheXpert-test-set-labels/groundtruth.csv"
CHEXLOCALIZE = "cheXlocalize/sample/gt_segmentations_val.json"
DET = "ChestX-Det-Dataset/ChestX_Det_{}.json"
DET_10 = "ChestX-Det10-Dataset/{}.json"


class Film(NamedTuple):
    """A film as a manifest has it; what is said of its study is repeated for each of its films."""

    study: str
    subject: str
    split: str
    sex: str | None = None
    age: float | None = None
    view: str | None = None
    labels: Mapping[str, int | None] = {}
    sections: tuple[str, ...] = ()
    mask_pixels: int = 0


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, plain, gzipped or in a zip."""
    csv.field_size_limit(sys.maxsize)
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
        return
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
            yield from csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline=""))
    else:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def tally(films: Iterable[Film]) -> dict[str, Counter[str]]:
    """All that is compared: kind -> value -> how many films (views) or studies (all else) have it."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    studies: dict[str, Film] = {}
    for film in films:
        found["films"]["all"] += 1
        found["views"][str(film.view)] += 1
        studies.setdefault(film.study, film)
    found["studies"]["all"] = len(studies)
    found["subjects"]["all"] = len({film.subject for film in studies.values()})
    for film in studies.values():
        found["splits"][film.split] += 1
        found["sexes"][str(film.sex)] += 1
        found["ages"]["unknown" if film.age is None else f"{film.age:g}"] += 1
        found["labeled"]["all"] += bool(film.labels)
        found["labels"].update(f"{label}: {value}" for label, value in film.labels.items())
        found["sections"].update(film.sections)
        found["masks"]["all"] += film.mask_pixels > 0
        found["mask pixels"]["all"] += film.mask_pixels
    return dict(found)


def deal(subject: str, train: float = 0.7, val: float = 0.1) -> str:
    """The split of a subject by its hash."""
    share = int(hashlib.sha256(b"raddraft|" + subject.encode()).hexdigest()[:12], 16) / 16**12
    return "train" if share < train else "val" if share < train + val else "test"


def padchest(data: Path) -> Iterator[Film]:
    """PadChest, all views."""
    columns = ["StudyID", "PatientID", "PatientSex_DICOM", "PatientBirth", "StudyDate_DICOM", "Projection", "Labels"]
    rows = [{column: row[column] for column in columns} for row in read_rows(data / PADCHEST)]
    first: dict[str, str] = {}
    alias: dict[str, str] = {}
    sexes: dict[str, set[str]] = defaultdict(set)
    births: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        owner = first.setdefault(row["StudyID"], row["PatientID"])
        if owner != row["PatientID"]:
            alias[row["PatientID"]] = owner
    films_with: Counter[str] = Counter()
    terms_of: dict[str, set[str]] = {}
    for row in rows:
        patient = alias.get(row["PatientID"], row["PatientID"])
        sexes[patient].update({row["PatientSex_DICOM"]} & {"F", "M"})
        births[patient].update({int(float(row["PatientBirth"]))} if row["PatientBirth"] else ())
        cell = row["Labels"]
        terms = {a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", cell)} if cell != "nan" else set()
        terms_of[row["StudyID"]] = {re.sub(r"\s+", " ", term.strip().lower()) for term in terms}
        films_with.update(terms_of[row["StudyID"]])
    meta = {"", "unchanged", "suboptimal study", "exclude"}
    frequent = {term for term, count in films_with.items() if count >= 500} - meta - {"normal"}
    for row in rows:
        view = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP SUPINE", "L": "LATERAL"}.get(row["Projection"])
        if view is None:
            continue
        patient = alias.get(row["PatientID"], row["PatientID"])
        terms = terms_of[row["StudyID"]]
        labels = {}
        if terms - meta and "exclude" not in terms:
            labels = {term: int(term in terms) for term in frequent}
            labels["No Finding"] = int(not terms - meta - {"normal"})
        sex = next(iter(sexes[patient])) if len(sexes[patient]) == 1 else None
        born = next(iter(births[patient])) if len(births[patient]) == 1 else None
        age = None if born is None else int(row["StudyDate_DICOM"][:4]) - born
        yield Film(row["StudyID"], patient, deal(patient), sex, age, view, labels)


def in_standin_list(patient: str) -> bool:
    """The official lists of ChestX-ray14 are not in the wheel: every fifth patient stands in for its test list."""
    return int(patient) % 5 == 0


def nih(data: Path) -> Iterator[Film]:
    """ChestX-ray14 with a stand-in for its lists."""
    rows = list(read_rows(data / NIH))
    names = {finding for row in rows for finding in row["Finding Labels"].split("|")}
    for row in rows:
        patient = row["Patient ID"]
        split = "test" if in_standin_list(patient) else deal(patient, 0.9, 0.1)
        found = row["Finding Labels"].split("|")
        labels = {name: int(name in found) for name in names}
        age = int(row["Patient Age"])
        name = row["Image Index"].removesuffix(".png")
        yield Film(name, patient, split, row["Patient Gender"], age, row["View Position"], labels)


def rsna(data: Path) -> Iterator[Film]:
    """RSNA without its mapping, sex, age and view from the headers."""
    headers = {row["PatientID"]: row for row in read_rows(data / RSNA_HEADERS)}
    targets: dict[str, int] = {}
    for row in read_rows(data / RSNA):
        targets[row["patientId"]] = max(int(row["Target"]), targets.get(row["patientId"], 0))
    for name, target in targets.items():
        row = headers[name]
        age = int(row["PatientAge"])
        labels = {"Pneumonia": target}
        yield Film(name, name, deal(name), row["PatientSex"], age if age <= 120 else None, row["ViewPosition"], labels)


def siim(data: Path) -> Iterator[Film]:
    """SIIM-ACR, with the area of each mask."""
    runs: dict[str, list[list[int]]] = defaultdict(list)
    for row in read_rows(data / SIIM):
        numbers = [int(number) for number in row[" EncodedPixels"].split()]
        runs[row["ImageId"]] += [numbers] if numbers != [-1] else []
    for name, found in runs.items():
        covered: set[int] = set()
        for numbers in found:
            at = 0
            for skip, length in zip(numbers[::2], numbers[1::2], strict=True):
                covered.update(range(at + skip, at + skip + length))
                at += skip + length
        yield Film(name, name, deal(name), labels={"Pneumothorax": int(bool(found))}, mask_pixels=len(covered))


def chexpert(data: Path) -> Iterator[Film]:
    """CheXpert's train table, all views."""
    labels_of: dict[str, dict[str, int | None]] = {}
    for row in read_rows(data / CHEXPERT):
        _, split, patient, study, _ = row["Path"].split("/")
        told = {key: int(float(row[key])) if row[key] else None for key in list(row)[5:]}
        labels = labels_of.setdefault(f"{patient}_{study}", told)
        view = row["AP/PA"] if row["AP/PA"] in ("AP", "PA") else row["Frontal/Lateral"].upper()
        sex = {"Male": "M", "Female": "F"}.get(row["Sex"])
        yield Film(f"{patient}_{study}", patient, split, sex, int(row["Age"]) or None, view, labels)


def vindr(data: Path) -> Iterator[Film]:
    """VinDr-CXR's train films: two of three readers, from the table of boxes that Kaggle published."""
    readers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in read_rows(data / VINDR):
        readers[row["image_id"]][row["class_name"]].add(row["rad_id"])
    names = {name for found in readers.values() for name in found}
    for image, found in readers.items():
        labels = {name: int(len(found.get(name, ())) >= 2) for name in names}
        yield Film(image, image, deal(image, 0.9, 0.1), view="PA", labels=labels)


def iu_xray(data: Path) -> Iterator[Film]:
    """IU X-ray: the reports that name an image, and their sections."""
    with tarfile.open(data / IU) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            text = file.read().decode("utf-8")
            name = re.findall(r'<uId id="(CXR\d+)"', text)[0]
            parts = re.findall(r'<AbstractText Label="(\w+)">(.*?)</AbstractText>', text, re.DOTALL)
            sections = tuple(label.lower() for label, body in parts if body.strip())
            for _ in re.findall("<parentImage ", text):
                yield Film(name, name, deal(name), sections=sections)


def chexpert_test(data: Path) -> Iterator[Film]:
    """CheXpert's test labels, a row a study."""
    for row in read_rows(data / CHEXPERT_TEST):
        *_, patient, study = row.pop("Study").split("/")
        labels = {name: int(value) for name, value in row.items()}
        yield Film(f"{patient}_{study}", patient, "test", view="FRONTAL", labels=labels)


def chexlocalize(data: Path) -> Iterator[Film]:
    """The sample of CheXlocalize, two films of val."""
    from pycocotools import mask

    drawn = json.loads((data / CHEXLOCALIZE).read_text(encoding="utf-8"))
    for row in read_rows(data / CHEXLOCALIZE.replace("gt_segmentations_val.json", "valid.csv")):
        *_, patient, study, film = row["Path"].split("/")
        labels = {name: int(float(row[name])) for name in list(row)[5:]}
        areas = [int(mask.area(runs)) for runs in drawn[f"{patient}_{study}_{Path(film).stem}"].values()]
        name, sex = f"{patient}_{study}", row["Sex"][0]
        yield Film(name, patient, "val", sex, int(row["Age"]), row["AP/PA"], labels, mask_pixels=sum(areas))


def chestx_det(data: Path) -> Iterator[Film]:
    """ChestX-Det, with the area of what is drawn of each finding."""
    yield from _drawn(data, DET)


def chestx_det_10(data: Path) -> Iterator[Film]:
    """ChestX-Det10, likewise."""
    yield from _drawn(data, DET_10)


def _drawn(data: Path, file: str) -> Iterator[Film]:
    parts: dict[str, list[dict[str, Any]]] = {
        part: json.loads((data / file.format(part)).read_text(encoding="utf-8")) for part in ("train", "test")
    }
    findings = {name for entries in parts.values() for entry in entries for name in entry["syms"]}
    for part, entries in parts.items():
        for entry in entries:
            shapes: dict[str, Image.Image] = {}
            for number, name in enumerate(entry["syms"]):
                draw = ImageDraw.Draw(shapes.setdefault(name, Image.new("1", (1024, 1024))))
                if "polygons" in entry:
                    draw.polygon([tuple(point) for point in entry["polygons"][number]], fill=1, outline=1)
                else:
                    draw.rectangle(entry["boxes"][number], fill=1)
            film = entry["file_name"].removesuffix(".png")
            labels = {name: int(name in shapes) for name in findings} | {"No Finding": int(not shapes)}
            pixels = sum(int(np.asarray(shape).sum()) for shape in shapes.values())
            split = "test" if part == "test" else deal(film, 0.9, 0.1)
            yield Film(film, film, split, labels=labels, mask_pixels=pixels)
