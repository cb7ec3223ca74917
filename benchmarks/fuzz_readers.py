"""What `benchmarks.fuzz` damages beside pictures and this project's files: tables, models, requests, documents."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from pydicom import Dataset, dcmread
from pydicom.filewriter import dcmwrite

from benchmarks.five_sets import SETS, make_sets
from encoder.convert import convert as convert_checkpoint
from encoder.towers import load_tower
from generator.api import load_model
from generator.clinic.archive import header_of
from generator.clinic.films import read_film
from generator.clinic.sr import read_sr
from generator.corpora import converter
from generator.serving.wire import Refused, read_form, read_json
from metrics.annotate import AnnotationCache
from raddraft.errors import RadDraftError
from raddraft.files import read_object

Work = tuple[Path, list[Callable[[Path], object]], str]
SHARE = 1e-4
"""Of the five sets: some forty studies each."""
BOUNDARY = "boundary-of-a-form"


def more_work(place: Path, folder: Path) -> list[Work]:
    """Files, what reads them, and their kind; as `benchmarks.fuzz` has them."""
    work = [*_tables(place / "sets"), *_models(place / "trained" / "model", place / "tower", folder)]
    return [*work, *_requests(place, folder), *_documents(place, folder), *_states(folder)]


def _tables(tree: Path) -> list[Work]:
    """Tables of five sets, read by their converters where the damaged one stands in its place."""
    make_sets(tree, SHARE)
    work: list[Work] = []
    for name in SETS:
        root = tree / name
        for table in [path for path in root.rglob("*") if path.suffix in (".csv", ".gz", ".txt") and path.is_file()]:

            def read(damaged: Path, name: str = name, root: Path = root, table: Path = table) -> None:
                kept = table.read_bytes()
                try:
                    shutil.copyfile(damaged, table)
                    converter(name)(root=root, out=tree / "studies.jsonl")
                finally:
                    table.write_bytes(kept)

            if len(work) < 12 or table.suffix == ".csv":
                work.append((table, [read], "text" if table.suffix == ".csv" else "other"))
    return work[:16]


def _models(model: Path, tower: Path, folder: Path) -> list[Work]:
    """Files of model folders."""
    work: list[Work] = []
    for source, load in ((model, lambda path: load_model(path, "cpu")), (tower, lambda path: load_tower(str(path)))):
        copy = folder / f"copy-{source.name}"
        shutil.copytree(source, copy)
        for file in sorted(path for path in source.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")):

            def read(damaged: Path, file: Path = file, copy: Path = copy, load: Callable = load) -> None:
                shutil.copyfile(damaged, copy / file.name)
                try:
                    load(copy)
                finally:
                    shutil.copyfile(file, copy / file.name)

            work.append((file, [read], "json" if file.suffix == ".json" else "other"))
    return work


def _requests(place: Path, folder: Path) -> list[Work]:
    """Requests of `raddraft serve`: JSON and forms."""
    film = next((place / "films").rglob("*.jpg")).read_bytes()
    url = f"data:image/jpeg;base64,{base64.b64encode(film).decode()}"
    parts = [{"type": "text", "text": "Report."}, {"type": "image_url", "image_url": {"url": url}}]
    chat = {"model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0.5, "n": 2}
    chat |= {"consensus": ["rouge_l"], "study": {"indication": "Cough.", "age": 50, "prior": {"images": [url]}}}
    (folder / "request.json").write_text(json.dumps(chat))
    field = json.dumps({"study": {"indication": "Cough."}}).encode()
    body = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (BOUNDARY.encode(), name, more, data)
        for name, more, data in ((b"image", b'; filename="a.jpg"', film), (b"request", b"", field))
    )
    (folder / "form.bin").write_bytes(body + b"--%s--\r\n" % BOUNDARY.encode())
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return [
        (folder / "request.json", [_refusing(lambda data: read_json(data))], "json"),
        (folder / "form.bin", [_refusing(lambda data: asyncio.run(read_form(data, headers)))], "other"),
    ]


def _refusing(read: Callable[[bytes], object]) -> Callable[[Path], object]:
    def reader(path: Path) -> object:
        try:
            return read(path.read_bytes())
        except Refused as error:
            raise RadDraftError(str(error)) from None

    return reader


def _documents(place: Path, folder: Path) -> list[Work]:
    """Films as clinics and archives state them, and a report."""
    films = sorted((place / "films").rglob("*.dcm"))
    header = dcmread(films[0], stop_before_pixels=True)
    (folder / "header.json").write_text(json.dumps(header.to_json_dict()))
    work: list[Work] = [
        (films[0], [read_film], "dicom"),
        (folder / "header.json", [lambda path: header_of(_object(path))], "json"),
    ]
    for document in sorted((place / "undisturbed" / "pacs" / "sent").glob("*.dcm")):
        if dcmread(document, stop_before_pixels=True).Modality == "SR":
            report = shutil.copy(document, folder / "report.dcm")
            return [*work, (Path(report), [lambda path: read_sr(_dataset(path))], "other")] * 2
    return work


def _object(path: Path) -> dict[str, object]:
    return read_object(path, "it is no answer of an archive")


def _dataset(path: Path) -> Dataset:
    """Of bytes that pydicom can read at all: what it raises of others is not ours."""
    try:
        dataset = dcmread(path)
        dcmwrite(path.with_suffix(".whole"), dataset)  # reads all elements
    except Exception as error:
        raise RadDraftError(f"{path}: {error}") from None
    return dataset


def _states(folder: Path) -> list[Work]:
    """A checkpoint and a cache of annotations."""
    torch.save({"module": {"x": torch.zeros(3)}}, folder / "x.pth")
    cache = AnnotationCache(folder / "annotations.sqlite")
    cache.write("key", {"Clear.": [0] * 14, "Effusion.": [1] * 14})
    cache.connection.close()

    def read(path: Path) -> None:
        found = AnnotationCache(path)
        try:
            found.read("key", ["Clear.", "Effusion."])
        finally:
            found.connection.close()

    return [
        (folder / "x.pth", [lambda path: convert_checkpoint(path, folder / "converted")], "other"),
        (folder / "annotations.sqlite", [read], "other"),
    ]
