"""Jobs that another server decodes, which makes its batches itself: what stands in for `batcher.Batcher` then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from generator.drafter import Drafter
from generator.engine import Engine, EngineError
from generator.generate import Draft, spell
from generator.serving.batcher import Job, Written
from generator.serving.studies import ENCODING
from generator.web import Refused


class Remote:
    """Has jobs decoded.

    Args:
        drafter: has the tokenizer.
        engine: decodes.
        requests: jobs that are with it at a time.
    """

    def __init__(self, drafter: Drafter, engine: Engine, requests: int) -> None:
        self.drafter, self.engine = drafter, engine
        self.waiting, self._stopped = 0, False
        self._pool = ThreadPoolExecutor(requests, "remote")

    def submit(self, job: Job) -> None:
        """Have a job decoded, unless its future is canceled before it is its turn."""
        self._pool.submit(self._decode, job)

    def close(self) -> None:
        """End with the jobs that are being decoded; others are canceled."""
        self._stopped = True
        self._pool.shutdown()

    def _decode(self, job: Job) -> None:
        if self._stopped:
            job.done.cancel()
        if not job.done.set_running_or_notify_cancel():
            return
        try:
            job.done.set_result(self._write(job))
        except EngineError as error:
            job.done.set_exception(Refused(502, str(error)))
        except Exception as error:
            job.done.set_exception(error)

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
