"""Pre-train a vision tower on chest X-rays without any text: DINOv2 continued, or from scratch.

    raddraft pretrain --config configs/pretrain/phantom.yaml --studies runs/demo/phantom/studies.jsonl --out runs/tower
    raddraft pretrain --config configs/pretrain/laptop.yaml --studies studies.jsonl --out runs/x \\
        --pretrain.tower dinov2-small
    raddraft pretrain --config configs/pretrain/rad_dino_public.yaml --studies mimic.jsonl --out runs/rad-dino \\
        --dry_run true --gpu a100
    accelerate launch --config_file configs/accelerate/ddp_8.yaml -m scripts.pretrain \\
        --config configs/pretrain/rad_dino_public.yaml --studies mimic.jsonl chexpert.jsonl --out runs/rad-dino

Starting the same command again goes on where it stopped. The tower is runs/x/model. Shrink large
pictures once before: raddraft prepare resize. To see the crops: raddraft views.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from encoder.budget import Gpu
from encoder.recipe import PretrainConfig
from raddraft.cli import run
from raddraft.runs import keep_config
from raddraft.studies import read_studies


def main(
    studies: list[Path],
    out: Path,
    pretrain: PretrainConfig = PretrainConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    labelled: Path | None = None,
    dry_run: bool = False,
    gpu: Gpu = "a100",
    n_gpus: int = 1,
) -> None:
    """Pre-train a tower on the images of the train splits, watching val; the test split is not read.

    Args:
        studies: One or several manifests.
        out: The run folder: config.yaml, log.jsonl, checkpoints/, pictures/, model/, best.json, images.sha256.
        pretrain: The recipe.
        labelled: Manifest with the labels that are watched. By default the first of `studies`.
        dry_run: Only say what the run would cost.
        gpu: For the dry run: what it would run on.
        n_gpus: Likewise.
    """
    if dry_run:
        from encoder.budget import describe, estimate

        print(describe(estimate(pretrain, gpu, n_gpus), pretrain, gpu, n_gpus))
        return
    from encoder.pretrain import pretrain as train

    sources = [read_studies(path, "train") for path in studies]
    known = [study for study in read_studies(labelled or studies[0]) if study.split != "test"]
    if os.environ.get("RANK", "0") == "0":
        names = [str(path.absolute()) for path in studies]
        watched = str(labelled.absolute()) if labelled else None
        keep_config(out / "config.yaml", {"studies": names, "labelled": watched, "pretrain": asdict(pretrain)})
    folder = train(sources, known, out, pretrain)
    if os.environ.get("RANK", "0") == "0":
        print(f"tower: {folder}")


if __name__ == "__main__":
    run("pretrain")
