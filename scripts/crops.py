"""Draw the random crops that pre-training learns from, to check a recipe before anything is spent.

    raddraft crops --studies studies.jsonl --out crops.png
    raddraft crops --config pretrain/laptop.yaml --studies studies.jsonl --out crops.png
    raddraft crops --studies studies.jsonl --out crops.png --pretrain.crops.blur-local 0

One row per image: the image, both global crops with the patches that iBOT masks, the local crops.
"""

from __future__ import annotations

from pathlib import Path

from encoder.recipe import RENAMED as RENAMED
from encoder.recipe import PretrainConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Count, Whole


def main(
    studies: Path,
    out: Path,
    pretrain: PretrainConfig = PretrainConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    count: Count = 4,
    split: str = "train",
    patch_size: Count | None = None,
    seed: Whole = 0,
) -> int:
    """Draw one sheet (PNG) of the crops of images spread evenly over a manifest.

    Args:
        studies: The manifest.
        out: PNG file to write.
        pretrain: Pre-training recipe; its crops, masks, architecture and gray-value mapping are used here.
        count: Number of images.
        split: Split to take them from.
        patch_size: Side of the tower's patches in pixels; by default that of the recipe's architecture, else 14.
        seed: Seed of crops and masks.
    """
    from encoder.crop_sheet import write_crops
    from raddraft.studies import read_studies

    if out.suffix.lower() != ".png" or count < 1:
        raise RadDraftError(f"Need a file name that ends in .png and a count of at least 1, got {out} and {count}")
    paths = [study.main_image.path for study in read_studies(studies, split)]
    drawn, errors = write_crops(paths, pretrain, out, count, patch_size, seed)
    print(f"{out}: crops of {drawn} images")
    for sentence in errors:
        print(f"not drawn: {sentence}")
    return 1 if errors else 0


if __name__ == "__main__":
    run("crops")
