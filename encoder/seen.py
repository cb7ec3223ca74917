"""Which test films an encoder had in training, by what its authors say: sets and splits of its card, against studies.

    seen = count_seen(training_of("rad-dino"), tested)
    seen.mark  # "‡": it had some of them; "(‡)": it may have had some; "": none that is known of

Splits are compared as `raddraft prepare` makes them. What lists of digests tell is in `encoder.leaks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from encoder.cards import ALL, TOWERS
from raddraft.errors import RadDraftError
from raddraft.splits import OWN_SPLIT, SAME_SPLITS, UNKNOWN_PATIENT, names_set, origin
from raddraft.studies import Study, skim

Training = Mapping[str, tuple[str, ...]] | None
"""As `encoder.cards.Card.trained_on`."""
HAD, MAY = "‡", "(‡)"


@dataclass
class Seen:
    """Test studies by what an encoder had of them in training."""

    studies: int = 0
    had: Counter[str] = field(default_factory=Counter)
    """Source -> studies that it was trained on."""
    may: Counter[str] = field(default_factory=Counter)
    """Source -> studies that it may have been trained on: their split, or those it was trained on, are not known."""

    unknown: Counter[str] = field(default_factory=Counter)
    """Source -> studies of which the source does not tell the set, so that nothing is known of them."""

    films: int = 0
    """Images that are tested on, where there is a list of the encoder's training images."""
    listed: int = 0
    """Of these, the ones in the list."""

    @property
    def mark(self) -> str:
        """What stands beside a number that was measured on these studies."""
        return HAD if self.listed else self._mark_of_sets

    @property
    def _mark_of_sets(self) -> str:
        return HAD if self.had else MAY if self.may else ""

    def count_had(self) -> str:
        """How much of these it had in training: `2 of 9 films`."""
        if self.listed:
            return f"{self.listed:,} of {self.films:,} films"
        return f"{self.had.total():,} of {self.studies:,} studies"

    def __str__(self) -> str:
        """Counts and sources, by what is known of sets: `was trained on 27 of 27 test studies (rsna, films of nih)`."""
        told = []
        for counts, verb in ((self.had, "was trained on"), (self.may, "may have been trained on")):
            if counts:
                names = (name if origin(name) == name else f"{name}, films of {origin(name)}" for name in counts)
                told.append(f"{verb} {counts.total():,} of {self.studies:,} test studies ({'; '.join(names)})")
        return " and ".join(told)

    def tell(self) -> list[str]:
        """Sentences to warn with: what the tower had, and films of which that cannot be told."""
        told = [f"{self._mark_of_sets} {self}, by what its authors say"] if self._mark_of_sets else []
        if self.listed:
            told.append(f"{HAD} was trained on {self.listed:,} of {self.films:,} test films, by the list of its images")
        if self.unknown:
            told.append(
                f"of {self.unknown.total():,} of {self.studies:,} test studies the set is not known "
                f"({'; '.join(self.unknown)}): whether the encoder was trained on them cannot be told"
            )
        return told

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        found = {"mark": self.mark, "studies": self.studies, "had": dict(self.had), "may": dict(self.may)}
        found |= {"films": self.films, "listed": self.listed} if self.films else {}
        return found | ({"unknown": dict(self.unknown)} if self.unknown else {})


def training_of(tower: str, known_as: str = "") -> Training:
    """What a tower was trained on; None where that is not known here.

    Args:
        tower: a name as `encoder.towers.load_tower` takes it.
        known_as: the short name of the tower that a folder or file holds.

    Raises:
        RadDraftError: `known_as` is no short name, or stands beside a tower that is known by its own.
    """
    if known_as and known_as not in TOWERS:
        raise RadDraftError(f"known_as: unknown tower {known_as!r}. Choices: {', '.join(TOWERS)}")
    untrained = tower == "pixels" or tower.startswith("random:")
    name = tower.partition(":")[0]
    card = TOWERS.get(name) or next((card for card in TOWERS.values() if card.hub_id == name), None)
    if known_as and (untrained or card):
        raise RadDraftError(f"known_as: {known_as!r} is for a folder or a file, and {tower!r} is known; leave it out")
    if untrained:
        return {}
    card = TOWERS[known_as] if known_as else card
    return card.trained_on if card else None


def count_seen(training: Training, studies: Iterable[Study]) -> Seen:
    """What of these studies, which are tested on, a tower had in training; nothing is counted if that is not known."""
    seen = Seen()
    for study in skim(studies):
        seen.studies += 1
        if training and not names_set(study.source):
            seen.unknown[study.source or "no source"] += 1
            continue
        found = _find(training or {}, study)
        if found != "no":
            (seen.had if found == "had" else seen.may)[study.source or ""] += 1
    return seen


def _find(training: Mapping[str, tuple[str, ...]], study: Study) -> Literal["had", "may", "no"]:
    """Whether a tower had the films of a study in training, in this set or in one that has the same films."""
    films, found = origin(study.source), set()
    for source, splits in training.items():
        if origin(source) != films:
            continue
        own = source == study.source
        inherited = study.source in SAME_SPLITS and not any(map(study.extra.get, (UNKNOWN_PATIENT, OWN_SPLIT)))
        if splits == ALL and source in (study.source, films):
            found.add("had")
        elif splits and (own or (source == films and inherited)):
            found.add("had" if study.split in splits else "no")
        else:
            found.add("may")
    return "had" if "had" in found else "may" if "may" in found else "no"
