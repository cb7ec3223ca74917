"""What readers changed in drafts: reads.jsonl -> scores of the drafts, by the same means as those of a model.

systems, notes, _ = read_drafts([Path("reads.jsonl")])
scored = score_systems(systems, by=["view"], studies=studies)

A read is scored as a draft whose reference is the reader's text, which is blank where the draft was rejected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metrics.labels import Labels
from metrics.read import JSON_LINES, Prediction, Systems, read_cut, read_systems
from metrics.rules import VERSION as RULES
from metrics.rules import label
from metrics.text import Once, unicode_words
from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl, read_lines
from raddraft.stats import Measure, mean_measure
from raddraft.tables import is_nothing
from raddraft.text import printable, split_sentences, suggest

DECISIONS = ("accepted", "corrected", "rejected")
STRATA = ("reader", "model")
"""What reads can be divided by, besides what drafts can."""
VERSION = "1"
NOT_STATED = "not stated"
MOST_REASONS = 5

READ_METRICS = {
    "read_accepted": ("Accepted unchanged", "share of the drafts"),
    "read_rejected": ("Rejected ↓", "share of the drafts"),
    "read_edits": ("Edit distance ↓", "words to change, as a share of the longer text; 1 if rejected"),
    "read_kept": ("Sentences kept", "share of the drafts' sentences"),
    "read_changed": ("Sentences changed ↓", "share of the drafts' sentences"),
    "read_observations": ("Observations changed ↓", "share of the drafts' sentences, by the rule-based labeler"),
    "read_sides": ("Sides changed ↓", "share of the drafts' sentences: same observations, left for right"),
    "read_deleted": ("Sentences deleted ↓", "share of the drafts' sentences"),
    "read_added": ("Sentences added ↓", "share of the sentences of the readers' texts"),
    "read_seconds": ("Seconds a draft ↓", "mean time that it was open and in use; no upper bound"),
}
"""Metric -> label and short explanation."""
MORE_IS_BETTER = ("read_accepted", "read_kept")
_SIDE = re.compile(r"\b(?:left|right|bilateral)")


@dataclass(kw_only=True, slots=True)
class Read(Prediction):
    """A draft as one reader left it; the reference is the reader's text, "" of a rejected draft."""

    decision: str
    """One of DECISIONS."""
    seconds: float
    """How long the study was open and in use, from 0."""
    reader: str = NOT_STATED
    model: str = NOT_STATED
    reason: str = NOT_STATED
    """Why the draft was rejected."""
    time: str = NOT_STATED
    """Of the decision: UTC, ISO 8601."""
    known: str = ""
    """The report of the study, where there was one before."""

    @property
    def report(self) -> str:
        """What tells the stratum of the study; "" of a rejected draft without a report."""
        return self.known or self.reference


def read_drafts(
    paths: Sequence[Path], references: Path | None = None
) -> tuple[Systems, list[str], dict[str, dict[str, bool]]]:
    """What `raddraft score` scores: systems from predictions, or one of `Read`s, and what `read_cut` tells of each.

    The reads of several files are one system, named `reads`; that of one file has its name.

    Returns:
        Systems, sentences on what was left out, and system -> study_id -> whether the draft was cut.

    Raises:
        RadDraftError: reads beside predictions or references, or as `read_reads` and `metrics.read.read_systems`.
    """
    found = {path: _holds_reads(path) for path in paths}
    if not any(found.values()):
        return *read_systems(paths, references), {path.stem: read_cut(path) for path in paths}
    if other := next((path for path, reads in found.items() if not reads), None):
        ours = next(path for path, reads in found.items() if reads)
        raise RadDraftError(f"{ours} holds reads, {other} does not: score them in two calls")
    if references:
        raise RadDraftError(f"{paths[0]} holds reads, whose reference is the reader's text: leave out --references")
    rows = [row for path in paths for row in read_reads(path)]
    counts = Counter(row.study_id for row in rows)
    for row in rows:  # what several readers make of one study is alike
        row.subject_id = row.subject_id or (row.study_id if counts[row.study_id] > 1 else None)
    return {paths[0].stem if len(paths) == 1 else "reads": [*rows]}, _describe(rows), {}


