"""Reports to learn from: a manifest and what readers made of its drafts -> a manifest of the studies that were read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from generator.sections import parse_plain
from raddraft.errors import RadDraftError
from raddraft.studies import Study, read_studies, write_studies

if TYPE_CHECKING:
    from metrics.reads import Read


def convert(
    studies: Path,
    reads: list[Path],
    out: Path,
    sections: list[str] | None = None,
    split: Literal["train", "val", "test"] | None = None,
    reader: str | None = None,
) -> str:
    """Make training studies of the drafts that readers accepted or corrected.

    The sections that the model writes are replaced by the reader's text; all else is kept, but studies whose draft was
    rejected or not read. Each study tells who read it, in "read". Of several reads of a study, by whomever, that of the
    last line counts.

    Args:
        studies: The manifest with the studies.
        reads: Files of reads, as `raddraft read` writes them.
        out: The manifest to write.
        sections: Sections that the model writes, its prompt.targets; by default findings. Several are told apart by
            their headers.
        split: Put all studies into this split. By default each keeps its own.
        reader: Take the reads of this reader only.

    Raises:
        RadDraftError: `out` is `studies`, no study is left, or as `metrics.reads.read_reads`.
    """
    from metrics.reads import read_reads

    if out.resolve() == studies.resolve():
        raise RadDraftError(f"{out} is the manifest that is read; choose another --out")
    sections = sections or ["findings"]
    rows = [row for path in reads for row in read_reads(path)]
    latest = {row.study_id: row for row in rows if reader in (None, row.reader)}
    if not latest:
        raise RadDraftError(f"No read by {reader!r}. Readers: {', '.join(sorted({row.reader for row in rows}))}")
    done, left_out = [], Counter[str]()
    for study in read_studies(studies):
        read = latest.pop(study.study_id, None)
        texts = _sections(read, sections) if read else {}
        if read and texts:
            done.append(_corrected(study, read, sections, texts, split))
        else:
            left_out[_why(read)] += 1
    left_out["not in the manifest"] = len(latest)
    told = "".join(f"; {count} {reason}" for reason, count in sorted(left_out.items()) if count)
    if not done:
        raise RadDraftError(f"{studies}: no study with a draft that was accepted or corrected{told}")
    write_studies(out, done)
    counts = Counter(study.extra["read"]["decision"] for study in done)
    return (
        f"{out}: {counts['corrected']} studies with a corrected draft, {counts['accepted']} with an accepted one{told}"
    )


def _corrected(study: Study, read: Read, sections: list[str], texts: dict[str, str], split: str | None) -> Study:
    others = {name: text for name, text in study.sections.items() if name not in sections}
    mark: dict[str, Any] = {"read": {key: getattr(read, key) for key in ("reader", "decision", "model", "time")}}
    if made := study.extra.get("synthetic"):  # a person stands for the new text
        mark["synthetic"] = [name for name in made if name not in sections]
    return replace(study, split=split or study.split, sections=others | texts, extra=study.extra | mark)


def _sections(read: Read, sections: list[str]) -> dict[str, str]:
    """The reader's text by section; nothing of one that lacks a section, nor of a rejected draft."""
    text = read.reference.strip()
    found = {sections[0]: text} if len(sections) == 1 else parse_plain(text)
    return {name: found[name] for name in sections} if all(found.get(name) for name in sections) else {}


def _why(read: Read | None) -> str:
    """Why a study is left out."""
    if read is None:
        return "not read"
    if read.decision == "rejected":
        return "rejected"
    return "without all of these sections" if read.reference.strip() else "blank"
