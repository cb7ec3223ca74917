"""Synthetic chest radiographs with matching reports, in the layout of MIMIC-CXR-JPG: data for trying things out.

Nothing here comes from a patient. This file decides who is examined and writes the folder; `phantom_cases` says what
they have, `phantom_body` and `phantom_solids` make the picture, `phantom_signs` the disease in it, `phantom_report`
the words.

    out/README.txt                                      says that all of it is synthetic
    out/files/p10/p10000032/s50000001.txt               report
    out/files/p10/p10000032/s50000001/<dicom id>.jpg    picture
    out/masks/<dicom id>.png                            lungs: 255 lung field, 0 elsewhere
    out/dicom/<dicom id>.dcm                            the same picture in 12 bits, for the first few studies
    out/mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz
    out/studies.jsonl
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from generator.corpora.phantom_body import Patient, build, render
from generator.corpora.phantom_cases import Sign, plan
from generator.corpora.phantom_report import OBSERVATIONS, write_report
from generator.corpora.phantom_signs import draw
from generator.corpora.phantom_solids import Array
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.studies import Study, StudyImage, write_studies

SPLIT_PATTERN = ("train", "train", "test", "train", "val", "train", "train", "test", "train", "train")
"""Split of the subjects, over and over: 70, 10 and 20 %."""
BANNER = (
    "SYNTHETIC DATA. These chest radiographs and reports were computed from geometric phantoms by RadDraft.\n"
    "They show no patient, and results on them say nothing about clinical use.\n"
)


@dataclass
class Order:
    """One study to be made; its picture depends on nothing else."""

    index: int
    subject: int
    split: str
    sex: str
    """As recorded."""
    patient: Patient
    """As built."""
    view: str
    indication: str
    signs: list[Sign]
    prior: bool


def generate(
    out: Path,
    count: int = 1000,
    size: int = 224,
    seed: int = 0,
    dicoms: int = 0,
    processes: int | None = None,
    show_sex: bool = True,
) -> list[Study]:
    """Make `count` studies of one frontal picture each, and write them under `out` with a manifest.

    The files are the same, byte for byte, for the same count, size and seed, whatever `processes` is; a smaller count
    gives the first studies of a larger one.

    Args:
        out: folder to write to; files that stand there under the same names are replaced.
        size: side of the square pictures in pixels.
        dicoms: how many of the first studies are written as DICOM files too.
        processes: worker processes; None for one a core.
        show_sex: whether bodies differ by sex. Without, sex is drawn and recorded all the same, but everyone is built
            as a man: a probe that tells it then has found a leak.

    Returns:
        The studies as in `out/studies.jsonl`; `extra["truth"]` says what each picture shows: cardiothoracic ratio,
        and of each sign name, side, place, severity (0 to 1), sizes in cm of a standard body, and where it lies
        (x, y as fractions of the picture's sides).

    Raises:
        ValueError: count, size or dicoms out of range.
    """
    if count < 1 or size < 32 or dicoms < 0:
        raise RadDraftError(f"count must be at least 1, size 32, dicoms 0; got {count}, {size}, {dicoms}")
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    work = partial(_make, out=out, size=size, seed=seed, dicoms=dicoms)
    orders = _orders(count, seed, show_sex)
    workers = min(processes or os.cpu_count() or 1, count)
    if workers == 1:
        studies = [work(order) for order in tqdm(orders, "phantoms", unit="study")]
    else:
        with ProcessPoolExecutor(workers) as pool:
            studies = list(tqdm(pool.map(work, orders, chunksize=8), "phantoms", count, unit="study"))
    (out / "README.txt").write_text(BANNER, encoding="utf-8")
    _write_tables(out, studies, size)
    write_studies(out / "studies.jsonl", studies)
    return studies


def _orders(count: int, seed: int, show_sex: bool) -> list[Order]:
    """Who is examined for what: subjects with one to three studies each, until there are enough."""
    orders: list[Order] = []
    subject = 0
    while len(orders) < count:
        rng = np.random.default_rng((seed, 1, subject))
        sex = str(rng.choice(["M", "F"]))
        built = sex if show_sex else "M"
        height = float(rng.normal(176, 7) if built == "M" else rng.normal(163, 6.5))
        age = int(np.clip(rng.normal(58, 19), 18, 95))
        patient = Patient(built, age, round(height, 1), round(float(np.clip(rng.gamma(28, 0.95), 16, 48)), 1))
        split = SPLIT_PATTERN[subject % len(SPLIT_PATTERN)]
        signs: list[Sign] = []
        for visit in range(int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))):
            indication, signs = plan(rng, signs)
            sick = any(sign.place == "endotracheal tube" for sign in signs) or indication == "icu"
            view = "AP" if sick or rng.random() < 0.4 else "PA"
            orders.append(Order(len(orders), subject, split, sex, patient, view, indication, signs, visit > 0))
        subject += 1
    return orders[:count]


def _make(order: Order, out: Path, size: int, seed: int, dicoms: int) -> Study:
    """Draw one study and write its files."""
    rng = np.random.default_rng((seed, 2, order.index))
    body = build(order.patient, order.view, size, rng)
    truth = draw(body, order.signs, rng)
    grey, lungs = render(body, rng)
    grey = _mark(grey, rng)
    sections, labels = write_report(order.signs, order.view, order.indication, order.prior, rng)
    subject_id, study_id = f"p{10_000_032 + 1009 * order.subject}", f"s{50_000_001 + order.index}"
    image_id = "-".join(f"{value:08x}" for value in rng.integers(0, 2**32, 5, dtype=np.uint64))
    folder = out / "files" / subject_id[:3] / subject_id
    picture, mask = folder / study_id / f"{image_id}.jpg", out / "masks" / f"{image_id}.png"
    _save(picture, lambda file: Image.fromarray(grey.round().astype(np.uint8)).save(file, "JPEG", quality=95))
    _save(mask, lambda file: Image.fromarray(lungs.astype(np.uint8) * 255).save(file, "PNG"))
    report = _report_text(sections, order.view)
    _save(folder / f"{study_id}.txt", lambda file: file.write(report.encode()))
    study = Study(
        study_id, subject_id, order.split, [StudyImage(picture, order.view, {"lungs": mask})], sections, labels,
        {"sex": order.sex, "age": order.patient.age, "weight": round(order.patient.weight, 1),
         "bmi": order.patient.bmi},
        "phantom", {"study_date": f"{date(2100, 1, 1) + timedelta(days=order.index):%Y%m%d}", "study_time": "120000",
                    "truth": truth},
    )  # fmt: skip
    if order.index < dicoms:
        dataset = _dicom(grey, study, inverted=order.index % 2 == 0)
        _save(out / "dicom" / f"{image_id}.dcm", lambda file: dataset.save_as(file, enforce_file_format=True))
    return study


def _save(path: Path, write: Callable[[Any], Any]) -> None:
    with write_whole(path) as temporary, open(temporary, "wb") as file:
        write(file)


def _mark(grey: Array, rng: np.random.Generator) -> Array:
    """The side marker that the radiographer lays on the cassette, at the patient's left shoulder; collimated edges."""
    size = len(grey)
    layer = Image.new("L", (size, size))
    position = (size * rng.uniform(0.9, 0.94), size * rng.uniform(0.03, 0.1))
    ImageDraw.Draw(layer).text(position, "L", 255, ImageFont.load_default(size * 0.055))
    grey = np.maximum(grey, np.asarray(layer) * 0.92)
    if rng.random() < 0.3:
        edge = int(size * rng.uniform(0.005, 0.03))
        top, bottom, left, right = (int(edge * (rng.random() < 0.5)) for _ in range(4))
        framed = np.full_like(grey, 2)
        framed[top : size - bottom, left : size - right] = grey[top : size - bottom, left : size - right]
        return framed
    return grey


def _report_text(sections: dict[str, str], view: str) -> str:
    """The report as free text, in the form of MIMIC-CXR's."""
    blocks = {"EXAMINATION": f"CHEST ({'PORTABLE AP' if view == 'AP' else 'PA'}) (SYNTHETIC)"}
    blocks |= {
        name.upper(): sections[name] for name in ("indication", "technique", "comparison", "findings", "impression")
    }
    body = "\n \n".join(f" {name}:  {text}" for name, text in blocks.items())
    return f"{' ' * 33}FINAL REPORT\n{body}\n"


def _write_tables(out: Path, studies: list[Study], size: int) -> None:
    """The tables of MIMIC-CXR-JPG 2.0.0, with its columns; the dates are made up, in the order of the studies."""
    names = sorted(OBSERVATIONS)
    rows = [(study, study.images[0].path.stem, study.subject_id[1:], study.study_id[1:]) for study in studies]
    labels = [
        [subject, number, *("" if (value := study.labels[name]) is None else f"{value:.1f}" for name in names)]
        for study, _, subject, number in rows
    ]
    metadata = [
        [image, subject, number, f"CHEST ({'PORTABLE AP' if study.images[0].view == 'AP' else 'PA'})",
         study.images[0].view, size, size, study.extra["study_date"], study.extra["study_time"], "CHEST (SYNTHETIC)",
         "antero-posterior" if study.images[0].view == "AP" else "postero-anterior",
         "Recumbent" if study.extra["truth"]["supine"] else "Erect"]
        for study, image, subject, number in rows
    ]  # fmt: skip
    official = {"train": "train", "val": "validate", "test": "test"}
    split = [[image, number, subject, official[study.split]] for study, image, subject, number in rows]
    codes = [
        f"{name}_CodeMeaning"
        for name in ("ProcedureCodeSequence", "ViewCodeSequence", "PatientOrientationCodeSequence")
    ]
    _write_csv(out / "mimic-cxr-2.0.0-metadata.csv.gz", [
        ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
         "StudyDate", "StudyTime", *codes], *metadata])  # fmt: skip
    _write_csv(out / "mimic-cxr-2.0.0-split.csv.gz", [["dicom_id", "study_id", "subject_id", "split"], *split])
    for labeler in ("chexpert", "negbio"):
        _write_csv(out / f"mimic-cxr-2.0.0-{labeler}.csv.gz", [["subject_id", "study_id", *names], *labels])


