"""Several manifests -> one: paths from its folder, sources named, subjects of different sets kept apart."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.splits import FORMS, find_fault, names_set, origin, tell_splits
from raddraft.studies import SPLITS, ManifestError, Study, read_studies, skim, write_studies
from raddraft.text import format_table


@dataclass
class Joined:
    """What was written; `print` shows a table and what the splits do not keep apart."""

    out: Path
    counts: dict[str, Counter[str]]
    """Source -> studies in each split."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows: list[list[str | int]] = [["source", *SPLITS, "studies"]]
        for source, count in [*self.counts.items(), ("all", sum(self.counts.values(), Counter()))]:
            rows.append([source, *(count[split] for split in SPLITS), count.total()])
        return "\n\n".join([format_table(rows), *self.notes])


def convert(manifests: list[Path], out: Path) -> Joined:
    """Several manifests in one, with their splits: images and masks are found from where it is written.

    A study without a source gets the name of its manifest, or of the folder that holds it if that is studies.jsonl. Ids
    stay as they are, unless two sets of films have one in common: then all studies of these sets have their source
    before their id (nih-00000013_005), and their set before that of their subject (nih-13). Ids that an earlier join
    renamed are compared without that, and keep it. Subjects of one set of films, as CheXpert and CheXpert Plus, or
    ChestX-ray14 and RSNA with its mapping, are the same patients and stay so; a patient in two splits is refused, with
    both studies. A source that names no set (folder, r2gen, rexrank) and stands in several manifests gets the name of
    the manifest, too (folder:mine), and each is a set of its own.

    Args:
        manifests: The manifests, two or more.
        out: The manifest to write.

    Raises:
        RadDraftError: fewer than two manifests, `out` is one of them, one cannot be read, two of one name cannot be
            told apart, an image of a source stands in two of them, or there is a fault in what they make together
            (`raddraft.splits.find_fault`).
    """
    if len(manifests) < 2:
        raise RadDraftError(f"join needs two or more manifests, got {len(manifests)}")
    if out.resolve() in [path.resolve() for path in manifests]:
        raise RadDraftError(f"{out} is one of the manifests that are read; choose another --out")
    parts = [_read(path) for path in manifests]
    repeated = _find_repeated(manifests, parts)
    notes = _name_sources(manifests, parts)
    studies = [study for part in parts for study in part]
    clashing = _find_clashes(studies)
    for part in parts:
        clashing |= _strip(part)
    clashing |= _find_clashes(studies)
    for study in studies:
        if origin(study.source) in clashing:
            _rename(study)
    if fault := find_fault(studies) or repeated:
        raise RadDraftError(f"{', '.join(map(str, manifests))}: {fault}")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for study in studies:
        counts[study.source or ""][study.split] += 1
    renamed = [f"Renamed, since some of their ids stand in two of them: {', '.join(sorted(clashing))}"]
    notes += [*(renamed if clashing else []), *tell_splits(studies)]
    write_studies(out, _rename_priors(studies, clashing))
    return Joined(out, dict(counts), [*notes, f"Wrote {len(studies):,} studies to {out}"])


def _read(path: Path) -> list[Study]:
    """The studies of a manifest."""
    try:
        return read_studies(path)
    except ManifestError as error:
        raise RadDraftError(f"{path}: {error}") from None  # many are called studies.jsonl


def _name_sources(manifests: Sequence[Path], parts: Sequence[Sequence[Study]]) -> list[str]:
    """Give each study a source that tells its set from those of other manifests; sentences on what was named anew."""
    where: dict[str, dict[Path, str]] = defaultdict(dict)  # source that names no set -> manifests and their names
    for path, part in zip(manifests, parts, strict=True):
        name = path.absolute().parent.name if path.stem == "studies" else path.stem
        for source in {study.source or "" for study in part} & FORMS:
            for other, its_name in where[source].items():
                if its_name == name and other != path.resolve():
                    raise RadDraftError(
                        f"{other} and {path} hold studies {f'of source {source!r}' if source else 'without a source'} "
                        f"and are both called {name!r}, so that their patients cannot be told apart; rename one"
                    )
            where[source][path.resolve()] = name
    told = []
    for source, names in where.items():
        if source and len(names) > 1:
            told.append(f"Source {source} names no set, so each is one of its own: {', '.join(sorted(names.values()))}")
    for path, part in zip(manifests, parts, strict=True):
        for study in part:
            if not study.source:
                study.source = where[""][path.resolve()]
            elif len(names := where.get(study.source, {})) > 1:
                study.source = f"{study.source}:{names[path.resolve()]}"
    return told


def _find_clashes(studies: Sequence[Study]) -> set[str]:
    """Sets of films of which an id also stands in another one, or that of a study in two of their sources."""
    of_subject: dict[str, str] = {}
    of_study: dict[str, str] = {}
    clashing = set()
    for study in studies:
        films, source = origin(study.source), study.source or ""
        if (other := of_subject.setdefault(study.subject_id, films)) != films:
            clashing |= {films, other}
        if (other := of_study.setdefault(study.study_id, source)) != source:
            clashing |= {films, origin(other)}
    return clashing


def _rename(study: Study) -> None:
    """Put the source before the id of a study, and the set of films before that of its subject.

    A study that is a subject of its own stays one, see `Study.ids`.
    """
    alone = study.subject_id == study.study_id
    study.study_id = f"{study.source}-{study.study_id}"
    study.subject_id = study.study_id if alone else f"{origin(study.source)}-{study.subject_id}"


def _strip(studies: Sequence[Study]) -> set[str]:
    """Take from the ids of a manifest what an earlier join put before them: of the sets of films that are returned, all
    of whose studies have it."""
    renamed: dict[str, bool] = {}
    for study in studies:
        films = origin(study.source)
        subject_of = study.source if study.subject_id == study.study_id else films
        has = study.study_id.startswith(f"{study.source}-") and study.subject_id.startswith(f"{subject_of}-")
        renamed[films] = has and renamed.get(films, True)
    for study in studies:
        if renamed[origin(study.source)]:
            alone = study.subject_id == study.study_id
            study.study_id = study.study_id.removeprefix(f"{study.source}-")
            study.subject_id = study.study_id if alone else study.subject_id.removeprefix(f"{origin(study.source)}-")
    return {films for films, has in renamed.items() if has}


def _find_repeated(manifests: Sequence[Path], parts: Sequence[Sequence[Study]]) -> str | None:
    """The first image that two manifests have as one of the same source, or of none, under whichever ids."""
    first: dict[tuple[str, str], tuple[int, str]] = {}
    for number, part in enumerate(parts):
        for study in skim(part):
            source = study.source or ""
            for image in study.images:
                key = source if names_set(source) else source.partition(":")[0], os.path.normpath(image.path)
                other, earlier = first.setdefault(key, (number, study.study_id))
                if other != number:
                    of = f"of source {key[0]!r}" if key[0] else "without a source"
                    return (
                        f"image {key[1]!r} {of} is in two manifests: {manifests[other]} (study {earlier!r}) and "
                        f"{manifests[number]} (study {study.study_id!r})"
                    )
    return None


def _rename_priors(studies: Sequence[Study], clashing: Collection[str]) -> Iterator[Study]:
    """The studies to write: those that were renamed name their previous study by its new id."""
    for study in skim(studies):
        if origin(study.source) in clashing and study.extra.get("prior"):
            prior = str(study.extra["prior"]).removeprefix(f"{study.source}-")
            study.extra["prior"] = f"{study.source}-{prior}"
        yield study
