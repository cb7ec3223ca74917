"""Who is examined for what, and the files that come of it; see `generator.corpora.phantom`."""

from __future__ import annotations

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
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from generator.corpora.phantom.body import Patient, build
from generator.corpora.phantom.cases import Sign, plan
from generator.corpora.phantom.film import render
from generator.corpora.phantom.report import OBSERVATIONS, write_report
from generator.corpora.phantom.signs import draw
from generator.corpora.phantom.solids import Array
from raddraft.files import write_text, write_whole
from raddraft.isolated import end_with_parent
from raddraft.studies import Study, StudyImage
from raddraft.tables import write_cells

SPLIT_PATTERN = ("train", "train", "test", "train", "val", "train", "train", "test", "train", "train")
"""Split of the subjects, over and over: 70, 10 and 20 %."""
BANNER = (
    "SYNTHETIC DATA. These chest radiographs and reports were computed from geometric phantoms by RadDraft.\n"
    "They show no patient, and results on them say nothing about clinical use.\n"
)


@dataclass
class Order:
    """One study to be made; its image depends on nothing else."""

    index: int
    subject: int
    split: str
    sex: str
    """As recorded; `patient` says how the body is built."""
    patient: Patient
    view: str
    indication: str
    signs: list[Sign]
    prior: bool


def make_studies(
    root: Path, count: int, size: int, seed: int, dicoms: int, processes: int | None, show_sex: bool
) -> list[Study]:
    """Make `count` studies and write their files under `root`; arguments as of `generator.corpora.phantom.convert`."""
    work = partial(_make, root=root, size=size, seed=seed, dicoms=dicoms)
    orders = _orders(count, seed, show_sex)
    workers = min(processes or os.cpu_count() or 1, count)
    if workers == 1:
        studies = [work(order) for order in tqdm(orders, "phantoms", unit="study")]
    else:
        with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
            studies = list(tqdm(pool.map(work, orders, chunksize=8), "phantoms", count, unit="study"))
    write_text(root / "README.txt", BANNER)
    _write_tables(root, studies, size)
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


def _make(order: Order, root: Path, size: int, seed: int, dicoms: int) -> Study:
    """Draw one study and write its files."""
    rng = np.random.default_rng((seed, 2, order.index))
    body = build(order.patient, order.view, size, rng)
    truth = draw(body, order.signs, rng)
    gray, lungs = render(body, rng)
    gray = _mark(gray, rng)
    sections, labels = write_report(order.signs, order.view, order.indication, order.prior, rng)
    subject_id, study_id = f"p{10_000_032 + 1009 * order.subject}", f"s{50_000_001 + order.index}"
    image_id = "-".join(f"{value:08x}" for value in rng.integers(0, 2**32, 5, dtype=np.uint64))
    folder = root / "files" / subject_id[:3] / subject_id
    image, mask = folder / study_id / f"{image_id}.jpg", root / "masks" / f"{image_id}.png"
    _save(image, lambda file: Image.fromarray(gray.round().astype(np.uint8)).save(file, "JPEG", quality=95))
    _save(mask, lambda file: Image.fromarray(lungs.astype(np.uint8) * 255).save(file, "PNG"))
    _save(folder / f"{study_id}.txt", lambda file: file.write(_report_text(sections, order.view).encode()))
    age, bmi = order.patient.age, order.patient.bmi
    patient = {"sex": order.sex, "age": age, "weight": round(bmi * (order.patient.height / 100) ** 2, 1), "bmi": bmi}
    when = date(2100, 1, 1) + timedelta(days=order.index)
    extra = {"study_date": f"{when:%Y%m%d}", "study_time": "120000", "truth": truth}
    images = [StudyImage(image, order.view, {"lungs": mask})]
    study = Study(study_id, subject_id, order.split, images, sections, labels, patient, extra=extra)
    if order.index < dicoms:
        dataset = _dicom(gray, study, inverted=order.index % 2 == 0)
        _save(root / "dicom" / f"{image_id}.dcm", lambda file: dataset.save_as(file, enforce_file_format=True))
    return study


def _save(path: Path, write: Callable[[Any], Any]) -> None:
    with write_whole(path, sync=False) as temporary, open(temporary, "wb") as file:
        write(file)


