"""Probes: from stored features against encoding the images again, and a large probe in full."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from encoder.config import ComputeConfig, FeatureConfig
from encoder.encoding import prepare_pixels
from encoder.features import FeatureStore, open_store
from encoder.finetune import descend
from encoder.fitting import moments, rows_in, sum_losses
from encoder.probe import run_probe
from encoder.probe_config import ProbeConfig
from encoder.rows import Form
from encoder.targets import Target
from encoder.tower import Tower
from encoder.towers import load_tower
from generator.tiny import make_tower

N, WIDTH, FINDINGS = 20_000, 768, 14


def bench_probes(paths: Sequence[Path]) -> bool:
    """Print both; return whether the scores from stored features are those of the plain loop."""
    with TemporaryDirectory() as scratch:
        equal = _bench_epochs(paths[:256], Path(scratch))
        store, target = _make(Path(scratch))
        print(f"probe of {N} images, {WIDTH} features, {FINDINGS} findings, intervals from 500 resamples")
        for solver in ("lbfgs", "adamw"):
            _bench_whole(store, target, solver)  # type: ignore[arg-type]
    return equal


def _bench_epochs(paths: Sequence[Path], folder: Path, epochs: int = 10) -> bool:
    """A probe of one seed and decay by epochs: the frozen tower run in each of them, against stored features."""
    make_tower(folder / "tower")
    tower = load_tower(str(folder / "tower"))
    config = ProbeConfig(solver="adamw", seeds=(0,), weight_decays=(0.01,), epochs=epochs, batch_size=32)
    labels = np.random.default_rng(0).integers(0, 2, (len(paths), FINDINGS)).astype(float)
    splits = np.array(["train"] * (len(paths) * 3 // 4) + ["val"] * (len(paths) - len(paths) * 3 // 4))
    target = Target("multilabel", tuple(map(str, range(FINDINGS))), list(paths), splits, splits, labels)
    started = time.perf_counter()
    compute = ComputeConfig(workers=0, features=folder / "features", dtype="float32")
    store = open_store(tower, paths, compute=compute)
    storing = time.perf_counter() - started
    vectors = store.vectors(paths)
    started = time.perf_counter()
    ours = descend(store.vectors(paths), target, config)[0.01][0][rows_in(target, "val").numpy()]
    stored = time.perf_counter() - started
    started = time.perf_counter()
    theirs = _encode_every_epoch(tower, target, vectors, config)
    again = time.perf_counter() - started
    apart = float(np.abs(ours - theirs).max())
    print(f"probe of {len(paths)} images on a ViT of 4 layers x 128, {epochs} epochs, one seed and weight decay")
    print(f"  tower in every epoch: {again:.2f} s; stored features: {stored:.2f} s, storing them once {storing:.2f} s")
    print(f"  {again / stored:.0f} times as fast once stored, {again / (stored + storing):.1f} times with storing")
    print(f"  scores differ by {apart:.1e} at most", flush=True)
    return apart < 1e-3


def _encode_every_epoch(tower: Tower, target: Target, vectors: Tensor, config: ProbeConfig) -> np.ndarray:
    """The plain loop: decode, prepare and encode each batch whenever it is needed. Scores of val [m, C].

    Features are standardized by those stored, which costs the plain loop nothing.
    """
    train, val = rows_in(target, "train"), rows_in(target, "val")
    mean, sd = (part.float() for part in moments([vectors[train]]))
    torch.manual_seed(0)
    probe = torch.nn.Linear(vectors.shape[1], FINDINGS)
    groups = [{"params": [probe.weight], "weight_decay": 0.01}, {"params": [probe.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    n_steps = config.epochs * -(-len(train) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    y = torch.from_numpy(target.y)

    def logits(rows: Tensor) -> Tensor:
        pixels = torch.stack([prepare_pixels(tower.processor, target.paths[row], "window") for row in rows])
        return probe((tower.encode(pixels).pooled - mean) / sd)

    generator = torch.Generator().manual_seed(0)
    for _ in range(config.epochs):
        for rows in train[torch.randperm(len(train), generator=generator)].split(config.batch_size):
            optimizer.zero_grad()
            (sum_losses(logits(rows), y[rows], "multilabel") / y[rows].numel()).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return torch.cat([logits(rows) for rows in val.split(config.batch_size)]).numpy()


def _make(folder: Path) -> tuple[FeatureStore, Target]:
    """Made-up features in a store on disk, and findings that lean on them: 70 % train, 10 % val, 20 % test."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(N, WIDTH)).astype(np.float16)
    lean = x.astype(np.float32) @ generator.normal(size=(WIDTH, FINDINGS)) / np.sqrt(WIDTH)
    y = (lean + generator.normal(size=lean.shape) > np.linspace(0.5, 2.5, FINDINGS)).astype(float)
    (folder / "pooled").mkdir()
    np.repeat(x[:, None], 2, axis=1).tofile(folder / "pooled" / "part-0.bin")
    paths = [folder / f"{row}.png" for row in range(N)]
    rows: dict[str, tuple[tuple[str, int], ...]] = {
        str(path): (("pooled/part-0.bin", row),) for row, path in enumerate(paths)
    }
    splits = np.array((["train"] * 7 + ["val"] + ["test"] * 2) * (N // 10))
    names = tuple(f"finding {i + 1}" for i in range(FINDINGS))
    target = Target("multilabel", names, paths, np.arange(N).astype(str), splits, y)
    form = Form(0, WIDTH, "float16")
    return FeatureStore(folder, FeatureConfig(), (2, WIDTH), (1, 1), {"pooled": form}, rows), target


def _bench_whole(store: FeatureStore, target: Target, solver: Literal["lbfgs", "adamw"]) -> None:
    config = ProbeConfig(solver=solver)
    started = time.perf_counter()
    result = run_probe(store, target, config)
    seconds = time.perf_counter() - started
    macro = result.measures["macro"]["auroc"].estimate
    how = (
        f"{len(config.seeds)} seeds, {config.epochs} epochs"
        if solver == "adamw"
        else "its optimum is the same for all seeds"
    )
    print(f"  {solver}: {seconds:.1f} s with {len(config.decays)} weight decays; {how}")
    print(f"    macro AUROC {macro.value:.3f} [{macro.low:.3f}, {macro.high:.3f}]", flush=True)
