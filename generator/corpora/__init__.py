"""Converters from raw data sets to the manifest, by name.

Each module has one function `convert`, whose signature is the command line of `raddraft prepare NAME`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from raddraft.errors import RadDraftError

CORPORA = (
    *("mimic-cxr", "iu-xray", "chexpert-plus", "r2gen", "rexrank", "folder", "nih", "chexpert", "vindr-cxr", "rsna"),
    *("covid", "siim", "candid-ptx", "vindr-ribcxr", "lung-masks", "padchest", "padchest-gr", "brax", "rexgradient"),
    *("vindr-pcxr", "chexlocalize", "chestx-det", "ms-cxr", "phantom"),
)
"""Names of the corpora; their modules have _ for -."""


def converter(name: str) -> Callable:
    """The function `convert` of a corpus, which returns a `Conversion`.

    Raises:
        RadDraftError: there is no corpus of that name.
    """
    if name not in CORPORA:
        raise RadDraftError(f"Unknown corpus {name!r}. Choices: {', '.join(CORPORA)}")
    return importlib.import_module(f"generator.corpora.{name.replace('-', '_')}").convert
