"""Speed as ratios in one process, against what a user would otherwise run.

    raddraft bench
    raddraft bench metrics --reports iu/indiana_reports.csv
    raddraft bench features --images my-pictures
    raddraft bench decoding training --run runs/demo --studies runs/demo/phantom/studies.jsonl

Parts:
- decoding: the test split of a finished run, such as the demo's, in batches and with proposed tokens, against one study
  at a time through plain transformers `generate`: same weights, same greedy text; and eight candidates against one;
- training: studies per second with cached features of a frozen ViT-S/14 tower, against the same loop without;
- metrics: intervals against scikit-learn in a loop, CheXbert in batches, RadGraph against its package, lexical scores
  against rouge-score's aggregator, and a second system against the same references; weights are random;
- probes: probes from stored features against running the tower in every epoch, and the seconds that a large one takes,
  20,000 x 768 -> 14, with its weight decay search and intervals; weights and features are random;
- pretraining: images per second of whole DINOv2 steps against the bare network, forward and backward, on ready tensors;
- features: stored features of ViT-B/14 at 518 px and ViT-S/14 at 224 px against loops around the package rad-dino (to
  be installed for it); weights are random.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from encoder.studies import Study, read_studies
from generator.model import ModelConfig, load
from generator.prompts import PromptConfig
from generator.train import Stage, TrainConfig, train
from scripts import run as run_action

Part = Literal["decoding", "training", "metrics", "features", "probes", "pretraining"]
POSITIONAL = ("parts",)


def main(
    parts: list[Part] = ["decoding", "training", "metrics", "features", "probes", "pretraining"],  # noqa: B006 - the parser's default, never changed
    run: Path = Path("runs/demo"),
    studies: Path | None = None,
    n_drafts: int | None = None,
    n_steps: int = 12,
    batch_size: int = 32,
    image_size: int = 224,
    reports: Path | None = None,
    n_reports: int = 400,
    images: Path | None = None,
) -> int:
    """Measure each part against the plain way; the exit status is 1 if any result differs.

    Args:
        parts: What to measure.
        run: A run folder with model/ and lm/, as the demo leaves it; for decoding and training.
        studies: The manifest; by default the demo's.
        n_drafts: Studies to draft; by default the whole test split.
        n_steps: Optimiser steps of each training loop.
        batch_size: Studies drafted together, and studies of one training step.
        image_size: Side in pixels of the pictures of the training bench.
        reports: Table (.csv) whose columns findings and impression are the reports of the metrics' bench; by default
            the findings of the manifest.
        n_reports: Reports that CheXbert and RadGraph read.
        images: Folder of PNG or JPEG pictures for the benches of towers; by default those of the manifest.
    """
    manifest = studies or run / "phantom" / "studies.jsonl"
    needed = [run / "model" / "config.json"] if {"decoding", "training"} & set(parts) else []
    if (
        needed
        or ("metrics" in parts and reports is None)
        or ({"features", "probes", "pretraining"} & set(parts) and images is None)
    ):
        needed.append(manifest)
    for path in needed:
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; run `raddraft demo` first, or name another --run, --studies, --reports"
            )
    everything = read_studies(manifest) if manifest.is_file() else []
    equal = True
    training = [study for study in everything if study.split == "train"]
    if "decoding" in parts:
        from scripts._bench_decoding import bench_decoding

        wanted = [study for study in everything if study.split == "test"][:n_drafts]
        equal &= bench_decoding(load(run / "model"), wanted, training, batch_size)
    if "training" in parts:
        bench_training(run / "lm", training, n_steps, batch_size, image_size)
    if "metrics" in parts:
        from scripts._bench_metrics import bench_metrics

        texts = _read_reports(reports) if reports else [study.sections.get("findings", "") for study in everything]
        equal &= bench_metrics(texts, n_reports)
    pictures = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".png")) if images else []
    pictures = pictures or [study.main_image.path for study in everything]
    if "features" in parts:
        from scripts._bench_features import bench_features

        equal &= bench_features(pictures)
    if "probes" in parts:
        from scripts._bench_probes import bench_probes

        equal &= bench_probes(pictures)
    if "pretraining" in parts:
        from scripts._bench_pretrain import bench_pretraining

        bench_pretraining(pictures, n_steps)
    return 0 if equal else 1


def _read_reports(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return [f"{row['findings']} {row['impression']}".strip() for row in csv.DictReader(file)]


def bench_training(lm: Path, studies: list[Study], n_steps: int, batch_size: int, image_size: int) -> None:
    """Print the ratio of training from cached features to running the frozen tower in every step."""
    from generator.tiny import make_tower

    studies = studies[: batch_size * n_steps]
    epochs = n_steps * batch_size / len(studies)
    with TemporaryDirectory() as scratch:
        tower = Path(scratch) / "tower"
        make_tower(tower, image_size=image_size, patch_size=14, hidden=384, layers=12)
        speeds, summaries = {}, []
        for features in ("live", "cached"):
            config = TrainConfig(
                stages=[Stage(epochs=epochs, lr=1e-3, lm="full")],
                batch_size=batch_size,
                micro_batch_size=batch_size,
                features=features,  # type: ignore[arg-type]
                eval_every=0,
            )
            out = Path(scratch) / features
            started = time.perf_counter()
            train({"train": studies}, out, ModelConfig(str(tower), str(lm)), PromptConfig(), config)
            seconds = time.perf_counter() - started
            rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            speeds[features] = statistics.median(row["studies_per_second"] for row in rows[2:])
            summaries.append(
                f"  {features}: {speeds[features]:.1f} studies/s; {n_steps} steps took {seconds:.1f} s in all"
            )
    print(f"training {n_steps} steps of {batch_size} on a frozen ViT-S/14 at {image_size} px")
    print("\n".join(summaries))
    print(f"  {speeds['cached'] / speeds['live']:.1f} times as fast with cached features, once these are stored")


if __name__ == "__main__":
    run_action("bench")
