"""The manifest: `studies.jsonl`, one study a line, the one format that every stage reads.

    {"study_id": "s1", "subject_id": "p1", "split": "train",
     "images": [{"path": "files/x.jpg", "view": "PA", "masks": {"lungs": "masks/x.png"}}],
     "sections": {"findings": "…"}, "labels": {"Edema": 1}, "patient": {"sex": "F"}, "source": "…"}

What is nothing (null, NaN, "nan", see `raddraft.tables`) counts as missing. On disk, paths are relative to the
manifest's folder; in memory they are absolute.

A manifest may have as many studies as MIMIC-CXR, so what is read keeps its lines, compressed, and makes the fields of a
study when they are first asked for. `skim` goes through studies without keeping what it makes. Reading, checking and
writing stand in one file, since they are one format.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from raddraft.errors import RadDraftError
from raddraft.files import check_replaced, parse_line, read_lines, write_jsonl
from raddraft.tables import NAN, is_nothing
from raddraft.views import Direction, direction

GrayMapping = Literal["window", "minmax", "percentile"]
"""How gray values of an image file become 8 bits, see `raddraft.images`."""

SPLITS = ("train", "val", "test")
PHANTOM = "phantom"
"""`source` of computed phantoms."""
MAX_AGE = 120
"""Years. Some tables hold ages such as 411."""
REQUIRED = ("study_id", "subject_id", "split")
OPTIONAL = ("sections", "labels", "patient")
_NO_NAME = NAN | {""}
_LATER = ("images", *OPTIONAL, "extra")
_TOGETHER = 32
"""Lines that are compressed together: more take less memory, and longer to read one of them."""


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
    def ids(self) -> dict[str, str]:
        """What a line of predictions.jsonl begins with: study_id, and subject_id if the patient is known, which a study
        that is a subject of its own does not tell."""
        subject = {"subject_id": self.subject_id} if self.subject_id != self.study_id else {}
        return {"study_id": self.study_id} | subject

    @property
    def is_synthetic(self) -> bool:
        """Whether the images or a part of the report were made by software and not by people."""
        return self.source == PHANTOM or bool(self.extra.get("synthetic"))

    def __copy__(self) -> Study:
        """Fields that were not asked for yet are made for each by itself."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    if not TYPE_CHECKING:  # or every misspelled name would pass

        def __getattr__(self, name: str) -> Any:
            """A field that was not asked for before, of a study that was read from a manifest."""
            if name not in _LATER:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            packed, number, root = self._line
            try:
                row = _unpack_row(packed, number)
            except RadDraftError as error:  # a key that stands twice, which costs too much time to look for beforehand
                raise ManifestError(f"{root}: the manifest's line of study {self.study_id!r}{error}") from None
            value = _read_images(row, root) if name == "images" else _read_mapping(row, name)
            return self.__dict__.setdefault(name, value)


