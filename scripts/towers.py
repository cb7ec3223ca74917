"""List the vision towers that have a short name: what they are, where they come from, their license.

    raddraft towers

Any other vision model of transformers or timm goes by its hub id or folder; checkpoints in other formats go through
`raddraft convert` once. Report models train on all of them; those that a LLaVA model cannot hold stay frozen beside it.
"""

from __future__ import annotations

from encoder.towers import TOWERS
from raddraft.cli import run


def main() -> None:
    """Print a table of the towers."""
    width = max(map(len, TOWERS))
    for name, card in TOWERS.items():
        how = "; convert it first with `raddraft convert`" if card.converted else ""
        beside = "" if card.in_llava else "; frozen beside a report model, not inside it"
        print(f"{name:{width}}  {card.what}{beside}\n{'':{width}}  {card.source}; license: {card.license}{how}")


if __name__ == "__main__":
    run("towers")
