"""PadChest-GR (arXiv 2411.05085) -> studies: reports by the sentence, in English and Spanish, and boxes as masks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from generator.corpora import common
from generator.corpora.boxes import outline_box
from generator.corpora.common import Conversion, CorpusError
from generator.corpora.films import image_size
from generator.corpora.odd_rows import is_whole
from generator.corpora.padchest import NO_FINDING, NORMAL, normalize
from generator.sections import clean_sections
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from encoder.masks import Polygons

_ORIGIN = "It is part of PadChest-GR, https://bimcv.cipf.es/bimcv-projects/padchest-gr (on application)."

Masks = dict[str, list["Polygons"]]


def convert(
    root: Path,
    out: Path | None = None,
    images: Path | None = None,
    language: Literal["en", "es"] = "en",
    readers: Literal["first", "both"] = "first",
    sections: tuple[str, ...] = ("findings",),
) -> Conversion:
    """PadChest-GR: findings (the sentences, joined), labels, masks of the boxes, sex, age, official split.

    These are films and patients of PadChest, under the same names; the reports of PadChest itself are stems only. All
    are frontal, by its authors. Each label of the set is 1 where a sentence that is called abnormal has it, else 0; No
    Finding is 1 where no sentence is called abnormal. A mask (PNG) is the union of the boxes of all abnormal sentences
    with its label. Boxes are cut at the edge of the film; one that has no area in it is left out.
    Sentences that lack the language, such boxes, studies that the table lacks and broken files are counted.

    Args:
        root: Folder that holds grounded_reports_20240819.json, master_table.csv (or its zip) and the images, which lie
            in any subfolder. Their parts are one zip: cat PadChest_GR.zip.0* > PadChest_GR.zip.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder to search for PNG files, subfolders included. By default root.
        language: en for the English sentences, es for the Spanish ones.
        readers: Whose boxes to draw: those of the first reader (boxes), or the union with those of a second one
            (extra_boxes), who saw a part of the studies.
        sections: Sections that a study must have; [] for none.
    """
    file = common.find_file(root, ["grounded_reports_20240819.json", "grounded_reports*.json"], _ORIGIN)
    counts: Counter[str] = Counter()
    rows = _read_rows(common.find_file(root, ["master_table.csv", "master_table.csv.zip"], _ORIGIN), counts)
    found = sorted((images or root).rglob("*.png"))
    paths = {path.name: path for path in found if "masks" not in path.relative_to(images or root).parts}
    abnormal: dict[str, list[dict[str, Any]]] = {}
    studies = []
    entries = _read_entries(file)
    terms = {term for entry in entries for one in entry["findings"] for term in _terms(one)}
    for entry in entries:
        name, image = entry["StudyID"], entry["ImageID"]
        if name in abnormal:
            counts["Entries that repeat a study, left out"] += 1
            continue
        abnormal[name] = [one for one in entry["findings"] if one["abnormal"]]
        if name not in rows:
            counts["Studies that master_table.csv lacks, left out"] += 1
            continue
        study = rows[name]
        study.images = [StudyImage(paths.get(image, (images or root) / image), "FRONTAL")]
        study.sections = clean_sections({"findings": _join(entry["findings"], f"sentence_{language}", counts)})
        shown = {term for one in abnormal[name] for term in _terms(one)}
        study.labels = {term: int(term in shown) for term in sorted(terms)}
        study.labels[NO_FINDING] = int(not abnormal[name])
        studies.append(study)
    conversion = Conversion("padchest-gr", studies, out or root / "studies.jsonl", counts)
    conversion.keep_files()
    conversion.keep_images("a cut file", lambda image: is_whole(image.path))
    conversion.require(sections)
    conversion.add_masks(
        {study.study_id: _draw(study, abnormal[study.study_id], readers, counts) for study in conversion.studies}
    )
    return conversion.write()


def _read_rows(table: Path, counts: Counter[str]) -> dict[str, Study]:
    """StudyID -> a study without images. The table has a row for each sentence, which repeats what is known of it."""
    studies: dict[str, Study] = {}
    for where, row in common.read_table(table, ["StudyID", "PatientID", "split"]):
        odd = Counter[str]() if row["StudyID"] in studies else counts  # each study counts once
        patient = common.parse_patient(row.get("PatientSex_DICOM", ""), row.get("PatientAge", ""), odd)
        study = Study(row["StudyID"], row["PatientID"], common.parse_split(row["split"], where), [], patient=patient)
        common.add_image(studies, study, where, counts)
    return studies


def _read_entries(file: Path) -> list[dict[str, Any]]:
    """The studies of the JSON file.

    Raises:
        CorpusError: the file has another form.
    """
    content = common.read_json(file)
    if not isinstance(content, list):
        raise CorpusError(f"{file}: expected a list of studies, got {type(content).__name__}")
    for number, entry in enumerate(content):
        where = f"{file.name}, entry {number}"
        for key, kind in (("StudyID", str), ("ImageID", str), ("findings", list)):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise CorpusError(f"{where}: expected an object with StudyID, ImageID and findings; {key} is wrong")
        for one in entry["findings"]:
            _check_finding(one, f"{where}, study {entry['StudyID']}")
    return content


def _check_finding(finding: Any, where: str) -> None:
    if not isinstance(finding, dict):
        raise CorpusError(f"{where}: a finding must be an object, got {str(finding)[:80]!r}")
    if not isinstance(finding.get("abnormal"), bool):
        raise CorpusError(f"{where}: abnormal must be true or false, got {finding.get('abnormal')!r}")
    labels = finding.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise CorpusError(f"{where}: labels must be a list of texts, got {str(labels)[:80]!r}")


def _terms(finding: Mapping[str, Any]) -> list[str]:
    """The labels of a sentence; normal is none."""
    return [term for term in map(normalize, finding.get("labels") or ()) if term and term != NORMAL]


def _join(findings: Iterable[Mapping[str, Any]], key: str, counts: Counter[str]) -> str:
    """The sentences in their order, each with a full stop."""
    sentences = []
    for finding in findings:
        sentence = str(finding.get(key) or "").strip()
        counts[f"Sentences without a text as {key}"] += not sentence
        if sentence:
            sentences.append(sentence if sentence[-1] in ".!?" else f"{sentence}.")
    return " ".join(sentences)


def _draw(study: Study, findings: Iterable[Mapping[str, Any]], readers: str, counts: Counter[str]) -> Masks:
    """Label -> the boxes of the sentences that have it, in pixels."""
    masks: Masks = defaultdict(list)
    size: tuple[int, int] | None = None
    for finding in findings:
        drawn = [finding.get("boxes") or (), (finding.get("extra_boxes") or ()) if readers == "both" else ()]
        for box in (box for part in drawn for box in part):
            size = size or image_size(study.images[0].path)
            try:
                scaled = [share * side for share, side in zip(box, size[::-1] * 2, strict=True)]
            except (TypeError, ValueError):
                raise CorpusError(f"study {study.study_id}: a box is four shares, got {str(box)[:80]}") from None
            outlines = outline_box(scaled, size, "edges", f"study {study.study_id}", counts)
            for term in _terms(finding):
                masks[term] += outlines
    return masks
