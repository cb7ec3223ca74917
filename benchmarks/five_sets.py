"""What RAD-DINO's five training sets take at their true size, from their tables to one manifest: time and memory.

    python -m benchmarks.five_sets --tree five

The tree is made up, where it is not there: MIMIC-CXR by `benchmarks.mimic_tree`; of CheXpert, ChestX-ray14, PadChest
and BRAX the tables, with as many rows, studies and subjects as the official ones, and hard links to a few tiny pictures
in place of films. In turn, each in a new process on one thread:
- `raddraft prepare` of each set, all views and reports;
- `raddraft prepare join` of the five manifests;
- check: what `raddraft check` makes of the rows (faults, reports, headers, subjects), without looking at films;
- files: `read_studies` with a look for every image; read: `read_studies` alone.

Left out: reading and decoding true films, which takes as long as the disk does. Linux only.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.corpus import ROOT, measure
from benchmarks.mimic_tree import make_tree
from generator.corpora import nih, padchest
from generator.corpora.chexpert import LABELS
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies, skim
from raddraft.text import format_table

SETS = ("mimic-cxr", "chexpert", "nih", "padchest", "brax")
MOST_LINKS = 50_000
"""To one file; ext4 allows 65,000."""
CHECK = (
    "import sys; from generator.check import read_rows, check_rows; from pathlib import Path; "
    "studies, broken = read_rows(Path(sys.argv[1])); print(len(broken) + sum(1 for _ in check_rows(studies)))"
)
READ = "import sys; from raddraft.studies import read_studies; read_studies(sys.argv[1], check_images={})"


def main(tree: Path = Path("five"), work: Path = Path("runs/five_sets"), share: float = 1.0) -> None:
    """Print what each step took.

    Args:
        tree: Folder of the five sets; what is not there is made.
        work: Folder to write manifests to.
        share: Size of a tree that is made, as a part of the true one.
    """
    make_sets(tree, share)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    tree, work = tree.absolute(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    action, out = [sys.executable, "-m", "raddraft", "prepare"], work / "all.jsonl"
    manifests = {name: work / f"{name}.jsonl" for name in SETS}
    steps = {}
    for name, manifest in manifests.items():
        reports = ["--reports", str(tree / name / "mimic-cxr-reports.zip"), "--sections", "[]"]
        options = [*(reports if name == "mimic-cxr" else []), *(["--views", "all"] if name != "nih" else [])]
        steps[f"prepare {name}"] = [*action, name, "--root", str(tree / name), "--out", str(manifest), *options]
    steps["join"] = [*action, "join", *map(str, manifests.values()), "--out", str(out)]
    steps["check"] = [sys.executable, "-c", CHECK, str(out)]
    steps["files"] = [sys.executable, "-c", READ.format(True), str(out)]
    steps["read"] = [sys.executable, "-c", READ.format(False), str(out)]
    rows: list[list[str | int]] = [["step", "seconds", "CPU s", "MB"]]
    for step, command in steps.items():
        used = measure(command, ROOT, work / f"{step}.txt")
        rows.append([step, f"{used.seconds:.0f}", f"{used.cpu:.1f}", round(used.megabytes)])
        print(" ".join(map(str, rows[-1])), flush=True)
    print("\n" + format_table(rows))
    counts = {name: _count(manifest) for name, manifest in [*manifests.items(), ("all", out)]}
    sizes: list[list[str | int]] = [[name, *count] for name, count in counts.items()]
    print(format_table([["manifest", "studies", "films"], *sizes]))
    sums = tuple(sum(counts[name][i] for name in SETS) for i in (0, 1))
    if counts["all"] != sums:
        raise RadDraftError(f"{out} has {counts['all']} studies and films, the five manifests have {sums}")


def make_sets(tree: Path, share: float) -> None:
    """The folders of the five sets; those that are there are left as they are."""
    make_tree(tree / "mimic-cxr", share, 1)
    for name, make in (("chexpert", _chexpert), ("nih", _nih), ("padchest", _padchest), ("brax", _brax)):
        if not (tree / name / "done").is_file():
            make(_Films(tree / name, share, np.random.default_rng(SETS.index(name))))
            (tree / name / "done").touch()


def _count(manifest: Path) -> tuple[int, int]:
    """Studies and films."""
    studies = read_studies(manifest)
    return len(studies), sum(len(study.images) for study in skim(studies))


class _Films:
    """The folder of a set, with hard links in place of its films."""

    def __init__(self, root: Path, share: float, rng: np.random.Generator) -> None:
        self.root, self.share, self.rng = root, share, rng
        self.folders: set[Path] = set()
        self.links = 0
        self.pictures: dict[str, Path] = {}

    def deal(self, films: int, studies: int, subjects: int) -> Iterator[tuple[int, int, int]]:
        """Subject, study and number in the study of each film; each subject and study has at least one."""
        films, studies, subjects = (max(40, round(self.share * count)) for count in (films, studies, subjects))
        subject_of, study_of = self._spread(studies, subjects), self._spread(films, studies)
        number, last = 0, -1
        for study in study_of.tolist():
            number, last = (number + 1 if study == last else 0), study
            yield int(subject_of[study]), study, number

    def add(self, name: str) -> str:
        """Put a film into the folder."""
        path = self.root / name
        if path.parent not in self.folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.folders.add(path.parent)
        if self.links % MOST_LINKS == 0:
            self.pictures.clear()
        self.links += 1
        if path.suffix not in self.pictures:
            file = io.BytesIO()
            pixels = self.rng.integers(0, 256, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(file, "PNG" if path.suffix == ".png" else "JPEG")
            path.write_bytes(file.getvalue())
            self.pictures[path.suffix] = path
        else:
            os.link(self.pictures[path.suffix], path)
        return name

    def write(self, name: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        """A table."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header])
            csv.writer(file).writerows(rows)

    def labels(self) -> list[str]:
        """A row of CheXpert's labels."""
        return self.rng.choice(["", "1.0", "0.0", "-1.0"], len(LABELS), p=[0.75, 0.15, 0.07, 0.03]).tolist()

    def _spread(self, parts: int, wholes: int) -> np.ndarray:
        return np.sort(np.concatenate([np.arange(wholes), self.rng.integers(0, wholes, max(0, parts - wholes))]))[
            :parts
        ]


