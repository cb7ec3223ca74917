"""What splits do not keep apart: subjects, images, patients that nobody can tell, reports; sets with the same films."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raddraft.studies import SPLITS, Study, skim

UNKNOWN_PATIENT = "unknown_patient"
"""Key of a study in the manifest: true where its source does not tell the patient, who may have other studies in it.
Such a study is a subject of its own."""
FILMS_OF = {
    "rsna": "nih",
    "siim": "nih",
    "chestx-det": "nih",
    "chexpert-plus": "chexpert",
    "chexlocalize": "chexpert",
    "ms-cxr": "mimic-cxr",
    "cxr-lt": "mimic-cxr",
    "padchest-gr": "padchest",
    "vindr-ribcxr": "vindr-cxr",
    "hannover": "covid",
}
"""Source -> the set that its films are from: the same pictures, in files of their own or under another name. So say its
authors; that the COVID-19 Image Data Collection has Hannover's films stands in its table."""
SAME_SPLITS = frozenset({"rsna", "chexpert-plus", "chexlocalize", "ms-cxr"})
"""Of these sources those whose studies have the split of that set, where their patients are known, unless they have
`OWN_SPLIT`."""
OWN_SPLIT = "own_split"
"""Key of a study in the manifest: true where its split is not that of the set that its films are from."""
FORMS = frozenset({"", "folder", "r2gen", "rexrank"})
"""Sources that tell the form of what was converted, and not the set that it is from."""
CONTEXT = frozenset(
    {"indication", "history", "comparison", "technique", "procedure comments", "examination", "preamble"}
)
"""Sections that come with a request or describe the examination; what is left is the report."""
BLANK = frozenset({hash("")})
"""A text without a word is no report that another repeats."""


def origin(source: str | None) -> str:
    """The set that the films of a source are from; of others the source itself.

    >>> origin("rsna"), origin("nih"), origin(None)
    ('nih', 'nih', '')
    """
    return FILMS_OF.get(source or "", source or "")


def names_set(source: str | None) -> bool:
    """Whether a source tells the set that its films are from.

    >>> names_set("nih"), names_set("folder"), names_set("folder:mine"), names_set(None)
    (True, False, False, False)
    """
    return (source or "").partition(":")[0] not in FORMS


def find_fault(studies: Iterable[Study]) -> str | None:
    """The first fault by which studies are no manifest: one without a name, a duplicate, or a subject or an image in
    two splits; None if there is none."""
    seen: set[str] = set()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for study in skim(studies):
        if not study.study_id.strip() or not study.subject_id.strip():
            names = f"study_id {study.study_id!r}, subject_id {study.subject_id!r}, {study.images[0].path.name}"
            return f"a study without a name: {names}"
        if study.study_id in seen:
            return f"duplicate study_id {study.study_id!r}"
        seen.add(study.study_id)
        images = [("image", os.path.normpath(image.path)) for image in study.images]
        for what, name in [("subject", study.subject_id), *images]:
            split, other = first.setdefault((what, name), (study.split, study.study_id))
            if split != study.split:
                return (
                    f"{what} {name!r} is in split {split!r} (study {other!r}) and in {study.split!r} "
                    f"(study {study.study_id!r})"
                )
    return None


def unknown_patients(groups: Mapping[str, Iterable[Study]]) -> list[str]:
    """Sentences on what may be in several groups (splits or folds), as nobody can tell: patients, films saved again."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    where: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # set of films -> source -> groups
    for group, studies in groups.items():
        for study in skim(studies):
            where[origin(study.source)][study.source or ""].add(group)
            if study.extra.get(UNKNOWN_PATIENT):
                counts[study.source or "no source"][group] += 1
    told = [
        f"{source}: the patients of {sum(found.values()):,} studies are not known; some may be in more than one split"
        for source, found in counts.items()
        if len(found) > 1
    ]
    told += [
        f"{', '.join(sorted(sources))}: films of {films}, saved again; one may be in more than one split"
        for films, sources in where.items()
        if len(sources) > 1 and sources.keys() & counts.keys() and len(set().union(*sources.values())) > 1
    ]
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
    texts: dict[str, list[int]] = defaultdict(list)  # section -> of each report of test its hash
    for study in skim(groups["test"]):
        for name, text in study.sections.items():
            if name not in CONTEXT:
                texts[name].append(hash(_words(text)))
    known: dict[str, set[int]] = {name: set() for name in texts}
    for study in skim(groups["train"]) if texts else ():
        for name in known.keys() & study.sections.keys():
            known[name].add(hash(_words(study.sections[name])))
    shares = []
    for name, hashes in texts.items():
        found = known[name] - BLANK
        if count := sum(one in found for one in hashes):
            shares.append(f"{name} {count:,} of {len(hashes):,} ({round(100 * count / len(hashes))} %)")
    told = [f"Reports of test that stand in train word for word: {', '.join(shares)}"] if shares else []
    return unknown_patients(groups) + told


def _words(text: str) -> str:
    """The words of a text. Of these, Python's hash is kept, with 64 bits: in a million reports two clash by a chance of
    1 in 10⁷."""
    return " ".join(re.findall(r"\w+", text.lower()))
