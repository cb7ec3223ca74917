"""Films for the browser: all gray values of a file, 16 bits a pixel, and the window to begin with."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock

import numpy as np

from raddraft.gray import ImageWarning
from raddraft.images import load_film

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


class Films:
    """Reads films, one at a time, and keeps the latest."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, Film] = OrderedDict()
        self._lock = Lock()
        import_module("pydicom")  # now, since it takes longer than to read a film

    def read(self, path: Path) -> Film:
        """The film in a file.

        Raises:
            ImageError: as `raddraft.images.load_film`.
        """
        with self._lock:
            if path not in self._kept:
                self._kept[path] = _read(path)
            self._kept.move_to_end(path)
            while len(self._kept) > 1 and sum(len(film.pixels) for film in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[path]


def _read(path: Path) -> Film:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        pixels, window = load_film(path, LARGEST)
    told = [str(one.message) for one in caught if issubclass(one.category, ImageWarning)]
    own = tuple(text.removeprefix(f"{path}: ") for text in told if text.startswith(f"{path}: "))
    pixels *= 65535
    np.rint(pixels, out=pixels)
    height, width = pixels.shape
    return Film(pixels.astype("<u2").tobytes(), width, height, window, own)
