"""Read studies and their drafts in the browser, and correct them: raddraft read MODEL STUDIES; extra `read`.

    pip install -e ".[read]"
    raddraft read runs/first/model folder_of_dicoms --reader A
    raddraft read runs/first/model runs/demo/phantom/studies.jsonl runs/first/model.jsonl
    raddraft read runs/first/model http://localhost:8042/dicom-web --date 20260101-

The page is served on this computer only, at the address that is printed, until it is stopped (Ctrl-C). The next studies
are drafted while one is read. Every decision is appended to reads.jsonl. Every draft is for a radiologist to check.
"""

from __future__ import annotations

from pathlib import Path

from generator.clinic import Ids
from generator.clinic.reading import Split
from generator.config import DecodeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.ranges import Port

POSITIONAL = ("model", "studies")


def main(
    model: str,
    studies: list[str],
    out: Path = Path("reads.jsonl"),
    reader: str = "reader",
    results: Path = Path("results"),
    split: Split = "test",
    ids: Ids = "pseudonymous",
    date: str | None = None,
    user: str | None = None,
    password_file: Path | None = None,
    nearest: Path | None = None,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    port: Port = 0,
    device: str = "auto",
    remote_code: bool = False,
) -> None:
    """Serve the page.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        studies: Manifests (studies.jsonl), folders of images, image files; a predictions.jsonl gives drafts of these
            studies, and the others are drafted while one reads. Or the root of an archive's DICOMweb service, alone.
        out: The reads.jsonl to write or to go on with.
        reader: Any label of who reads; several readers may share a file, one after the other.
        results: Folder for SR, PDF and FHIR of read studies, which name patients; made with the first of them.
        split: The studies of manifests to read.
        ids: Ids of DICOM studies: pseudonymous, under the user's key, or original, the Study Instance UID.
        date: Study Date of an archive's studies: 20260131, 20260101-20260131, 20260101- …; by default any.
        user: For an archive with HTTP basic authentication; its password is never part of the command line.
        password_file: A file whose first line is the password; by default it is in RADDRAFT_PACS_PASSWORD.
        nearest: A manifest, of whose training studies the nearest by the model's own tower are shown with their
            reports; features are kept in RadDraft's cache.
        decode: Decoding; with several candidates sentences are shaded by how many agree.
        prompt: Prompt of a model that was not trained by RadDraft; one that was keeps its own.
        port: Port on this computer; 0 takes a free one.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        remote_code: Run Python code that comes with a model that was not trained by RadDraft.
    """
    from tempfile import TemporaryDirectory

    from generator.api import load_model
    from generator.clinic.reading.decisions import Reads
    from generator.clinic.reading.films import Films
    from generator.clinic.reading.insight import Nearest
    from generator.clinic.reading.reading import Reading
    from generator.clinic.reading.remote import find_worklist
    from generator.clinic.reading.server import serve
    from generator.web import exit_on_signals
    from raddraft.files import cache_folder
    from raddraft.studies import read_studies

    exit_on_signals()
    with TemporaryDirectory(prefix="raddraft-read-") as folder:  # for films of an archive; its owner's only
        # What is not there is told before a model is loaded.
        worklist = find_worklist(studies, Path(folder), split, ids, date, user, password_file)
        known = read_studies(nearest) if nearest else None
        reads = Reads(out, reader)
        films = Films()
        films.start()  # while the model is loaded
        loaded = load_model(model, device, prompt, remote_code)
        finder = Nearest(loaded.drafter, known, cache_folder() / "features") if known else None
        reading = Reading(loaded, worklist, reads, results, decode, finder, films)
        done = sum(reading.status(study) != "unread" for study in worklist.studies)
        print(f"{len(worklist.studies)} studies, {done} of them read; decisions go to {out}\n{loaded.banner}")
        try:
            serve(reading, port, lambda address: print(f"Open {address}\nCtrl-C stops.", flush=True))
        finally:
            reading.close()


if __name__ == "__main__":
    run("read")
