"""SIIM-ACR Pneumothorax Segmentation -> studies with masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from generator.corpora.odd_rows import gather_runs
from raddraft.studies import Study, StudyImage

_ORIGIN = "It is part of https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation. Name the file with --table."


def convert(root: Path, out: Path | None = None, table: Path | None = None, images: Path | None = None) -> Conversion:
    """SIIM-ACR: Pneumothorax, 1 or 0, and a mask (PNG) for images that have one; every image is a study and a subject.

    The labels of the challenge's test images are not part of its files, so its train images are split: 70, 10 and 20 %
    by a hash of the image's name. The images come from ChestX-ray14, where a patient may have several; which ones, the
    files do not tell, which the manifest marks ("unknown_patient"). Sex, age and view come from the headers. The rows
    of one image are one mask.

    Odd rows are counted: a mask counts, though another row of its image says -1, a blank cell
    is -1, a row that repeats a mask is left out; so is a mask that leaves the image or is no list of pairs, though the
    label stays 1; other sexes than M and F, ages that cannot be read and ages above 120 are unknown.

    Args:
        root: Folder that holds train-rle.csv (ImageId, EncodedPixels; one row per pneumothorax, -1 for none) and
            dicom-images-train/STUDY/SERIES/IMAGEID.dcm.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default train-rle.csv, or stage_2_train.csv, in root.
        images: Folder to search for DICOM files of 1024 x 1024 pixels, subfolders included. By default root.
    """
    table = table or common.find_file(root, ["train-rle.csv", "stage_2_train.csv", "*train*rle*.csv"], _ORIGIN)
    counts = Counter[str]()
    codes = gather_runs(_read_cells(table), counts)
    paths = {path.stem: path for path in sorted((images or root).rglob("*.dcm"))}
    studies = []
    for name, found in codes.items():
        image = StudyImage(paths.get(name, (images or root) / f"{name}.dcm"))
        studies.append(Study(name, name, common.hash_split(name), [image], labels={"Pneumothorax": int(bool(found))}))
    conversion = Conversion("siim", studies, out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    conversion.keep_files()
    conversion.read_headers()
    conversion.add_masks({name: {"pneumothorax": found} for name, found in codes.items()}, (1024, 1024))
    return conversion.write()


def _read_cells(table: Path) -> Iterator[tuple[str, str]]:
    """Image and run lengths of each row."""
    for where, row in common.read_table(table):
        row = {key.strip(): value.strip() for key, value in row.items() if key}  # the header has a blank too many
        if not {"ImageId", "EncodedPixels"} <= row.keys():
            raise CorpusError(f"{where}: needs columns ImageId and EncodedPixels. Columns: {', '.join(row)}")
        yield row["ImageId"], row["EncodedPixels"]
