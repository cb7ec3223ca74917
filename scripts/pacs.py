"""Draft the chest studies of an archive (DICOMweb), and send the reports back: raddraft pacs --url URL --model MODEL

    raddraft pacs --url http://localhost:8042/dicom-web --model runs/first/model --once
    raddraft pacs --url https://pacs/dicom-web --model runs/first/model --user reader --password-file secret.txt
    raddraft pacs --url http://localhost:8042/dicom-web --model runs/first/model --receive 0.0.0.0:11112

It looks for studies again and again until it is stopped (Ctrl-C); --once looks once. A study that has this model's
draft is not drafted again. Every draft is for a radiologist to check.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from generator.clinic import Document, Selection
from generator.config import DecodeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Amount

FLAT = ("select",)


def main(
    url: str,
    model: str,
    once: bool = False,
    receive: str | None = None,
    to: list[Document] = ["sr"],  # noqa: B006 - the parser's default, never changed
    select: Selection = Selection(),  # noqa: B008 - the parser reads its fields and defaults from here
    user: str | None = None,
    password_file: Path | None = None,
    folder: Path | None = None,
    interval: Amount = 60,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    device: str = "auto",
    remote_code: bool = False,
) -> int:
    """Draft what the archive lists or sends; the exit status of --once is 1 where anything failed.

    Args:
        url: Root of the archive's DICOMweb service.
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        once: Look for studies once.
        receive: PORT or HOST:PORT at which films are received by C-STORE (as RADDRAFT), instead of being looked for;
            without a host only this computer can send.
        to: Documents to send: sr (Basic Text SR), pdf (Encapsulated PDF).
        select: Studies
        user: For an archive with HTTP basic authentication; its password is never part of the command line.
        password_file: A file whose first line is the password; by default it is in RADDRAFT_PACS_PASSWORD.
        folder: Where documents that could not be sent yet are kept, which name patients; by default in the cache.
        interval: Seconds between two looks.
        decode: Decoding.
        prompt: Prompt of a model that was not trained by RadDraft; one that was keeps its own.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        remote_code: Run Python code that comes with a model that was not trained by RadDraft.
    """
    from generator.api import load_model
    from generator.clinic.archive import Archive, read_password
    from generator.clinic.receiver import receive as receive_films
    from generator.clinic.station import Station, hold

    if once and receive:
        raise RadDraftError("--once looks for studies in the archive; leave it out to --receive them")
    archive = Archive(url, user, read_password(user, password_file))
    loaded = load_model(model, device, prompt, remote_code)
    with hold(folder, url, loaded) as place:
        station = Station(archive, loaded, place, to, select, bool(receive), decode)
        if once:
            station.round(settle=0)
            print(f"{station.drafted} studies were drafted now; {station.failed} failed")
            return 1 if station.failed else 0
        with receive_films(receive, station.inbox) if receive else nullcontext():
            station.run(interval)
    return 0


if __name__ == "__main__":
    run("pacs")
