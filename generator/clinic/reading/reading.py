"""What the page can ask for and tell: worklist, films, drafts, decisions, documents. Studies and films have numbers.

    reading = Reading(model, worklist, reads, Path("results"), DecodeConfig())
    reading.study(0, ahead=[1, 2])

`generator.clinic.reading.server` answers the page's requests with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from generator.clinic.reading.decisions import Read, Reads
from generator.clinic.reading.documents import remove_documents, write_read
from generator.clinic.reading.drafting import Drafting, tell
from generator.clinic.reading.films import Film, Films
from generator.clinic.reading.insight import Nearest, attention, shows_attention
from generator.clinic.reading.worklist import Drafted, Worklist
from generator.config import DecodeConfig
from generator.generate import BANNER
from generator.web import Refused
from metrics.rules import label
from raddraft.errors import RadDraftError
from raddraft.files import digest_json
from raddraft.studies import Study, skim
from raddraft.text import split_sentences

if TYPE_CHECKING:
    from generator.api import Model

T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Working(msgspec.Struct, forbid_unknown_fields=True):
    """What a reader has made of a draft so far; no text is none that was changed."""

    text: Text | None
    seconds: Seconds


class Decided(msgspec.Struct, forbid_unknown_fields=True):
    """A decision on what the page shows: a study and a draft; no text is a rejection."""

    study_id: str
    draft: str
    """Digest of the draft, as `Reading.draft` tells it."""
    text: Text | None
    reason: Annotated[str, msgspec.Meta(max_length=2_000)]
    seconds: Seconds


class Labeled(msgspec.Struct, forbid_unknown_fields=True):
    """A text whose observations are asked for."""

    text: Text


class Exported(msgspec.Struct, forbid_unknown_fields=True):
    """Studies whose documents are to be written."""

    studies: Annotated[list[int], msgspec.Meta(max_length=100_000)]
    forms: Annotated[list[Literal["sr", "pdf", "fhir"]], msgspec.Meta(min_length=1)]
    complete: bool


@dataclass
class Reading:
    """All that the page shows and takes.

    Raises:
        RadDraftError: as `Drafting` and `Nearest`.
    """

    model: Model
    worklist: Worklist
    reads: Reads
    results: Path
    """Folder for documents."""
    decoding: DecodeConfig
    nearest: Nearest | None = None
    """Finds training reports, where these are asked for."""
    films: Films = field(default_factory=Films)
    """Reads films; it may have been started."""

    def __post_init__(self) -> None:
        self.drafting = Drafting(self.model, self.worklist, self.decoding)
        self.working: dict[int, Working] = {}
        self.attention = shows_attention(self.model.drafter)
        # Made once: the studies of a manifest are unpacked for it.
        self._rows = [
            {
                "id": study.study_id,
                "subject": study.subject_id,
                "views": [image.view or "?" for image in study.images],
                "indication": study.sections.get("indication", ""),
            }
            for study in skim(self.worklist.studies)
        ]

    def close(self) -> None:
        """Stop drafting, and let others write decisions."""
        self.films.close()
        self.drafting.close()
        self.reads.close()

    def read(self, study: Study) -> Read | None:
        """What the reader decided on the draft of a study."""
        return self.reads.latest(study.study_id, *self._author(study))

    def status(self, study: Study) -> str:
        """The decision on the draft of a study, or "unread"."""
        return self.reads.decision(study.study_id, *self._author(study)) or "unread"

    def _author(self, study: Study) -> tuple[str, str]:
        """Name of the model that wrote the draft of a study, and digest of its weights, if known."""
        given = self.worklist.drafts.get(study.study_id)
        return (given.model, "") if given else (self.model.name, self.model.digest)

    def overview(self) -> dict[str, Any]:
        """The worklist and what the page can do."""
        edited = {number for number, working in self.working.copy().items() if working.text is not None}
        return {
            "studies": [
                row | {"status": self.status(study), "edited": number in edited}
                for number, (row, study) in enumerate(zip(self._rows, self.worklist.studies, strict=True))
            ],
            "model": self.model.name,
            "banner": self.model.banner,
            "reader": self.reads.reader,
            "results": str(self.results.resolve()),
            "attention": self.attention,
            "nearest": self.nearest is not None,
        }

    def study(self, number: int, ahead: Sequence[int]) -> dict[str, Any]:
        """A study with its films, draft and decision; it and those ahead come next, films and drafts."""
        study = self._study(number)
        images, own = self.worklist.images(number), len(study.images)
        order = [number, *(one for one in ahead if 0 <= one < len(self.worklist.studies))]
        self.films.want([image.path for one in order for image in self.worklist.images(one)])
        self.drafting.ask(order)
        prior = self.worklist.priors.get(study.study_id)
        working, read = self.working.get(number), self.read(study)
        return {
            "id": study.study_id,
            "subject": study.subject_id,
            "indication": study.sections.get("indication", ""),
            "films": [{"view": image.view or "view not stated", "prior": at >= own} for at, image in enumerate(images)],
            "prior": None if prior is None else {"id": prior.study_id, "report": self._own_report(prior)},
            "draft": self.draft(number),
            "decision": None if read is None else asdict(read),
            "working": None if working is None else msgspec.to_builtins(working),
        }

    def draft(self, number: int) -> dict[str, Any] | None:
        """The draft of a study; None while it is not made."""
        self._study(number)
        drafted = self.drafting.get(number)
        if drafted is None:
            return None
        ours = drafted.model == self.model.name
        banner = self.model.banner if ours else f"{BANNER} This draft is by {drafted.model}."
        return asdict(drafted) | read_labels(drafted.text) | {"banner": banner, "digest": digest_json(asdict(drafted))}

    def film(self, number: int, at: int) -> Film:
        """A film of a study, or of its prior."""
        self._study(number)
        images = self.worklist.images(number)
        if not 0 <= at < len(images):
            raise Refused(404, f"The study has {len(images)} films.")
        path, fetch = images[at].path, partial(self.worklist.fetch, images[at])
        return self._without_folder(path, lambda: self.films.read(path, fetch))

    def keep(self, number: int, working: Working) -> dict[str, Any]:
        """Keep what a reader has made of a draft so far, until this process ends."""
        self._study(number)
        self.working[number] = working
        return {}

    def decide(self, number: int, decided: Decided) -> dict[str, Any]:
        """Note a decision, if it is on the study of this number and on its draft.

        Documents of the reader's earlier decision are removed; their names come with the decision.
        """
        study, drafted = self._study(number), self._drafted(number)
        if decided.text is None and not decided.reason.strip():
            raise Refused(422, "A rejection needs a reason.")
        if decided.text is not None and not decided.text.strip():
            raise Refused(422, "A blank text cannot be accepted; reject the draft.")
        if (decided.study_id, decided.draft) != (study.study_id, digest_json(asdict(drafted))):
            raise Refused(409, "The decision is on another study or draft than this one; open the study again.")
        reference, before = self.model.drafter.prompt.answer(study), self.read(study)
        read = self.reads.append(study, drafted, decided.text, decided.reason.strip(), decided.seconds, reference)
        self.working.pop(number, None)
        return asdict(read) | {"removed": remove_documents(self.results, study) if before else []}

    def look(self, number: int, at: int) -> dict[str, Any]:
        """Attention of the model's tower to a film of a study."""
        if not self.attention:
            raise Refused(404, "This model has no attention to show.")
        self.film(number, at)
        path = self.worklist.images(number)[at].path
        return {"attention": self.drafting.call(lambda: attention(self.model.drafter, path))}

    def neighbors(self, number: int) -> dict[str, Any]:
        """The nearest training reports."""
        nearest, study = self.nearest, self._study(number)
        if nearest is None:
            raise Refused(404, "Start raddraft read with --nearest to see the nearest training reports.")
        self.worklist.fetch(study.main_image)
        path = study.main_image.path
        return {"nearest": self._without_folder(path, lambda: self.drafting.call(lambda: nearest.find(study)))}

    def export(self, asked: Exported) -> dict[str, Any]:
        """Write documents; names of files, and a sentence for each study without."""
        written: list[str] = []
        errors: list[str] = []
        for number in asked.studies:
            study = self._study(number)
            read = self.read(study)
            try:
                if read is None:
                    raise RadDraftError(f"Study {study.study_id!r} is not read yet")
                write = partial(write_read, self.worklist, number, read, self.model, self.results)
                files = self.drafting.call(partial(write, asked.forms, asked.complete))
                written += [file.name for file in files]
            except RadDraftError as error:
                errors.append(tell(error, study.images[0].path.parent))
        return {"folder": str(self.results.resolve()), "written": written, "errors": errors}

    def _study(self, number: int) -> Study:
        if not 0 <= number < len(self.worklist.studies):
            raise Refused(404, f"There are {len(self.worklist.studies)} studies.")
        return self.worklist.studies[number]

    def _drafted(self, number: int) -> Drafted:
        drafted = self.drafting.get(number)
        if drafted is None:
            raise Refused(409, "The draft is not made yet.")
        return drafted

    def _own_report(self, study: Study) -> str:
        sections = study.sections
        targets = [name for name in self.model.drafter.prompt.targets if sections.get(name)]
        return "\n".join(f"{name.capitalize()}: {sections[name]}" for name in targets)

    def _without_folder(self, path: Path, function: Callable[[], T]) -> T:
        try:
            return function()
        except RadDraftError as error:
            raise RadDraftError(tell(error, path.parent)) from None


def read_labels(text: str) -> dict[str, Any]:
    """The observations of a text, and of each of its sentences, by the rule-based labeler.

    Returns:
        {"observations": {name: 1, 0 or -1}, "spans": [{"text", "observations"}]}, the sentences in order.
    """

    def found(part: str) -> dict[str, int]:
        return {name: value for name, value in label(part).items() if value is not None and name != "No Finding"}

    return {
        "observations": found(text),
        "spans": [{"text": sentence, "observations": found(sentence)} for sentence in split_sentences(text)],
    }
