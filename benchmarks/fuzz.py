"""Damaged files for every reader: each is read or refused by one of this project's errors, in time."""

from __future__ import annotations

import json
import random
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import yaml
from PIL import Image
from pydicom import dcmread

from benchmarks.fuzz_readers import more_work
from encoder.masks import load_mask
from encoder.rows import Form, find_rows
from generator.generate import read_drafts
from generator.model import read_sidecar
from generator.priors import find_priors
from metrics.read import read_systems
from metrics.reads import read_drafts as read_reads
from metrics.systems import score_systems
from raddraft.errors import RadDraftError
from raddraft.files import cut_log, read_json
from raddraft.grammar import UsageError, parse
from raddraft.images import is_dicom, load_film, load_gray, load_image, shown_size, stored_size
from raddraft.runs import keep_config
from raddraft.studies import read_studies, write_studies
from raddraft.tables import read_cells

LONGEST = 30
"""Seconds of computing after which a reader hangs."""
WAITING = 900
"""Seconds after which one does that computes nothing."""
BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xe9",
    b"\\ud800",
    b"[" * 5000,
    b"1" * 5000,
    b"NaN",
    b"Infinity",
    b'"',
    b"\n",
    b"{}",
    b"-",
)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", " ", "nan", "-nan", "inf", "x\0.png", "\ud800",
    "=1+1", [], {}, ["a"], {"a": 1}, "9" * 500, "../..", "/dev/zero", "2180-99-99",
)  # fmt: skip
TAGS: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 24, 96, 65535),
    "Columns": (0, 1, 24, 96, 65535),
    "SamplesPerPixel": (0, 2, 3, 4),
    "PhotometricInterpretation": ("RGB", "MONOCHROME1", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "X", ""),
    "BitsAllocated": (1, 8, 12, 32, 64),
    "BitsStored": (1, 4, 8, 16, 17),
    "HighBit": (0, 3, 7, 15),
    "PixelRepresentation": (1, 2),
    "NumberOfFrames": (0, 2),
    "WindowCenter": (0, [1, 2], 1e30),
    "WindowWidth": (0, -5, [3, 4], 1e30),
    "RescaleSlope": (0, 1e30, -1),
    "RescaleIntercept": (1e30, -1),
    "PixelPaddingValue": (0, 5),
    "PixelSpacing": ([1, 2], [0, 0], [1e-5, 1]),
    "ImagerPixelSpacing": ([1, 2], [0, 0]),
}

Reader = Callable[[Path], object]


def fuzz(place: Path, inputs: int, rng: random.Random) -> Counter[str]:
    """Give readers damaged files that are made of those in a folder of the campaign; count the faults.

    Args:
        place: with films/ of `generator.corpora.phantom` with films of DICOM, trained/ and drafts.jsonl.
        inputs: how many.
        rng: draws what is damaged, and how.
    """
    folder = place / "fuzz"
    folder.mkdir()
    work = _work(place, folder)
    work += more_work(place, folder)
    faults, counts = Counter[str](), Counter[str]()
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _time_out)
    before = Path.cwd()
    for _ in range(inputs):
        source, readers, kind = rng.choice(work)
        damaged = folder / f"damaged{source.suffix}"
        try:
            damaged.write_bytes(_damage(source, kind, rng, folder))
        except Exception:  # the writer of the format refused the value
            continue
        for reader in readers:
            outcome = _try(reader, damaged, source, kind)
            counts[outcome] += 1
            if outcome not in ("read", "refused"):
                faults[f"{kind}: {outcome}"] += 1
                damaged.rename(folder / f"fault-{sum(faults.values())}{source.suffix}")
                break
    assert Path.cwd() == before
    print(f"inputs {inputs}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return faults


def _work(place: Path, folder: Path) -> list[tuple[Path, list[Reader], str]]:
    """Files, what reads them, and their kind."""
    films, work = place / "films", list[tuple[Path, list[Reader], str]]()
    picture = Image.open(next(films.rglob("*.jpg"))).convert("L")
    deep = np.asarray(picture).astype(np.uint16) * 16 + np.arange(picture.width, dtype=np.uint16) % 16
    for name, pixels, options in (
        ("a.png", picture, {}), ("deep.png", Image.fromarray(deep), {}), ("a.jpg", picture, {}), ("a.bmp", picture, {}),
        ("a.tif", picture, {}), ("b.tif", picture, {"compression": "tiff_adobe_deflate"}),
        ("f.tif", Image.fromarray(deep.astype(np.float32)), {}), ("rgb.png", picture.convert("RGB"), {}),
    ):  # fmt: skip
        pixels.save(folder / name, **options)
        readers: list[Reader] = [load_image, load_gray, load_film, shown_size, stored_size, is_dicom]
        work.append((folder / name, [*readers, load_mask], "png" if name.endswith("png") else "picture"))
    for film in list(films.rglob("*.dcm"))[:3]:
        work += [(film, [load_image, load_gray, load_film, shown_size, stored_size], "dicom")] * 3
    lines = [json.loads(line) for line in (films / "studies.jsonl").read_text().splitlines()]
    few = folder / "studies.jsonl"
    few.write_text("".join(json.dumps(line | {"prior": None, "age": 3}) + "\n" for line in lines[:6]))
    drafts = folder / "drafts.jsonl"
    drafts.write_text("".join((place / "drafts.jsonl").read_text().splitlines(keepends=True)[:3]))
    reads = folder / "reads.jsonl"
    row = {"study_id": "a", "draft": "Clear.", "final": "Clear.", "decision": "accepted", "seconds": 1.5, "reader": "r"}
    reads.write_text(json.dumps(row) + "\n" + json.dumps(row | {"study_id": "b", "reference": "No."}) + "\n")
    table = folder / "table.csv"
    table.write_text('study_id,report\n1,"Clear, no edema."\n2,Effusion.\n')
    sidecar = folder / "raddraft.json"
    copyfile(place / "trained" / "model" / "raddraft.json", sidecar)
    config = folder / "config.yaml"
    copyfile(place / "trained" / "config.yaml", config)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"size": 24, "studies": "x.jsonl", "out": "y", "bits": 8}))
    index = folder / "part-0.jsonl"
    index.write_text('"digest-a"\n"digest-b"\n')
    (folder / "part-0.bin").write_bytes(bytes(Form(0, 4, "float32").row_bytes * 2))
    work += [(few, [_manifest], "json lines")] * 4
    work += [(drafts, [_predictions, lambda path: cut_log(path, lambda row: True)], "json lines")] * 3
    work += [
        (reads, [lambda path: read_reads([path])], "json lines"),
        (table, [lambda path: list(read_cells(path))], "text"),
    ]
    work += [(sidecar, [read_json, _sidecar], "json"), (config, [_keep], "text"), (recipe, [_options], "text")]
    work += [(index, [_index], "text")]
    return work


