"""One manifest for each fold of a cross-validation: to pre-train a tower on without the films of its fold."""

from __future__ import annotations

from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.studies import SPLITS, count_splits, deal_folds, read_studies, write_studies
from raddraft.text import format_table


def convert(studies: Path, out: Path, folds: int = 5) -> str:
    """Write fold-1.jsonl, fold-2.jsonl …: all studies with the splits that `raddraft compare --folds` gives them.

    In each of them another fold is test, the next one val, and all others are train. Subjects of all splits are dealt
    out, always in the same way: compare the manifest that these were made of, with as many folds.

    Args:
        studies: The manifest.
        out: Folder to write to; images and masks are found from there.
        folds: Number of folds, at least 3.

    Raises:
        RadDraftError: fewer than 3 folds, the manifest cannot be read, or the folder holds it or other folds.
    """
    files = [out / f"fold-{number}.jsonl" for number in range(1, folds + 1)]
    if others := {*out.glob("fold-*.jsonl")} - {*files}:
        raise RadDraftError(f"{out} holds another number of folds ({min(others).name}); choose an empty folder")
    if studies.resolve() in [file.resolve() for file in files]:
        raise RadDraftError(f"--out {out}: this would replace the manifest {studies}; choose another folder")
    rows: list[list[str | int]] = [["fold", *SPLITS]]
    for file, part in zip(files, deal_folds(read_studies(studies), folds), strict=True):
        write_studies(file, part)
        rows.append([file.name, *count_splits(part).values()])
    return f"{format_table(rows)}\nWrote {folds} manifests to {out}"
