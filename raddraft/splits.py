"""What the splits of a manifest do not keep apart: subjects, images, patients that nobody can tell, equal reports."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raddraft.studies import SPLITS, Study, skim

UNKNOWN_PATIENT = "unknown_patient"
"""Key of a study in the manifest: true where its source does not tell the patient, who may have other studies in it.
Such a study is a subject of its own."""
CHESTXRAY14 = ("nih", "rsna", "siim")
"""Sources of one set of films, in different files. The patients that the first names keep them apart."""
CONTEXT = frozenset(
    {"indication", "history", "comparison", "technique", "procedure comments", "examination", "preamble"}
)
"""Sections that come with a request or describe the examination; what is left is the report."""
BLANK = frozenset({hash("")})
"""A text without a word is no report that another repeats."""


def find_fault(studies: Iterable[Study]) -> str | None:
    """The first fault by which studies are no manifest: one without a name, a duplicate, or a subject or an image in
    two splits; None if there is none."""
    seen: set[str] = set()
    first: dict[tuple[str, str], Study] = {}
    for study in studies:
        if not study.study_id.strip() or not study.subject_id.strip():
            names = f"study_id {study.study_id!r}, subject_id {study.subject_id!r}, {study.images[0].path.name}"
            return f"a study without a name: {names}"
        if study.study_id in seen:
            return f"duplicate study_id {study.study_id!r}"
        seen.add(study.study_id)
        images = [("image", os.path.normpath(image.path)) for image in study.images]
        for what, name in [("subject", study.subject_id), *images]:
            other = first.setdefault((what, name), study)
            if other.split != study.split:
                return (
                    f"{what} {name!r} is in split {other.split!r} (study {other.study_id!r}) and in {study.split!r} "
                    f"(study {study.study_id!r})"
                )
    return None


def unknown_patients(groups: Mapping[str, Iterable[Study]]) -> list[str]:
    """Sentences on what may be in several groups (splits or folds), as nobody can tell: patients, films saved again."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    alike: dict[str, str] = {}
    for group, studies in groups.items():
        for study in skim(studies):
            if study.source in CHESTXRAY14:
                alike[study.source] = group if alike.get(study.source, group) == group else ""
            if study.extra.get(UNKNOWN_PATIENT):
                counts[study.source or "no source"][group] += 1
    told = [
        f"{source}: the patients of {sum(found.values()):,} studies are not known; some may be in more than one split"
        for source, found in counts.items()
        if len(found) > 1
    ]
    if len(alike) > 1 and alike.keys() & counts.keys() and ("" in alike.values() or len({*alike.values()}) > 1):
        told.append(
            f"{', '.join(sorted(alike))}: films of ChestX-ray14, saved again; one may be in more than one split"
        )
    return told


def known_texts(studies: Iterable[Study]) -> set[int]:
    """What `count_known` looks texts up in: each section of the reports of these studies, and findings with impression,
    with headers and without."""
    known = set()
    for study in skim(studies):
        parts = {name: _words(text) for name, text in study.sections.items() if name not in CONTEXT}
        both = [(name, parts[name]) for name in ("findings", "impression") if name in parts]
        known |= {hash(words) for words in parts.values()}
        known.add(hash(" ".join(words for _, words in both)))
        known.add(hash(" ".join(f"{name} {words}" for name, words in both)))
    return known - BLANK


def count_known(texts: Iterable[str], known: set[int]) -> int:
    """How many texts stand in `known` word for word. Case, punctuation and blanks do not count."""
    return sum(hash(_words(text)) in known for text in texts)


def tell_splits(studies: Sequence[Study]) -> list[str]:
    """Sentences on what the splits do not keep apart: patients that are not known, test reports that train has, too.

    >>> study = lambda name, split: Study(name, name, split, [], {"findings": "The lungs are clear."})
    >>> tell_splits([study("a", "train"), study("b", "test")])
    ['Reports of test that stand in train word for word: findings 1 of 1 (100 %)']
    """
    groups = {split: [study for study in studies if study.split == split] for split in SPLITS}
    shares = []
    for name in dict.fromkeys(name for study in groups["test"] for name in study.sections if name not in CONTEXT):
        texts = [study.sections[name] for study in groups["test"] if name in study.sections]
        known = {hash(_words(study.sections[name])) for study in groups["train"] if name in study.sections} - BLANK
        if count := count_known(texts, known):
            shares.append(f"{name} {count:,} of {len(texts):,} ({round(100 * count / len(texts))} %)")
    told = [f"Reports of test that stand in train word for word: {', '.join(shares)}"] if shares else []
    return unknown_patients(groups) + told


def _words(text: str) -> str:
    """The words of a text. Of these, Python's hash is kept, with 64 bits: in a million reports two clash by a chance of
    1 in 10⁷."""
    return " ".join(re.findall(r"\w+", text.lower()))
