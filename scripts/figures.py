"""Draw what encoders see: patch features as colours, class attention, similarity to a point.

    raddraft figures a.dcm b.png --towers dinov2-small rad-dino --out figures.png
    raddraft figures a.png --towers runs/tower --image_size 518 --point 0.6 0.7 --out figures.png

A row for each image, three columns for each tower.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.processes import pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

POSITIONAL = ("images",)


def main(
    images: list[Path],
    towers: list[str],
    out: Path,
    point: list[float] | None = None,
    image_size: int | None = None,
    device: str = "auto",
) -> int:
    """Draw one sheet (PNG): each picture, and what each tower makes of it.

    Of every picture the towers get the centre square. Maps are as fine as the patches: a larger image_size helps, at a
    cost that grows with its fourth power.

    Args:
        images: Image files (DICOM, PNG, JPEG, TIFF).
        towers: Vision towers: short names, hub ids or folders.
        out: The PNG file to write.
        point: Where similarity is measured from: two fractions, of the width from the left and of the height from the
            top of the centre square. Without it 0.32 0.45, in most frontal pictures the patient's right lung.
        image_size: Side of the towers' input in pixels instead of their own, for towers that take any, as DINOv2 does.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
    """
    from tqdm import tqdm

    from encoder.figures import check_point, draw, look
    from encoder.towers import load_tower
    from raddraft.files import write_whole

    point = [0.32, 0.45] if point is None else point
    check_point(point)
    if out.suffix.lower() != ".png":
        raise RadDraftError(f"{out}: figures are PNG files, so the name must end in .png")
    captions, pictures, errors = read_pictures(images)
    if not pictures:
        raise RadDraftError(f"No picture to draw: {'; '.join(errors)}")
    xrays, maps = [], []
    for name in tqdm(towers, unit="tower"):
        tower = load_tower(name, image_size)
        tower.model.to(pick_device(device))
        tower.name = _last_two_parts(name)
        found, of_tower = look(tower, pictures, point)
        xrays.append(found)
        maps.append(of_tower)
    png = draw(captions, xrays[0], maps, point)
    with write_whole(out) as temporary:
        temporary.write_bytes(png)
    print(f"{len(pictures)} of {len(pictures) + len(errors)} pictures are drawn in {out}")
    for sentence in errors:
        print(f"not drawn: {sentence}")
    return 1 if errors else 0


def read_pictures(paths: list[Path]) -> tuple[list[str], list[Image], list[str]]:
    """Names of the pictures that can be read, the pictures, and a sentence for each other file."""
    from raddraft.images import ImageError, load_image

    captions, pictures, errors = [], [], []
    for path in dict.fromkeys(paths):
        try:
            image = load_image(path)
        except (ImageError, OSError) as error:
            errors.append(str(error))
        else:
            pictures.append(image)
            captions.append(_last_two_parts(os.fsencode(path).decode(errors="replace")))
    return captions, pictures, errors


def _last_two_parts(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


if __name__ == "__main__":
    run("figures")
