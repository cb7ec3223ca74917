"""Converters from raw data sets to the manifest, by name.

Each module has one function `convert`, whose signature is the command line of `raddraft prepare NAME`. Synthetic
studies (`phantom`) are made rather than converted; see generator/corpora/phantom.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from raddraft.errors import RadDraftError

CORPORA = {
    "mimic-cxr": "generator.corpora.mimic_cxr",
    "iu-xray": "generator.corpora.iu_xray",
    "chexpert-plus": "generator.corpora.chexpert_plus",
    "r2gen": "generator.corpora.r2gen",
    "folder": "generator.corpora.folder",
    "nih": "generator.corpora.nih",
    "chexpert": "generator.corpora.chexpert",
    "vindr-cxr": "generator.corpora.vindr_cxr",
    "rsna": "generator.corpora.rsna",
    "covid": "generator.corpora.covid",
    "siim": "generator.corpora.siim",
    "candid-ptx": "generator.corpora.candid_ptx",
    "vindr-ribcxr": "generator.corpora.vindr_ribcxr",
    "lung-masks": "generator.corpora.lung_masks",
}
"""Name of a corpus -> the module that converts it."""


def converter(name: str) -> Callable:
    """The function `convert` of a corpus, which returns a `Conversion`.

    Raises:
        ValueError: there is no corpus of that name.
    """
    if name not in CORPORA:
        raise RadDraftError(f"Unknown corpus {name!r}. Choices: {', '.join(CORPORA)}")
    return importlib.import_module(CORPORA[name]).convert
