"""Indiana University chest X-rays (Open-i) -> studies, from the XML reports or from the Kaggle tables.

The number of a study joins everything: `1000.xml`, `uid` 1000 of the tables, and the images, which go under three
names: `CXR1000_IM-0003-1001.png` (Open-i), `1000_IM-0003-1001.dcm.png` (Kaggle), `CXR1000_IM-0003/0.png` (R2Gen).
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from generator.corpora.common import Conversion, CorpusError, MissingFileError, add_image, hash_split, read_table
from generator.corpora.r2gen import read_annotation
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage

# Groups: study number, rest of the name. A few names repeat part of the number: CXR1_1_IM-0001-3001.
_IMAGE_NAME = re.compile(r"(?:CXR)?(\d+)(?:_\d+)?_(IM-[\d-]+)")
_IMAGE_SUFFIX = re.compile(r"(\.dcm)?\.(png|jpe?g)$|\.dcm$", re.IGNORECASE)
_SECTIONS = ("indication", "comparison", "findings", "impression")
_SPREADSHEET_ERROR = "#NAME?"  # in indiana_reports.csv, where a text began with + or -

_Report = tuple[str, dict[str, str], list[str]]
"""Study number, sections, names of the images as the source writes them."""


def convert(
    root: Path,
    out: Path | None = None,
    reports: Path | None = None,
    images: Path | None = None,
    split_file: Path | None = None,
    views: Literal["frontal", "all"] = "all",
    sections: tuple[str, ...] = ("findings",),
    missing: Literal["drop", "keep"] = "drop",
) -> Conversion:
    """IU X-ray: Open-i's XML reports, or the two Kaggle tables, with whatever images are there.

    The collection does not tell which studies are of one patient: every study is a subject of its own. Words removed
    for privacy read XXXX and stay so. Views come from indiana_projections.csv if root holds it and are unknown
    otherwise: the headers of its DICOM files are not read, for many laterals are called PA there. Reports that repeat a
    study are counted; the first counts.

    Args:
        root: Folder that holds NLMCXR_reports.tgz, or its XML files, or indiana_reports.csv, or several of these.
        out: The manifest to write. By default studies.jsonl in root.
        reports: The reports to read: NLMCXR_reports.tgz, a folder of XML files, or indiana_reports.csv. By default the
            first of these that root holds (the XML has 104 reports more than the table).
        images: Folder to search for images, subfolders included. By default root.
        split_file: R2Gen's annotation.json, to use its split and leave out the studies that it lacks. By default 70,
            10 and 20 % of the studies are train, val and test, by a hash of the study's name.
        views: frontal drops images known to be lateral; all keeps every image.
        sections: Sections that a study must have, e.g. findings impression; [] for none.
        missing: What to do with images that are not on disk: drop leaves them out, keep writes their names.
    """
    images = images or root
    views_of: dict[str, dict[str, str]] = defaultdict(dict)
    if (root / "indiana_projections.csv").is_file():
        for _, row in read_table(root / "indiana_projections.csv", ["uid", "filename", "projection"]):
            views_of[row["uid"]][row["filename"]] = row["projection"].upper()
    on_disk = _find_images(images)
    counts = Counter[str]()
    studies: dict[str, Study] = {}
    for number, texts, names in _read_reports(reports or _find_reports(root)):
        name = f"CXR{number}"
        files = _study_images(images, names or list(views_of[number]), on_disk[number], views_of[number])
        counts["Reports that repeat a study"] += name in studies
        add_image(studies, Study(name, name, hash_split(name), files, clean_sections(texts)), name, counts)
    conversion = Conversion("iu-xray", studies.values(), out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    if split_file is not None:
        # Its ids begin with the study's name: CXR2384_IM-0942.
        split_of = {str(entry["id"]).split("_")[0]: split for _, split, entry in read_annotation(split_file)}
        conversion.keep_studies(f"not in {split_file.name}", lambda study: study.study_id in split_of)
        for study in conversion.studies:
            study.split = split_of[study.study_id]
    conversion.keep_studies("report names no image", lambda study: bool(study.images))
    if missing == "drop":
        conversion.keep_files()
    conversion.keep_views(views)
    conversion.require(sections)
    return conversion.write()


def _find_reports(root: Path) -> Path:
    for path in (root / "NLMCXR_reports.tgz", root / "ecgen-radiology", root, root / "indiana_reports.csv"):
        if path.is_file() or next(path.glob("*.xml"), None):
            return path
    raise MissingFileError(
        f"{root}: neither NLMCXR_reports.tgz, XML files nor indiana_reports.csv. The first is the collection "
        "'Indiana University Chest X-rays' of https://openi.nlm.nih.gov/faq, the last its table on Kaggle. "
        "Name another place with --reports."
    )


def _read_reports(source: Path) -> Iterator[_Report]:
    import tarfile

    if ".csv" in source.suffixes:
        for where, row in read_table(source, ["uid", *_SECTIONS]):
            if not row["uid"].isdigit():
                raise CorpusError(f"{where}: uid must be a number, got {row['uid']!r}")
            yield row["uid"], {name: row[name] for name in _SECTIONS if row[name].strip() != _SPREADSHEET_ERROR}, []
    elif source.is_dir():
        for path in sorted(source.glob("*.xml")):
            yield _parse_xml(path.read_bytes(), path.name)
    else:
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name.endswith(".xml") else None
                    if file:
                        yield _parse_xml(file.read(), member.name)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            reason = str(error).partition("\n")[0]  # or one line for each compression that was tried
            raise CorpusError(f"{source}: not a whole tar file: {reason}") from None


def _parse_xml(content: bytes, where: str) -> _Report:
    import xml.etree.ElementTree as ET

    try:
        tree = ET.fromstring(content)
    except ET.ParseError as error:
        raise CorpusError(f"{where}: not valid XML: {error}") from None
    uid = tree.find("uId")
    number = uid.get("id", "").removeprefix("CXR") if uid is not None else ""
    if not number.isdigit():
        raise CorpusError(f"{where}: no uId of the form CXR1000, got {number!r}")
    texts = {node.get("Label", "").lower(): node.text or "" for node in tree.iter("AbstractText")}
    return number, texts, [node.get("id", "") for node in tree.iter("parentImage")]


def _find_images(folder: Path) -> dict[str, dict[str, Path]]:
    """Study number -> what `_key` makes of the name -> file. R2Gen's files have their number after a slash."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem = _IMAGE_SUFFIX.sub("", name)
            if stem == name:
                continue
            if match := _IMAGE_NAME.fullmatch(stem):
                found[match[1]].setdefault(match[2], Path(parent, name))
            elif match := _IMAGE_NAME.fullmatch(os.path.basename(parent)):
                found[match[1]].setdefault(f"{match[2]}/{stem}", Path(parent, name))
    return found


def _key(name: str) -> str:
    """The part of an image's name that all spellings share: IM-0003-1001."""
    match = _IMAGE_NAME.fullmatch(_IMAGE_SUFFIX.sub("", name))
    return match[2] if match else name


def _study_images(folder: Path, names: list[str], files: dict[str, Path], views: dict[str, str]) -> list[StudyImage]:
    """The images of a study: those its report names, wherever they lie, and any other that bears its number.

    R2Gen's renumbered copies are taken only where none of the originals exists.
    """
    originals = {key: path for key, path in files.items() if "/" not in key}
    if files and not originals:
        return [StudyImage(path) for path in files.values()]
    view_of = {_key(name): view for name, view in views.items()}
    named = {_key(name): folder / (name if _IMAGE_SUFFIX.search(name) else f"{name}.png") for name in names}
    return [StudyImage(path, view_of.get(key)) for key, path in (named | originals).items()]
