"""Several manifests -> one: paths from its folder, sources named, subjects of different sets kept apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.splits import find_fault, origin, tell_splits
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
    before their id (nih-00000013_005), and their set before that of their subject (nih-13). Subjects of one set of
    films, as CheXpert and CheXpert Plus, or ChestX-ray14 and RSNA with its mapping, are the same patients and stay so;
    a patient in two splits is refused, with both studies.

    Args:
        manifests: The manifests, two or more.
        out: The manifest to write.

    Raises:
        RadDraftError: fewer than two manifests, `out` is one of them, one cannot be read, or there is a fault in what
            they make together (`raddraft.splits.find_fault`).
    """
    if len(manifests) < 2:
        raise RadDraftError(f"join needs two or more manifests, got {len(manifests)}")
    if out.resolve() in [path.resolve() for path in manifests]:
        raise RadDraftError(f"{out} is one of the manifests that are read; choose another --out")
    studies = [study for path in manifests for study in _read(path)]
    clashing = _find_clashes(studies)
    for study in studies:
        if origin(study.source) in clashing:
            _rename(study)
    if fault := find_fault(studies):
        raise RadDraftError(f"{', '.join(map(str, manifests))}: {fault}")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for study in studies:
        counts[study.source or ""][study.split] += 1
    renamed = [f"Renamed, since some of their ids stand in two of them: {', '.join(sorted(clashing))}"]
    notes = [*(renamed if clashing else []), *tell_splits(studies)]
    write_studies(out, _rename_priors(studies, clashing))
    return Joined(out, dict(counts), [*notes, f"Wrote {len(studies):,} studies to {out}"])


def _read(path: Path) -> list[Study]:
    """The studies of a manifest, each with a source."""
    try:
        studies = read_studies(path)
    except ManifestError as error:
        raise RadDraftError(f"{path}: {error}") from None  # many are called studies.jsonl
    name = path.absolute().parent.name if path.stem == "studies" else path.stem
    for study in studies:
        study.source = study.source or name
    return studies


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


def _rename_priors(studies: Sequence[Study], clashing: Collection[str]) -> Iterator[Study]:
    """The studies to write: those that were renamed name their previous study by its new id."""
    for study in skim(studies):
        if origin(study.source) in clashing and study.extra.get("prior"):
            study.extra["prior"] = f"{study.source}-{study.extra['prior']}"
        yield study
