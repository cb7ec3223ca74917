"""Draw the random views that pre-training learns from, to look at before anything is spent.

    raddraft views --studies studies.jsonl --out views.png
    raddraft views --config configs/pretrain/laptop.yaml --studies studies.jsonl --out views.png
    raddraft views --studies studies.jsonl --out views.png --pretrain.views.blur_local 0

A row for each picture: the whole, both global views with the patches that iBOT hides, the local views.
"""

from __future__ import annotations

from pathlib import Path

from encoder.recipe import PretrainConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError


def main(
    studies: Path,
    out: Path,
    pretrain: PretrainConfig = PretrainConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    count: int = 4,
    split: str = "train",
    patch_size: int | None = None,
    seed: int = 0,
) -> int:
    """Draw one sheet (PNG) of the views of pictures spread over a manifest.

    Args:
        studies: The manifest.
        out: The PNG file to write.
        pretrain: The recipe; its views, masks and mapping of grey values count here.
        count: Number of pictures.
        split: The split they are taken from.
        patch_size: Side of the tower's patches in pixels; by default that of the recipe's architecture, else 14.
        seed: Another seed draws other views of the same pictures.
    """
    import torch

    from encoder.augment import Views, block_masks
    from encoder.view_sheet import ViewRow, draw_views
    from raddraft.files import write_whole
    from raddraft.images import ImageError, load_gray
    from raddraft.studies import read_studies

    if out.suffix.lower() != ".png" or count < 1:
        raise RadDraftError(f"Need a name that ends in .png and a count of at least 1, got {out} and {count}")
    views, objective = pretrain.views, pretrain.objective
    patch_size = patch_size or (pretrain.architecture.patch_size if pretrain.architecture else 14)
    for size in (views.global_size, views.local_size):
        if size % patch_size:
            raise RadDraftError(f"A view of {size} pixels is not a multiple of patch_size = {patch_size}")
    pictures = [study.main_image.path for study in read_studies(studies, split)]
    cut = Views(views, mean=0, std=1)
    side, count = views.global_size // patch_size, min(count, len(pictures))
    masked = objective.mask_probability if objective.ibot_weight else 0.0
    masks = block_masks(2 * count, (side, side), masked, objective.mask_ratio, seed)
    rows, errors = [], []
    for i in range(count):
        path = pictures[i * len(pictures) // count]
        try:
            image = torch.from_numpy(load_gray(path, pretrain.gray_mapping))[None]
        except ImageError as error:
            errors.append(str(error))
        else:
            rows.append(ViewRow(path.name, image, *cut(image, seed * count + i), masks[2 * i : 2 * i + 2]))
    if not rows:
        raise RadDraftError(f"No picture to draw: {'; '.join(errors)}")
    with write_whole(out) as temporary:
        draw_views(rows).save(temporary, format="PNG")
    print(f"{out}: views of {len(rows)} pictures")
    for sentence in errors:
        print(f"not drawn: {sentence}")
    return 1 if errors else 0


if __name__ == "__main__":
    run("views")
