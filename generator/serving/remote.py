"""Jobs that another server decodes, which makes its batches itself: what stands in for `batcher.Batcher` then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from generator.drafter import Drafter
from generator.engine import Engine, EngineError, PromptError
from generator.generate import Draft, spell
from generator.serving.batcher import Job, Written
from generator.serving.studies import ENCODING
from generator.web import Refused


class Remote:
    """Has jobs decoded.

    Args:
        drafter: has the tokenizer.
        engine: decodes; `close` closes it.
        requests: jobs that are with it at a time.

    Attributes:
        waiting: jobs that are not yet with it.
    """

    def __init__(self, drafter: Drafter, engine: Engine, requests: int) -> None:
        self.drafter, self.engine = drafter, engine
        self.waiting, self._lock, self._stopped = 0, Lock(), False
        self._pool = ThreadPoolExecutor(requests, "remote")

    def submit(self, job: Job) -> None:
        """Have a job decoded, unless its future is canceled before it is its turn."""
        self._wait(1)
        self._pool.submit(self._decode, job)

    def close(self) -> None:
        """End: jobs that are being decoded fail, others are canceled."""
        self._stopped = True
        self.engine.close()
        self._pool.shutdown()

    def _wait(self, more: int) -> None:
        with self._lock:
            self.waiting += more

    def _decode(self, job: Job) -> None:
        self._wait(-1)
        if self._stopped:
            job.done.cancel()
        if not job.done.set_running_or_notify_cancel():
            return
        try:
            job.done.set_result(self._write(job))
        except Exception as error:  # one job must not end the thread; its client is told
            job.done.set_exception(_told(error))

    def _write(self, job: Job) -> Written:
        seed = job.config.seed if job.seeded else None
        reply = self.engine.write(job.messages, job.images, job.example, job.config, seed)
        if reply.tokens is None:
            return Written(Draft(reply.texts, cut=reply.cut), self._count(reply.texts), None, len(job.example))
        texts = spell(self.drafter.processor.tokenizer, reply.tokens)
        return Written(Draft(texts, cut=reply.cut), reply.tokens, None, len(job.example))

    def _count(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts, whose number is told."""
        with ENCODING:
            return self.drafter.tokens.of_texts(texts)


def _told(error: Exception) -> Exception:
    """What a client is told of an error: of the engine neither its address nor its words."""
    if isinstance(error, PromptError):
        told = Refused(400, "Another prompt would be read than was sent; does a text hold a control token (</s> …)?")
    elif isinstance(error, EngineError):
        told = Refused(502, "The server that decodes for this one failed; ask again later.")
    else:
        return error
    told.__cause__ = error  # RADDRAFT_TRACEBACK shows it
    return told
