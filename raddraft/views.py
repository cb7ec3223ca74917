"""Views: how data sets, DICOM (0018,5101) and people name the direction of a chest X-ray -> frontal, lateral, other."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

from raddraft.tables import is_nothing

Direction = Literal["frontal", "lateral", "other"]

WORDS: dict[str, tuple[str, ...]] = {
    "decubitus": ("LLD", "RLD", "DECUBITUS", "DECUB"),
    "lateral": ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LLO", "RLO", "PROFILE"),
    "frontal": ("PA", "AP", "POSTEROANTERIOR", "ANTEROPOSTERIOR", "FRONTAL", "LORDOTIC"),
    "other": ("LAO", "RAO", "LPO", "RPO", "OBLIQUE", "OBL", "SWIMMERS", "COSTAL", "RIB", "RIBS", "EXCLUDE", "OTHER"),
    "silent": (
        *("CHEST", "THORAX", "CXR", "XR", "CR", "DX", "DR", "X", "RAY", "XRAY", "RADIOGRAPH", "VIEW", "VIEWS", "IMAGE"),
        *("PORTABLE", "MOBILE", "BEDSIDE", "ERECT", "UPRIGHT", "STANDING", "SITTING", "SUPINE", "SEMI", "SEMIERECT"),
        *("SEMIUPRIGHT", "HORIZONTAL", "GENERIC", "UNK", "UNKNOWN", "UNSPECIFIED", "UNDEFINED", "NOT", "STATED"),
    ),
}
"""Words of a view and what they tell. decubitus: the patient lies on a side and the film is frontal, also where it is
called a lateral decubitus. silent: nothing about the direction. How they combine is in `direction`."""

_SHORT = {"POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP"}
_KIND = {word: kind for kind, words in WORDS.items() for word in words}
# A.P., A-P, P/A, postero-anterior, postero anterior, POSTERO_ANTERIOR
_SPELLED = [
    (re.compile(r"(?<![^\W_])(A|P)(?:[^\w,]|_){1,2}(P|A)(?![^\W_])"), r"\1\2"),
    (re.compile(r"(?<![^\W_])(ANTERO|POSTERO)[\W_]{1,2}(ANTERIOR|POSTERIOR)(?![^\W_])"), r"\1\2"),
]


@cache
def direction(view: str | None) -> Direction | None:
    """Direction of a view as a source states it; None where it states none.

    A text that names a frontal and a lateral view ("PA AND LATERAL") does not tell which of the two the image is: None.
    In any other text the words count that tell a direction ("XTABLE LATERAL", "AP AXIAL", "W033 Chest PA"); an oblique
    is no frontal. A text of unknown words alone is other.

    >>> [direction(view) for view in ("AP_horizontal", "XTABLE LATERAL", "SWIMMERS", "LLD", "", "Chest, portable")]
    ['frontal', 'lateral', 'other', 'frontal', None, None]
    """
    if view is None or is_nothing(view):
        return None
    kinds = [_KIND.get(word, "unknown") for word in _split(view)]
    if "decubitus" in kinds:
        return "frontal"
    if "lateral" in kinds:
        return None if "frontal" in kinds else "lateral"
    if "frontal" in kinds and "other" not in kinds:
        return "frontal"
    return None if set(kinds) <= {"silent"} else "other"


def name_view(text: str | None) -> str | None:
    """The words of a text that tell a direction, PA and AP by their short names; None where it does not tell one.

    Whatever else the text says, be it a name, is left out.

    >>> [name_view(text) for text in ("Chest, postero-anterior", "Doe XTABLE LATERAL", "PA AND LATERAL", "Doe")]
    ['PA', 'LATERAL', None, None]
    """
    if direction(text) is None:
        return None
    told = [_SHORT.get(word, word) for word in _split(text or "") if _KIND.get(word, "silent") != "silent"]
    return " ".join(dict.fromkeys(told)) or None


def _split(text: str) -> list[str]:
    """The words of a view in capitals."""
    text = text.upper()
    if text.strip() == "L":  # alone it means lateral (PadChest, COVID-19 Image Data Collection); else left
        return ["LATERAL"]
    for pattern, joined in _SPELLED:
        text = pattern.sub(joined, text)
    return re.findall(r"[^\W\d_]+", text)
