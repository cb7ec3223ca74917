"""Drafts that are made ahead, while a study is read: one thread does all work of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from generator.clinic.reading.worklist import Drafted, Worklist
from generator.config import DecodeConfig
from generator.generate import decode
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from generator.api import Model

T = TypeVar("T")
STOPPED = "raddraft read is being stopped"


class Drafting:
    """Drafts the studies that are asked for, in this order, and keeps the drafts.

    Args:
        model: writes them.
        worklist: what to draft; drafts that it holds are not made again.
        config: how to decode. A model that was built by RadDraft also tells the confidence of each sentence.
    """

    def __init__(self, model: Model, worklist: Worklist, config: DecodeConfig) -> None:
        self.model, self.worklist = model, worklist
        self.config = replace(config, confidence=model.drafter.kind == "llava")
        self._done = {
            number: worklist.drafts[study.study_id]
            for number, study in enumerate(worklist.studies)
            if study.study_id in worklist.drafts
        }
        self._wanted: list[int] = []
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed, self._stopped = Condition(), False
        self._thread = Thread(target=self._work, name="drafting", daemon=True)
        self._thread.start()

    def ask(self, numbers: Sequence[int]) -> None:
        """Draft these studies next, those again that failed, and forget what was asked before."""
        with self._changed:
            self._wanted = [*numbers]
            for number in numbers:  # the archive may answer again, or the film be there again
                if number in self._done and self._done[number].error:
                    del self._done[number]
            self._changed.notify()

    def get(self, number: int) -> Drafted | None:
        """The draft of a study; None if it is not made yet."""
        with self._changed:
            return self._done.get(number)

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives that uses the model, after the draft that is being made.

        Raises:
            RadDraftError: it is stopped; and what the function raises.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stopped:
                raise RadDraftError(STOPPED)
            self._calls.append((future, function))
            self._changed.notify()
        return future.result()

    def stop(self) -> None:
        """Make no other draft; who waits in `call` is told so."""
        with self._changed:
            self._stopped = True
            for future, _ in self._calls:
                future.set_exception(RadDraftError(STOPPED))
            self._calls.clear()
            self._changed.notify()

    def close(self) -> None:
        """Stop, and wait for the draft that is being made."""
        self.stop()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._stopped or self._calls or self._next() is not None):
                    self._changed.wait()
                if self._stopped:
                    return
                call, number = (self._calls.popleft(), None) if self._calls else (None, self._next())
            if call:
                _answer(*call)
            elif number is not None:
                drafted = self._draft(number)
                with self._changed:
                    self._done[number] = drafted

    def _next(self) -> int | None:
        return next((number for number in self._wanted if number not in self._done), None)

    def _draft(self, number: int) -> Drafted:
        study, drafter = self.worklist.studies[number], self.model.drafter
        none = Drafted("", self.model.name, weights=self.model.digest)
        prior = self.worklist.priors.get(study.study_id) if drafter.prompt.prior else None
        try:
            for image in drafter.prompt.choose_images(study, prior):
                self.worklist.fetch(image)
            examples = drafter.encode(
                [study, *([prior] if prior else [])], answers=False, reserve=self.config.max_new_tokens
            )
            (draft,) = decode(drafter, examples[:1], self.config)
        except RadDraftError as error:
            return replace(none, error=tell(error, study.images[0].path.parent))
        except Exception as error:  # one study must not end the thread that drafts the others
            return replace(none, error=f"an unexpected error, {type(error).__name__}")
        if draft.error:
            return replace(none, error=tell(draft.error, study.images[0].path.parent))
        return replace(none, text=draft.text, sentences=draft.confidence)


def _answer(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


def tell(error: RadDraftError | str, folder: Path) -> str:
    """An error for the page, without the folder of the file that it is about."""
    return str(error).replace(f"{folder}/", "")
