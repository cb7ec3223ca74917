"""Store the features of a frozen tower for all images of a manifest, to be read by probes, retrieval and training.

    raddraft features --tower rad-dino --studies studies.jsonl --out features
    raddraft features --tower ../dinov2-small --studies studies.jsonl --out features --keep grid --dtype bfloat16
    accelerate launch --num_processes 8 -m scripts.features --tower rad-dino --studies studies.jsonl --out features

Started again it goes on where it stopped; images that are stored already are not read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping


def main(
    tower: str,
    studies: Path,
    out: Path = Path("features"),
    splits: list[str] | None = None,
    keep: Literal["pooled", "grid"] = "pooled",
    layers: list[int] | None = None,
    average: bool = False,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    gray_mapping: GrayMapping = "window",
    image_size: int | None = None,
    backend: Literal["torchvision", "pil"] = "torchvision",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    batch_size: int = 32,
    workers: int = 2,
) -> int:
    """Compute features and keep them on disk.

    Args:
        tower: Short name (`raddraft towers` lists them), hub id or folder.
        studies: The manifest.
        out: Folder of stores; each tower and setting has one of its own in it.
        splits: Only these; by default all.
        keep: The pooled vector and the mean patch, or the pooled vector and every patch.
        layers: Hidden states by index, side by side; by default the tower's final output.
        average: Average the layers instead.
        dtype: Type in which features are kept.
        gray_mapping: How grey values are mapped to 8 bits; minmax as RAD-DINO's and BioViL-T's authors.
        image_size: Side of the tower's input in pixels instead of its own.
        backend: What resizes pictures; pil as the package rad-dino.
        precision: Type in which the tower computes; the two short ones are for GPUs.
        batch_size: Images per forward pass.
        workers: Processes that decode and prepare images while the tower runs.
    """
    import torch
    from accelerate import Accelerator

    from encoder.features import FeatureConfig, compute_features, digest_files, read_features
    from encoder.towers import load_tower
    from raddraft.studies import read_studies

    config = FeatureConfig(keep, tuple(layers) if layers else None, average, dtype, gray_mapping)
    known = read_studies(studies)
    paths = [image.path for study in known if splits is None or study.split in splits for image in study.images]
    if not paths:
        raise RadDraftError(f"{studies} has no images in the splits {splits or 'train, val, test'}")
    accelerator = Accelerator()
    loaded = load_tower(tower, image_size, backend)
    loaded.model.to(accelerator.device, getattr(torch, precision))
    process = (accelerator.process_index, accelerator.num_processes)
    digest_files(paths[process[0] :: process[1]], out, workers)  # else every process would read every file
    accelerator.wait_for_everyone()
    computed = compute_features(loaded, paths, out, config, batch_size, workers, process)
    for sentence in computed.errors:
        print(f"no features: {sentence}")
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return 0
    store = read_features(loaded, paths, out, config)
    rate = f"{computed.n_images / computed.seconds:.1f} images/s" if computed.n_images else "nothing to compute"
    busy = f", tower at work {computed.tower_seconds / computed.seconds:.0%} of the time" if computed.n_images else ""
    size = sum(file.stat().st_size for file in store.folder.glob("part-*.bin"))
    n_paths = len(dict.fromkeys(paths))
    print(
        f"{len(store.rows)} of {n_paths} images: {store.shape[0]} vectors of {store.shape[1]} each, {size / 1e6:.1f} MB"
    )
    print(f"{rate}{busy}\nfeatures: {store.folder}")
    return 0 if len(store.rows) == n_paths else 1


if __name__ == "__main__":
    run("features")