def _write_csv(path: Path, rows: Iterable[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _save(path, lambda file: file.write(gzip.compress(text.getvalue().encode(), mtime=0)))


def _dicom(grey: Array, study: Study, inverted: bool) -> Any:
    """The picture as an uncompressed 12-bit CR (AP) or DX (PA) object whose window gives back the grey values."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
        generate_uid,
    )  # fmt: skip

    image, view = study.images[0].path.stem, study.images[0].view
    offset, slope = 320, 13  # the window covers a part of the 12 bits
    values = (offset + slope * grey).round().astype(np.uint16)
    centre = offset + slope * 127.5
    if inverted:
        values, centre = 4095 - values, 4095 - centre
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = (
        ComputedRadiographyImageStorage if view == "AP" else DigitalXRayImageStorageForPresentation
    )
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["raddraft phantom", image])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["raddraft phantom study", study.study_id])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["raddraft phantom series", study.study_id])
    dataset.PatientName, dataset.PatientID = f"SYNTHETIC^PHANTOM {study.subject_id}", study.subject_id
    dataset.PatientSex, dataset.PatientAge = study.patient["sex"], f"{study.patient['age']:03d}Y"
    dataset.PatientWeight = study.patient["weight"]
    dataset.PatientBirthDate = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = dataset.StudyID = dataset.PatientOrientation = ""
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = ("CR" if view == "AP" else "DX"), "CHEST", view
    dataset.ImageType, dataset.PresentationIntentType = ["ORIGINAL", "PRIMARY"], "FOR PRESENTATION"
    dataset.StudyDescription = dataset.SeriesDescription = "SYNTHETIC CHEST PHANTOM"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *values.shape, 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = centre, slope * 255
    dataset.PixelData = values.astype("<u2").tobytes()
    return dataset
