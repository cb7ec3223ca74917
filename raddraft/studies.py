"""The manifest: `studies.jsonl`, one study a line, the one format that every stage reads.

    {"study_id": "s1", "subject_id": "p1", "split": "train",
     "images": [{"path": "files/x.jpg", "view": "PA", "masks": {"lungs": "masks/x.png"}}],
     "sections": {"findings": "…"}, "labels": {"Edema": 1}, "patient": {"sex": "F"}, "source": "…"}

What is nothing (null, NaN, "nan", see `raddraft.tables`) counts as missing. On disk, paths are relative to the
manifest's folder; in memory they are absolute.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl, write_jsonl
from raddraft.tables import NAN, is_nothing
from raddraft.views import Direction, direction

GrayMapping = Literal["window", "minmax", "percentile"]
"""How gray values of an image file become 8 bits, see `raddraft.images`."""

SPLITS = ("train", "val", "test")
PHANTOM = "phantom"
"""`source` of computed phantoms."""
REQUIRED = ("study_id", "subject_id", "split")


class ManifestError(RadDraftError):
    """The manifest breaks its format; the message names the file, the line and the value."""


@dataclass
class StudyImage:
    """One picture of a study."""

    path: Path
    """Absolute path of the file."""
    view: str | None = None
    """View position as the source states it, e.g. PA, AP, LATERAL; None if unknown."""
    masks: dict[str, Path] = field(default_factory=dict)
    """Structure (e.g. lungs) -> absolute path of a mask on the same pixel grid."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys that this format does not know, kept as they are."""

    @property
    def direction(self) -> Direction | None:
        """frontal, lateral or other by `raddraft.views`; None where the view is not stated."""
        return direction(self.view)

    @property
    def frontal(self) -> bool:
        """True for PA, AP and their variants, and where the view is not stated."""
        return self.direction in ("frontal", None)

    @property
    def lateral(self) -> bool:
        """True for lateral views and their variants."""
        return self.direction == "lateral"


