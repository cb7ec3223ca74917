"""The registry of towers: the table in docs/encoders.md says the same, and its sets are those of this project.

python -m tests.test_cards    # prints the table
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from encoder.cards import TOWERS, Card
from generator import corpora

PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"
HEAD = ("Tower", "What it is", "Images", "Source, file", "License", "Trained on chest X-rays of", "Tested against")

# Sets that authors name and `raddraft prepare` has no converter for.
ELSEWHERE = {"bimcv-covid19", "shenzhen"}


def table() -> str:
    return "\n".join([line(HEAD), "|---" * len(HEAD) + "|", *(row(name, card) for name, card in TOWERS.items())])


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row(name: str, card: Card) -> str:
    images = card.images.describe()
    images += "; `--gray-mapping minmax`" if card.images.gray_mapping == "minmax" else ""
    source = card.source if card.source.startswith("github.com") else f"huggingface.co/{card.source}"
    source += f", {card.checkpoint.file}" if card.checkpoint else ", `raddraft convert`" if card.converted else ""
    what = card.what + ("" if card.in_llava else "; beside a LLaVA model")
    return line((f"`{name}`", what, images, source, card.license, card.describe_training(), card.tested))


def test_the_documented_table_is_that_of_the_registry() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page, "run `python -m tests.test_cards` and paste its output into docs/encoders.md"


def test_every_tower_says_what_it_is() -> None:
    for name, card in TOWERS.items():
        assert all((card.source, card.what, card.license, card.tested)), name
        assert (card.images.mean is None) == (card.images.std is None), name
        if card.checkpoint:
            assert card.images.side, name
            assert card.images.mean, f"{name}: a file brings no image processor"


def test_training_sets_have_the_names_of_this_project() -> None:
    named = {source for card in TOWERS.values() for source in card.trained_on or ()}
    assert named <= {*corpora.CORPORA, *ELSEWHERE}
    splits = {split for card in TOWERS.values() for found in (card.trained_on or {}).values() for split in found}
    assert splits == {"train", "val", "test"}


if __name__ == "__main__":
    print(table())
