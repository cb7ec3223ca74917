"""Stored features against the package rad-dino in a loop: towers with random weights, on the images given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from PIL import Image

from benchmarks.metrics import timed
from encoder.config import ComputeConfig, FeatureConfig
from encoder.features import open_store
from encoder.towers import load_tower


def bench_features(paths: Sequence[Path]) -> bool:
    """Print both ratios; return whether all features are equal."""
    with TemporaryDirectory() as scratch:
        base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 518}
        small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518}
        whole = _bench(save_dinov2(Path(scratch) / "base", base, 518), paths[:48], (1, 4), 4)
        folder = save_dinov2(Path(scratch) / "small", small, 224)
        return (
            whole
            and _bench(folder, paths[:192], (1,), 8, "float32")
            and _bench(folder, paths[:192], (1,), 8, "bfloat16")
        )


def save_dinov2(folder: Path, sizes: dict[str, int], side: int) -> Path:
    """A Dinov2 with patches of 14 pixels, random weights, for square images of this side."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, patch_size=14)).save_pretrained(folder)  # type: ignore[arg-type]
    crop = {"height": side, "width": side}
    BitImageProcessor(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)
    return folder


def _bench(
    folder: Path,
    paths: Sequence[Path],
    batch_sizes: Sequence[int],
    our_batch_size: int,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> bool:
    """The package rad-dino in a loop over batches of several sizes, the best of which counts, against the store."""
    import rad_dino

    package: Any = rad_dino.RadDino
    package._REPO = str(folder)
    model = package()

    def loop(size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for start in range(0, len(paths), size):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + size]]
            found += zip(*model.extract_features(images), strict=True)
        return found

    seconds: dict[int, float] = {}
    for size in batch_sizes:
        seconds[size], expected = timed(partial(loop, size))
    best = min(seconds, key=seconds.__getitem__)
    tower = load_tower(str(folder), backend="pil")
    tower.model.to(getattr(torch, precision))
    with TemporaryDirectory() as scratch:
        compute = ComputeConfig(batch_size=our_batch_size, workers=1, features=Path(scratch), dtype="float32")
        ours, store = timed(lambda: open_store(tower, paths, FeatureConfig("tokens"), compute))
        pairs = [
            (torch.cat([vector[None], grid.flatten(1).T]), store[path])
            for path, (vector, grid) in zip(paths, expected, strict=True)
        ]
    apart = max(float((theirs - own).abs().max()) for theirs, own in pairs)
    cosine = min(float(torch.nn.functional.cosine_similarity(theirs, own, dim=-1).min()) for theirs, own in pairs)
    n_parameters = sum(parameter.numel() for parameter in tower.model.parameters())
    side = tower.black_pixels.shape[-1]
    print(f"features of {len(paths)} images, {n_parameters / 1e6:.0f} M parameters at {side} px, {precision}")
    print(f"  rad-dino in a loop, batches of {best}: {seconds[best]:.1f} s; stored features: {ours:.1f} s")
    busy = store.computed.tower_seconds / ours
    print(f"  {seconds[best] / ours:.2f} times as fast, tower at work {busy:.0%} of the time")
    print(f"  features differ by {apart:.1e} at most, their cosine is {cosine:.6f} at least", flush=True)
    return apart < 1e-4 if precision == "float32" else cosine > 0.999
