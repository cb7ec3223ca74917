"""VinDr-RibCXR (Nguyen et al. 2021) -> studies with masks of the ribs.

Annotations/train/Vindr_RibCXR_train_mask.json    {"img": {"0": path}, "R1": {"0": [{"x": …, "y": …}, …]}, … "L10"}
Annotations/val/Vindr_RibCXR_val_mask.json        the same
data/train/img/VinDr_RibCXR_train_000.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.corpora.common import Conversion, CorpusError, hash_split, progress
from generator.corpora.siim import add_mask
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from encoder.masks import Polygons

RIBS = tuple(f"{side}{number}" for side in "RL" for number in range(1, 11))
VAL_FRACTION = 0.1
"""Share of the official train images that becomes val."""

_ORIGIN = "It is part of VinDr-RibCXR, https://vindr.ai/datasets/ribcxr (on application)."


def convert(root: Path, out: Path | None = None) -> Conversion:
    """VinDr-RibCXR: a mask for each of 20 ribs (R1 to R10, L1 to L10) and for all of them (ribs), drawn from polygons.

    The official val part, on which results are published, becomes test; val is a tenth of the official train images,
    by a hash of the image's name (`hash_split` in generator/corpora/common.py). Every image is a study and a subject
    of its own. A rib without polygon has no mask. Masks go to masks/RIB/ID.png beside the manifest.

    Args:
        root: Folder that holds the two JSON files and the images, at any depth. A path of the JSON files starts here;
            a file that is not there is looked for by its name.
        out: The manifest to write. By default studies.jsonl in root.
    """
    out = out or root / "studies.jsonl"
    found = sorted(root.rglob("VinDr_RibCXR_*.png"))
    by_name = {path.name: path for path in found if "masks" not in path.relative_to(root).parts}  # of an earlier run
    studies = []
    polygons: dict[str, dict[str, Polygons]] = {}
    for part in ("train", "val"):
        path = _find(root, f"Vindr_RibCXR_{part}_mask.json")
        table = _read(path)
        for key, name in table["img"].items():
            image = root / name
            study_id = image.stem
            split = "test" if part == "val" else hash_split(study_id, (1 - VAL_FRACTION, VAL_FRACTION, 0))
            image = image if image.is_file() else by_name.get(image.name, image)
            studies.append(Study(study_id, study_id, split, [StudyImage(image)]))
            polygons[study_id] = {rib: _polygons(table[rib].get(key), f"{path.name}, {rib}, {key}") for rib in RIBS}
    conversion = Conversion("vindr-ribcxr", studies)
    conversion.keep_files()
    for study in progress(conversion.studies, "masks"):
        _add_masks(study, polygons[study.study_id], out.parent)
    return conversion.write(out)


def _find(root: Path, name: str) -> Path:
    found = sorted(root.rglob(name))
    if not found:
        raise FileNotFoundError(f"{root}: there is no {name}, in no subfolder either. {_ORIGIN}")
    return found[0]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}: not valid JSON: {error}") from None
    missing = [key for key in ("img", *RIBS) if not isinstance(table, dict) or not isinstance(table.get(key), dict)]
    if missing:
        raise CorpusError(f"{path}: no object {missing[0]!r}. Expected: img, R1 to R10, L1 to L10")
    return table


def _polygons(points: Any, where: str) -> Polygons:
    from encoder.masks import MaskError, vindr_polygons

    try:
        return vindr_polygons(points or None)
    except MaskError as error:
        raise CorpusError(f"{where}: {error}") from None


def _add_masks(study: Study, polygons: dict[str, Polygons], folder: Path) -> None:
    from PIL import Image

    from encoder.masks import Polygons, load_mask

    with Image.open(study.images[0].path) as picture:
        size = picture.size[::-1]
    drawn = {rib: polygon for rib, polygon in polygons.items() if polygon.rings}
    if drawn:
        rings = tuple(ring for polygon in drawn.values() for ring in polygon.rings)
        drawn["ribs"] = Polygons(rings, "centres")
    for name, polygon in drawn.items():
        add_mask(study, name, load_mask(polygon, size), folder)