@dataclass
class Study:
    """One examination: its pictures and what is known about them."""

    study_id: str
    subject_id: str
    split: str
    images: list[StudyImage]
    sections: dict[str, str] = field(default_factory=dict)
    """Report text by section, e.g. findings, impression, indication, comparison, technique."""
    labels: dict[str, int | None] = field(default_factory=dict)
    """Observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned."""
    patient: dict[str, Any] = field(default_factory=dict)
    """sex (M or F), age (years), weight (kg), bmi (kg/m²); None or absent if unknown."""
    source: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys that this format does not know, kept as they are."""

    @property
    def main_image(self) -> StudyImage:
        """The picture to read when a model takes one: the first that is stated to be frontal, else the first whose view
        is not stated, else the first."""
        return min(self.images, key=lambda image: {"frontal": 0, None: 1}.get(image.direction, 2))

    @property
    def is_synthetic(self) -> bool:
        """Whether the images or a part of the report were made by software and not by people."""
        return self.source == PHANTOM or bool(self.extra.get("synthetic"))


def read_studies(path: str | Path, split: str | None = None, check_images: bool = False) -> list[Study]:
    """Read and validate a manifest.

    Args:
        path: the `studies.jsonl`.
        split: keep the studies of this split only (the whole manifest is validated all the same).
        check_images: also require that every image and mask file exists.

    Raises:
        ManifestError: broken JSON, missing key, wrong type, unknown split, label out of range, duplicate
            study, subject in two splits, missing file (if asked for), no study (in the split).
        FileNotFoundError: there is no such manifest.
    """
    path = Path(path)
    if split is not None and split not in SPLITS:
        raise ManifestError(f"Unknown split {split!r}. Choices: {', '.join(SPLITS)}")
    if path.is_dir():
        raise ManifestError(f"{path} is a folder; the manifest is a file, e.g. {path / 'studies.jsonl'}")
    studies: list[Study] = []
    split_of: dict[str, tuple[str, str]] = {}
    for where, row in read_jsonl(path, REQUIRED, "study_id", ManifestError):
        study = parse_study(row, path.parent.absolute(), where)
        other, earlier = split_of.setdefault(study.subject_id, (study.split, where.rpartition(" ")[2]))
        if other != study.split:
            raise ManifestError(
                f"{where}: subject {study.subject_id!r} is in split {study.split!r}, and in {other!r} on line {earlier}"
            )
        if check_images:
            _check_files(study, where)
        studies.append(study)
    chosen = [study for study in studies if split is None or study.split == split]
    if not chosen:
        counts = ", ".join(f"{name} {count}" for name, count in count_splits(studies).items())
        raise ManifestError(
            f"{path}: no study" + (f" in split {split!r} (there are: {counts})" if studies and split else "")
        )
    return chosen


def says_something(section: str, text: Any) -> bool:
    """Whether a section has a text. "None" is none, but as a comparison it says that there is no earlier film."""
    return not is_nothing(text) or (
        section == "comparison" and str(text).strip().lower() == "none" and text is not None
    )


def drop_nothing(study: Study) -> None:
    """Take out of a study what is nothing: sections, views, the source; labels and patient values become None."""
    study.sections = {name: text for name, text in study.sections.items() if says_something(name, text)}
    study.labels = {name: None if is_nothing(label) else label for name, label in study.labels.items()}
    study.patient = {name: None if is_nothing(value) else value for name, value in study.patient.items()}
    study.source = None if is_nothing(study.source) else study.source
    for image in study.images:
        image.view = None if is_nothing(image.view) else image.view


def write_studies(path: str | Path, studies: Iterable[Study]) -> int:
    """Write a manifest (to a temporary name, then renamed) and return how many studies it holds."""
    path = Path(path).absolute()
    return write_jsonl(path, (_to_json(study, path.parent) for study in studies))


def deal_folds(studies: Sequence[Study], n_folds: int) -> list[list[Study]]:
    """The same studies with other splits, once for each fold: it is test, the next fold is val, all others are train.

    The subjects of each source are dealt out at random, always in the same way, so that folds are alike. scikit-learn's
    StratifiedGroupKFold balances images instead of subjects, and takes minutes longer with 100,000 subjects.

    Raises:
        RadDraftError: fewer than 3 folds.
    """
    import numpy as np

    if n_folds < 3:
        raise RadDraftError(f"Need at least 3 folds (test, val, train), got {n_folds}")
    subjects: dict[str | None, list[str]] = {}
    for subject, source in sorted({study.subject_id: study.source for study in studies}.items()):
        subjects.setdefault(source, []).append(subject)
    folds: dict[str, int] = {}
    for names in subjects.values():
        folds |= {name: i % n_folds for i, name in enumerate(np.random.default_rng(0).permutation(names).tolist())}
    split_at = {0: "test", 1: "val"}
    return [
        [replace(study, split=split_at.get((folds[study.subject_id] - fold) % n_folds, "train")) for study in studies]
        for fold in range(n_folds)
    ]


def count_splits(studies: Iterable[Study]) -> dict[str, int]:
    """Number of studies in each split, in the order train, val, test."""
    counts = Counter(study.split for study in studies)
    return {split: counts[split] for split in SPLITS}


def parse_study(row: dict[str, Any], root: Path, where: str) -> Study:
    """A study from a row of a manifest in the folder `root`; ManifestError, beginning with `where`, if it is none."""
    for key in ("study_id", "subject_id"):
        if row[key].strip().lower() in ("", *NAN):
            raise ManifestError(f"{where}: {key} must be a non-empty string, got {row[key]!r}")
    if row["split"] not in SPLITS:
        raise ManifestError(f"{where}: unknown split {row['split']!r}. Choices: {', '.join(SPLITS)}")
    if "images" not in row:
        raise ManifestError(f"{where}: key 'images' is missing")
    if not isinstance(row["images"], list) or not row["images"]:
        raise ManifestError(f"{where}: images must be a non-empty list, got {row['images']!r}")
    images = [_parse_image(image, root, where) for image in row.pop("images")]
    mappings = {key: _pop_object(row, key, where) for key in ("sections", "labels", "patient")}
    source = row.pop("source", None)
    if source is not None and not isinstance(source, str):
        raise ManifestError(f"{where}: source must be a string or null, got {source!r}")
    study_id, subject_id, split = (row.pop(key) for key in ("study_id", "subject_id", "split"))
    study = Study(study_id, subject_id, split, images, **mappings, source=source, extra=row)
    drop_nothing(study)
    for name, text in study.sections.items():
        if not isinstance(text, str):
            raise ManifestError(f"{where}: section {name!r} must be a string, got {text!r}")
    for name, label in study.labels.items():
        if label is not None and (isinstance(label, bool) or label not in (1, 0, -1)):
            raise ManifestError(f"{where}: label {name!r} is {label!r}. Choices: 1, 0, -1, null")
    return study


def _pop_object(row: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """An optional object out of `row`; null is the same as missing."""
    value = row.pop(key, None)
    if value is not None and not isinstance(value, dict):
        raise ManifestError(f"{where}: {key} must be an object, got {value!r}")
    return value or {}


def _parse_image(image: Any, root: Path, where: str) -> StudyImage:
    if not isinstance(image, dict) or not isinstance(image.get("path"), str) or not image["path"]:
        raise ManifestError(f"{where}: an image must be an object with a path, got {image!r}")
    image = dict(image)
    view = image.pop("view", None)
    if view is not None and not isinstance(view, str):
        raise ManifestError(f"{where}: view must be a string or null, got {view!r}")
    masks = {name: mask for name, mask in _pop_object(image, "masks", where).items() if not is_nothing(mask)}
    if not all(isinstance(mask, str) for mask in masks.values()):
        raise ManifestError(f"{where}: masks must map a structure to a path, got {masks!r}")

    def absolute(name: str) -> Path:
        return Path(os.path.normpath(root / name))

    path = absolute(image.pop("path"))
    return StudyImage(path, view, {name: absolute(mask) for name, mask in masks.items()}, extra=image)


def _check_files(study: Study, where: str) -> None:
    for image in study.images:
        for kind, path in [("image", image.path), *(("mask", mask) for mask in image.masks.values())]:
            if not path.is_file():
                raise ManifestError(f"{where}: {kind} {str(path)!r} does not exist")


def _to_json(study: Study, root: Path) -> dict[str, Any]:
    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    images = []
    for image in study.images:
        entry: dict[str, Any] = {"path": relative(image.path), "view": image.view}
        if image.masks:
            entry["masks"] = {name: relative(mask) for name, mask in image.masks.items()}
        images.append(entry | image.extra)
    row = {"study_id": study.study_id, "subject_id": study.subject_id, "split": study.split, "images": images}
    optional = {"sections": study.sections, "labels": study.labels, "patient": study.patient, "source": study.source}
    return row | {key: value for key, value in optional.items() if value} | study.extra
