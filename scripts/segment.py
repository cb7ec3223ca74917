"""How well one frozen tower's patches outline structures: a small head trained on stored patch grids.

    raddraft segment --tower rad-dino --studies studies.jsonl --structures lungs
    raddraft segment --tower random:runs/demo/tower --studies runs/demo/phantom/studies.jsonl --structures lungs
    raddraft segment --tower rad-dino --studies ribs/studies.jsonl --structures ribs --head upernet --layers 3 6 9 12

Trained on train, its epoch chosen on val, measured on test. Many towers: `raddraft compare`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.processes import pick_device
from raddraft.studies import GrayMapping, read_studies


def main(
    studies: Path,
    structures: list[str],
    tower: str,
    features: Path = Path("features"),
    out: Path = Path("segment.json"),
    head: Literal["linear", "upernet", "vitdet"] = "linear",
    layers: list[int] | None = None,
    grid: Literal["input", "picture"] = "input",
    epochs: int = 40,
    lr: float | None = None,
    seeds: list[int] = [0],  # noqa: B006 - the parser's default, never changed
    resamples: int = 500,
    sources: list[str] | None = None,
    image_size: int | None = None,
    gray_mapping: GrayMapping = "window",
    batch_size: int = 32,
    workers: int = 2,
    device: str = "auto",
) -> None:
    """Print Dice and IoU on test, with 95 % intervals by subject, and write all of it as JSON.

    Args:
        studies: The manifest.
        structures: Names of masks in it; images that lack one of them are left out.
        tower: Short name, hub id, folder, or random:NAME.
        features: Folder of feature stores.
        out: File to write.
        head: A 1 x 1 convolution, UPerNet, or a ViTDet-style pyramid.
        layers: Hidden states by index, side by side, for upernet; by default the tower's final output.
        grid: Score test images as the tower sees them, or on the masks' own grid, what was cut off not being drawn.
        epochs: Of training a head.
        lr: Peak learning rate; by default 1e-2 for linear, 1e-3 for the others.
        seeds: A head is trained for each; scores are their mean.
        resamples: Behind each interval.
        sources: Studies of these sources only (the manifest's key `source`).
        image_size: Side of the tower's input in pixels instead of its own.
        gray_mapping: How grey values are mapped to 8 bits.
        batch_size: Images per forward pass of the tower.
        workers: Processes that decode and prepare images while the tower runs.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
    """
    from encoder.features import FeatureConfig, store_features
    from encoder.segment import SegmentConfig, segment
    from encoder.towers import load_tower
    from raddraft.text import format_table, show
    from scripts.compare import masked_paths, of_sources

    config = SegmentConfig(
        tuple(structures), head, lr=lr, epochs=epochs, seeds=tuple(seeds), grid=grid, resamples=resamples
    )
    known = of_sources(read_studies(studies), sources)
    paths = masked_paths(known, structures)
    if not paths:
        names = sorted({name for study in known for image in study.images for name in image.masks})
        raise RadDraftError(f"No image has masks of {', '.join(structures)}. Choices: {', '.join(names) or 'none'}")
    loaded = load_tower(tower, image_size)
    loaded.model.to(pick_device(device))
    if loaded.shape[:2] == (1, 1):
        raise RadDraftError(f"{tower} has no patches, so there is nothing to draw from")
    kept = FeatureConfig("grid", tuple(layers) if layers else None, gray_mapping=gray_mapping)
    store, _ = store_features(loaded, paths, features, kept, batch_size, workers)
    result, _ = segment(store, known, loaded.processor, config, str(loaded.device))
    rows = [[name, show(row["dice"]), show(row["iou"])] for name, row in result.scores.items()]
    print(format_table([["", "dice", "iou"], *(rows if len(structures) > 1 else rows[:1])]))
    counts = ", ".join(f"{split} {count}" for split, count in result.n_images.items())
    print(f"images: {counts}; {result.seconds:.1f} s\nbrackets: 95 % interval, subjects resampled")
    for reason, count in result.left_out.items():
        print(f"note: left out: {count} images {reason}")
    for sentence in result.errors:
        print(f"warning: {sentence}")
    with write_whole(out) as temporary:
        text = json.dumps({"tower": tower} | result.to_dict(), indent=2, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")
    print(f"numbers: {out}")


if __name__ == "__main__":
    run("segment")
