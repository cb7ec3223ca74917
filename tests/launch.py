"""Processes of their own, one or several that compute together, forked from a server that has done the heavy imports.

Starting Python, torch and transformers anew would take longer than the tests. The server imports nothing of this
project, so that a process can also be one that does not have it.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

OURS = ("raddraft", "encoder", "generator", "metrics", "scripts")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "jsonargparse",
        "accelerate",
        "matplotlib.backends.backend_agg",
        "matplotlib.pyplot",
        "peft",
        "pydicom",
        "sklearn.linear_model",
        "tqdm",
        "torch.distributed.fsdp",
        "torch.distributed.launcher.api",
        "torchvision.transforms.v2",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.processing_auto",
        "transformers.models.llama.modeling_llama",
        "transformers.models.llava.modeling_llava",
        "transformers.models.llava.processing_llava",
        "transformers.models.dinov2.modeling_dinov2",
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
    ]
)

LIMIT = 600
"""Seconds after which a process is taken to hang."""
HOLD = """
import sys
from raddraft.locks import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
PORTS = itertools.count(10_000 + os.getpid() % 200 * 100)  # processes that test at the same time begin elsewhere


class Job:
    """An action that runs on `n` processes of a CPU, in `environment` besides that of the tests.

    The end of a `with` kills them.
    """

    def __init__(
        self, action: str, *arguments: str | Path, n: int = 1, environment: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()  # removed with the job
        self.output = Path(self._folder.name) / "output.txt"
        together = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(find_port()), "WORLD_SIZE": str(n)} if n > 1 else {}
        words = [str(word) for word in arguments]
        self.processes = []
        for rank in range(n):  # what torchrun sets
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if n > 1 else {}
            given = {**(environment or {}), **together, **of_rank}
            self.processes.append(_fork(self.output, _act, action, words, given))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    @property
    def printed(self) -> str:
        """What was printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.is_file() else ""

    def signal(self, number: int) -> None:
        """Send a signal to all processes."""
        for process in self.processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """End all processes at once, without a last word."""
        for process in self.processes:
            process.kill()
            process.join()

    def finish(self, codes: Sequence[int] = (0, 0)) -> str:
        """Wait for the end, which must be a good one, or with these exit statuses; what was printed."""
        for process in self.processes:
            join(process)
        assert [process.exitcode for process in self.processes] == list(codes)[: len(self.processes)], self.printed
        return self.printed


def join(process: Any) -> None:
    """Wait for the end of a process, which is killed if it does not come: the tests go on."""
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process did not end within {LIMIT} seconds")


def find_port() -> int:
    """A free port that nobody gets who asks for any, as the system gives higher ones, before it is listened at."""
    for port in PORTS:
        with suppress(OSError), socket.socket() as free:
            free.bind(("localhost", port))
            return port
    raise AssertionError("no port is free")


def kill_midway(
    start: Callable[[], Job], reached: Callable[[], bool], unfinished: Callable[[], bool], out: Path
) -> None:
    """Kill a job once it has got so far; again from the beginning if it came to its end first, on a busy machine."""
    for _ in range(20):
        job = start()
        while job.running and not reached():
            time.sleep(0.002)
        if job.running:
            job.kill()
        else:
            job.finish()
        if unfinished():
            return
        shutil.rmtree(out)
    raise AssertionError(f"it came to its end 20 times before it was seen to have got so far: {job.printed}")


def run_without_us(code: str, *arguments: str | Path) -> None:
    """Run Python code, with `arguments` in sys.argv, in a process in which this project cannot be imported."""
    _finish(_run_without_us, code, [str(argument) for argument in arguments])


def run_script(script: Path, *arguments: str | Path, folder: Path) -> str:
    """Run a console script in a folder, as if Python had been started with it; what it prints."""
    return _finish(_run_script, str(script), [str(argument) for argument in arguments], folder)


def _finish(target: Callable[..., None], *arguments: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.txt"
        process = _fork(output, target, *arguments)
        join(process)
        printed = output.read_text(encoding="utf-8", errors="replace")
        assert process.exitcode == 0, printed
        return printed


def start_launcher(action: str, *arguments: str | Path, n: int, pids: Path) -> Any:
    """The process of a launcher, torchrun's own, which starts an action on `n` others and ends them when one is lost.

    Each of them writes its id to a file in the folder `pids` that is named by its rank.
    """
    return _fork(pids / "output.txt", _launch, action, [str(argument) for argument in arguments], n, pids)


def _fork(output: Path, target: Callable[..., None], *arguments: Any) -> Any:
    process = SERVER.Process(target=_begin, args=(output, dict(os.environ), target, *arguments))
    process.start()
    return process


def _begin(output: Path, environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()  # which was the server's, from before the tests
    os.environ.update(environment)
    gc.freeze()  # what the server has imported stays: no collection of garbage need look through it
    multiprocessing.set_start_method("fork", force=True)  # of a loader's workers, as in any other process
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    target(*arguments)


def _act(action: str, words: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # found anew, in this environment
    import raddraft.cli

    raddraft.cli.run(action, words)


def _run_without_us(code: str, words: list[str]) -> None:
    assert not {name.partition(".")[0] for name in sys.modules} & {*OURS}
    sys.modules.update(dict.fromkeys(OURS))  # type: ignore[arg-type] # which makes an import of them fail
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})


def _run_script(script: str, words: list[str], folder: Path) -> None:
    os.chdir(folder)
    here = ("", str(Path(__file__).resolve().parent.parent))  # the working directory, of pytest and of -m
    sys.path[:] = [os.path.dirname(script), *(place for place in sys.path if place not in here)]
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def _launch(action: str, words: list[str], n: int, pids: Path) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, n, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    config.start_method = "fork"
    elastic_launch(config, _act_as_rank)(action, words, pids)


def _act_as_rank(action: str, words: list[str], pids: Path) -> None:
    (pids / os.environ["RANK"]).write_text(str(os.getpid()))
    _act(action, words, {})


def holder(out: Path) -> subprocess.Popen[str]:
    """Another process that holds an output until it is killed, or its input closes as the tests end."""
    command = [sys.executable, "-c", HOLD, str(out)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process
