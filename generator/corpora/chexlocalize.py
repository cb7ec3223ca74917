"""CheXlocalize (Saporta et al. 2022): CheXpert's val and test with radiologists' outlines of ten findings -> studies.

CheXpert/       val/, test/, val_labels.csv, test_labels.csv
CheXlocalize/   gt_segmentations_val.json, gt_segmentations_test.json: image -> finding -> COCO's run lengths
                gt_annotations_val.json, gt_annotations_test.json: image -> img_size, and finding -> outlines
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from generator.corpora import boxes, chexpert, common
from generator.corpora.common import Conversion, CorpusError, MissingFileError

if TYPE_CHECKING:
    from encoder.masks import Part

FINDINGS = {
    "Enlarged Cardiomediastinum": "Enlarged Cardiomediastinum",
    "Cardiomegaly": "Cardiomegaly",
    "Lung Lesion": "Lung Lesion",
    "Airspace Opacity": "Lung Opacity",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Pleural Effusion": "Pleural Effusion",
    "Support Devices": "Support Devices",
}
"""The files' word -> the label of CheXpert."""
_ORIGIN = "It is part of CheXlocalize, https://aimi.stanford.edu/datasets/chexlocalize (free registration)."


def convert(root: Path, out: Path | None = None, views: Literal["frontal", "all"] = "frontal") -> Conversion:
    """CheXlocalize: CheXpert's labels, sexes and ages of val and test, and a mask (PNG) of each finding that has one.

    Studies, subjects, labels and views are those of `raddraft prepare chexpert`. Masks are of images, and named after
    them (patient64541_study1_view1_frontal). They come from gt_segmentations_*.json, or of a split without it from
    gt_annotations_*.json; where the images have another size, masks are resized. "Airspace Opacity" becomes Lung
    Opacity. A finding without a pixel has no mask; images without any outline, which these files leave out, stay. The
    outlines of the human benchmark are not read.

    Args:
        root: Folder that holds CheXpert/ and CheXlocalize/, or all of their files.
        out: The manifest to write. By default studies.jsonl in root.
        views: frontal keeps images whose file name says frontal; all keeps every image.
    """
    films, outlines = (root / name if (root / name).is_dir() else root for name in ("CheXpert", "CheXlocalize"))
    counts = Counter[str]()
    counts = Counter[str]()
    studies, notes = chexpert.read_studies(films, ("val", "test"), counts)
    masks: dict[str, dict[str, list[Part]]] = {}
    for split in {study.split: None for study in studies}:
        masks |= _read_masks(outlines, split, counts)
    conversion = Conversion("chexlocalize", studies, out or root / "studies.jsonl", counts)
    conversion.blank_newborns()
    conversion.keep_views(views)
    conversion.keep_files(*chexpert.FILMS)
    conversion.add_masks(masks)
    names = {f"{study.study_id}_{image.path.stem}" for study in studies for image in study.images}
    images = [image for study in conversion.studies for image in study.images]
    conversion.notes += [
        *notes,
        f"Images with outlines: {len(masks):,}, of which {len(masks.keys() - names):,} are in no table; images with "
        f"masks: {sum(bool(image.masks) for image in images):,} of {len(images):,}",
    ]
    return conversion.write()


def _read_masks(folder: Path, split: str, counts: Counter[str]) -> dict[str, dict[str, list[Part]]]:
    """Image -> label -> what its mask is made of."""
    from encoder.masks import MaskError, coco_runs

    try:
        table = common.find_file(folder, [f"gt_segmentations_{split}.json"], _ORIGIN)
    except MissingFileError as missing:
        table = folder / f"gt_annotations_{split}.json"
        if not table.is_file():
            raise missing from None
    drawn = table.name.startswith("gt_annotations")
    masks: dict[str, dict[str, list[Part]]] = {}
    content = common.read_json(table)
    if not isinstance(content, dict) or not content or not all(isinstance(found, dict) for found in content.values()):
        raise CorpusError(f"{table}: expected an object of images, each an object of findings, got {str(content)[:80]}")
    for name, found in content.items():
        masks[name] = {}
        for finding, value in found.items():
            if drawn and finding == "img_size":
                continue
            where = f"{table.name}, {name}, {finding}"
            if finding not in FINDINGS:
                raise CorpusError(f"{where}: unknown finding. Choices: {', '.join(FINDINGS)}")
            if drawn:
                masks[name][FINDINGS[finding]] = _outlines(value, found.get("img_size"), where, counts)
                continue
            try:
                runs = coco_runs(value)
            except MaskError as error:
                raise CorpusError(f"{where}: {error}") from None
            masks[name][FINDINGS[finding]] = [runs] if any(runs.counts[1::2]) else []
    return masks


def _outlines(value: Any, size: Any, where: str, counts: Counter[str]) -> list[Part]:
    try:
        height, width = map(int, size)
        outlines = list(value)
    except (TypeError, ValueError):
        raise CorpusError(f"{where}: expected a list of outlines and an img_size [height, width], got {size}") from None
    return [boxes.outline(points, (height, width), "centers", where, counts) for points in outlines]
