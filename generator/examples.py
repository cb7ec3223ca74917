"""Examples of many studies: made when they are asked for, many at a time; those to be read again are kept as numbers.

examples = drafter.encode(studies, answers=True)
examples.lengths(range(100))  # tokenizes these, if they are not yet
examples[7]                   # an Example
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import numpy as np

from generator.data import Example
from raddraft.studies import Study, skim

TOGETHER = 1024
"""Most examples that are made at a time."""


class Examples(Sequence[Example]):
    """The examples of studies, in their order.

    Args:
        studies: one for each example.
        make: makes the examples of some of them.
        show: gives the image files of one of them, as its example has them.
        keep: whether they are kept once they are made, as training asks for them in every epoch.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        make: Callable[[Sequence[Study]], Sequence[Example]],
        show: Callable[[Study], list[Path]],
        keep: bool,
    ) -> None:
        self._studies, self._make, self._show, self._keep = studies, make, show, keep
        self._kind = Example
        self._text, self._answer = (_Rows(array("i"), len(studies)) for _ in range(2))
        self._rest = _Rows(bytearray(), len(studies))
        self._lengths, self._learned = (np.zeros(len(studies), np.int32) for _ in range(2))
        self._made = np.zeros(len(studies), bool)

    def __len__(self) -> int:
        return len(self._studies)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        rows = range(len(self))[index]
        if not isinstance(rows, range):
            return self[rows : rows + 1][0]
        if not self._keep:
            return list(self._make([*skim(self._studies[row] for row in rows)]))
        self.lengths(rows)
        return [self._read(row) for row in rows]

    def __iter__(self) -> Iterator[Example]:
        for at in range(0, len(self), TOGETHER):
            yield from self[at : at + TOGETHER]

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Number of tokens of each of these examples, which are made if they are not there yet."""
        missing = sorted({row for row in rows if not self._made[row]})
        for at in range(0, len(missing), TOGETHER):
            part = missing[at : at + TOGETHER]
            for row, example in zip(part, self._make([*skim(self._studies[row] for row in part)]), strict=True):
                self._write(row, example)
        return self._lengths[list(rows)].tolist()

    def learned(self, rows: Sequence[int]) -> int:
        """Number of answer tokens in the loss of all these examples."""
        self.lengths(rows)
        return int(self._learned[list(rows)].sum())

    def images(self) -> Iterator[list[Path]]:
        """The image files of each example. Nothing is tokenized for it."""
        return map(self._show, skim(self._studies))

    def _write(self, row: int, example: Example) -> None:
        self._lengths[row], self._learned[row], self._made[row] = len(example), example.learned, True
        if not self._keep:
            return
        rest: dict[str, Any] = {one.name: getattr(example, one.name) for one in fields(example)}
        self._text.put(row, rest.pop("text"))
        self._answer.put(row, rest.pop("answer"))
        rest |= {"images": [str(path) for path in example.images], "given": [example.given.start, example.given.stop]}
        self._rest.put(row, json.dumps(rest).encode())
        self._kind = type(example)

    def _read(self, row: int) -> Example:
        rest = json.loads(self._rest.get(row))
        rest |= {"images": [Path(name) for name in rest["images"]], "given": range(*rest["given"])}
        return self._kind(text=list(self._text.get(row)), answer=list(self._answer.get(row)), **rest)


class _Rows:
    """Rows of numbers, of any lengths and filled in any order, one behind the other."""

    def __init__(self, values: Any, count: int) -> None:
        self.values = values
        self.starts, self.stops = (np.zeros(count, np.int64) for _ in range(2))

    def put(self, row: int, values: Sequence[int]) -> None:
        self.starts[row] = len(self.values)
        self.values.extend(values)
        self.stops[row] = len(self.values)

    def get(self, row: int) -> Any:
        return self.values[self.starts[row] : self.stops[row]]
