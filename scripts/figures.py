"""Draw what encoders see: patch features as colors, class attention, similarity to a point.

    raddraft figures a.dcm b.png --towers dinov2-small rad-dino --out figures.png
    raddraft figures a.png --towers runs/tower --image-size 518 --point 0.6 0.7 --out figures.png

A row for each image, three columns for each tower.
"""

from __future__ import annotations

from pathlib import Path

from raddraft.cli import run
from raddraft.ranges import Count

POSITIONAL = ("images",)


def main(
    images: list[Path],
    towers: list[str],
    out: Path,
    point: tuple[float, float] = (0.32, 0.45),
    image_size: Count | None = None,
    device: str = "auto",
) -> int:
    """Draw one sheet (PNG): each image, and what each tower makes of it.

    Towers get the center square of each image. Maps are as fine as the patches: a larger image_size helps, at a cost
    that grows with its fourth power.

    Args:
        images: Image files (DICOM, PNG, JPEG, TIFF).
        towers: Vision towers: short names, hub ids or folders.
        out: The PNG file to write.
        point: Where similarity is measured from: fractions of the width from the left and of the height from the top
            of the center square. The default is the patient's right lung in most frontal images.
        image_size: Side in pixels of the towers' input instead of their own, for towers that take any, as DINOv2 does.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
    """
    from encoder.figures import draw_figures

    errors = draw_figures(images, towers, out, point, image_size, device)
    n_images = len(dict.fromkeys(images))
    print(f"{n_images - len(errors)} of {n_images} images are drawn in {out}")
    for sentence in errors:
        print(f"not drawn: {sentence}")
    return 1 if errors else 0


if __name__ == "__main__":
    run("figures")
