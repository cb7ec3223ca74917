"""Train a report generator: tower + projector + language model, in stages; or adapters for a whole model.

    raddraft train --studies runs/demo/phantom/studies.jsonl --out runs/first \\
        --model.tower runs/demo/tower --model.lm runs/demo/lm
    raddraft train --studies studies.jsonl --out runs/x --model.tower rad-dino --model.lm lmsys/vicuna-7b-v1.5
    raddraft train --studies studies.jsonl --out runs/y --model.vlm google/medgemma-4b-it \\
        --train.stages '[{"lm": "lora", "projector": false}]'
    accelerate launch --num_processes 8 -m scripts.train --config my.yaml --studies studies.jsonl --out runs/x
    raddraft train --config configs/report/rad_dino_vicuna7b.yaml --studies studies.jsonl --out runs/x \\
        --dry_run true --gpu h100 --gpus 8

Starting the same command again goes on where it stopped. The trained model is runs/x/model, with a card, README.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from generator.card import write_card
from generator.config import ModelConfig, TrainConfig
from generator.controls import shuffle_images
from generator.plan import Gpu
from generator.prompts import PromptConfig
from generator.train import train
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.runs import keep_config
from raddraft.studies import SPLITS, GrayMapping, Study, read_studies


def main(
    studies: Path,
    out: Path,
    model: ModelConfig,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    train: TrainConfig = TrainConfig(),  # noqa: B008
    gray_mapping: GrayMapping = "window",
    sources: list[str] | None = None,
    control: Literal["shuffled-images"] | None = None,
    dry_run: bool = False,
    gpu: Gpu = "h100",
    gpus: int = 1,
) -> None:
    """Train a report generator on the train split, watching the val split; the test split is not read.

    Args:
        studies: The manifest, studies.jsonl.
        out: The run folder: config.yaml, log.jsonl, checkpoints/, model/.
        model: The parts that are joined.
        prompt: What the model is told, and what it is to write.
        train: How the loop runs.
        gray_mapping: How grey values become 8 bits: the window the file states, min-max, or percentiles.
        sources: Take only studies of these sources (the manifest's key `source`); by default all.
        control: Train on pictures that belong to other subjects, to see what the reports alone teach: a run whose
            validation loss is no lower than this one's has not learnt from its pictures.
        dry_run: Print what the run would take (parameters, tokens, arithmetic, memory, hours) and do nothing.
        gpu: What the dry run plans for.
        gpus: Number of them.
    """
    config: dict[str, Any] = {"model": asdict(model), "prompt": asdict(prompt), "train": asdict(train)}
    config |= {
        "studies": str(studies.absolute()),
        "gray_mapping": gray_mapping,
        "sources": sources,
        "control": control,
    }
    parts = split_studies(read_studies(studies), sources)
    if control:
        parts = {name: shuffle_images(part) if part else part for name, part in parts.items()}
    if dry_run:
        print(dry(parts["train"], model, prompt, train, gpu, gpus))
        return
    keep_config(out / "config.yaml", config)
    folder = _train(parts, out, model, prompt, train, gray_mapping)
    if os.environ.get("RANK", "0") == "0":
        if not control:
            write_card(folder, studies, parts, model, prompt, train)
        print(f"model: {folder}")


_train = train  # `main` has a parameter of that name, which is the key on the command line and in the YAML files


def dry(studies: list[Study], model: ModelConfig, prompt: PromptConfig, train: TrainConfig, gpu: Gpu, gpus: int) -> str:
    """The plan of a run, as text.

    Raises:
        ValueError: no study has the sections to write, or fewer than one GPU.
    """
    from generator.plan import Load, describe
    from generator.priors import find_priors

    reports = {study.study_id: answer for study in studies if (answer := prompt.answer(study))}
    if not reports or gpus < 1:
        raise RadDraftError(
            f"Need studies with the sections to write and at least one GPU, got {len(reports)} and {gpus}"
        )
    words = sum(len(report.split()) for report in reports.values()) / len(reports)
    priors = find_priors(studies) if prompt.prior else {}
    used = [study for study in studies if study.study_id in reports]
    pictures = sum(len(prompt.pictures(study, priors.get(study.study_id))) for study in used) / len(used)
    return describe(model, train, Load(len(used), words, pictures), gpu, gpus)


def split_studies(studies: Iterable[Study], sources: list[str] | None) -> dict[str, list[Study]]:
    """The train and val studies of the wanted sources."""
    wanted = [study for study in studies if sources is None or study.source in sources]
    if sources and not wanted:
        raise RadDraftError(f"No study of source {', '.join(sources)}")
    return {split: [study for study in wanted if study.split == split] for split in SPLITS if split != "test"}


if __name__ == "__main__":
    run("train")
