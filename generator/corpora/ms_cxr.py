"""MS-CXR 1.1.0 (Boecking et al. 2022): phrases of MIMIC-CXR's reports with boxes on its films -> studies with masks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from generator.corpora import boxes, common, mimic_cxr
from generator.corpora.common import Conversion, CorpusError
from raddraft.splits import OWN_SPLIT
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from encoder.masks import Polygons

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia"),
    "Pneumothorax",
)
_BOX = ("x", "y", "w", "h", "image_width", "image_height")
_PATH = re.compile(r"(?:.*/)?(p\d\d)/(p\d+)/(s\d+)/([\w-]+)\.\w+")
_ORIGIN = "It is part of MS-CXR, https://physionet.org/content/ms-cxr/ (credentialed access)."


def convert(
    root: Path,
    images: Path,
    out: Path | None = None,
    tables: Path | None = None,
    split: Literal["mimic-cxr", "ms-cxr"] = "mimic-cxr",
) -> Conversion:
    """MS-CXR: the films that have boxes, a label that is 1 and a mask (PNG) for each of their findings, of 8.

    Subjects and studies are named as in `raddraft prepare mimic-cxr`. Findings without a box are not mentioned. The
    boxes of a finding are one mask, cut at the film's edge; boxes that leave the film are counted, and left out if they
    have no pixel on it. Each box that is drawn stands with its phrase in the image's phrases, as x1, y1, x2, y2 in
    pixels; rows that repeat one are counted. Views are not known: the table does not tell them.

    Args:
        root: Folder that holds MS_CXR_Local_Alignment_v1.1.0.csv.
        images: Folder of MIMIC-CXR-JPG, or of MIMIC-CXR's DICOM files, that holds files/p10/…
        out: The manifest to write. By default studies.jsonl in root.
        tables: Folder with mimic-cxr-2.0.0-split.csv, gzipped or not. By default the folder of the images.
        split: mimic-cxr: the official split of MIMIC-CXR, so that no film of test is one of its train; ms-cxr: the
            table's own, whose train and test have nothing to do with MIMIC-CXR's.
    """
    if tables and split == "ms-cxr":
        raise CorpusError(f"--tables {tables}: --split ms-cxr reads no table of MIMIC-CXR")
    table = common.find_file(root, ["MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment*.csv"], _ORIGIN)
    split_of = mimic_cxr.read_splits(mimic_cxr.find_splits(tables or images)) if split == "mimic-cxr" else {}
    files = images / "files" if (images / "files").is_dir() else images
    studies: dict[str, Study] = {}
    masks: dict[str, dict[str, list[Polygons]]] = defaultdict(lambda: defaultdict(list))
    counts = Counter[str]()
    needed = ["category_name", "label_text", "path", *_BOX, *([] if split_of else ["split"])]
    for where, row in common.read_table(table, needed):
        match = _PATH.fullmatch(row["path"])
        if match is None:
            raise CorpusError(f"{where}: path must end like p10/p10000032/s50414267/x.jpg, got {row['path']!r}")
        group, subject, study_id, name = match.groups()
        finding = row["category_name"]
        if finding not in FINDINGS:
            raise CorpusError(f"{where}: unknown category_name {finding!r}. Choices: {', '.join(FINDINGS)}")
        if split_of and name not in split_of:
            raise CorpusError(f"{where}: image {name!r} is not in the split of MIMIC-CXR")
        part = split_of.get(name) or common.parse_split(row["split"], where)
        path = files / group / subject / study_id / f"{name}.jpg"
        study = studies.setdefault(study_id, Study(study_id, subject, part, []))
        image = next((image for image in study.images if image.path == path), None)
        if image is None:
            image = StudyImage(path, extra={"phrases": []})
            common.add_image(studies, Study(study_id, subject, part, [image]), where, counts)
        numbers = [number for column in _BOX if (number := common.parse_number(row, column, where)) is not None]
        if len(numbers) < len(_BOX):
            raise CorpusError(f"{where}: {', '.join(_BOX)} must not be blank")
        x, y, w, h, width, height = numbers
        box = [x, y, x + w, y + h]
        phrase = {"label": finding, "text": row["label_text"], "box": box}
        if phrase in image.extra["phrases"]:
            counts["Rows that repeat a phrase and its box, left out"] += 1
            continue
        study.labels[finding] = 1
        if drawn := boxes.outline_box(box, (int(height), int(width)), "edges", where, counts):
            masks[f"{study_id}_{name}"][finding] += drawn
            image.extra["phrases"].append(phrase)
    for study in studies.values() if not split_of else ():
        study.extra[OWN_SPLIT] = True
    conversion = Conversion("ms-cxr", studies.values(), out or root / "studies.jsonl", counts)
    conversion.keep_files(".dcm")
    conversion.add_masks(masks)
    return conversion.write()
