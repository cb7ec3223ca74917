"""SIIM-ACR Pneumothorax Segmentation -> studies with masks.

train-rle.csv                                   ImageId, EncodedPixels; one row per pneumothorax, -1 for none
dicom-images-train/STUDY/SERIES/IMAGEID.dcm     every image in two folders of its own
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from generator.corpora.common import Conversion, CorpusError, find_file, hash_split, progress, read_table
from generator.corpora.nih import blank_ages
from generator.corpora.rsna import read_headers
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    import numpy as np

FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of train, val and test."""
SIDE = 1024
"""Pixels; all images of this set, and the masks encoded for them, are squares of this side."""

_ORIGIN = "It is part of https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation. Name the file with --table."


def convert(root: Path, out: Path | None = None, table: Path | None = None, images: Path | None = None) -> Conversion:
    """SIIM-ACR: Pneumothorax, 1 or 0, and a mask (PNG) for images that have one; every image is a study and a subject.

    The labels of the challenge's test images were not part of its files, so its train images are split: 70, 10 and
    20 % are train, val and test, by a hash of the image's name (`hash_split` in generator/corpora/common.py). The
    images come from ChestX-ray14, where a patient may have several; which ones, the files do not tell. Sex, age and
    view come from the headers. The rows of one image are one mask, masks/pneumothorax/ImageId.png beside the manifest;
    images without pneumothorax have none. Images that are not on disk are left out and counted.

    Args:
        root: Folder that holds train-rle.csv and dicom-images-train/.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default train-rle.csv, or stage_2_train.csv, in root.
        images: Folder to search for DICOM files of 1024 x 1024 pixels, subfolders included. By default root.
    """
    table = table or find_file(root, ["train-rle.csv", "stage_2_train.csv", "*train*rle*.csv"], _ORIGIN)
    out = out or root / "studies.jsonl"
    runs: dict[str, list[str]] = defaultdict(list)
    for where, row in read_table(table):
        row = {key.strip(): value.strip() for key, value in row.items() if key}  # the header has a blank too many
        if not {"ImageId", "EncodedPixels"} <= row.keys():
            raise CorpusError(f"{where}: needs columns ImageId and EncodedPixels. Columns: {', '.join(row)}")
        runs[row["ImageId"]] += [row["EncodedPixels"]] if row["EncodedPixels"] not in ("-1", "") else []
    paths = {path.stem: path for path in sorted((images or root).rglob("*.dcm"))}
    studies = [
        Study(
            name,
            name,
            hash_split(name, FRACTIONS),
            [StudyImage(paths.get(name, (images or root) / f"{name}.dcm"))],
            labels={"Pneumothorax": int(bool(encoded))},
        )
        for name, encoded in runs.items()
    ]
    conversion = Conversion("siim", studies)
    conversion.keep_files()
    read_headers(conversion)
    blank_ages(conversion)
    for study in progress(conversion.studies, "masks"):
        add_runs(study, "pneumothorax", runs[study.study_id], out.parent)
    return conversion.write(out)


def add_runs(study: Study, structure: str, texts: list[str], folder: Path) -> None:
    """Decode run-length texts (offsets relative, 1024 x 1024 pixels) into one mask, see `add_mask`; nothing for none.

    Raises:
        CorpusError: a text is broken or leaves the picture.
    """
    from encoder.masks import MaskError, Runs, load_mask

    if not texts:
        return
    try:
        mask = load_mask(Runs(tuple(texts), "relative"), (SIDE, SIDE))
    except MaskError as error:
        raise CorpusError(f"image {study.study_id}, {structure}: {error}") from None
    add_mask(study, structure, mask, folder)


def add_mask(study: Study, structure: str, mask: np.ndarray, folder: Path) -> None:
    """Write a mask [H, W] to folder/masks/STRUCTURE/STUDY.png and enter it at the study's first image."""
    from encoder.masks import write_mask

    path = folder.absolute() / "masks" / structure.replace(" ", "_") / f"{study.study_id}.png"
    write_mask(path, mask)
    study.images[0].masks[structure] = path
