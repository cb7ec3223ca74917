"""The commands that `benchmarks.campaign` disturbs, on a few phantoms and tiny random networks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from generator.clinic.archive import Archive, Listed
from raddraft.files import read_jsonl, write_jsonl, write_whole
from raddraft.studies import Study, read_studies

if TYPE_CHECKING:
    from pydicom import Dataset

SHARING = ("features", "compare")
"""Commands of which two may write to one output."""
READS = 12
"""Decisions of the case read."""


@dataclass
class Case:
    """A command that writes."""

    name: str
    words: Sequence[str] = ()
    """With {out} where the output stands."""
    suffix: str = ""
    """Of the output; blank for a folder."""
    function: Callable[[Path], None] | None = None
    """To be called with the output, in place of a command."""
    volatile: bool = False
    """Whether all it writes holds times, so that contents cannot be compared."""
    once: bool = False
    """Whether it refuses an output that is there."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment; with {out}."""
    seconds: float = 0
    """That it takes undisturbed."""
    operations: int = 0
    """On files, of a run that nobody disturbs."""
    expected: dict[str, str | None] = field(default_factory=dict)
    """File -> digest of what it writes undisturbed."""


def make_cases(place: Path, run: Callable[[Case, Path], int]) -> list[Case]:
    """All cases, and what they need.

    Args:
        place: an empty folder.
        run: runs a case that writes to an output; its exit status.
    """
    from generator.corpora import phantom
    from generator.tiny import make_lm, make_tower

    phantom.convert(place / "films", count=24, size=64, seed=0, dicoms=4, processes=1)
    manifest = place / "films" / "studies.jsonl"
    make_tower(place / "tower", image_size=56, patch_size=28, hidden=32, layers=1)
    make_lm(place / "lm", [study.sections["findings"] for study in read_studies(manifest)], 300, hidden=32, layers=1)
    given = {"place": str(place), "manifest": str(manifest), "model": f"{place}/trained/model"}

    def case(name: str, words: str, suffix: str = "", *more: str, **options: str) -> Case:
        return Case(name, [*words.format(out="{out}", **given).split(), *more], suffix, variables=options)

    training = "train --studies {manifest} --out {out} --model.tower {place}/tower --model.lm {place}/lm "
    training += "--prompt.targets findings --train.workers 0 --train.batch_size 4 --train.save_every 2 --train.stages"
    reward = {
        "metrics": {"rouge_l": 1},
        "group": 8,
        "temperature": 5,
        "max_new_tokens": 80,
        "batch_size": 4,
        "micro_batch_size": 4,
    }
    reward |= {"sample_batch_size": 4, "val_metrics": ["bleu"]}
    full, learns = {"epochs": 1, "lr": 1e-3, "lm": "full"}, {"epochs": 0.5, "lr": 1e-3, "lm": "full", "reward": reward}
    train = case("train", training, "", json.dumps([full | {"epochs": 2}]))
    drafts = "generate --model {model} --studies {manifest} --workers 0 --device cpu --decode.batch_size 2 "
    drafts += "--decode.max_new_tokens 8 --out {out}"
    cases = [train, case("generate", drafts, ".jsonl")]
    needed = {"trained": train, "drafts.jsonl": cases[1], "two.jsonl": case("", f"{drafts} --decode.candidates 2")}
    for name, one in needed.items():
        if status := run(one, place / name):
            raise RuntimeError(f"{name}: the command ended with {status}: {(place / 'said').read_text()[-2000:]}")
    _write_inputs(place, manifest)
    steps = "--pretrain.tower {place}/tower --pretrain.steps 4 --pretrain.save_every 2 --pretrain.watch_every 2 "
    steps += "--pretrain.batch_size 4 --pretrain.micro_batch_size 4 --pretrain.objective.prototypes 16 "
    steps += "--pretrain.objective.head_hidden 16 --pretrain.objective.bottleneck 8 --pretrain.crops.global_size 56 "
    steps += "--pretrain.crops.local_size 28 --pretrain.workers 0 --pretrain.gray_mapping window"
    compute = "--device cpu --workers 0"
    tower = f"--tower {{place}}/tower {compute}"
    tasks = [{"name": "sex", "kind": "multiclass", "targets": ["patient.sex"]}]
    small = "--clip.epochs 2 --clip.batch_size 8 --clip.width 32 --clip.text_layers 1 --clip.workers 0"
    return [
        *cases,
        case("phantom", "prepare phantom --root {out} --count 6 --size 48 --processes 2"),
        case("folder", "prepare folder --root {place}/films/files --out {out}", ".jsonl"),
        case("join", "prepare join --manifests {place}/a.jsonl {place}/b.jsonl --out {out}", ".jsonl"),
        case("labels", "prepare labels --studies {place}/b.jsonl --section summary --out {out}", ".jsonl"),
        case("corrected", "prepare reads --studies {manifest} --reads {place}/reads.jsonl --out {out}", ".jsonl"),
        case("resize", "prepare resize --studies {manifest} --out {out} --size 32 --processes 2"),
        case("check", "check {manifest} --out {out} --smallest 16 --processes 1"),
        case("control", "generate --model {model} --studies {manifest} --control most-frequent --out {out}", ".jsonl"),
        case("score", "score {place}/drafts.jsonl --out {out} --metrics rouge bleu rule --resamples 50"),
        case("consensus", "consensus {place}/two.jsonl --out {out}", ".jsonl"),
        case("retrieve", f"retrieve {tower} --features {{place}}/known --studies {{manifest}} --out {{out}}", ".jsonl"),
        case("features", f"features --studies {{manifest}} {tower} --features {{out}}"),
        case("compare", f"compare --studies {{manifest}} --out {{out}} --features {{place}}/known {compute}", "",
             "--towers", json.dumps([{"tower": f"{place}/tower"}, {"tower": "pixels"}]), "--tasks",
             json.dumps(tasks)),
        case("rewards", training, "", json.dumps([full, learns])),
        case("clip", f"clip --studies {{manifest}} --tower {{place}}/tower --out {{out}} --clip.save_every 2 {small}"),
        case("pretrain", f"pretrain --studies {{manifest}} --out {{out}} --pretrain.map_images 0 {steps}"),
        case("crops", f"crops --studies {{manifest}} --out {{out}} --count 2 {steps}", ".png"),
        case("figures", "figures {place}/film.jpg --towers {place}/tower --out {out} --device cpu", ".png"),
        replace(case("convert", "convert {place}/vit.pth --out {out}"), once=True),
        case("weights", "weights --add chexbert-tokenizer --file {place}/lm", RADDRAFT_WEIGHTS="{out}"),
        Case("read", suffix=".jsonl", function=lambda out: _read(out, manifest), volatile=True),
        Case("pacs", function=lambda out: _draft_all(out, place), volatile=True),
    ]  # fmt: skip


