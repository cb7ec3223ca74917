"""Actions in processes of their own, one or several that compute together, forked from a server with the imports done.

What torchrun sets in the environment is set here; starting Python, torch and transformers anew would take longer than
the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import raddraft.cli

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "jsonargparse",
        "scripts.train",
        "scripts.pretrain",
        "scripts.generate",
        "generator.train",
        "generator.vlm",
        "encoder.pretrain",
        "accelerate",
        "peft",
        "torch.distributed.fsdp",
        "transformers.models.llama.modeling_llama",
        "transformers.models.llava.modeling_llava",
        "transformers.models.dinov2.modeling_dinov2",
    ]
)


class Job:
    """An action that runs on `n` processes of a CPU."""

    def __init__(self, action: str, *arguments: str | Path, n: int = 1) -> None:
        self._folder = TemporaryDirectory()  # removed with the job
        self.output = Path(self._folder.name) / "output.txt"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            together = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n)}
        words = [str(word) for word in arguments]
        self.processes = []
        for rank in range(n):
            of_rank = together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if n > 1 else {}
            self.processes.append(SERVER.Process(target=_work, args=(action, words, of_rank, self.output)))
            self.processes[-1].start()

    @property
    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """End all processes at once, without a last word."""
        for process in self.processes:
            process.kill()
            process.join()

    def finish(self, codes: Sequence[int] = (0, 0)) -> str:
        """Wait for the end, which must be a good one, or with these exit statuses; what was printed."""
        for process in self.processes:
            process.join()
        printed = self.output.read_text(encoding="utf-8", errors="replace")
        assert [process.exitcode for process in self.processes] == list(codes)[: len(self.processes)], printed[-5000:]
        return printed


def _work(action: str, words: list[str], environment: dict[str, str], output: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of a loader's workers, as in any other process
    os.environ.update(environment, ACCELERATE_USE_CPU="true")
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    raddraft.cli.run(action, words)
