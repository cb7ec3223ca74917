"""Image files of requests -> 8-bit pictures, by this project's own reader, in processes of their own.

Nothing is written to a disk.
"""

from __future__ import annotations

import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from PIL import Image

from generator.clinic.films import read_film
from raddraft.gray import ImageError, ImageWarning
from raddraft.images import load_image
from raddraft.isolated import EndedError, Isolated
from raddraft.studies import GrayMapping


@dataclass(frozen=True)
class Picture:
    """An image file, read."""

    image: Image.Image
    """Of mode L, as `raddraft.images.load_image` gives it."""
    view: str | None
    """As a DICOM header states it; None if it does not, or there is none."""
    patient: tuple[str, str]
    """Patient ID and its issuer, empty where nothing is stated; never to be told."""
    warnings: tuple[str, ...]
    """What looks wrong about it."""


class Pictures:
    """Reads image files, several at a time.

    Args:
        gray_mapping: how gray values become 8 bits.
        workers: processes.
    """

    def __init__(self, gray_mapping: GrayMapping, workers: int) -> None:
        self.gray_mapping = gray_mapping
        self._readers = [Isolated(read_picture) for _ in range(workers)]
        self._idle: SimpleQueue[Isolated[Picture]] = SimpleQueue()
        for reader in self._readers:
            reader.start()
            self._idle.put(reader)
        self._threads = ThreadPoolExecutor(workers, "pictures")

    def read(self, name: str, data: bytes) -> Future[Picture]:
        """The picture in the content of a file; the future raises ImageError, whose text begins with `name`."""
        return self._threads.submit(self._read, name, data)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def _read(self, name: str, data: bytes) -> Picture:
        reader = self._idle.get()
        try:
            return reader(name, data, self.gray_mapping)
        except EndedError:
            raise ImageError(f"{name}: the decoder fails on it") from None
        finally:
            self._idle.put(reader)


def read_picture(name: str, data: bytes, gray_mapping: GrayMapping) -> Picture:
    """The picture in the content of a file. Raises as `raddraft.images.load_image`."""
    path = Path(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        image = load_image(path, gray_mapping, data=data)
        film = read_film(path, data)
    told = tuple(str(one.message) for one in caught if one.category is ImageWarning)
    return Picture(image, film.view if film else None, film.patient if film else ("", ""), tuple(dict.fromkeys(told)))
