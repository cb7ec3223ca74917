"""Train a report generator: vision tower + projector + language model, or a whole vision-language model.

    raddraft train --studies runs/demo/phantom/studies.jsonl --out runs/first \\
        --model.tower runs/demo/tower --model.lm runs/demo/lm
    raddraft train --studies studies.jsonl --out runs/x --model.tower rad-dino --model.lm lmsys/vicuna-7b-v1.5 \\
        --train.stages.1.lr 3e-4 --train.cached
    raddraft train --studies studies.jsonl --out runs/y --model.vlm google/medgemma-4b-it \\
        --train.stages '[{"lm": "lora", "projector": false}]'
    raddraft train --config report/rad_dino_vicuna7b.yaml --studies studies.jsonl --out runs/z --dry-run --gpus 8
    accelerate launch --num_processes 8 -m raddraft train --config report/rad_dino_vicuna7b.yaml \\
        --studies studies.jsonl --out runs/z

An interrupted run resumes when the same command is started again. The model is OUT/model, with a model card, README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from generator.config import ModelConfig, TrainConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.gpus import Gpu
from raddraft.ranges import Count
from raddraft.studies import GrayMapping

RENAMED = {"train.features": "train.cached", "train.cache": "features"}


def main(
    studies: Path,
    out: Path,
    model: ModelConfig,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    train: TrainConfig = TrainConfig(),  # noqa: B008
    gray_mapping: GrayMapping = "window",
    features: Path | None = None,
    sources: list[str] | None = None,
    control: Literal["shuffled-images"] | None = None,
    dry_run: bool = False,
    gpu: Gpu = "h100",
    gpus: Count = 1,
) -> None:
    """Train on the train split and validate on the val split. The test split is not used.

    Args:
        studies: Manifest, studies.jsonl.
        out: Run folder: config.yaml, log.jsonl, checkpoints/, model/.
        model: Model.
        prompt: Prompt.
        train: Training.
        gray_mapping: How gray values become 8 bits: the DICOM window, min-max, or percentiles 0.5 to 99.5.
        features: Folder of stored features for --train.cached, shared between runs; by default `features` in the run
            folder.
        sources: Use only studies with these values of `source` in the manifest; by default all.
        control: shuffled-images: train on the images of other subjects. A model whose validation loss is no lower than
            this control's has learned nothing from its images.
        dry_run: Print what the run would take (parameters, tokens, arithmetic, memory, hours) and stop.
        gpu: GPU model for --dry-run.
        gpus: Number of GPUs for --dry-run.
    """
    if dry_run:
        from generator.plan import describe_run

        print(describe_run(studies, model, prompt, train, gpu, gpus, sources))
        return
    from generator.train import run_training
    from raddraft.processes import is_main_process

    shuffled = control is not None
    folder = run_training(studies, out, model, prompt, train, gray_mapping, features, sources, shuffled)
    if is_main_process():
        print(f"model: {folder}")


if __name__ == "__main__":
    run("train")
