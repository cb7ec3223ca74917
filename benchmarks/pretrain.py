"""The pre-training part of the bench: a whole step against the bare network on tensors that are ready."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from encoder.dino import Dino
from encoder.pretrain import pretrain
from encoder.recipe import Architecture, CropConfig, DinoConfig, PretrainConfig
from encoder.start import load_start
from raddraft.processes import pick_device
from raddraft.studies import Study, StudyImage

LAPTOP = PretrainConfig(
    tower=None,
    architecture=Architecture(384, 12, 14),
    drop_path=0.0,
    objective=DinoConfig(prototypes=2048, head_hidden=1024, centering="sinkhorn", separate_ibot_head=True),
    crops=CropConfig(global_size=112, local_size=56, local_crops=4, blur_sigma=(0.1, 1.0)),
    batch_size=32,
    micro_batch_size=32,
    precision="bf16",
    log_every=1,
    map_images=0,
    workers=1,
)
"""A ViT-S/14 as in the laptop recipe."""


def bench_pretraining(images: Sequence[Path], n_steps: int, config: PretrainConfig = LAPTOP) -> None:
    """Pre-train; print images per second of real steps and of the bare network.

    A step reads, cuts crops, draws masks, and updates student and teacher. The bare network is both of them forward,
    and the student backward, on one batch in memory; it is timed before and after, as other work comes and goes.
    """
    config = replace(config, steps=n_steps, watch_every=n_steps, save_every=10 * n_steps)
    studies = [Study(str(i), str(i), "train", [StudyImage(path)]) for i, path in enumerate(images)]
    before = _bare(config, n_steps)
    with TemporaryDirectory() as folder:
        pretrain([studies], [], Path(folder), config)
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    speed = median(row["images_per_second"] for row in rows[2:])  # workers start in the first steps
    bare = (before + _bare(config, n_steps)) / 2
    print(f"pre-training: a step {speed:.1f} images/s, bare network {bare:.1f}: {speed / bare:.0%}")


def _bare(config: PretrainConfig, n_steps: int) -> float:
    device = torch.device(pick_device("auto"))
    model = Dino(load_start(config, device.type).model, config.objective).to(device)
    n, crops = config.micro_batch_size, config.crops
    side = crops.global_size // model.backbone.config.patch_size
    large = torch.randn(2 * n, 1, crops.global_size, crops.global_size, device=device)
    small = torch.randn(crops.local_crops * n, 1, crops.local_size, crops.local_size, device=device)
    masks = torch.zeros(2 * n, side, side, dtype=torch.bool, device=device)
    hidden = sum(config.objective.mask_ratio) / 2 if config.objective.ibot_weight else 0.0
    masks.flatten(1)[: round(2 * n * config.objective.mask_probability), : round(side * side * hidden)] = True
    times = []
    for _ in range(n_steps):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(large, small, masks, 0.05)["loss"]
        loss.backward()
        loss.item()  # waits for a GPU
        model.zero_grad()
        times.append(time.perf_counter() - started)
    return n / median(times[2:])
