"""A list of studies of ReXrank (rajpurkarlab/ReXrank, commit 8152f99; `raddraft.rexrank` has its form) -> studies."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from generator.sections import clean_sections
from raddraft.rexrank import ENTRY, find_subject, read_entries
from raddraft.studies import Study, StudyImage
from raddraft.text import tell_studies
from raddraft.views import name_view

_ORIGIN = "The lists are in the folder data of https://github.com/rajpurkarlab/ReXrank. Name one with --table."
_FOLDERS = ("files", "PNG", "images")
_CONTEXT = re.compile(
    r"(?:Age:(?P<age>[^:]*?)\.\s*(?=Gender:|Indication:|Comparison:))?(?:Gender:(?P<sex>[^.]*)\.)?\s*"
    r"(?:Indication:(?P<indication>.*?))?(?:Comparison:(?P<comparison>.*))?",
    re.DOTALL,
)
_AGES = re.compile(r"(\d+)-(\d+)")
_SPREADSHEET_DATE = "20-Oct"  # ages 10-20, as a spreadsheet read them


def convert(root: Path, out: Path | None = None, table: Path | None = None, images: Path | None = None) -> Conversion:
    """ReXrank: the studies of one of its lists, to be drafted with `raddraft generate --format rexrank`.

    A study has its name in the list, and its whole entry as rexrank, to which a submission adds the draft. Split: as
    the entry states it, else test. Findings and impression are the reference; indication, comparison, age and sex
    come from the context. Ages are groups there (60-70): the middle counts, of >=90 the 90. Subjects are the list's for
    MIMIC-CXR and CheXpert Plus; elsewhere each study is one of its own. The key image, which ReXrank calls the frontal
    one, comes first, and counts as frontal unless another view is stated. Where an entry has more or fewer views than
    images (46 of the 590 of IU X-ray), no other view is known. A context of another form than "Age:….Gender:….
    Indication:…Comparison:…", each of which may be missing, is the indication, and counted. Sexes but M and F, and ages
    that cannot be read, are unknown and counted.

    Args:
        root: Folder that holds the list, and the images in files, PNG or images, as ReXrank's tutorial names them.
        out: The manifest to write. By default studies.jsonl in root.
        table: The list. By default ReXRank_*.json in root, if there is one.
        images: Folder that the image paths start from. By default files, PNG or images in root, else root.
    """
    lists = [table] if table else sorted(root.glob("ReXRank_*.json"))
    if len(lists) != 1:
        found = ", ".join(path.name for path in lists)
        raise MissingFileError(f"{root}: {'several lists: ' + found if lists else 'no ReXRank_*.json'}. {_ORIGIN}")
    table = lists[0]
    folder = images or next((root / name for name in _FOLDERS if (root / name).is_dir()), root)
    entries = read_entries(table, CorpusError)
    counts = Counter[str]()
    studies = [_study(name, entry, folder, f"{table.name}, {name}", counts) for name, entry in entries.items()]
    conversion = Conversion("rexrank", studies, out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    conversion.notes += tell_studies(
        "with more or fewer views than images, of which only the key image's view is known",
        (name for name, entry in entries.items() if not _match(entry)),
    )
    conversion.keep_files(*common.PIXELS, ".dcm")
    kept = {study.study_id for study in conversion.studies}
    conversion.notes += tell_studies("that a submission will lack", entries.keys() - kept)
    return conversion.write()


def _study(name: str, entry: dict[str, Any], folder: Path, where: str, counts: Counter[str]) -> Study:
    paths = entry.get("image_path")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise CorpusError(f"{where}: image_path must be a non-empty list of paths, got {paths!r}")
    context = re.sub("</?context>", "", str(entry.get("context") or "")).strip()
    found = _CONTEXT.fullmatch(context)
    counts["Contexts of another form, kept whole as the indication"] += found is None
    told = {key: value or "" for key, value in found.groupdict().items()} if found else {"indication": context}
    sections = {"indication": told["indication"], "comparison": told.get("comparison", "")}
    sections |= {part: entry.get(f"section_{part}") or "" for part in ("findings", "impression")}
    return Study(
        name,
        find_subject(name, entry) or name,
        common.parse_split(str(entry.get("split") or "test"), where),
        _images(entry, paths, folder),
        clean_sections(sections),
        patient={"sex": common.parse_sex(told.get("sex", ""), counts), "age": _age(told.get("age", ""), counts)},
        extra={ENTRY: entry},
    )


def _match(entry: dict[str, Any]) -> bool:
    views = entry.get("frontal_lateral")
    return isinstance(views, list) and all(
        len(values) == len(entry["image_path"]) for values in (views, entry.get("ap_pa") or views)
    )


def _images(entry: dict[str, Any], paths: list[str], folder: Path) -> list[StudyImage]:
    """The key image first; AP or PA where it is stated, else FRONTAL or LATERAL."""
    nothing: list[Any] = [None] * len(paths)
    views, positions = (
        (entry["frontal_lateral"], entry.get("ap_pa") or nothing) if _match(entry) else (nothing, nothing)
    )
    images: list[StudyImage] = []
    for path, view, position in zip(paths, map(name_view, views), positions, strict=True):
        is_key = path == entry.get("key_image_path")
        view = view or ("FRONTAL" if is_key else None)
        image = StudyImage(
            folder / path.lstrip("/"), position if position in ("AP", "PA") and view == "FRONTAL" else view
        )
        images.insert(0 if is_key else len(images), image)
    return images


def _age(text: str, counts: Counter[str]) -> int | float | None:
    text = "10-20" if text.strip() == _SPREADSHEET_DATE else text.strip().removeprefix(">=")
    group = _AGES.fullmatch(text)
    return (int(group[1]) + int(group[2])) // 2 if group else common.parse_age(text, counts)