def _mark(gray: Array, rng: Generator) -> Array:
    """The side marker that the radiographer lays on the cassette, at the patient's left shoulder; collimated edges."""
    size = len(gray)
    layer = Image.new("L", (size, size))
    position = (size * rng.uniform(0.9, 0.94), size * rng.uniform(0.03, 0.1))
    ImageDraw.Draw(layer).text(position, "L", 255, ImageFont.load_default(size * 0.055))
    gray = np.maximum(gray, np.asarray(layer) * 0.92)
    if rng.random() < 0.3:
        edge = int(size * rng.uniform(0.005, 0.03))
        top, bottom, left, right = (int(edge * (rng.random() < 0.5)) for _ in range(4))
        inside = np.s_[top : size - bottom, left : size - right]
        framed = np.full_like(gray, 2)
        framed[inside] = gray[inside]
        return framed
    return gray


def _examination(view: str | None) -> str:
    return f"CHEST ({'PORTABLE AP' if view == 'AP' else 'PA'})"


def _report_text(sections: dict[str, str], view: str) -> str:
    """The report as free text, in the form of MIMIC-CXR's."""
    names = ("indication", "technique", "comparison", "findings", "impression")
    blocks = {"EXAMINATION": f"{_examination(view)} (SYNTHETIC)"} | {name.upper(): sections[name] for name in names}
    body = "\n \n".join(f" {name}:  {text}" for name, text in blocks.items())
    return f"{' ' * 33}FINAL REPORT\n{body}\n"


def _write_tables(root: Path, studies: list[Study], size: int) -> None:
    """The tables of MIMIC-CXR-JPG 2.0.0, with its columns; the dates are made up, in the order of the studies."""
    names = sorted(OBSERVATIONS)
    codes = [f"{kind}CodeSequence_CodeMeaning" for kind in ("Procedure", "View", "PatientOrientation")]
    metadata: list[list[Any]] = [
        ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
         "StudyDate", "StudyTime", *codes]
    ]  # fmt: skip
    split = [["dicom_id", "study_id", "subject_id", "split"]]
    labels = [["subject_id", "study_id", *names]]
    for study in studies:
        image, view, extra = study.images[0].path.stem, study.images[0].view, study.extra
        subject, number = study.subject_id[1:], study.study_id[1:]
        meanings = ["CHEST (SYNTHETIC)", "antero-posterior" if view == "AP" else "postero-anterior",
                    "Recumbent" if extra["truth"]["supine"] else "Erect"]  # fmt: skip
        metadata.append([image, subject, number, _examination(view), view, size, size, extra["study_date"],
                         extra["study_time"], *meanings])  # fmt: skip
        split.append([image, number, subject, {"val": "validate"}.get(study.split, study.split)])
        values = [study.labels[name] for name in names]
        labels.append([subject, number, *("" if value is None else f"{value:.1f}" for value in values)])
    tables = {"metadata": metadata, "split": split, "chexpert": labels, "negbio": labels}
    for kind, rows in tables.items():
        _write_csv(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", rows)


def _write_csv(path: Path, rows: Iterable[list[Any]]) -> None:
    text = io.StringIO()
    write_cells(text, rows)
    _save(path, lambda file: file.write(gzip.compress(text.getvalue().encode(), mtime=0)))


def _dicom(gray: Array, study: Study, inverted: bool) -> Any:
    """The image as an uncompressed 12-bit CR (AP) or DX (PA) object whose window gives back the gray values."""
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    view = study.images[0].view
    storage = uid.ComputedRadiographyImageStorage if view == "AP" else uid.DigitalXRayImageStorageForPresentation
    offset, slope = 320, 13  # the window covers a part of the 12 bits
    values, center = (offset + slope * gray).round().astype(np.uint16), offset + slope * 127.5
    if inverted:
        values, center = 4095 - values, 4095 - center
    sources = {"": study.images[0].path.stem, " study": study.study_id, " series": study.study_id}
    instance, examination, series = (
        uid.generate_uid(entropy_srcs=[f"raddraft phantom{kind}", name]) for kind, name in sources.items()
    )
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = storage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = examination, series
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
    dataset.WindowCenter, dataset.WindowWidth = center, slope * 255
    dataset.PixelData = values.astype("<u2").tobytes()
    return dataset
