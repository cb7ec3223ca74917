"""Load on `raddraft serve`, and on `transformers serve` in turn: same files, same greedy texts.

    python -m benchmarks.serving --model runs/demo/model --studies runs/demo/phantom/studies.jsonl
    python -m benchmarks.serving --model runs/demo/model --studies runs/demo/phantom/studies.jsonl \\
        --transformers other-environment/bin/transformers

Clients ask for drafts of the test split, each as soon as its last answer has come. A third of the files have the size
they had, the others twice and four times that; one in twenty is cut. The texts are compared with those of `generate`.
transformers serve needs its extra, transformers[serving]; without it plain `generate` is called, one study at a time.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.decoding import plain_drafts
from benchmarks.reading import resident
from generator.api import load_model
from generator.config import DecodeConfig
from generator.drafter import Drafter
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage, read_studies
from raddraft.text import format_table

BROKEN = 20
"""One file in so many is cut."""
TOKENS = 150


@dataclass
class Load:
    """What came of a time of asking."""

    name: str
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    """Seconds of each answer to a whole file."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of whole files."""
    broken: Counter[int] = field(default_factory=Counter)
    """Of cut files."""
    different: int = 0
    """Texts that are not those of `generate`."""
    memory: list[float] = field(default_factory=list)
    """MB after a quarter of the time, and at its end."""

    def row(self) -> list[str | int]:
        """A row of the table."""
        median, late = np.percentile(self.times, [50, 99]) if self.times else (np.nan, np.nan)
        wrong = sum(self.statuses.values()) - self.statuses[200]
        rate = f"{self.statuses[200] / self.seconds:.1f}"
        told = ", ".join(f"{status}: {count}" for status, count in sorted(self.broken.items()))
        memory = [f"{one:,.0f}" for one in self.memory] or ["-", "-"]
        numbers: list[str | int] = [self.statuses[200], rate, f"{median:.2f}", f"{late:.2f}", wrong, told or "-"]
        return [self.name, *numbers, self.different, *memory]


def main(
    model: Path,
    studies: Path,
    seconds: float = 60,
    clients: int = 64,
    n: int = 120,
    batch_size: int = 64,
    transformers: Path | None = None,
) -> int:
    """Ask each server, and print a table; the exit status is 1 if a text differs or a whole file is not answered.

    Args:
        model: Folder of a trained model that reads one image and no other fields.
        studies: The manifest whose test split is drafted.
        seconds: Seconds for each server.
        clients: Clients that ask at the same time.
        n: Files.
        batch_size: Drafts that raddraft serve decodes together.
        transformers: The command `transformers` of an environment with transformers[serving]; by default that of this
            one.
    """
    command = transformers or Path(sys.executable).with_name("transformers")
    loads = []
    with TemporaryDirectory() as folder:
        files = write_files(read_studies(studies, "test")[:n], Path(folder))
        loaded = load_model(model, "cpu")
        out = Path(folder) / "expected.jsonl"
        loaded.generate(files, out, workers=0, decode=DecodeConfig(max_new_tokens=TOKENS, batch_size=batch_size))
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        expected = {row["study_id"]: row["prediction"] for row in rows}
        ours = [sys.executable, "-m", "raddraft", "serve", model, "--port", "{port}", "--batch-size", batch_size]
        with serving("raddraft serve", [*map(str, ours)], model.resolve().name, clients) as ask:
            loads.append(ask(files, expected, loaded.drafter.prompt.request, seconds))
        if transformers or find_spec("fastapi"):
            theirs = [command, "serve", model.resolve(), "--port", "{port}", "--host", "127.0.0.1"]
            with serving("transformers serve", [*map(str, theirs)], str(model.resolve()), clients) as ask:
                loads.append(ask(files, expected, loaded.drafter.prompt.request, seconds))
        else:
            loads.append(generate_plainly(loaded.drafter, files, expected, seconds))
    head = ["", "answers", "1/s", "median, s", "99 %, s", "errors", "cut files", "other texts", "MB at 1/4", "at end"]
    print(format_table([head, *(load.row() for load in loads)]))
    first = loads[0]
    return 1 if first.different or {*first.statuses} != {200} or {*first.broken} - {400} else 0


