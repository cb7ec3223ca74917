"""An `annotation.json` of the R2Gen kind, the split files that papers on IU X-ray and MIMIC-CXR share -> studies.

    {"train": [{"id": …, "report": …, "image_path": [… under images/ …], "split": "train"}, …], "val": …, "test": …}

Entries for MIMIC-CXR also have `subject_id` and `study_id`, and one entry per image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generator.corpora.common import Conversion, CorpusError, parse_split
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage


def convert(
    root: Path,
    out: Path | None = None,
    annotation: Path | None = None,
    images: Path | None = None,
    sections: tuple[str, ...] = ("findings",),
) -> Conversion:
    """A data set in R2Gen's form, entry by entry, as the tables of R2Gen and its successors count.

    The report of an entry becomes the section findings. An entry of the MIMIC-CXR variant is one image, so a study
    with two frontal images is there twice, under the names of its images; the study's own number is kept as study.
    An entry that names no subject is a subject of its own. Views are not known. Images that are not on disk are left
    out and counted.

    Args:
        root: Folder that holds annotation.json and images/.
        out: The manifest to write. By default studies.jsonl in root.
        annotation: The split file. By default annotation.json in root.
        images: Folder that the image paths start from. By default images in root.
        sections: Sections that a study must have: [findings], or [] to keep entries with an empty report.
    """
    images = images or root / "images"
    studies = []
    for where, split, entry in read_annotation(annotation or root / "annotation.json"):
        studies.append(
            Study(
                study_id=str(entry["id"]),
                subject_id=str(entry.get("subject_id", entry["id"])),
                split=split,
                images=[StudyImage(images / name) for name in _image_names(entry, where)],
                sections=clean_sections({"findings": entry.get("report") or ""}),
                extra={"study": str(entry["study_id"])} if "study_id" in entry else {},
            )
        )
    conversion = Conversion("r2gen", studies)
    conversion.keep_files()
    conversion.require(sections)
    return conversion.write(out or root / "studies.jsonl")


def read_annotation(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Entries of a split file: where each stands, its split, the entry itself.

    The split is what the entry says, else the key of the list it is in: copies are about whose keys are damaged (four
    blanks in place of `test`) while the entries are right.

    Raises:
        CorpusError: not such a file, an entry without id, or of unknown split.
    """
    parts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(parts, dict) or not all(isinstance(entries, list) for entries in parts.values()):
        raise CorpusError(f"{path}: expected an object of lists: train, val, test")
    for key, entries in parts.items():
        for number, entry in enumerate(entries):
            where = f"{path.name}, {key!r} entry {number}"
            if not isinstance(entry, dict) or "id" not in entry:
                raise CorpusError(f"{where}: expected an object with an id, got {str(entry)[:80]!r}")
            yield where, parse_split(entry.get("split") or key, where), entry


def _image_names(entry: dict[str, Any], where: str) -> list[str]:
    names = entry.get("image_path")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CorpusError(f"{where}: image_path must be a non-empty list of paths, got {names!r}")
    return names
