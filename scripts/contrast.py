"""Train a tower on pictures and their reports, as CLIP: the text-supervised side of the comparison of encoders.

    raddraft contrast --studies runs/demo/phantom/studies.jsonl --tower runs/demo/tower --out runs/clip
    raddraft contrast --studies studies.jsonl --tower dinov2-base --out runs/clip --train.lr 3e-5 --train.batch_size 512
    raddraft probe --tower runs/clip/tower --studies studies.jsonl --kind multiclass --targets patient.sex

Starting the same command again goes on where it stopped. The tower is runs/clip/tower, an ordinary folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from generator.contrast import ContrastConfig
from raddraft.cli import run
from raddraft.studies import GrayMapping


def main(
    studies: Path,
    tower: str,
    out: Path,
    train: ContrastConfig = ContrastConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    image_size: int | None = None,
    gray_mapping: GrayMapping = "window",
    sources: list[str] | None = None,
) -> None:
    """Train on the train split, watching the val split (loss and recalls after each epoch); the test split is not read.

    Args:
        studies: The manifest, studies.jsonl.
        tower: Where the image side starts: short name, hub id or folder, or random:NAME for its architecture alone.
        out: The run folder: config.yaml, log.jsonl, checkpoints/, tower/.
        train: How the loop runs.
        image_size: Side of the tower's input in pixels instead of its own.
        gray_mapping: How grey values become 8 bits: the window the file states, min-max, or percentiles.
        sources: Take only studies of these sources (the manifest's key `source`); by default all.
    """
    from encoder.towers import load_tower
    from generator.contrast import contrast
    from raddraft.runs import keep_config
    from raddraft.studies import read_studies
    from scripts.train import split_studies

    parts = split_studies(read_studies(studies), sources)
    loaded = load_tower(tower, image_size)
    settings = {"studies": str(studies.absolute()), "tower": tower, "train": asdict(train), "image_size": image_size}
    keep_config(out / "config.yaml", settings | {"gray_mapping": gray_mapping, "sources": sources})
    print(f"tower: {contrast(parts, out, loaded, train, gray_mapping)}")


if __name__ == "__main__":
    run("contrast")