def read_reads(path: Path) -> list[Read]:
    """The reads of a reads.jsonl, in the order of their lines; of a reader's lines on a model's draft the last counts.

    A last line that an interruption cut is passed over.

    Raises:
        RadDraftError: there is no read, or a line is broken, lacks a key, or holds a wrong type or an unknown decision.
    """
    found: dict[tuple[str, str, str], Read] = {}
    for where, row in read_jsonl(path, ("study_id", "draft", "decision"), appended=True):
        read = parse_read(row, where)
        key = (read.study_id, read.reader, str(row.get("weights") or read.model))
        found.pop(key, None)
        found[key] = read
    if not found:
        raise RadDraftError(f"{path}: no read")
    return list(found.values())


def _holds_reads(path: Path) -> bool:
    """Whether the first line of a file tells a decision and no prediction."""
    line = next((line for _, line in read_lines(path)), b"") if path.suffix.lower() in JSON_LINES else b""
    return b'"decision"' in line and b'"prediction"' not in line.lower()


def parse_read(row: dict[str, Any], where: str) -> Read:
    """A line of a reads.jsonl, which has study_id, draft and decision.

    Raises:
        RadDraftError: an unknown decision, or a wrong type; it begins with `where`.
    """
    decision, seconds, final = row["decision"], row.get("seconds"), row.get("final")
    if decision not in DECISIONS:
        hint = f"Choices: {', '.join(DECISIONS)}.{suggest(decision, DECISIONS)}"
        raise RadDraftError(f"{where}: unknown decision {decision!r}. {hint}")
    if decision == "rejected":
        final = ""
    if not isinstance(final, str):
        raise RadDraftError(f"{where}: final must be a string, got {final!r}")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < float("inf"):
        raise RadDraftError(f"{where}: seconds must be a number from 0, got {seconds!r}")
    texts = {key: str(row[key]) for key in (*STRATA, "reason", "time") if not is_nothing(row.get(key))}
    subject, known = (None if is_nothing(row.get(key)) else str(row[key]) for key in ("subject_id", "reference"))
    if subject == row["study_id"]:  # which is no patient
        subject = None
    return Read(
        row["study_id"], row["draft"], final, subject, decision=decision, seconds=seconds, known=known or "", **texts
    )


def _describe(rows: Sequence[Read]) -> list[str]:
    studies, readers = (len({getattr(row, key) for row in rows}) for key in ("study_id", "reader"))
    counts = Counter(row.decision for row in rows)
    told = ", ".join(f"{counts[decision]} {decision}" for decision in DECISIONS)
    reasons = Counter(row.reason for row in rows if row.decision == "rejected").most_common(MOST_REASONS)
    named = f" ({', '.join(f'{printable(reason)} {count}' for reason, count in reasons)})" if reasons else ""
    return [f"{len(rows)} reads of {studies} studies by {readers} reader{'s' * (readers > 1)}: {told}{named}"]


def measure_reads(rows: Sequence[Read], once: Once | None = None) -> dict[str, Measure]:
    """READ_METRICS of reads: shares, edit distance and seconds as means over drafts, sentences as shares of all.

    The edit distance is Levenshtein's on words as they are written, over the number of words of the longer text; of a
    rejected draft it is 1, and all its sentences are deleted. `compare_sentences` says what happens to a sentence.

    Args:
        rows: reads.
        once: labels of sentences that were read before.
    """
    once = once or Once()
    means = np.array([(_is_unchanged(row), row.decision == "rejected", _distance(row), row.seconds) for row in rows])
    words = "distance:Levenshtein of words split at blanks, over the longer text, 1 if rejected"
    measures = {
        name: mean_measure(column, f"{_signature(text)}|mean over drafts", bounds)
        for name, column, text, bounds in (
            ("read_accepted", means[:, 0], "same words", (0.0, 1.0)),
            ("read_rejected", means[:, 1], "decision", (0.0, 1.0)),
            ("read_edits", means[:, 2], words, (0.0, 1.0)),
            ("read_seconds", means[:, 3], "time in use", (0.0, float("inf"))),
        )
    }
    sentences = [compare_sentences(row.prediction, row.reference, once) for row in rows]
    for name in ("kept", "changed", "observations", "sides", "deleted", "added"):
        whole = "final" if name == "added" else "draft"
        statistics = np.array([(one[name], one[whole]) for one in sentences], float)
        text = f"sentences paired by raddraft rules {RULES} and words|share of the sentences of all {whole} texts"
        measures[f"read_{name}"] = Measure(statistics, _share, _signature(text))
    return {name: measures[name] for name in READ_METRICS}


