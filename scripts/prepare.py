"""Turn a raw data set into a manifest, `studies.jsonl`.

    raddraft prepare mimic-cxr --root mimic-cxr-jpg --reports mimic-cxr-reports.zip --out studies.jsonl
    raddraft prepare iu-xray --root iu --split_file iu/annotation.json
    raddraft prepare chexpert-plus --root chexpert-plus --sections '[findings, impression]'
    raddraft prepare r2gen --root r2gen/mimic_cxr
    raddraft prepare folder --root my-dicoms
    raddraft prepare phantom --root phantom --count 200        # synthetic

Benchmarks of vision encoders, as published: labels, patients, masks.

    raddraft prepare nih --root ChestX-ray14
    raddraft prepare chexpert --root CheXpert-v1.0-small
    raddraft prepare vindr-cxr --root vindr-cxr/1.0.0
    raddraft prepare rsna --root rsna-pneumonia --mapping pneumonia-challenge-dataset-mappings_2018.json
    raddraft prepare covid --root covid-chestxray-dataset
    raddraft prepare siim --root siim-acr-pneumothorax --out siim/studies.jsonl
    raddraft prepare candid-ptx --root candid-ptx --out candid-ptx/studies.jsonl
    raddraft prepare vindr-ribcxr --root VinDr-RibCXR --out ribs/studies.jsonl
    raddraft prepare lung-masks --source jsrt --root JSRT --out jsrt/studies.jsonl   # or montgomery, shenzhen

Pictures once decoded and made small, for pre-training (a manifest in, a manifest out):

    raddraft prepare resize --studies studies.jsonl --out small --size 518

Every command prints what it read, what it dropped and why, and what each split holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generator.corpora import CORPORA, converter
from raddraft.studies import GrayMapping


def phantom(
    root: Path = Path("phantom"),
    out: Path | None = None,
    count: int = 1000,
    size: int = 224,
    seed: int = 0,
    dicoms: int = 0,
    processes: int | None = None,
    show_sex: bool = True,
):
    """Synthetic chest phantoms with matching reports, made on the spot: no patient, no download.

    For trying the whole way on a laptop. Scores on phantoms say nothing about radiographs.

    Args:
        root: Folder to write images and reports to, in the layout of MIMIC-CXR-JPG.
        out: The manifest to write. By default studies.jsonl in root.
        count: Number of studies.
        size: Side of the images in pixels.
        seed: The same seed makes the same studies.
        dicoms: How many of the studies to write as DICOM files too.
        processes: Number of processes that draw. By default one per core.
        show_sex: Whether bodies differ by sex; without, it is recorded but cannot be seen, to test probes with.
    """
    from generator.corpora.common import Conversion
    from generator.corpora.phantom import generate

    studies = generate(root, count=count, size=size, seed=seed, dicoms=dicoms, processes=processes, show_sex=show_sex)
    return Conversion("phantom", studies).write(out or root / "studies.jsonl")


def resize(
    studies: Path,
    out: Path,
    size: int = 518,
    bits: int = 8,
    gray_mapping: GrayMapping = "minmax",
    processes: int | None = None,
) -> int:
    """Make every picture of a manifest small once, as RAD-DINO's were: B-spline, min-max to 0-255, PNG.

    Masks are resized with their pictures; everything else in the manifest is kept. The same command again goes on
    where the last one ended.

    Args:
        studies: The manifest.
        out: Folder to write to: images, masks and the new studies.jsonl.
        size: Shorter side of the new pictures in pixels; smaller pictures are made larger.
        bits: 8, or 16 to keep the depth of deeper files.
        gray_mapping: How pixel values become grey values: minmax (darkest to 0, brightest to the top), window (the display
            window that the file states) or percentile.
        processes: Number of processes. By default one per core.
    """
    from encoder.resize import ResizeConfig, resize_studies

    done = resize_studies(studies, out, ResizeConfig(size, bits, gray_mapping), processes)
    print(f"{done.manifest}: {done.written} images written, {done.kept} kept as they were")
    for sentence in done.errors:
        print(f"left out: {sentence}")
    return 1 if done.errors else 0


def _command(convert: Callable[..., Any]) -> Callable[..., None]:
    """The same command line as `convert`; what it returns is printed."""

    @functools.wraps(convert)
    def command(*args, **kwargs) -> None:
        print(convert(*args, **kwargs))

    return command


COMMANDS = {name: _command(converter(name)) for name in CORPORA} | {"phantom": _command(phantom), "resize": resize}


if __name__ == "__main__":
    from raddraft.cli import run

    run("prepare")
