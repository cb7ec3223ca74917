"""What converters read from image files, headers, and write beside them, masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raddraft.studies import Study

if TYPE_CHECKING:
    from encoder.masks import Part


def read_header(path: Path) -> tuple[str, str, str] | None:
    """Sex, age and view as a DICOM header states them, "" where it does not; None if it cannot be read.

    Nothing else is read of it.
    """
    import warnings

    from pydicom import dcmread

    tags = ["Rows", "PatientSex", "PatientAge", "ViewPosition"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ages without unit, as RSNA and SIIM have them, one warning each
            header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
            if "Rows" not in header:
                return None
            sex, age, view = (str(header.get(name) or "").strip() for name in tags[1:])
    except Exception:  # broken bytes make the parser raise anything
        return None
    return sex, age, view


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the pixels that a file stores.

    Raises:
        ImageError: they cannot be read.
    """
    from raddraft.images import shown_size, stored_size

    return stored_size(path) or shown_size(path)


def draw_masks(
    studies: Iterable[Study],
    masks: Mapping[str, Mapping[str, Sequence[Part]]],
    folder: Path,
    size: tuple[int, int] | None,
) -> list[str]:
    """Write masks as FOLDER/STRUCTURE/NAME.png and add them to the images, as in `Conversion.add_masks`.

    In names of folders and files all but letters, digits, - and _ is _; in those of files blanks and full stops stay.

    Returns:
        A sentence for each mask that cannot be read, leaves its image or has the file of another; there is none then.
    """
    import numpy as np

    from encoder.masks import MaskError, draw_part, write_mask

    failures = []
    written: set[Path] = set()
    for study in studies:
        named = [(f"{study.study_id}_{image.path.stem}", image) for image in study.images]
        for name, image in [(study.study_id, study.images[0]), *named]:
            for structure, parts in masks.get(name, {}).items():
                if not parts or not all(os.path.isfile(part) for part in parts if isinstance(part, Path)):
                    continue
                shape = size or image_size(image.path)
                try:
                    mask = np.any([draw_part(part, shape) for part in parts], axis=0)
                except MaskError as error:
                    failures.append(f"image {name}, {structure}: {error}")
                    continue
                file = re.sub(r"[^\w .-]", "_", name)
                path = folder / re.sub(r"[^\w-]", "_", structure) / f"{file}.png"
                if path in written:
                    failures.append(f"image {name}, {structure}: {path} is the mask of another image or structure")
                    continue
                write_mask(path, mask)
                written.add(path)
                image.masks[structure] = path
    return failures
