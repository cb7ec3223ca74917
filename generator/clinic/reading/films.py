"""Films for the browser: all gray values of a file, 16 bits a pixel, and the window to begin with.

A process of its own reads them: drafting does not slow it down, and a decoder that fails on broken bytes ends nothing
else.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.gray import ImageError, ImageWarning
from raddraft.images import load_film
from raddraft.isolated import EndedError, Isolated

LARGEST = 100_000_000
"""Pixels; a larger film is refused before it is decoded."""
KEPT = 100_000_000
"""Bytes of films that are kept for the next time."""


@dataclass(frozen=True)
class Film:
    """A film as the browser gets it."""

    pixels: bytes
    """Unsigned 16-bit integers, little-endian, row by row; air is dark."""
    width: int
    height: int
    window: tuple[float, float]
    """What is shown black and white, as shares of 65,535; may lie outside 0..1."""
    warnings: tuple[str, ...]
    """What looks wrong about it."""


class SkippedError(RadDraftError):
    """Another study was opened before it was the turn of a film."""


class Films:
    """Reads films, one at a time, those that are wanted most first, and keeps the latest."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, Film] = OrderedDict()
        self._wanted: list[Path] = []
        self._waiting: list[Path] = []
        self._changed, self._opened, self._busy = Condition(), 0, False
        self._apart = Isolated(_read)

    def start(self) -> None:
        """Start the process that reads, unless it runs; `read` does so too, and then waits for it."""
        self._apart.start()

    def close(self) -> None:
        """End the process."""
        self._apart.close()

    def want(self, paths: Sequence[Path]) -> None:
        """Read these first, in this order; who waits for another film now gets SkippedError."""
        with self._changed:
            self._wanted, self._opened = [*paths], self._opened + 1
            self._changed.notify_all()

    def read(self, path: Path, fetch: Callable[[], None] = lambda: None) -> Film:
        """The film in a file, after those that are wanted more.

        Args:
            path: the file.
            fetch: brings it there, when it is its turn.

        Raises:
            SkippedError: meanwhile it is not wanted any more.
            ImageError: as `raddraft.images.load_film`, or the decoder fails.
        """
        with self._turn(path):
            if path not in self._kept:
                fetch()
                self._kept[path] = self._ask(path)
            self._kept.move_to_end(path)
            while len(self._kept) > 1 and sum(len(film.pixels) for film in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[path]

    @contextmanager
    def _turn(self, path: Path) -> Iterator[None]:
        with self._changed:
            asked = self._opened
            self._waiting.append(path)
            try:
                while self._busy or path != min(self._waiting, key=self._rank):
                    self._changed.wait()
                    if self._opened != asked and path not in self._wanted:
                        raise SkippedError("another study was opened")
            finally:
                self._waiting.remove(path)
                self._changed.notify_all()  # it may be another's turn
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _rank(self, path: Path) -> int:
        return self._wanted.index(path) if path in self._wanted else len(self._wanted)

    def _ask(self, path: Path) -> Film:
        try:
            return self._apart(path)
        except EndedError:
            raise ImageError(f"{path}: the decoder fails on it") from None


def _read(path: Path) -> Film:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        pixels, window = load_film(path, LARGEST)
    told = tuple(str(one.message).removeprefix(f"{path}: ") for one in caught if one.category is ImageWarning)
    pixels *= 65535
    np.rint(pixels, out=pixels)
    height, width = pixels.shape
    return Film(pixels.astype("<u2").tobytes(), width, height, window, told)