def read_studies(
    path: str | Path, split: str | None = None, check_images: bool = False, broken: list[str] | None = None
) -> list[Study]:
    """Read and validate a manifest.

    Args:
        path: the `studies.jsonl`.
        split: keep the studies of this split only (the whole manifest is validated all the same).
        check_images: also require that every image and mask file exists.
        broken: gets a sentence on each line that cannot be used, which is then passed over, and a subject may be in
            several splits; by default these are errors.

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
    root, count = path.parent.absolute(), Counter[str]()
    studies: list[Study] = []
    waiting: list[bytes] = []
    first_line: dict[str, int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    for number, line in read_lines(path):
        where = f"{path.name} line {number}"
        try:
            row = _read_row(line, where)
            if (first := first_line.setdefault(row.study_id, number)) != number:
                raise ManifestError(f"{where}: duplicate study_id {row.study_id!r}, first on line {first}")
            if check_images or broken is not None:  # else it is parsed when it is asked for
                whole = parse_line(line, where, error=ManifestError)
                if check_images:
                    _check_files(whole, root, where)
        except ManifestError as error:
            if broken is None:
                raise
            broken.append(str(error))
            continue
        subject_id, own = sys.intern(row.subject_id), sys.intern(row.split)
        other, earlier = split_of.setdefault(subject_id, (own, number))
        if other != own and broken is None:
            raise ManifestError(
                f"{where}: subject {subject_id!r} is in split {own!r}, and in {other!r} on line {earlier}"
            )
        count[own] += 1
        if split not in (None, own):
            continue
        study = object.__new__(Study)
        study.study_id, study.subject_id, study.split = row.study_id, subject_id, own
        study.source = _read_source(row.source)
        studies.append(study)
        waiting.append(line)
        if len(waiting) == _TOGETHER:
            _pack(studies, waiting, root)
            waiting = []
    _pack(studies, waiting, root)
    if not studies:
        counts = ", ".join(f"{name} {count[name]}" for name in SPLITS)
        why = f" in split {split!r} (there are: {counts})" if count else f"; {broken[0]}" if broken else ""
        raise ManifestError(f"{path}: no study{why}")
    return studies


def skim(studies: Iterable[Study]) -> Iterator[Study]:
    """A copy of each study in turn. What is made of a manifest's line when it is asked for goes with the copy."""
    return map(copy, studies)


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
    """Write a manifest (to a temporary name, then renamed) and return how many studies it holds.

    Raises:
        RadDraftError: there is a file already, which is no manifest.
    """
    path = Path(path).absolute()
    check_replaced(path, ("images",))
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
        [_move(study, split_at.get((folds[study.subject_id] - fold) % n_folds, "train")) for study in studies]
        for fold in range(n_folds)
    ]


def count_splits(studies: Iterable[Study]) -> dict[str, int]:
    """Number of studies in each split, in the order train, val, test."""
    counts = Counter(study.split for study in studies)
    return {split: counts[split] for split in SPLITS}


class _Image(msgspec.Struct, gc=False):
    path: Annotated[str, msgspec.Meta(min_length=1)]
    view: str | None = None
    masks: dict[str, str | None] | None = None


class _Row(msgspec.Struct, gc=False):
    """A line in the form that nothing is wrong with; msgspec checks it in a tenth of the time of `_check_row`."""

    study_id: str
    subject_id: str
    split: Literal["train", "val", "test"]
    images: Annotated[list[_Image], msgspec.Meta(min_length=1)]
    sections: dict[str, str | None] | None = None
    labels: dict[str, Literal[1, 0, -1] | None] | None = None
    patient: dict[str, Any] | None = None
    source: str | None = None


_DECODER = msgspec.json.Decoder(_Row)


def _read_row(line: bytes, where: str) -> _Row:
    """A line, checked; another form is read by the standard library, to forgive it (as NaN) or to say what is wrong."""
    try:
        line.decode()  # msgspec does not look into keys that it does not know
        row = _DECODER.decode(line)
        if row.study_id.strip().lower() not in _NO_NAME and row.subject_id.strip().lower() not in _NO_NAME:
            return row
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    found = parse_line(line, where, REQUIRED, ManifestError)
    _check_row(found, where)
    return _Row(found["study_id"], found["subject_id"], found["split"], [], source=found.get("source"))


def _check_row(row: dict[str, Any], where: str) -> None:
    """Raise ManifestError, beginning with `where`, if a row is no study."""
    for key in ("study_id", "subject_id"):
        if row[key].strip().lower() in _NO_NAME:
            raise ManifestError(f"{where}: {key} must be a non-empty string, got {row[key]!r}")
    if row["split"] not in SPLITS:
        raise ManifestError(f"{where}: unknown split {row['split']!r}. Choices: {', '.join(SPLITS)}")
    if "images" not in row:
        raise ManifestError(f"{where}: key 'images' is missing")
    if not isinstance(row["images"], list) or not row["images"]:
        raise ManifestError(f"{where}: images must be a non-empty list, got {row['images']!r}")
    for image in row["images"]:
        _check_image(image, where)
    for key in OPTIONAL:
        _check_object(row, key, where)
    if not isinstance(row.get("source"), str | None):
        raise ManifestError(f"{where}: source must be a string or null, got {row['source']!r}")
    for name, text in (row.get("sections") or {}).items():
        if not isinstance(text, str) and says_something(name, text):
            raise ManifestError(f"{where}: section {name!r} must be a string, got {text!r}")
    for name, label in (row.get("labels") or {}).items():
        if (isinstance(label, bool) or label not in (1, 0, -1)) and not is_nothing(label):
            raise ManifestError(f"{where}: label {name!r} is {label!r}. Choices: 1, 0, -1, null")


