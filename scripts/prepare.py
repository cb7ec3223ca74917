"""Turn a raw data set into a manifest, `studies.jsonl`.

    raddraft prepare mimic-cxr --root mimic-cxr-jpg --reports mimic-cxr-reports.zip --out studies.jsonl
    raddraft prepare iu-xray --root iu --split-file iu/annotation.json
    raddraft prepare chexpert-plus --root chexpert-plus --sections findings impression
    raddraft prepare rexgradient --root ReXGradient-160K
    raddraft prepare padchest-gr --root padchest-gr --language es
    raddraft prepare r2gen --root r2gen/mimic_cxr
    raddraft prepare rexrank --root mimic-cxr --table ReXRank_MIMICCXR_test.json   # to submit drafts of
    raddraft prepare folder --root my-dicoms                                       # to draft reports for
    raddraft prepare folder --root my-images --table reports.csv --split random    # to train on
    raddraft prepare phantom --root phantom --count 200                            # synthetic

Benchmarks of vision encoders, as published: labels, patients, masks.

    raddraft prepare nih --root ChestX-ray14
    raddraft prepare chexpert --root CheXpert-v1.0-small
    raddraft prepare padchest --root PadChest
    raddraft prepare brax --root brax/1.1.0
    raddraft prepare vindr-cxr --root vindr-cxr/1.0.0                              # vindr-pcxr: children
    raddraft prepare rsna --root rsna-pneumonia --mapping pneumonia-challenge-dataset-mappings_2018.json
    raddraft prepare covid --root covid-chestxray-dataset
    raddraft prepare siim --root siim-acr-pneumothorax --out siim/studies.jsonl
    raddraft prepare candid-ptx --root candid-ptx --out candid-ptx/studies.jsonl
    raddraft prepare chexlocalize --root chexlocalize --out localized/studies.jsonl
    raddraft prepare chestx-det --root ChestX-Det --out det/studies.jsonl
    raddraft prepare ms-cxr --root ms-cxr/1.1.0 --images mimic-cxr-jpg --out ms/studies.jsonl
    raddraft prepare vindr-ribcxr --root VinDr-RibCXR --out ribs/studies.jsonl
    raddraft prepare lung-masks --source jsrt --root JSRT --out jsrt/studies.jsonl   # or montgomery, shenzhen

    raddraft prepare join nih/studies.jsonl rsna.jsonl --out all.jsonl        # several manifests in one
    raddraft prepare resize --studies studies.jsonl --out small --size 518    # images resized once, for pre-training
    raddraft prepare folds --studies all.jsonl --out folds                    # a manifest for each of 5 folds
    raddraft prepare labels --studies nih.jsonl --out nih_reports.jsonl       # synthetic findings from labels
    raddraft prepare reads --studies studies.jsonl --reads reads.jsonl --out read.jsonl    # drafts as corrected

Every command prints what it read, what it dropped and why (e.g. images not on disk), what each split holds, and what
the splits do not keep apart. Splits by a hash are the same everywhere. Masks are written as PNG beside the manifest:
masks/STRUCTURE/STUDY.png, or STUDY_IMAGE.png in sets that draw on several films of a study.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generator.corpora import CORPORA, converter, folds, from_labels, join, reads
from raddraft.ranges import Count
from raddraft.studies import GrayMapping

POSITIONAL = ("manifests",)


def resize(
    studies: Path,
    out: Path,
    size: Count = 518,
    bits: Count = 8,
    gray_mapping: GrayMapping = "minmax",
    processes: Count | None = None,
) -> int:
    """Resize every image of a manifest once, as RAD-DINO's were: B-spline, min-max to 0-255, PNG.

    Masks are resized too, and all else in the manifest is kept. The same command resumes an interrupted run.

    Args:
        studies: The manifest.
        out: Folder to write to: images, masks and the new studies.jsonl.
        size: Shorter side of the new images in pixels; smaller images are enlarged.
        bits: 8, or 16 to keep the depth of deeper files.
        gray_mapping: How pixel values become gray values: minmax (darkest to 0, brightest to the top), window (the
            DICOM window) or percentile.
        processes: Number of worker processes. By default one per core.
    """
    from encoder.resize import ResizeConfig, resize_studies

    done = resize_studies(studies, out, ResizeConfig(size, bits, gray_mapping), processes)
    print(f"{done.manifest}: {done.written} images written, {done.kept} kept as they were")
    for sentence in done.errors:
        print(f"left out: {sentence}")
    return 1 if done.errors else 0


def _printed(convert: Callable[..., Any]) -> Callable[..., None]:
    """The same command line as `convert`; what it returns is printed."""
    return functools.wraps(convert)(lambda *args, **kwargs: print(convert(*args, **kwargs)))


COMMANDS: dict[str, Callable[..., int | None]] = {name: _printed(converter(name)) for name in CORPORA}
COMMANDS |= {"join": _printed(join.convert), "resize": resize, "folds": _printed(folds.convert)}
COMMANDS |= {"labels": _printed(from_labels.convert), "reads": _printed(reads.convert)}

if __name__ == "__main__":
    from raddraft.cli import run

    run("prepare")
