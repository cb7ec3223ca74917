"""What readers decided: `reads.jsonl`, one decision a line, only ever appended to.

    {"study_id": "s1", "subject_id": "p1", "draft": "…", "final": "…", "decision": "corrected", "seconds": 41.5,
     "reader": "A", "time": "2026-01-31T08:15:00+00:00", "model": "runs/mine/model", "weights": "…", "reference": "…"}

A rejected draft has a `reason` and an empty `final`; a draft that failed is blank. A reader may decide again: the last
decision on a model's draft of a study counts. `metrics.reads` scores the file.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

from generator.clinic.reading.worklist import Drafted
from metrics.reads import parse_read
from raddraft.errors import RadDraftError
from raddraft.files import append_jsonl, parse_line, read_jsonl
from raddraft.locks import hold
from raddraft.studies import Study

Decision = Literal["accepted", "corrected", "rejected"]


@dataclass
class Read:
    """A decision as the page shows it."""

    decision: Decision
    final: str
    reason: str
    seconds: float
    model: str
    """Wrote the draft."""
    draft: str
    """What it wrote; blank where that failed."""
    weights: str
    """Digest of the model's weights; blank where the draft was made before."""


class _Place(NamedTuple):
    """Where in the file a decision is."""

    start: int
    """Of its line, in bytes."""
    decision: Decision
    weights: str


class Reads:
    """The decisions of one reader in a file that other readers may share, though not at the same time.

    Texts stay in the file, so that a worklist may be long.

    Args:
        path: the reads.jsonl; made if need be, with the first decision, for its owner only.
        reader: any label.

    Raises:
        HeldError: another process has the file.
        RadDraftError: a line is no decision; the file is left as it is.
    """

    def __init__(self, path: Path, reader: str) -> None:
        self.path, self.reader = path, reader
        self._writing = Lock()
        self._latest: dict[str, dict[str, _Place]] = defaultdict(dict)  # weights or model -> study id -> decision
        with ExitStack() as holding:
            holding.enter_context(hold(path))
            if path.is_file():
                self._take_up()
            self._holding = holding.pop_all()

    def _take_up(self) -> None:
        """Find the reader's decisions in the file."""
        for where, row in read_jsonl(self.path, ("study_id", "draft", "decision"), appended=True):
            parse_read(row, where)  # a file that cannot be scored is not written to
        _end_last_line(self.path)
        start = 0
        with open(self.path, "rb") as lines:
            for line in lines:
                row = {} if line.isspace() else parse_line(line, str(self.path))
                if row.get("reader") == self.reader:
                    self._keep(row, start)
                start += len(line)

    def close(self) -> None:
        """Let others write to the file."""
        self._holding.close()

    def latest(self, study_id: str, model: str, weights: str = "") -> Read | None:
        """The reader's last decision on a model's draft of a study.

        Args:
            study_id: of the study.
            model: name of the model.
            weights: their digest, if known: finds decisions under other names, and leaves out those on other weights.
        """
        found = self._find(study_id, model, weights)
        if found is None:
            return None
        with open(self.path, "rb") as file:
            file.seek(found.start)
            return _read_of(parse_line(file.readline(), str(self.path)))

    def decision(self, study_id: str, model: str, weights: str = "") -> Decision | None:
        """What `latest` was, without its text, for long lists."""
        found = self._find(study_id, model, weights)
        return found.decision if found else None

    def _find(self, study_id: str, model: str, weights: str) -> _Place | None:
        found = self._latest[weights or model].get(study_id) or self._latest[model].get(study_id)
        return found if found and (not weights or found.weights in ("", weights)) else None

    def append(
        self, study: Study, draft: Drafted, final: str | None, reason: str, seconds: float, reference: str | None
    ) -> Read:
        """Note a decision; it is on the disk when this returns.

        Args:
            study: what was read.
            draft: what the reader was given.
            final: what the report is to say; None where the draft is rejected.
            reason: why it is rejected; else blank.
            seconds: that the study was open and in use.
            reference: the study's own report, where there is one.
        """
        if final is None:
            decision: Decision = "rejected"
        else:
            decision = "accepted" if final.split() == draft.text.split() else "corrected"
            final = draft.text if decision == "accepted" else final
        row: dict[str, Any] = {"study_id": study.study_id, "subject_id": study.subject_id}
        row |= {"draft": draft.text, "final": final or "", "decision": decision}
        row |= {"reason": reason} if decision == "rejected" else {}
        row |= {"seconds": round(seconds, 1), "reader": self.reader}
        row |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "model": draft.model}
        row |= {"weights": draft.weights} if draft.weights else {}
        row |= {} if reference is None else {"reference": reference}
        with self._writing:
            self.path.touch(mode=0o600)
            start = self.path.stat().st_size
            append_jsonl(self.path, row, sync=True)
            self._keep(row, start)
        return _read_of(row)

    def _keep(self, row: dict[str, Any], start: int) -> None:
        read = _read_of(row)
        place = _Place(start, sys.intern(read.decision), sys.intern(read.weights))  # type: ignore[arg-type]
        for key in (read.weights or read.model, read.model):
            self._latest[key][row["study_id"]] = place


def _read_of(row: dict[str, Any]) -> Read:
    final, reason, model, weights = (str(row.get(key) or "") for key in ("final", "reason", "model", "weights"))
    return Read(row["decision"], final, reason, float(row["seconds"]), model, row["draft"], weights)


def _end_last_line(path: Path) -> None:
    """Drop a last line that an interruption cut; end one that is whole.

    Raises:
        RadDraftError: it is not the beginning of a decision.
    """
    with open(path, "rb+") as file:
        (last,) = deque(file, maxlen=1) or (b"\n",)
        if last.endswith(b"\n"):
            return
        try:
            json.loads(last)
            file.write(b"\n")
        except ValueError:
            if not last.startswith(b"{"):
                raise RadDraftError(f"{path}: its last line is no decision; give another --out") from None
            file.truncate(file.tell() - len(last))
