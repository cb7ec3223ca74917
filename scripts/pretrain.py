"""Pre-train a vision tower on chest X-rays without text: continue DINOv2, or train from scratch.

    raddraft pretrain --config pretrain/phantom.yaml --studies runs/demo/phantom/studies.jsonl --out runs/tower
    raddraft pretrain --config pretrain/laptop.yaml --studies studies.jsonl --out runs/x \\
        --pretrain.tower dinov2-small
    raddraft pretrain --config pretrain/rad_dino_public.yaml --studies mimic.jsonl --out runs/rad-dino \\
        --dry-run --gpu a100 --gpus 64
    accelerate launch --config_file configs/accelerate/ddp_8.yaml -m raddraft pretrain \\
        --config pretrain/rad_dino_public.yaml --studies mimic.jsonl chexpert.jsonl --out runs/rad-dino

The same command resumes an interrupted run. The tower is OUT/model. Shrink large images once beforehand with
`raddraft prepare resize`; `raddraft crops` shows what the network will see.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from encoder.recipe import RENAMED as RECIPE_RENAMED
from encoder.recipe import PretrainConfig
from raddraft.cli import run
from raddraft.gpus import Gpu
from raddraft.ranges import Count

RENAMED = RECIPE_RENAMED | {"labelled": "labeled"}  # codespell:ignore


def main(
    studies: list[Path],
    out: Path,
    pretrain: PretrainConfig = PretrainConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    labeled: Path | None = None,
    dry_run: bool = False,
    gpu: Gpu = "h100",
    gpus: Count = 1,
) -> None:
    """Pre-train a tower on the images of the train splits, with probes on val; the test split is not read.

    Args:
        studies: One or several manifests.
        out: Run folder: config.yaml, log.jsonl, checkpoints/, maps/, model/, best.json, images.sha256, crops.png and
            report.html, the page of the run.
        pretrain: Pre-training recipe.
        labeled: Manifest with the labels for the probes. By default the first of `studies`.
        dry_run: Only print what the run would cost.
        gpu: GPU model for --dry-run.
        gpus: Number of GPUs for --dry-run.
    """
    if dry_run:
        from encoder.budget import describe

        print(describe(pretrain, gpu, gpus))
        return
    from encoder import pretrain as training
    from raddraft.processes import is_main_process
    from raddraft.runs import keep_config
    from raddraft.studies import read_studies

    sources = [read_studies(path, "train") for path in studies]
    known = [study for study in read_studies(labeled or studies[0]) if study.split != "test"]
    if is_main_process():
        names = [str(path.absolute()) for path in studies]
        watched = str(labeled.absolute()) if labeled else None
        keep_config(out / "config.yaml", {"studies": names, "labeled": watched, "pretrain": asdict(pretrain)})
    folder = training.pretrain(sources, known, out, pretrain)
    if is_main_process():
        print(f"tower: {folder}")


if __name__ == "__main__":
    run("pretrain")