def compare_sentences(draft: str, final: str, once: Once | None = None) -> dict[str, int]:
    """How many sentences of a draft a reader kept, changed and deleted, and how many were added.

    A sentence is kept if it stands in the final text, wherever, with the same words. Of the others, those two are one
    changed sentence that name the same observation, by the rule-based labeler, or share more than half of their words
    (likest first, each once). What is left of the draft is deleted, what is left of the final text is added.

    >>> compare_sentences("Small left effusion. No edema.", "Small right effusion. Old rib fracture.")
    {'draft': 2, 'final': 2, 'kept': 0, 'changed': 1, 'observations': 0, 'sides': 1, 'deleted': 1, 'added': 1}

    Returns:
        Counts of sentences: "draft", "final", "kept", "changed", of these "observations", in which the labels changed,
        and "sides", in which the labels did not, but left, right or bilateral did; "deleted", "added".
    """
    ours, theirs = ([" ".join(one.split()) for one in split_sentences(text)] for text in (draft, final))
    kept = Counter(ours) & Counter(theirs)
    before, after = ([*(Counter(part) - kept).elements()] for part in (ours, theirs))
    labels = [(once or Once()).each(label, part) for part in (before, after)]
    pairs = _pair(before, after, *labels)
    same = [(i, j) for i, j in pairs if labels[0][i] == labels[1][j]]
    count = kept.total()
    return {
        "draft": len(ours),
        "final": len(theirs),
        "kept": count,
        "changed": len(pairs),
        "observations": len(pairs) - len(same),
        "sides": sum(_sides(before[i]) != _sides(after[j]) for i, j in same),
        "deleted": len(ours) - count - len(pairs),
        "added": len(theirs) - count - len(pairs),
    }


def _pair(
    before: Sequence[str], after: Sequence[str], ours: Sequence[Labels], theirs: Sequence[Labels]
) -> list[tuple[int, int]]:
    """The place of each changed sentence, and of what it became."""
    from rapidfuzz.distance import Levenshtein

    words = [[unicode_words(one) for one in part] for part in (before, after)]
    likest = []
    for i, first in enumerate(words[0]):
        for j, second in enumerate(words[1]):
            unlike = Levenshtein.normalized_distance(first, second)
            same = bool(_named(ours[i]) & _named(theirs[j]))
            if same or unlike < 0.5:
                likest.append((not same, unlike, i, j))
    pairs: dict[int, int] = {}
    for _, _, i, j in sorted(likest):
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [*pairs.items()]


def _named(labels: Labels) -> set[str]:
    return {name for name, value in labels.items() if value is not None and name != "No Finding"}


def _sides(sentence: str) -> Counter[str]:
    return Counter(_SIDE.findall(sentence.lower()))


def _is_unchanged(read: Read) -> bool:
    return read.decision != "rejected" and read.prediction.split() == read.reference.split()


def _distance(read: Read) -> float:
    from rapidfuzz.distance import Levenshtein

    if read.decision == "rejected":
        return 1.0
    return Levenshtein.normalized_distance(read.prediction.split(), read.reference.split())


def _share(sums: np.ndarray) -> np.ndarray:
    """The first sum over the second [r]; 0 of nothing."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)


def _signature(text: str) -> str:
    return f"raddraft reads {VERSION}|{text}"