def generate_plainly(drafter: Drafter, studies: Sequence[Study], expected: dict[str, str], seconds: float) -> Load:
    """Draft one study after the other with transformers' `generate`, without a server."""
    load, began = Load("plain generate, one by one"), time.monotonic()
    for study in itertools.cycle(studies):
        asked = time.monotonic()
        load.seconds = asked - began
        if load.seconds > seconds:
            break
        (text,) = plain_drafts(drafter, [study], DecodeConfig(max_new_tokens=TOKENS))
        load.times.append(time.monotonic() - asked)
        load.statuses[200] += 1
        load.different += text != expected[study.study_id]
    return load


def write_files(studies: Sequence[Study], folder: Path) -> list[Study]:
    """The same studies with their main images at three sizes."""
    from PIL import Image

    made = []
    for number, study in enumerate(studies):
        image = Image.open(study.main_image.path).convert("L")
        scale = 2 ** (number % 3)
        path = folder / f"{number}.{'jpg' if scale > 1 else 'png'}"
        image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(path)
        made.append(Study(study.study_id, study.subject_id, "test", [StudyImage(path, study.main_image.view)]))
    return made


@contextmanager
def serving(name: str, command: Sequence[str], model: str, clients: int) -> Iterator[Asker]:
    """Run a server, whose command names the port as {port}, and give what asks it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.format(port=port) for word in command]
    environment = os.environ | {"RADDRAFT_TOKEN": "token", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            asker = Asker(name, process.pid, port, model, clients)
            while not asker.is_ready():
                if process.poll() is not None:
                    raise RadDraftError(f"{' '.join(words)} does not start; it ended with {process.returncode}")
                time.sleep(0.5)
            yield asker
        finally:
            process.terminate()


@dataclass
class Asker:
    """Asks a server from several clients."""

    name: str
    process: int
    port: int
    model: str
    clients: int

    def is_ready(self) -> bool:
        """Whether it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def post(self, data: bytes, text: str, **fields: object) -> tuple[int, str]:
        """Status and text of the answer to an image with a request, greedy unless the fields say otherwise."""
        url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {"model": self.model, "temperature": 0, "max_tokens": TOKENS} | fields
        message = {"role": "user", "content": content}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer token"}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body | {"messages": [message]}), headers)
            answer = connection.getresponse()
            found = answer.read()
        except OSError:
            return 0, ""
        finally:
            connection.close()
        return answer.status, json.loads(found)["choices"][0]["message"]["content"] if answer.status == 200 else ""

    def __call__(self, studies: Sequence[Study], expected: dict[str, str], text: str, seconds: float) -> Load:
        """Ask for so many seconds, and wait for the last answers."""
        files = [(study.study_id, study.main_image.path.read_bytes()) for study in studies]
        self.post(files[0][1], text)  # the first answer pays for lazy set-up
        load, numbers, began = Load(self.name), itertools.count(), time.monotonic()

        def client(_: int) -> None:
            while time.monotonic() < began + seconds:
                number = next(numbers)
                study_id, data = files[number % len(files)]
                if number % BROKEN == BROKEN - 1:
                    load.broken[self.post(data[: len(data) // 2], text)[0]] += 1
                    continue
                asked = time.monotonic()
                status, draft = self.post(data, text)
                load.times.append(time.monotonic() - asked)
                load.statuses[status] += 1
                load.different += status == 200 and draft.strip() != expected[study_id]

        with ThreadPoolExecutor(self.clients) as pool:
            done = pool.map(client, range(self.clients))
            time.sleep(seconds / 4)
            load.memory.append(self.memory())
            list(done)
        load.seconds = time.monotonic() - began
        load.memory.append(self.memory())
        return load

    def memory(self) -> float:
        """MB of the server with its processes (Linux)."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text(encoding="utf-8").split()
        return resident(self.process) + sum(resident(int(one)) for one in children)


if __name__ == "__main__":
    from raddraft.cli import run

    run("serving", package="benchmarks")
