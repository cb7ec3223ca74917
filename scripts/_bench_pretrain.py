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
from encoder.recipe import PretrainConfig, load_start
from encoder.studies import Study


def bench_pretraining(studies: Sequence[Study], config: PretrainConfig, n_steps: int) -> None:
    """Print images per second of real steps (reading, views, masks, losses, AdamW, teacher) and of the bare network.

    The bare network is student and teacher, forward and backward, on one batch that lies in memory; it is timed before
    and after, since other work on the machine comes and goes.
    """
    config = replace(config, steps=n_steps, watch=[], watch_every=n_steps, save_every=10 * n_steps, log_every=1)
    before = _bare(config, n_steps)
    with TemporaryDirectory() as folder:
        pretrain([studies], [], Path(folder), replace(config, pictures=0))
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    speed = median(row["images_per_second"] for row in rows[2:])  # workers start in the first steps
    bare = (before + _bare(config, n_steps)) / 2
    print(f"pre-training: a step {speed:.1f} images/s, bare network {bare:.1f}: {speed / bare:.0%}")


def _bare(config: PretrainConfig, n_steps: int) -> float:
    model = Dino(load_start(config).model, config.objective)
    n, views = config.micro_batch_size, config.views
    side = views.global_size // model.backbone.config.patch_size
    large = torch.randn(2 * n, 1, views.global_size, views.global_size)
    small = torch.randn(views.n_local * n, 1, views.local_size, views.local_size)
    masks = torch.zeros(2 * n, side, side, dtype=torch.bool)
    hidden = sum(config.objective.mask_ratio) / 2 if config.objective.ibot_weight else 0.0
    masks.flatten(1)[: round(2 * n * config.objective.mask_probability), : round(side * side * hidden)] = True
    times = []
    for _ in range(n_steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(large, small, masks, 0.05)["loss"]
        loss.backward()
        model.zero_grad()
        times.append(time.perf_counter() - started)
    return n / median(times[2:])
