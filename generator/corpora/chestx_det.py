"""ChestX-Det (Lian et al. 2021) and ChestX-Det10 (Liu et al. 2020) -> studies with masks: films of ChestX-ray14.

A JSON file is a list of {"file_name": …, "syms": [finding, …], "boxes": [[x1, y1, x2, y2], …], "polygons":
[[[x, y], …], …]}, a box and an outline for each finding; ChestX-Det10 has no polygons.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.corpora import boxes, common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from encoder.masks import Polygons

TEN = (
    *("Atelectasis", "Calcification", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Fracture", "Mass"),
    *("Nodule", "Pneumothorax"),
)
THIRTEEN = tuple(sorted((*TEN, "Cardiomegaly", "Diffuse Nodule", "Pleural Thickening")))
_SIZE = (1024, 1024)  # of all films of ChestX-ray14; coordinates run to 1022
_ORIGIN = (
    "ChestX_Det_train.json and ChestX_Det_test.json are at https://github.com/Deepwise-AILab/ChestX-Det-Dataset, "
    "train.json and test.json of ChestX-Det10 at https://github.com/Deepwise-AILab/ChestX-Det10-Dataset."
)


def convert(root: Path, out: Path | None = None, images: Path | None = None) -> Conversion:
    """ChestX-Det: 13 findings and No Finding, each 1 or 0, and a mask (PNG) of each finding that is 1; image by image.

    ChestX-Det10 has 10 of the findings, and boxes in place of outlines. An image without any finding (an empty list)
    is healthy: No Finding is 1. Outlines of one finding are one mask; those that reach beyond the film are cut at its
    edge and counted, boxes with no pixel on it left out. Test is the official test part; val is a tenth of the official
    train images, by a hash of the image's name. The films are from ChestX-ray14, where a patient may have several, but
    have numbers of their own: every image is a subject, which the manifest marks ("unknown_patient"). Of several
    entries of an image the first counts, and the others are counted; an image of both parts is refused.

    Args:
        root: Folder that holds ChestX_Det_train.json and ChestX_Det_test.json, or train.json and test.json of
            ChestX-Det10, and the images, at any depth.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder to search for PNG files, subfolders included. By default root.
    """
    folder = images or root
    found = [path for path in sorted(folder.rglob("*.png")) if "masks" not in path.relative_to(folder).parts]
    paths = {path.name: path for path in found}  # masks are of an earlier run
    studies: dict[str, Study] = {}
    masks: dict[str, dict[str, list[Polygons]]] = {}
    counts = Counter[str]()
    for part in ("train", "test"):
        table = common.find_file(root, [f"ChestX_Det_{part}.json", f"{part}.json"], _ORIGIN)
        findings = THIRTEEN if table.name.startswith("ChestX_Det_") else TEN
        for where, entry in _read(table):
            name = entry["file_name"]
            study_id = Path(name).stem
            split = "test" if part == "test" else common.hash_split(study_id, common.NO_VAL)
            image = StudyImage(paths.get(name, folder / name))
            drawn = _masks(entry, findings, where, Counter() if study_id in studies else counts)
            masks.setdefault(study_id, drawn)
            labels: dict[str, int | None] = {finding: int(finding in drawn) for finding in findings}
            labels["No Finding"] = int(not entry["syms"])
            study = Study(study_id, study_id, split, [image], labels=labels)
            common.add_image(studies, study, where, counts)
    conversion = Conversion("chestx-det", studies.values(), out or root / "studies.jsonl", counts)
    healthy = sum(study.labels["No Finding"] == 1 for study in studies.values())
    conversion.notes += [f"Images without any finding, healthy: {healthy:,}"]
    conversion.mark_unknown_patients()
    conversion.keep_files()
    conversion.add_masks(masks)
    return conversion.write()


def _read(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a JSON file, each with its place, in the form that the module's docstring gives."""
    entries = common.read_json(table)
    if not isinstance(entries, list) or not entries:
        raise CorpusError(f"{table}: expected a list of objects with file_name, syms, boxes, got {str(entries)[:80]}")
    for number, entry in enumerate(entries, 1):
        where = f"{table.name} entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise CorpusError(f"{where}: expected an object with file_name, syms and boxes, got {str(entry)[:80]}")
        lists: list[Any] = [entry.get("syms"), entry.get("boxes"), entry.get("polygons", entry.get("boxes"))]
        if not all(isinstance(part, list) for part in lists) or len({len(part) for part in lists}) > 1:
            raise CorpusError(f"{where}, {entry['file_name']}: syms, boxes and polygons must be lists of one length")
        yield where, entry


def _masks(
    entry: dict[str, Any], findings: tuple[str, ...], where: str, counts: Counter[str]
) -> dict[str, list[Polygons]]:
    """Finding -> its outlines."""
    found: dict[str, list[Polygons]] = defaultdict(list)
    for position, finding in enumerate(entry["syms"]):
        if finding not in findings:
            raise CorpusError(f"{where}: unknown finding {finding!r}. Choices: {', '.join(findings)}")
        place = f"{where}, {finding}"
        if "polygons" in entry:
            found[finding].append(boxes.outline(entry["polygons"][position], _SIZE, "centers", place, counts))
        else:
            found[finding] += boxes.outline_box(entry["boxes"][position], _SIZE, "centers", place, counts)
    return found
