"""Train a vision tower on images and their reports, as CLIP.

    raddraft clip --studies runs/demo/phantom/studies.jsonl --tower runs/demo/tower --out runs/clip
    raddraft clip --studies studies.jsonl --tower dinov2-base --out runs/clip --clip.lr 3e-5 --clip.batch-size 512
    raddraft probe --tower runs/clip/tower --studies studies.jsonl --kind multiclass --targets patient.sex

An interrupted run resumes when the same command is started again. The tower is OUT/tower, an ordinary folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from generator.config import ClipConfig
from raddraft.cli import run
from raddraft.ranges import Count
from raddraft.studies import GrayMapping

RENAMED = {f"train.{name}": f"clip.{name}" for name in ClipConfig.__dataclass_fields__} | {"train": "clip"}


def main(
    studies: Path,
    tower: str,
    out: Path,
    clip: ClipConfig = ClipConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    image_size: Count | None = None,
    gray_mapping: GrayMapping = "window",
    sources: list[str] | None = None,
) -> None:
    """Train on the train split; loss and recalls on the val split after each epoch. The test split is not used.

    Args:
        studies: Manifest, studies.jsonl.
        tower: Tower to start from: short name, hub id or folder, or random:NAME for its architecture with random
            weights.
        out: Run folder: config.yaml, log.jsonl, checkpoints/, tower/.
        clip: Training.
        image_size: Side of the tower's square input in pixels. By default the size its image processor states.
        gray_mapping: How gray values become 8 bits: the DICOM window, min-max, or percentiles 0.5 to 99.5.
        sources: Use only studies with these values of `source` in the manifest; by default all.
    """
    from encoder.towers import load_tower
    from generator.clip import train_clip
    from generator.runs import split_studies
    from raddraft.runs import keep_config

    parts = split_studies(studies, sources)
    loaded = load_tower(tower, image_size)
    recipe = {"studies": studies.absolute(), "tower": tower, "clip": asdict(clip), "image_size": image_size}
    keep_config(out / "config.yaml", recipe | {"gray_mapping": gray_mapping, "sources": sources}, "tower")
    print(f"tower: {train_clip(parts, out, loaded, clip, gray_mapping)}")


if __name__ == "__main__":
    run("clip")
