"""ReXGradient-160K (Hugging Face, terms to accept) -> studies: reports in four sections, official split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing
from raddraft.views import direction, name_view

_ORIGIN = "It is part of https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K (terms to accept)."
_SECTIONS = ("Indication", "Comparison", "Findings", "Impression")
_PARTS = {"train": "train", "valid": "val", "test": "test"}


def convert(
    root: Path,
    out: Path | None = None,
    images: Path | None = None,
    views: Literal["frontal", "all"] = "frontal",
    sections: tuple[str, ...] = ("findings",),
) -> Conversion:
    """ReXGradient-160K: indication, comparison, findings and impression, sex, age, official split; no labels.

    A section that reads None is none, the comparison too. A view that tells a direction is kept by its words
    (POSTERO_ANTERIOR is PA), others as they are (KUB); UNKNOWN, ERECT, SUPINE and a missing view tell none and count as
    frontal: of 27,835 UNKNOWN ones in train nine in ten are, by the look of a reader of the set. Where a study has more
    or fewer views than images, no view is known. Sexes but M and F, ages that cannot be read, images that a study names
    twice and a part whose file is not there are counted or named. The images are published at a quarter of their size.

    Args:
        root: Folder that holds metadata/ (or its files) and deid_png/, unpacked with
            cat deid_png.part* | tar --zstd -x. The files read are train_metadata_view_position.json,
            valid_metadata_view_position.json and test_metadata_view_position.json; the tables (.csv) name no images.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder that holds deid_png/. By default root.
        views: frontal keeps frontal images and those whose view is not stated; all keeps every image.
        sections: Sections that a study must have, e.g. findings impression; [] for none.
    """
    folder = root / "metadata" if (root / "metadata").is_dir() else root
    files = {part: folder / f"{part}_metadata_view_position.json" for part in _PARTS}
    found = {part: file for part, file in files.items() if file.is_file()}
    if not found:
        raise MissingFileError(f"{folder}: there is none of {', '.join(one.name for one in files.values())}. {_ORIGIN}")
    counts: Counter[str] = Counter()
    studies = []
    for part, file in found.items():
        content = common.read_json(file)
        if not isinstance(content, dict):
            raise CorpusError(f"{file}: expected an object of studies, got {type(content).__name__}")
        for name, entry in content.items():
            where = f"{file.name}, {name}"
            studies.append(_study(name, entry, _PARTS[part], images or root, where, counts))
    conversion = Conversion("rexgradient", studies, out or root / "studies.jsonl", counts)
    conversion.notes += [f"No file of {part}: left out" for part in _PARTS if part not in found]
    conversion.keep_studies("no image named", lambda study: bool(study.images))
    conversion.keep_views(views)
    conversion.keep_files()
    conversion.require(sections)
    return conversion.write()


def _study(name: str, entry: Any, split: str, folder: Path, where: str, counts: Counter[str]) -> Study:
    if not isinstance(entry, dict) or not entry.get("PatientID") or not isinstance(entry.get("ImagePath"), list):
        raise CorpusError(f"{where}: expected an object with PatientID and a list ImagePath, got {str(entry)[:80]!r}")
    for key in _SECTIONS:
        if not isinstance(entry.get(key), str | None):
            raise CorpusError(f"{where}: {key} must be a text or null, got {str(entry[key])[:80]!r}")
    texts = {key.lower(): entry.get(key) or "" for key in _SECTIONS}
    study = Study(name, str(entry["PatientID"]), split, _images(entry, folder, where, counts))
    study.sections = clean_sections({key: text for key, text in texts.items() if not is_nothing(text)})
    sex, age = (str(entry.get(key) or "") for key in ("PatientSex", "PatientAge"))
    study.patient = common.parse_patient(sex, age, counts)
    date = entry.get("StudyDate")
    study.extra = {} if is_nothing(date) else {"study_date": str(date)}
    return study


def _images(entry: dict[str, Any], folder: Path, where: str, counts: Counter[str]) -> list[StudyImage]:
    paths, views = entry["ImagePath"], entry.get("ImageViewPosition") or []
    if not isinstance(views, list) or len(views) != len(paths):
        counts["Studies with more or fewer views than images, whose views are not known"] += bool(paths)
        views = [None] * len(paths)
    images: dict[str, StudyImage] = {}
    for path, view in zip(paths, views, strict=True):
        if not isinstance(path, str) or not path:
            raise CorpusError(f"{where}: an image must be a path, got {path!r}")
        if path in images:
            counts["Images that their study names twice, taken once"] += 1
            continue
        # Paths start from the folder of the metadata: ../deid_png/PATIENT/…
        images[path] = StudyImage(folder / path.removeprefix("../"), _view(view))
    return list(images.values())


def _view(view: Any) -> str | None:
    """The view's words for a direction; its own words where they are none; None where nothing is told."""
    text = str(view or "")
    return None if direction(text) is None else name_view(text) or text
