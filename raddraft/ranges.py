"""Ranges of the numbers in configs, stated in their types and checked wherever a config is made.

    epochs: Count = 30    # of ClipConfig, so that ClipConfig(epochs=0): clip.epochs must be at least 1, got 0

The command line checks the parameters of an action's `main` in the same way. NaN and infinities are in no range.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from raddraft.errors import RadDraftError

LARGEST = 2**31 - 1
"""The highest number of the types below: libraries fail above it, each in its own way."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without `low` itself if `above`; in words without a `high` of `LARGEST`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high and value < math.inf

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'at least'} {self.low}"
        return least if self.high >= LARGEST else f"{least} and at most {self.high}"


Count = Annotated[int, Range(1, LARGEST)]
Whole = Annotated[int, Range(0, LARGEST)]
Port = Annotated[int, Range(0, 65535)]
Positive = Annotated[float, Range(0, LARGEST, above=True)]
Amount = Annotated[float, Range(0, LARGEST)]
Share = Annotated[float, Range(0, 1)]
Portion = Annotated[float, Range(0, 1, above=True)]


def check_ranges(config: Any, section: str = "") -> None:
    """Raise a RadDraftError, which names the field, unless the numbers in a dataclass are in their ranges.

    Args:
        config: the dataclass; called where it is made, in its `__post_init__`.
        section: of config files that it is, for the message.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        check_range(f"{section}.{name}" if section else name, getattr(config, name), hint)


def check_range(name: str, value: Any, hint: Any) -> None:
    """Raise a RadDraftError that names a value unless its numbers are in the ranges of its type, and one is a number
    where its type is."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else None
    if base in (int, float) and (isinstance(value, bool) or not isinstance(value, Integral if base is int else Real)):
        raise RadDraftError(f"{name} must be a {'whole ' if base is int else ''}number, got {value!r}")
    for kind, number in _numbers(value, hint):
        most = f" and at most {kind.high}" if number > kind.high >= LARGEST else ""
        raise RadDraftError(f"{name} must be {kind}{most}, got {value}")


def _numbers(value: Any, hint: Any) -> Iterator[tuple[Range, float]]:
    """The ranges of a type that a value, or a part of it, lies outside of, and what does."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield from ((kind, value) for kind in hint.__metadata__ if isinstance(kind, Range) and value not in kind)
    elif get_origin(hint) in (Union, types.UnionType):
        for one in arguments:
            yield from _numbers(value, one)
    elif isinstance(value, dict) and get_origin(hint) is dict:
        for part in value.values():
            yield from _numbers(part, arguments[1])
    elif isinstance(value, list | tuple) and get_origin(hint) in (list, tuple):
        for part in value:
            yield from _numbers(part, arguments[0])
