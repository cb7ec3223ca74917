"""Serve a model to OpenAI's clients: raddraft serve MODEL; extra `serve`.

    raddraft serve runs/demo/model --port 8080 --batch-size 64 --token-file token.txt
    raddraft serve runs/first/model --port 8080 --engine http://127.0.0.1:8000/v1

It answers POST /v1/chat/completions, GET /v1/models, /health and /metrics on this computer only, until it is stopped
(Ctrl-C, SIGTERM). Greedy texts are those of `raddraft generate`. Every draft is for a radiologist to check.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from generator.config import ServeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Count, Port, Whole

POSITIONAL = ("model",)
FLAT = ("limits",)


def main(
    model: str,
    host: str = "127.0.0.1",
    port: Port = 8000,
    name: str | None = None,
    token_file: Path | None = None,
    limits: ServeConfig = ServeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    speculate: Path | None = None,
    workers: Count = 2,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    device: str = "auto",
    remote_code: bool = False,
    engine: str | None = None,
    check: Whole | None = None,
) -> None:
    """Serve the model.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        host: Address to listen at; another one than this computer's own lets others in, unencrypted.
        port: Port to listen at; 0 takes a free one.
        name: What clients call the model; by default the last part of its path, or its hub id.
        token_file: A file whose first line is the token of clients; by default RADDRAFT_TOKEN, or a new one is printed.
        limits: Limits
        speculate: A manifest from whose training reports tokens are proposed: the same greedy text in fewer passes.
        workers: Processes that read image files.
        prompt: Prompt of a model that was not trained by RadDraft; one that was keeps its own.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator, or with an engine the cpu.
        remote_code: Run Python code that comes with a model that was not trained by RadDraft.
        engine: Address of a server of the same model that decodes (vLLM …); its token is in RADDRAFT_ENGINE_TOKEN.
        check: Synthetic films that both draft first, by default 4; it stops if fewer than half of the texts are equal.
    """
    try:
        from generator.serving.app import Service, make_server
    except ImportError as error:
        raise RadDraftError(f'The server needs {error.name}: pip install "raddraft[serve]"') from None
    from generator.api import load_model
    from generator.engine_check import compare_synthetic, connect
    from generator.serving.pictures import Pictures
    from generator.web import bound, exit_on_signals

    exit_on_signals()
    token, is_new = read_token(token_file)
    with bound(host, port) as listener:  # what is not there is told before a model is loaded
        server, count = connect(engine, check, usual=4)
        loaded = load_model(model, "cpu" if server and device == "auto" else device, prompt, remote_code)
        if server and count:
            print(compare_synthetic(server, loaded.drafter, count), flush=True)
        loaded.name = name or (Path(model).resolve().name if Path(model).is_dir() else model)
        pictures = Pictures(loaded.drafter.gray_mapping, workers)
        service = Service(loaded, limits, pictures, loaded.speculator(speculate), server)
        try:
            address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
            shown = f"Token: {token}\n" if is_new else ""
            listener.listen()  # who asks at once waits, and is not refused
            print(f"{loaded.name} is served at {address}\n{shown}Ctrl-C stops.\n{loaded.banner}", flush=True)
            make_server(service, token).run(sockets=[listener])
        finally:
            service.close()
            pictures.close()


def read_token(file: Path | None) -> tuple[str, bool]:
    """The token of a file's first line or of RADDRAFT_TOKEN, or a new one; and whether it is new."""
    text = file.read_text(encoding="utf-8") if file else os.environ.get("RADDRAFT_TOKEN")
    if text is None:
        return secrets.token_urlsafe(32), True
    token = next(iter(text.splitlines()), "").strip()
    if not token:
        raise RadDraftError(f"{f'--token-file {file}' if file else 'RADDRAFT_TOKEN'}: its first line is empty")
    return token, False


if __name__ == "__main__":
    run("serve")