def _write_inputs(place: Path, manifest: Path) -> None:
    """Manifests in two parts, reads, a film, and a checkpoint of another layout."""
    import timm
    import torch

    shutil.copy(next((place / "films").rglob("*.jpg")), place / "film.jpg")
    rows = [row for _, row in read_jsonl(manifest)]
    for row in rows:
        for image in row["images"]:
            image["path"] = f"films/{image['path']}"
    half = len(rows) // 2
    write_jsonl(place / "a.jsonl", (row | {"source": "a"} for row in rows[:half]))
    write_jsonl(place / "b.jsonl", (row | {"source": "b"} for row in rows[half:]))
    read = {"draft": "Clear.", "final": "No effusion.", "decision": "corrected", "seconds": 1.5, "reader": "A"}
    write_jsonl(place / "reads.jsonl", ({"study_id": row["study_id"], **read} for row in rows[:half]))
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=64, depth=1, num_heads=1, num_classes=0)
    torch.save(vit.state_dict(), place / "vit.pth")


# ---- what raddraft read keeps


def _read(out: Path, manifest: Path) -> None:
    """Note decisions as the page does, those that are not noted yet; all must be there at the end, once."""
    from generator.clinic.reading.decisions import Reads
    from generator.clinic.reading.worklist import Drafted

    studies: Sequence[Study] = read_studies(manifest)[:READS]
    reads = Reads(out, "A")
    for number, study in enumerate(studies):
        draft = Drafted("No effusion.", "m")
        if reads.latest(study.study_id, "m") is None:
            reads.append(study, draft, None if number % 3 == 0 else f"Effusion {number}.", "blurred", 1.0, None)
    reads.close()
    ids = [row["study_id"] for _, row in read_jsonl(out, ("study_id", "final"))]
    if ids != [study.study_id for study in studies]:
        raise RuntimeError(f"decisions are lost or doubled: {ids}")


# ---- what raddraft pacs sends


class FolderArchive(Archive):
    """The archive is a folder, which outlives kills; it counts what it is sent twice as a fault.

    Args:
        films: folder with the films of the studies.
        sent: folder for the documents.
    """

    def __init__(self, films: Path, sent: Path) -> None:
        from pydicom import dcmread

        self.name, self._sent = "the folder", sent
        sent.mkdir(parents=True, exist_ok=True)
        for left in sent.glob(".*"):
            left.unlink()
        self._films = {path: dcmread(path, stop_before_pixels=True) for path in sorted(films.glob("*.dcm"))}

    def _objects(self, study: str) -> list[Dataset]:
        from pydicom import dcmread

        kept = [*self._films.values(), *map(dcmread, sorted(self._sent.glob("*.dcm")))]
        return [one for one in kept if one.StudyInstanceUID == study]

    def studies(self, modalities: Sequence[str], date: str | None = None, patient: str | None = None) -> list[Listed]:
        uids = dict.fromkeys(str(film.StudyInstanceUID) for film in self._films.values())
        return [Listed(uid, ("", ""), len(self._objects(uid))) for uid in uids]

    def series(self, study: str) -> dict[str, str]:
        return {str(one.SeriesInstanceUID): str(one.Modality) for one in self._objects(study)}

    def headers(self, study: str, series: str) -> list[Dataset]:
        return [one for one in self._objects(study) if one.SeriesInstanceUID == series]

    def fetch(self, study: str, series: str, instance: str, path: Path) -> None:
        source = next(path for path, film in self._films.items() if instance == film.SOPInstanceUID)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)

    def holds(self, dataset: Dataset) -> bool:
        return (self._sent / f"{dataset.SOPInstanceUID}.dcm").exists()

    def store(self, dataset: Dataset) -> None:
        if self.holds(dataset):
            raise RuntimeError("a document was sent twice")
        with write_whole(self._sent / f"{dataset.SOPInstanceUID}.dcm") as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def _draft_all(out: Path, place: Path) -> None:
    """Draft the studies of an archive once, as `raddraft pacs --once` does."""
    from generator.api import load_model
    from generator.clinic.station import Station, hold

    os.environ["RADDRAFT_KEY"] = str(place / "pseudonyms.key")
    model = load_model(place / "trained" / "model", "cpu")
    with hold(out / "station", "http://folder", model) as folder:
        archive = FolderArchive(place / "films" / "dicom", out / "sent")
        station = Station(archive, model, folder, ["sr", "pdf"])
        station.round(settle=0)
        kept = [*station.outbox.iterdir(), *station.inbox.iterdir()]
    if kept or station.failed:
        raise RuntimeError(f"{station.failed} failed, and {kept} are left")