def _chexpert(films: _Films) -> None:
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
    for split, first, counts in (("train", 1, (223_414, 187_641, 64_540)), ("valid", 64_541, (234, 200, 200))):
        rows, labels = [], list[str]()
        for subject, study, number in films.deal(*counts):
            view = "lateral" if number else "frontal"
            path = f"{split}/patient{first + subject:05}/study{study + 1}/view{number + 1}_{view}.jpg"
            sex, age = ("Male", "Female")[subject % 2], 18 + subject % 73
            labels = labels if number else films.labels()
            side = "" if number else "AP"
            rows.append([f"CheXpert-v1.0-small/{films.add(path)}", sex, age, view.capitalize(), side, *labels])
        films.write(f"{split}.csv", header, rows)


def _nih(films: _Films) -> None:
    rows, lists = [], {True: list[str](), False: list[str]()}
    for subject, film, number in films.deal(112_120, 112_120, 30_805):
        name = f"{subject + 1:08}_{film:06}.png"
        films.add(f"images_{film // 10_000 + 1:03}/images/{name}")
        found = "|".join(sorted({*films.rng.choice(nih.LABELS[:14], films.rng.integers(1, 4)).tolist()}))
        sex, age, view = "MF"[subject % 2], 1 + subject % 94, films.rng.choice(["PA", "AP"])
        rows.append([name, found, number, subject + 1, age, sex, view])
        lists[subject % 4 == 0].append(name)  # about a quarter of the films is test in the official list
    header = [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
    ]
    films.write("Data_Entry_2017_v2020.csv", header, rows)
    for tested, name in ((True, "test_list.txt"), (False, "train_val_list.txt")):
        (films.root / name).write_text("".join(f"{film}\n" for film in lists[tested]))


def _padchest(films: _Films) -> None:
    views = {"PA": 0.57, "L": 0.31, "AP_horizontal": 0.09, "AP": 0.03}
    rows: list[list[object]] = []
    terms: list[str] = []
    for subject, study, number in films.deal(160_861, 109_931, 67_625):
        name = f"{10**35 + study}_{number:02}-{films.rng.integers(100, 999)}.png"
        folder = str(len(rows) // 3_100)
        films.add(f"{folder}/{name}")
        if not number:
            terms = films.rng.choice(padchest.LABELS[1:], films.rng.integers(1, 5)).tolist()
        method, sex = ("Physician", "RNN_model")[study % 4 > 0], "MF"[subject % 2]
        born, day = 1920 + subject % 90, f"{2010 + study % 8}0915"
        view = films.rng.choice([*views], p=[*views.values()])
        text = "sin hallazg patolog . " * 7
        rows.append([name, folder, day, 10**36 + study, 10**37 + subject, f"{born}.0", sex, view, method, text, terms])
    header = ["ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"]
    table = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    films.write(table, [*header, "Projection", "MethodLabel", "Report", "Labels"], rows)


def _brax(films: _Films) -> None:
    rows, labels = [], list[str]()
    for subject, study, number in films.deal(40_967, 24_959, 19_351):
        base = f"id_{subject:032x}/Study_{study}.{subject}/Series_{number + 1}"
        path = films.add(f"images/{base}/image-{study}-{number}.png")
        age, sex = f"{5 * (subject % 16)}-{5 * (subject % 16) + 4}", "MF"[subject % 2]
        labels = labels if number else films.labels()
        view = "L" if number else films.rng.choice(["PA", "AP"])
        rows.append(
            [
                f"Anonymized_DICOMs/{base}/image.dcm",
                path,
                f"id_{subject:032x}",
                sex,
                age,
                10**9 + study,
                *labels,
                view,
            ]
        )
    header = [
        "DicomPath",
        "PngPath",
        "PatientID",
        "PatientSex",
        "PatientAge",
        "AccessionNumber",
        *LABELS,
        "ViewPosition",
    ]
    films.write("master_spreadsheet_update.csv", header, rows)


if __name__ == "__main__":
    run("five_sets", package="benchmarks")
