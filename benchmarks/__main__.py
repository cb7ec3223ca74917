"""Speed as ratios in one process, against what a user would otherwise run.

    python -m benchmarks
    python -m benchmarks metrics --reports iu/indiana_reports.csv
    python -m benchmarks features --images my-pictures
    python -m benchmarks decoding training --run runs/demo --studies runs/demo/phantom/studies.jsonl

Parts:
- decoding: the test split of a finished run, such as the demo's, in batches and with proposed tokens, against one study
  at a time through plain transformers `generate`: same weights, same greedy text; and eight candidates against one;
- training: our loop on a frozen ViT-S/14 tower, with the tower in every step and with cached features, against a script
  around transformers' Trainer: same start, same batches, same losses;
- rewards (asked for by name): drafts per second of a reward stage and of trl's GRPOTrainer (to be installed for it), on
  the run's model and on one with a frozen ViT-S/14: same weights, same number of drafts, same reward;
- metrics: intervals against scikit-learn in a loop, CheXbert in batches, RadGraph against its package, lexical scores
  against rouge-score's aggregator, and a second system against the same references; weights are random;
- probes: probes from stored features against running the tower in every epoch, and the seconds that a large one takes,
  20,000 x 768 -> 14, with its weight decay search and intervals; weights and features are random;
- pretraining: images per second of whole DINOv2 steps against the bare network, forward and backward, on ready tensors;
- tables (asked for by name): no speed; what converters write of the real tables in torchxrayvision's wheel and in their
  authors' repositories against what plain code counts in them;
- features: stored features of ViT-B/14 at 518 px and ViT-S/14 at 224 px against loops around the package rad-dino (to
  be installed for it); weights are random.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from generator.model import load
from raddraft.cli import run as run_action
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies

Part = Literal["decoding", "training", "rewards", "metrics", "features", "probes", "pretraining", "tables"]
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
    wheel: Path | None = None,
    clones: Path | None = None,
) -> int:
    """Measure each part against the plain way; the exit status is 1 if any result differs.

    Args:
        parts: What to measure.
        run: A run folder with model/ and lm/, as the demo leaves it; for decoding, training and rewards.
        studies: The manifest; by default the demo's.
        n_drafts: Studies to draft; by default the whole test split.
        n_steps: Optimizer steps of each training loop; of rewards, steps that count.
        batch_size: Studies drafted together, and studies of one training step.
        image_size: Side in pixels of the pictures of the training bench.
        reports: Table (.csv) whose columns findings and impression are the reports of the metrics' bench; by default
            the findings of the manifest.
        n_reports: Reports that CheXbert and RadGraph read.
        images: Folder of PNG or JPEG pictures for the benches of towers; by default those of the manifest.
        wheel: Folder of torchxrayvision's unzipped wheel, for tables.
        clones: Folder of clones of authors' repositories, for tables (`benchmarks/tables.py` names them).
    """
    manifest = studies or run / "phantom" / "studies.jsonl"
    needed = [run / "model" / "config.json"] if {"decoding", "training", "rewards"} & set(parts) else []
    if (
        needed
        or ("metrics" in parts and reports is None)
        or ({"features", "probes", "pretraining"} & set(parts) and images is None)
    ):
        needed.append(manifest)
    for path in needed:
        if not path.is_file():
            raise RadDraftError(
                f"{path} is missing; run `raddraft demo` first, or name another --run, --studies, --reports"
            )
    if "tables" in parts and wheel is None and clones is None:
        raise RadDraftError("tables needs --wheel, the folder of torchxrayvision's unzipped wheel, or --clones")
    everything = read_studies(manifest) if manifest.is_file() else []
    equal = True
    training = [study for study in everything if study.split == "train"]
    if "decoding" in parts:
        from benchmarks.decoding import bench_decoding

        wanted = [study for study in everything if study.split == "test"][:n_drafts]
        equal &= bench_decoding(load(run / "model"), wanted, training, batch_size)
    if "training" in parts:
        from benchmarks.training import bench_training

        equal &= bench_training(run / "lm", training, n_steps, batch_size, image_size)
    if "rewards" in parts:
        from benchmarks.rewards import bench_rewards

        bench_rewards(run, training, n_steps, batch_size, image_size)
    if "metrics" in parts:
        from benchmarks.metrics import bench_metrics

        texts = _read_reports(reports) if reports else [study.sections.get("findings", "") for study in everything]
        equal &= bench_metrics(texts, n_reports)
    pictures = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".png")) if images else []
    pictures = pictures or [study.main_image.path for study in everything]
    if "features" in parts:
        from benchmarks.features import bench_features

        equal &= bench_features(pictures)
    if "probes" in parts:
        from benchmarks.probes import bench_probes

        equal &= bench_probes(pictures)
    if "pretraining" in parts:
        from benchmarks.pretrain import bench_pretraining

        bench_pretraining(pictures, n_steps)
    if "tables" in parts:
        from benchmarks.tables import bench_tables

        equal &= bench_tables(wheel, clones)
    return 0 if equal else 1


def _read_reports(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return [f"{row['findings']} {row['impression']}".strip() for row in csv.DictReader(file)]


if __name__ == "__main__":
    run_action("__main__", package="benchmarks")
