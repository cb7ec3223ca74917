"""Requests that wait are decoded together: one thread does all work of the model.

What waits when a batch begins is in it, the oldest first, as far as it is decoded in the same way. Greedy texts do not
depend on the batch; a request with a seed is decoded alone, so that its seed alone decides.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from PIL import Image

from generator.config import DecodeConfig
from generator.data import Example
from generator.decoding import Follow, decode_tokens
from generator.drafter import Drafter
from generator.generate import Draft, read_tokens
from generator.rollout import token_log_probs
from generator.speculate import Speculator
from generator.web import Refused
from raddraft.errors import RadDraftError

Said = list[list[int]]
"""Token ids of each draft."""


@dataclass
class Written:
    """What was decoded for a request."""

    draft: Draft
    tokens: Said
    log_probs: list[list[float]] | None
    """Of these tokens, if asked for."""
    prompt_tokens: int
    """That the model read."""


@dataclass(eq=False)
class Job:
    """A request to decode."""

    example: Example
    images: list[Image.Image]
    config: DecodeConfig
    seeded: bool
    """Whether a seed is given."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """The prompt as `PromptConfig.messages` gives it, for a server that decodes."""
    speculates: bool = False
    """Whether tokens are proposed."""
    follow: Callable[[Said], None] | None = None
    """Is told the tokens as they come, in the batcher's thread."""
    told: bool = False
    """Whether `follow` was called."""
    gone: bool = False
    """Whether its client has gone; a batch that is followed ends when all have."""
    done: Future[Written] = field(default_factory=Future)

    def give_up(self) -> None:
        """Its client has gone."""
        self.gone = True
        self.done.cancel()

    def joins(self, other: Job) -> bool:
        """Whether it is decoded as another one is."""
        return not self.seeded and self.config == other.config and self.speculates == other.speculates


class Batcher:
    """Decodes jobs in batches.

    Args:
        drafter: the model.
        batch_size: most drafts of a batch; a request for more has its own.
        speculator: proposes tokens to jobs that want it.
        see: is told the number of jobs of each batch.
    """

    def __init__(
        self,
        drafter: Drafter,
        batch_size: int,
        speculator: Speculator | None = None,
        see: Callable[[int], Any] = lambda count: None,
    ) -> None:
        self.drafter, self.batch_size, self.speculator, self._see = drafter, batch_size, speculator, see
        self._dataset = drafter.dataset(())
        self._waiting: list[Job] = []
        self._changed, self._stopped = Condition(), False
        self._thread = Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Decode a job when it is its turn; one whose future is canceled before leaves the queue."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        job.done.add_done_callback(lambda done: self._leave(job))

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """End the thread after the batch that is being decoded; jobs that wait are canceled."""
        with self._changed:
            self._stopped = True
            for job in [*self._waiting]:  # each leaves
                job.done.cancel()
            self._changed.notify()
        self._thread.join()

    def _leave(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                jobs = self._gather()
            jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            if jobs:
                self._see(len(jobs))
                self._decode(jobs)

    def _gather(self) -> list[Job]:
        """Take the oldest job and those that join it from the queue."""
        first = self._waiting[0]
        jobs = [first]
        room = self.batch_size - first.config.candidates
        for job in self._waiting[1:] if not first.seeded else ():
            if job.joins(first) and room >= job.config.candidates:
                jobs.append(job)
                room -= job.config.candidates
        self._waiting = [job for job in self._waiting if job not in jobs]
        return jobs

    def _decode(self, jobs: Sequence[Job]) -> None:
        try:
            for job, written in zip(jobs, self._write(jobs), strict=True):
                job.done.set_result(written)
        except Exception as error:
            for job in jobs:  # the error of one, or too much for the memory: each by itself
                if len(jobs) == 1 or job.told or job.gone:  # a second draft would be told behind the first
                    job.done.set_exception(error)
                else:
                    self._decode([job])

    def _write(self, jobs: Sequence[Job]) -> list[Written]:
        drafter, first = self.drafter, jobs[0]
        config, count = first.config, first.config.candidates
        batch = self._dataset.collate([self._dataset.item(job.example, job.images) for job in jobs])
        number = 0 if first.seeded or not config.samples else secrets.randbits(40)
        speculator = self.speculator if first.speculates else None
        follow: Follow | None = None
        if any(job.follow for job in jobs):

            def follow(texts: Said) -> None:
                if all(job.gone for job in jobs):
                    raise Refused(499, "The client has gone.")
                for at, job in enumerate(jobs):
                    if job.follow:
                        job.told = True
                        job.follow([list(text) for text in texts[at * count : (at + 1) * count]])

        decoded = decode_tokens(drafter, batch, config, number, speculator, follow)
        log_probs = token_log_probs(drafter.model, decoded.inputs, decoded.tokens) if config.confidence else None
        drafts = read_tokens(drafter, decoded, config, log_probs)
        if lost := next((draft.error for draft in drafts if draft.error), None):
            raise RadDraftError(lost)
        groups = [slice(at * count, (at + 1) * count) for at in range(len(jobs))]
        lengths = decoded.inputs["attention_mask"].sum(1).tolist()
        return [
            Written(draft, decoded.tokens[group], log_probs[group] if log_probs else None, length)
            for draft, group, length in zip(drafts, groups, lengths, strict=True)
        ]
