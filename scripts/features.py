"""Store the features of a frozen tower for all images of a manifest: for probes, retrieval and training.

    raddraft features --tower rad-dino --studies studies.jsonl
    raddraft features --tower ../dinov2-small --studies studies.jsonl --keep tokens --dtype float8
    accelerate launch --num_processes 8 -m raddraft features --tower rad-dino --studies studies.jsonl

An interrupted run resumes; images that are stored already are not read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from encoder.config import EncoderConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError

FLAT = ("encoder",)
RENAMED = {"out": "features"}


def main(
    encoder: EncoderConfig,
    studies: Path,
    splits: list[Literal["train", "val", "test"]] | None = None,
    keep: Literal["pooled", "tokens"] = "pooled",
    layers: list[int] | None = None,
    backend: Literal["torchvision", "pil"] = "torchvision",
) -> int:
    """Compute features and store them.

    Args:
        studies: The manifest, studies.jsonl.
        splits: Splits to store; by default all.
        keep: pooled: the pooled vector and the mean patch, for probes and retrieval; tokens: also every token, for
            segmentation and `raddraft train --train.cached`.
        layers: Indices of hidden states; by default the tower's final output, from the last of them.
        backend: Library that resizes images; pil as the package rad-dino.
    """
    from accelerate import Accelerator

    from encoder.config import FeatureConfig
    from encoder.features import open_store
    from raddraft.processes import check_launch
    from raddraft.studies import read_studies, skim

    kept = FeatureConfig(keep, tuple(layers) if layers else None)
    known = read_studies(studies)
    chosen = (study for study in skim(known) if splits is None or study.split in splits)
    paths = [image.path for study in chosen for image in study.images]
    if not paths:
        raise RadDraftError(f"{studies} has no images in the splits {', '.join(splits or [])}")
    accelerator = check_launch(Accelerator())
    store = open_store(encoder.load(backend), paths, kept, encoder, accelerator)
    if not accelerator.is_main_process:
        return 0
    n_paths = len(set(map(str, paths)))  # quicker than hashes of paths
    print(f"{len(store.rows)} of {n_paths} images: {store.describe()}\nfeatures: {store.folder}")
    return 0 if len(store.rows) == n_paths else 1


if __name__ == "__main__":
    run("features")