def _check_image(image: Any, where: str) -> None:
    if not isinstance(image, dict) or not isinstance(image.get("path"), str) or not image["path"]:
        raise ManifestError(f"{where}: an image must be an object with a path, got {image!r}")
    if not isinstance(image.get("view"), str | None):
        raise ManifestError(f"{where}: view must be a string or null, got {image['view']!r}")
    _check_object(image, "masks", where)
    masks = {name: mask for name, mask in (image.get("masks") or {}).items() if not is_nothing(mask)}
    if not all(isinstance(mask, str) for mask in masks.values()):
        raise ManifestError(f"{where}: masks must map a structure to a path, got {masks!r}")


def _check_object(row: dict[str, Any], key: str, where: str) -> None:
    """Raise ManifestError if an optional object is something else; null is the same as missing."""
    if not isinstance(row.get(key), dict | None):
        raise ManifestError(f"{where}: {key} must be an object, got {row[key]!r}")


def _read_images(row: dict[str, Any], root: Path) -> list[StudyImage]:
    """The images of a row that was checked."""

    def absolute(name: str) -> Path:
        return Path(os.path.normpath(os.path.join(root, name)))

    images = []
    for image in row["images"]:
        view, masks = image.get("view"), image.get("masks") or {}
        extra = {key: value for key, value in image.items() if key not in ("path", "view", "masks")}
        files = {name: absolute(mask) for name, mask in masks.items() if not is_nothing(mask)}
        images.append(StudyImage(absolute(image["path"]), None if is_nothing(view) else view, files, extra))
    return images


def _read_mapping(row: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the other fields of a row that was checked."""
    if name == "extra":
        known = (*REQUIRED, *OPTIONAL, "images", "source")
        return {key: value for key, value in row.items() if key not in known}
    found = row.get(name) or {}
    if name == "sections":
        return {section: text for section, text in found.items() if says_something(section, text)}
    return {key: None if is_nothing(value) else value for key, value in found.items()}


def _read_source(source: str | None) -> str | None:
    return None if source is None or is_nothing(source) else sys.intern(source)


def _pack(studies: list[Study], lines: list[bytes], root: Path) -> None:
    """Give the last studies, one for each line, what their fields are made of."""
    packed = zlib.compress(b"".join(lines), 1)
    for number, study in enumerate(studies[len(studies) - len(lines) :]):
        object.__setattr__(study, "_line", (packed, number, root))  # no field; `vars` would take more memory


@lru_cache(maxsize=4)  # studies are mostly read one after the other
def _unpack(packed: bytes) -> list[bytes]:
    return zlib.decompress(packed).split(b"\n")


@lru_cache(maxsize=4)  # and their fields, too
def _unpack_row(packed: bytes, number: int) -> dict[str, Any]:
    return parse_line(_unpack(packed)[number], "")


def _check_files(row: dict[str, Any], root: Path, where: str) -> None:
    for image in _read_images(row, root):
        for kind, path in [("image", image.path), *(("mask", mask) for mask in image.masks.values())]:
            if not os.path.isfile(path):  # a Path raises of a name that is too long
                raise ManifestError(f"{where}: {kind} {str(path)!r} does not exist")


def _move(study: Study, split: str) -> Study:
    moved = copy(study)
    moved.split = split
    return moved


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
