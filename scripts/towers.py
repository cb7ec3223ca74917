"""List the vision towers that have a short name: what they are, where they come from, who has seen what.

    raddraft towers

Each has its architecture, its images (side of the square in pixels; mean / standard deviation), its source and license,
and the data sets of chest X-rays that its authors say it was trained on. Any other vision model of transformers or timm
goes by its hub id or folder; where the authors publish a file, NAME:FILE is that file on your disk; features:FILE are
features that something else has written. Checkpoints in other formats go through `raddraft convert` once. Report models
train on all of them; those that a LLaVA model cannot hold stay frozen beside it.
"""

from __future__ import annotations

from encoder.cards import TOWERS
from raddraft.cli import run


def main() -> None:
    """Print a table of the towers."""
    width = max(map(len, TOWERS))
    for name, card in TOWERS.items():
        how = "; convert it first with `raddraft convert`" if card.converted else ""
        how = f"; file {card.checkpoint.file}: {card.checkpoint.had}" if card.checkpoint else how
        beside = "" if card.in_llava else "; frozen beside a report model, not inside it"
        gray = "" if card.images.gray_mapping == "window" else f"; --gray-mapping {card.images.gray_mapping}"
        lines = [
            f"{card.what}{beside}",
            f"images: {card.images.describe()}{gray}",
            f"{card.source}; license: {card.license}{how}",
            f"trained on chest X-rays of: {card.describe_training()}",
        ]
        print(f"{name:{width}}  " + f"\n{'':{width}}  ".join(lines))


if __name__ == "__main__":
    run("towers")