def _manifest(path: Path) -> None:
    """All that reads a manifest."""
    studies = read_studies(path)
    for study in studies:
        _ = (study.main_image.path, study.sections, study.labels, study.patient, study.extra, study.is_synthetic)
        for image in study.images:
            if "dev" not in str(image.path):
                with suppress(RadDraftError):
                    load_image(image.path)
    with suppress(RadDraftError):
        find_priors(studies)
    write_studies(path.with_name("copy.jsonl"), studies)
    rows = path.with_name("of-manifest.jsonl")
    texts = [{"study_id": study.study_id, "prediction": "Clear.", "reference": "No edema."} for study in studies]
    rows.write_text("".join(json.dumps(text) + "\n" for text in texts))
    score_systems(read_systems([rows])[0], ["rouge_l"], ["age", "sex", "view"], studies, resamples=2)


def _predictions(path: Path) -> None:
    list(read_drafts(path))
    score_systems(read_systems([path])[0], ["rouge_l"], resamples=2)


def _sidecar(path: Path) -> None:
    folder = path.parent / "model"
    folder.mkdir(exist_ok=True)
    copyfile(path, folder / "raddraft.json")
    read_sidecar(folder)


def _keep(path: Path) -> None:
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").touch()
    copyfile(path, folder / "config.yaml")
    keep_config(folder / "config.yaml", {"train": {"seed": 0}})


def _options(path: Path) -> None:
    from raddraft.cli import read_action
    from scripts import prepare

    parse(read_action(prepare, "resize"), ["--config", str(path)], prepare)


def _index(path: Path) -> None:
    folder = path.parent / "store"
    folder.mkdir(exist_ok=True)
    copyfile(path, folder / "part-0.jsonl")
    copyfile(path.with_name("part-0.bin"), folder / "part-0.bin")
    find_rows(folder, Form(0, 4, "float32"))


def _time_out(*_: object) -> None:
    raise TimeoutError("hangs")


def _try(reader: Reader, damaged: Path, source: Path, kind: str) -> str:
    """What came of it: read, refused, silent (a wrong check sum was passed over), hangs, traceback."""
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader(damaged)
            if kind == "png" and reader is load_gray and not np.array_equal(found, load_gray(source)):  # type: ignore[arg-type]
                return "silent"
        return "read"
    except (RadDraftError, UsageError):
        return "refused"
    except TimeoutError:
        print(f"hangs: {reader}", file=sys.stderr)
        return "hangs"
    except BaseException:
        print(f"{source.name}:", traceback.format_exc(limit=-4)[:1200], file=sys.stderr)
        return "traceback"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _damage(source: Path, kind: str, rng: random.Random, folder: Path) -> bytes:
    """The content of a file with one to three things wrong."""
    if kind == "dicom" and rng.random() < 0.6:
        film = dcmread(source)
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(list(TAGS))
            setattr(film, name, rng.choice(TAGS[name]))
        if rng.random() < 0.3:
            film.PixelData = rng.choice([film.PixelData * 2, film.PixelData[: len(film.PixelData) // 4 * 2]])
        film.save_as(folder / "film")
        return (folder / "film").read_bytes()
    data = source.read_bytes()
    if kind.startswith("json") and rng.random() < 0.7:
        lines = [json.loads(line) for line in data.splitlines()] if kind == "json lines" else [json.loads(data)]
        for _ in range(rng.randint(1, 3)):
            _replace_one(rng.choice(lines), rng)
        return "".join(json.dumps(line) + "\n" for line in lines).encode()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.6 else rng.randrange(min(400, len(data) + 1))
        end = at + rng.choice((1, 1, 4, 64, 1000))
        how = rng.randrange(6)
        if how == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif how == 1:
            data = data[: max(1, at)]
        elif how == 2:
            data = data[:at] + bytes(len(data[at:end])) + data[end:]
        elif how == 3:
            data = data[:end] + data[at:]
        elif how == 4:
            data = data[:at] + rng.choice(BYTES) + data[at:]
        else:
            data = data[:at] + data[end:]
        if kind == "text" and how == 4:
            data = data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "latin-1", "utf-8")), "replace")
    return data


def _replace_one(value: Any, rng: random.Random) -> None:
    """Put another value in one place of a nested value; or remove it."""
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    walk(value)
    if places:
        inner, key = rng.choice(places)
        if rng.random() < 0.1:
            del inner[key]
        else:
            inner[key] = rng.choice(VALUES)
