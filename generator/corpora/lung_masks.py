"""Three sets with masks drawn by people -> studies: JSRT with SCR's masks, Montgomery, Shenzhen.

jsrt        All247images/JPCLN001.IMG            raw, 2048 x 2048, 16-bit big-endian, or PNG files of the same name
            scratch/fold1/masks/left lung/JPCLN001.gif, … fold2, right lung, heart, left clavicle, right clavicle
            CLNDAT_EN.txt, CNNDAT_EN.txt         name, …, age, sex, …
montgomery  CXR_png/MCUCXR_0001_0.png, ManualMask/leftMask/, ManualMask/rightMask/, ClinicalReadings/*.txt
shenzhen    CXR_png/CHNCXR_0001_0.png, mask/CHNCXR_0001_0_mask.png, ClinicalReadings/*.txt
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from generator.sections import clean_sections
from raddraft.files import write_whole
from raddraft.studies import Study, StudyImage
from raddraft.text import progress

_SIDE = 2048  # of a .IMG file
_DEPTH = 4095  # largest gray value of a .IMG file
_STRUCTURES = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
_ZONES = ("upper", "middle", "lower")
_SEX = re.compile(r"\b(fem\w*|mal\w*|[mf])\b", re.IGNORECASE)  # one reading has "femal"
_AGE = re.compile(r"(\d+)\s*(y|month|day)", re.IGNORECASE)

Masks = dict[str, dict[str, list[Path]]]
"""Study -> structure -> files whose union is its mask."""


def convert(
    source: Literal["jsrt", "montgomery", "shenzhen"], root: Path, out: Path | None = None, masks: Path | None = None
) -> Conversion:
    """JSRT (lungs, heart, clavicles), Montgomery or Shenzhen (lungs): every image is a study and a subject of its own.

    Masks are brought to the image's own grid (nearest neighbor); lungs is the union of both. Where each lung has a mask
    (JSRT, Montgomery) its zones have, too: its height in three equal parts (left upper zone …), which is this project's
    definition. An image without mask stays. JSRT: SCR's fold 1 is train, a tenth of it val (by a hash of the image's
    name), fold 2 is test; images in neither are left out; the label is Nodule. Its .IMG files, which other code cannot
    read, are written as 16-bit PNG files to images/ beside the manifest, inverted so that air is dark. Montgomery and
    Shenzhen: no official split, so 70, 10 and 20 % are train, val and test, by a hash of the image's name; the label is
    Tuberculosis, from the file's name, and the reading is the section note. Ages in months or days are turned into
    years and counted, as are ages above 100 (kept) or 120 (unknown) and masks that cannot be read (left out).

    Args:
        source: Which of the three sets root holds.
        root: The folder of the set as published; for jsrt files may lie deeper.
        out: The manifest to write. By default studies.jsonl in root.
        masks: jsrt: the folder that holds fold1/ and fold2/, by default found in root. shenzhen: the folder of
            masks, by default mask in root. Not for montgomery.
    """
    if source == "montgomery" and masks:
        raise CorpusError(f"--masks {masks}: not for montgomery, whose masks are in ManualMask in root")
    counts = Counter[str]()
    if source == "jsrt":
        studies, files = _read_jsrt(root, masks, counts)
    else:
        studies, files = _read_tuberculosis(source, root, masks, counts)
    conversion = Conversion(source, studies, out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    if source == "jsrt":
        conversion.keep_studies("in no fold of SCR", lambda study: bool(study.split))
        for study in progress(conversion.studies, "images"):
            image = study.images[0]
            if image.path.suffix == ".IMG":
                image.path = _write_png(image.path, conversion.out.absolute().parent / "images")
    conversion.add_masks(files)
    for study in progress(conversion.studies, "zones"):
        _add_zones(study.images[0])
    return conversion.write()


def _add_zones(image: StudyImage) -> None:
    """Write masks of the zones beside those of both lungs, and add them to the image."""
    import numpy as np

    from encoder.masks import load_mask, write_mask

    for side in ("left", "right"):
        if whole := image.masks.get(f"{side} lung"):
            mask = load_mask(whole)
            rows = np.flatnonzero(mask.any(1))
            top, height = (rows[0], rows[-1] + 1 - rows[0]) if len(rows) else (0, 0)
            for part, zone in enumerate(_ZONES):
                kept = mask.copy()
                kept[: top + height * part // 3] = False
                kept[top + height * (part + 1) // 3 :] = False
                path = whole.parent.parent / f"{side}_{zone}_zone" / whole.name
                write_mask(path, kept)
                image.masks[f"{side} {zone} zone"] = path


def _read_jsrt(root: Path, masks: Path | None, counts: Counter[str]) -> tuple[list[Study], Masks]:
    """Studies (in no fold of SCR: without split) and the files of their masks."""
    folds = masks or next((path.parent for path in sorted(root.rglob("fold1")) if path.is_dir()), None)
    if folds is None:
        raise MissingFileError(f"{root}: there is no folder fold1 with the masks of SCR. Name its parent with --masks.")
    fold_of = {path.stem: fold for fold in ("fold1", "fold2") for path in (folds / fold / "masks").rglob("JPC*")}
    patients = _jsrt_patients(root, counts)
    studies, files = [], {}
    # A .IMG file comes before its PNG, which may be of an earlier run, as all below masks may be.
    found = [path for suffix in ("png", "IMG") for path in sorted(root.rglob(f"JPC*.{suffix}"))]
    paths = {path.stem: path for path in found if "masks" not in path.relative_to(root).parts}
    for name, path in sorted(paths.items()):
        fold = fold_of.get(name, "")
        split = {"fold1": common.hash_split(name, common.NO_VAL), "fold2": "test"}.get(fold, "")
        labels: dict[str, int | None] = {"Nodule": int(name.startswith("JPCLN"))}
        studies.append(
            Study(name, name, split, [StudyImage(path, "PA")], labels=labels, patient=patients.get(name, {}))
        )
        parts = {part: sorted((folds / fold / "masks" / part).glob(f"{name}.*")) for part in _STRUCTURES}
        files[name] = parts | {"lungs": parts["left lung"] + parts["right lung"]}
    if not studies:
        raise MissingFileError(f"{root}: there is no JPC*.IMG or JPC*.png. JSRT: http://db.jsrt.or.jp/eng.php")
    return studies, files


def _write_png(raw: Path, folder: Path) -> Path:
    """A .IMG file (no header; high values are dark film) -> 16-bit PNG, air dark."""
    import numpy as np
    from PIL import Image

    if raw.stat().st_size != 2 * _SIDE**2:
        raise CorpusError(f"{raw}: {raw.stat().st_size} bytes; {_SIDE} x {_SIDE} pixels of 16 bits are {2 * _SIDE**2}")
    pixels = np.fromfile(raw, ">u2").reshape(_SIDE, _SIDE)
    path = folder / f"{raw.stem}.png"
    with write_whole(path, sync=False) as temporary:
        Image.fromarray((_DEPTH - pixels.clip(0, _DEPTH)).astype(np.uint16)).save(temporary, format="PNG")
    return path


def _jsrt_patients(root: Path, counts: Counter[str]) -> dict[str, dict[str, Any]]:
    """Age and sex are side by side in both tables; what comes before differs, and some lines run together."""
    patients = {}
    for table in (path for path in sorted(root.rglob("*")) if path.name.upper() in ("CLNDAT_EN.TXT", "CNNDAT_EN.TXT")):
        parts = re.split(r"(JPC[LN]N\d{3})\.IMG", table.read_text(encoding="utf-8", errors="replace"))
        if len(parts) == 1:
            raise CorpusError(f"{table}: no line names a film, such as JPCLN001.IMG")
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            if match := re.search(r"(\d+|\?)[\s,]+((?:fe)?male)", text, re.IGNORECASE):
                patients[name] = common.parse_patient(match[2], match[1].strip("?"), counts)
    return patients


def _read_tuberculosis(source: str, root: Path, masks: Path | None, counts: Counter[str]) -> tuple[list[Study], Masks]:
    prefix, head_lines = ("MCUCXR", 2) if source == "montgomery" else ("CHNCXR", 1)
    studies, files = [], {}
    for path in sorted((root / "CXR_png").glob(f"{prefix}_*.png")):
        name = path.stem
        if not re.fullmatch(rf"{prefix}_\d+_[01]", name):
            raise CorpusError(f"{path}: expected a name like {prefix}_0001_0.png, which ends in 0 or 1")
        patient, note = _read_reading(root / "ClinicalReadings" / f"{name}.txt", head_lines, counts)
        image = StudyImage(path, "PA" if source == "montgomery" else None)
        labels: dict[str, int | None] = {"Tuberculosis": int(name[-1])}
        studies.append(Study(name, name, common.hash_split(name), [image], note, labels, patient))
        if source == "montgomery":
            left, right = (root / "ManualMask" / f"{side}Mask" / path.name for side in ("left", "right"))
            files[name] = {"left lung": [left], "right lung": [right], "lungs": [left, right]}
        else:
            files[name] = {"lungs": [(masks or root / "mask") / f"{name}_mask.png"]}
    if not studies:
        origin = "The set is at https://data.lhncbc.nlm.nih.gov"
        raise MissingFileError(f"{root / 'CXR_png'}: there is no {prefix}_*.png. {origin}")
    return studies, files


def _read_reading(path: Path, head_lines: int, counts: Counter[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Sex and age out of the first lines (027Y, 45yrs, 16month, 64days), the rest as note; blank without a file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    head = "\n".join(lines[:head_lines])
    sex, age = _SEX.search(head), _AGE.search(head)
    patient = common.parse_patient(sex[1][0] if sex else "", age[1] + age[2][0] if age else "", counts)
    return patient, clean_sections({"note": "\n".join(lines[head_lines:])})
