"""A tree with the layout and the size of MIMIC-CXR-JPG, all of it made up: for measuring what grows with a data set.

    python -m benchmarks.mimic_tree --out mimic

It writes 377,110 JPEG files, the reports of 227,835 studies of 65,379 subjects in mimic-cxr-reports.zip, and the tables
metadata, split, chexpert and negbio. Ids, dates, labels and texts are drawn at random; the pictures are 64 patterns of
a few kB. Each file has a comment of its own in its header, so no two have the same digest and all of them have to be
read to be hashed; of true films reading alone would take longer, by the size of the files.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from metrics.rules import OBSERVATIONS
from raddraft.cli import run as run_action
from raddraft.errors import RadDraftError

SUBJECTS, STUDIES, IMAGES = 65_379, 227_835, 377_110
UNLABELED = 8
"""Studies that the label tables lack."""
PATTERNS, SIDE = 64, 112
"""Different pictures, and their side in pixels."""
SPECIAL = ("50913680", "50525523", "58235663")
"""Studies for which the authors of the corpus list exceptions, one of each kind."""
SPLITS = (("train", 0.978), ("validate", 0.008), ("test", 0.014))
"""Shares of the studies, by subject: about those of the corpus."""

# Sections as they stand in the corpus, and the odd ones; {0} to {2} are filled with sentences. The shares are choices
# of this file, so that about two thirds of the reports have findings.
FORMS = (
    (
        0.56,
        " EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old with {0}\n \n TECHNIQUE:  PA and lateral\n \n"
        " COMPARISON:  Chest radiograph ___.\n \n FINDINGS: \n \n {1}\n \n IMPRESSION: \n \n {2}\n",
    ),
    (0.10, " HISTORY:  {0}.\n \n COMPARISON:  None.\n \n FINDINGS:  {1}\n \n IMPRESSION:  {2}\n"),
    (0.16, " INDICATION:  {0}.\n \n COMPARISON:  ___.\n \n IMPRESSION:  {1}\n"),
    (0.07, " REASON FOR EXAMINATION:  {0}.\n \n PORTABLE CHEST RADIOGRAPH:  {1}\n"),
    (0.05, " INDICATION:  {0}.\n \n FINDINGS AND IMPRESSION:  {1}\n"),
    (0.03, " {1}\n \n {2}\n"),  # no header
    (0.01, " INDICATION:  {0}.\n \n FINDNGS:  {1}\n \n IMPRESSON:  {2}\n"),
    (0.01, " FINDINGS:  {1}\r\n \r\n IMPRESSION:  {2}\r\n \r\n NOTIFICATION:  Told to Dr. ___ by telephone.\r\n"),
    (0.005, " FINDINGS:  \n \n IMPRESSION:  {1}\n \n ADDENDUM  {2}\n"),
    (0.005, " WET READ: ___ ___ ___ 8:54 AM\n  {0}\n \n FINDINGS:  {1}\n \n FINDINGS:  {2}\n"),
)
HEAD = "                                 FINAL REPORT\n"
REASONS = ("cough and fever", "shortness of breath", "chest pain", "fall", "line placement", "hypoxia, ? pneumonia")
SIDES, GRADES = ("left", "right", "bilateral"), ("small", "moderate", "large", "new", "unchanged", "increasing")
SIGNS = (
    *("pleural effusion", "atelectasis at the base", "pneumothorax", "interstitial edema", "consolidation"),
    *("apical scarring", "hilar fullness", "opacity of the lower lobe", "granuloma", "rib fracture"),
)
PLAIN = (
    "The heart is normal in size.",
    "The cardiomediastinal silhouette is stable.",
    "The lungs are clear without focal consolidation.",
    "An endotracheal tube terminates 4.2 cm above the carina.",
    "No acute osseous abnormality is seen.",
    "A right internal jugular line ends in the low superior vena cava.",
    "Lung volumes are low, which accentuates the bronchovascular markings.",
)


@dataclass
class Rows:
    """What one of the folders p10 to p19 adds to the tables and the reports."""

    images: list[tuple[str, str, str, str, str, str]]
    """dicom_id, subject_id, study_id, view, date, time."""
    reports: list[tuple[str, str]]
    """Name in the zip, text."""


def main(out: Path, share: float = 1.0, processes: int = 2) -> None:
    """Write the tree; a finished one that stands there is left as it is.

    Args:
        out: Folder to write to.
        share: Part of the corpus' size, up to 1.
        processes: Processes that write pictures.
    """
    done = make_tree(out, share, processes)
    print(f"{out}: {done:,} images")


def make_tree(out: Path, share: float = 1.0, processes: int = 2) -> int:
    """Write a tree and return how many images it has.

    Raises:
        RadDraftError: `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise RadDraftError(f"share must be above 0 and at most 1, got {share}")
    subjects, studies, images = (max(40, round(share * count)) for count in (SUBJECTS, STUDIES, IMAGES))
    last = out / "mimic-cxr-2.0.0-negbio.csv.gz"  # written last
    if last.is_file():
        return images
    rng = np.random.default_rng(0)
    names = np.sort(rng.choice(10**7, subjects, replace=False)) + 10**7
    study_names = [*map(int, SPECIAL), *(rng.choice(9 * 10**6, studies, replace=False) + 5 * 10**7).tolist()]
    study_names = list(dict.fromkeys(study_names))[:studies]
    owner = np.sort(np.concatenate([np.arange(subjects), rng.integers(0, subjects, studies - subjects)]))
    count = np.ones(studies, int)  # a second image for most of the studies that have more than one
    count[rng.permutation(studies)[: (images - studies) * 4 // 5]] += 1
    np.add.at(count, rng.integers(0, studies, images - int(count.sum())), 1)
    patterns = [_pattern(rng) for _ in range(PATTERNS)]
    whole = list(zip(names[owner].tolist(), study_names, count.tolist(), strict=True))
    folders = [[row for row in whole if row[0] // 10**6 == number] for number in range(10, 20)]
    with ProcessPoolExecutor(processes) as pool:
        parts = list(pool.map(partial(_write_folder, out, patterns), folders, range(10)))
    _write_reports(out / "mimic-cxr-reports.zip", parts)
    rows = [row for part in parts for row in part.images]
    header = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime", "Rows", "Columns"]
    _write_table(out / "mimic-cxr-2.0.0-metadata.csv.gz", header, ([*row, SIDE, SIDE] for row in rows))
    kinds = rng.choice([name for name, _ in SPLITS], subjects, p=[part for _, part in SPLITS]).tolist()
    split_of = dict(zip(map(str, names.tolist()), kinds, strict=True))
    header = ["dicom_id", "study_id", "subject_id", "split"]
    found = ([dicom, study, subject, split_of[subject]] for dicom, subject, study, *_ in rows)
    _write_table(out / "mimic-cxr-2.0.0-split.csv.gz", header, found)
    header = ["subject_id", "study_id", *OBSERVATIONS]
    drawn = rng.choice(["", "1.0", "0.0", "-1.0"], (studies, len(OBSERVATIONS)), p=[0.75, 0.15, 0.07, 0.03]).tolist()
    labels = [[subject, study, *row] for (subject, study, _), row in zip(whole, drawn, strict=True)][:-UNLABELED]
    for name in ("chexpert", "negbio"):
        _write_table(out / f"mimic-cxr-2.0.0-{name}.csv.gz", header, iter(labels))
    return images


def _write_folder(out: Path, patterns: list[bytes], studies: list[tuple[int, int, int]], seed: int) -> Rows:
    """The pictures of one of the folders p10 to p19."""
    rng = np.random.default_rng([1, seed])
    rows = Rows([], [])
    for subject, study, count in studies:
        base = out / "files" / f"p{subject // 10**6}" / f"p{subject}" / f"s{study}"
        base.mkdir(parents=True, exist_ok=True)
        date, time = f"{2110 + subject % 90}{rng.integers(1, 13):02}{rng.integers(1, 29):02}", rng.integers(0, 86_400)
        clock = f"{time // 3600:02}{time // 60 % 60:02}{time % 60:02}.{rng.integers(1000):03}"
        first, blank = rng.random(2)
        views = ["AP" if first < 0.6 else "PA", "LATERAL" if first > 0.7 else "LL", "AP", "PA", "LATERAL", "LL"]
        for number in range(count):
            digits = rng.bytes(20).hex()
            dicom = "-".join(digits[at : at + 8] for at in range(0, 40, 8))
            picture = patterns[int(digits[:4], 16) % len(patterns)]
            comment = b"\xff\xfe" + (2 + len(dicom)).to_bytes(2, "big") + dicom.encode()
            (base / f"{dicom}.jpg").write_bytes(picture[:2] + comment + picture[2:])
            view = "" if blank < 0.04 else views[number % len(views)]
            rows.images.append((dicom, str(subject), str(study), view, date, clock))
        name = f"files/p{subject // 10**6}/p{subject}/s{study}.txt"
        rows.reports.append((name, HEAD + _report(rng)))
    return rows


def _report(rng: np.random.Generator) -> str:
    form = FORMS[rng.choice(len(FORMS), p=[share for share, _ in FORMS])][1]
    reason = REASONS[rng.integers(len(REASONS))]
    return form.format(reason, _sentences(rng, 4, 9), _sentences(rng, 1, 4))


def _sentences(rng: np.random.Generator, least: int, most: int) -> str:
    texts = []
    for one, grade, side, sign in rng.integers(0, 2**16, (rng.integers(least, most + 1), 4)).tolist():
        place = f"{SIDES[side % len(SIDES)]} {SIGNS[sign % len(SIGNS)]}"
        sayings = (f"There is a {GRADES[grade % len(GRADES)]} {place}.", f"No {place} is seen.")
        texts.append((*sayings, PLAIN[grade % len(PLAIN)])[one % 3])
    return "\n ".join(texts)


def _pattern(rng: np.random.Generator) -> bytes:
    """A JPEG of smooth blobs with some noise, a few kB."""
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7)).astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    noisy = np.clip(np.asarray(coarse) + rng.normal(0, 6, (SIDE, SIDE)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=75)
    return file.getvalue()


def _write_reports(path: Path, parts: list[Rows]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part in parts:
            for name, text in part.reports:
                archive.writestr(name, text)


def _write_table(path: Path, header: list[str], rows: Iterator[list[object]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="", compresslevel=1) as file:
        csv.writer(file).writerows([header])
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    run_action("mimic_tree", package="benchmarks")
