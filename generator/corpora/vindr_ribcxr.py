"""VinDr-RibCXR (Nguyen et al. 2021) -> studies with masks of the ribs.

A JSON file reads {"img": {"0": path}, "R1": {"0": [{"x": …, "y": …}, …]}, … "L10"}.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from generator.corpora import boxes, common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from generator.corpora.films import image_size
from raddraft.studies import Study, StudyImage

RIBS = tuple(f"{side}{number}" for side in "RL" for number in range(1, 11))
_ORIGIN = "It is part of VinDr-RibCXR, https://vindr.ai/datasets/ribcxr (on application)."


def convert(root: Path, out: Path | None = None) -> Conversion:
    """VinDr-RibCXR: a mask for each of 20 ribs (R1 to R10, L1 to L10) and for all of them (ribs), drawn from polygons.

    The official val part, on which results are published, becomes test; val is a tenth of the official train images,
    by a hash of the image's name. Every image is a study and a subject of its own. A rib without polygon has no mask.
    Polygons that reach beyond the film are cut at its edge and counted, as are images that stand twice, of which the
    first counts.

    Args:
        root: Folder that holds Vindr_RibCXR_train_mask.json, Vindr_RibCXR_val_mask.json and the images, at any depth. A
            path of the JSON files starts here; a file that does not exist there is looked for by its name.
        out: The manifest to write. By default studies.jsonl in root.
    """
    found = sorted(root.rglob("VinDr_RibCXR_*.png"))
    by_name = {path.name: path for path in found if "masks" not in path.relative_to(root).parts}  # of an earlier run
    counts = Counter[str]()
    studies: dict[str, Study] = {}
    masks: dict[str, dict[str, list[Any]]] = {}
    for part in ("train", "val"):
        path = next(iter(sorted(root.rglob(f"Vindr_RibCXR_{part}_mask.json"))), None)
        if path is None:
            raise MissingFileError(
                f"{root}: there is no Vindr_RibCXR_{part}_mask.json, in no subfolder either. {_ORIGIN}"
            )
        table = common.read_json(path)
        for key in ("img", *RIBS):
            if not isinstance(table, dict) or not isinstance(table.get(key), dict):
                raise CorpusError(f"{path}: no object {key!r}. Expected: img, R1 to R10, L1 to L10")
        for key, name in table["img"].items():
            image = root / name
            study_id = image.stem
            split = "test" if part == "val" else common.hash_split(study_id, common.NO_VAL)
            image = image if os.path.isfile(image) else by_name.get(image.name, image)
            known = study_id in studies
            study = Study(study_id, study_id, split, [StudyImage(image)])
            common.add_image(studies, study, f"{path.name}, {key}", counts)
            if known:
                continue
            masks[study_id] = {rib: _polygons(table[rib].get(key), f"{path.name}, {rib}, {key}") for rib in RIBS}
            masks[study_id]["ribs"] = [outline for found in masks[study_id].values() for outline in found]
    conversion = Conversion("vindr-ribcxr", studies.values(), out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    conversion.keep_files()
    for study in conversion.studies:
        size = image_size(study.images[0].path)
        rings = (ring for outline in masks[study.study_id]["ribs"] for ring in outline.rings)
        counts[boxes.BEYOND] += sum(boxes.leaves(ring, size, "centers") for ring in rings)
    conversion.add_masks(masks)
    return conversion.write()


def _polygons(points: Any, where: str) -> list[Any]:
    """One rib's outline, if it has one."""
    from encoder.masks import MaskError, vindr_polygons

    try:
        polygons = vindr_polygons(points or None)
    except MaskError as error:
        raise CorpusError(f"{where}: {error}") from None
    return [polygons] if polygons.rings else []
