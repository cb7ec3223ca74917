"""An `annotation.json` of the R2Gen kind, the split files that papers on IU X-ray and MIMIC-CXR share -> studies.

    {"train": [{"id": …, "report": …, "image_path": [… under images/ …], "split": "train"}, …], "val": …, "test": …}

Entries for MIMIC-CXR also have `subject_id` and `study_id`, and one entry per image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, add_image, parse_split, read_json
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
    with two frontal images appears twice, under the names of its images; the study's own number is kept as study.
    An entry that names no subject is a subject of its own. Views are not known. Of entries with one id the
    first counts, and their images are put together; an id of two subjects is left out. Both are counted.

    Args:
        root: Folder that holds annotation.json and images/.
        out: The manifest to write. By default studies.jsonl in root.
        annotation: The split file. By default annotation.json in root.
        images: Folder that the image paths start from. By default images in root.
        sections: Sections that a study must have: findings, or [] to keep entries with an empty report.
    """
    counts = Counter[str]()
    studies: dict[str, Study] = {}
    path = annotation or common.find_file(root, ["annotation.json"], "Name it with --annotation.")
    for where, split, entry in read_annotation(path):
        names = entry.get("image_path")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise CorpusError(f"{where}: image_path must be a non-empty list of paths, got {names!r}")
        subject, known = (entry.get(key) for key in ("subject_id", "study_id"))
        study = Study(
            str(entry["id"]),
            str(entry["id"] if subject is None else subject),
            split,
            [StudyImage((images or root / "images") / name) for name in names],
            clean_sections({"findings": entry.get("report") or ""}),
        )
        study.extra = {} if known is None else {"study": str(known)}
        counts["Entries that repeat an id"] += study.study_id in studies
        add_image(studies, study, where, counts)
    conversion = Conversion("r2gen", studies.values(), out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    conversion.keep_files()
    conversion.require(sections)
    return conversion.write()


def read_annotation(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Entries of a split file: location, split, the entry itself.

    The split is what the entry says, else the key of its list: some copies have damaged keys (four blanks in place of
    `test`) while the entries are right.

    Raises:
        CorpusError: not such a file, an entry without id, or of unknown split.
    """
    parts = read_json(path)
    if not isinstance(parts, dict) or not all(isinstance(entries, list) for entries in parts.values()):
        raise CorpusError(f"{path}: expected an object of lists: train, val, test")
    for key, entries in parts.items():
        for number, entry in enumerate(entries):
            where = f"{path.name}, {key!r} entry {number}"
            if not isinstance(entry, dict) or entry.get("id") is None:
                raise CorpusError(f"{where}: expected an object with an id, got {str(entry)[:80]!r}")
            yield where, parse_split(entry.get("split") or key, where), entry
