"""Perceptual hashes of films, remembered in the folder that lists their digests, so that films are not decoded again.

    looks = LookList(folder, "window")
    looks.add({digest: perceptual_hash(shrink(image))})    # who decodes an image anyway
    hashes = find_looks(paths, digests, folder, "window")  # decodes those that are not known yet

FOLDER/looks-MAPPING.bin holds 64 bytes for each file and gray mapping: its SHA-256 and the hash, see `encoder.survey`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from encoder.survey import perceptual_hash, shrink
from raddraft.images import ImageError, ImageWarning, load_image
from raddraft.studies import GrayMapping

RECORD = np.dtype([("digest", "V32"), ("hash", "<u8", 4)])
TOGETHER = 512
"""Hashes that are written together: what an interruption can cost."""


class LookList:
    """The list of one gray mapping in a folder; several processes may add to it."""

    def __init__(self, folder: Path, gray_mapping: GrayMapping) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = folder / f"looks-{gray_mapping}.bin", FileLock(folder / "looks.lock")
        self._found: set[str] = set()

    def find(self, digests: Collection[str]) -> dict[str, np.ndarray]:
        """Digest of a file -> hash, uint64 [4], of those that are listed; what a power cut left as zeros is not."""
        if not self.path.is_file():
            return {}
        wanted, found = set(digests), np.fromfile(self.path, RECORD)  # without half a record at the end
        found = found[found["hash"].all(1)]
        names = found["digest"].tobytes().hex()
        rows = {names[64 * row : 64 * (row + 1)]: row for row in range(len(found))}
        listed = rows.keys() & wanted
        self._found |= listed
        return {digest: found["hash"][rows[digest]] for digest in listed}

    def add(self, looks: Mapping[str, np.ndarray]) -> None:
        """Append hashes by the digest of their file, but for those that `find` has found.

        Half a record that an interruption has left is cut.
        """
        looks = {digest: look for digest, look in looks.items() if digest not in self._found}
        if not looks:
            return
        records = np.array([(bytes.fromhex(digest), look) for digest, look in looks.items()], RECORD)
        with self.lock, open(self.path, "ab") as file:
            file.truncate(file.tell() // RECORD.itemsize * RECORD.itemsize)
            file.write(records.tobytes())


def find_looks(
    paths: Sequence[Path],
    digests: Sequence[str | None],
    folder: Path,
    gray_mapping: GrayMapping = "window",
    workers: int = 2,
) -> dict[str, np.ndarray]:
    """Digest of a file -> hash, uint64 [4]; what is not listed in the folder is decoded, and listed.

    Args:
        paths: image files; of those that cannot be read there is no hash.
        digests: of each the SHA-256, or None.
        folder: of the list.
        gray_mapping: how gray values become 8 bits.
        workers: threads that decode.
    """
    from tqdm import tqdm

    known = LookList(folder, gray_mapping)
    place = {digest: path for path, digest in zip(paths, digests, strict=True) if digest}
    found = known.find(place)
    new = [digest for digest in place if digest not in found]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in tqdm(range(0, len(new), TOGETHER), "looks", disable=not new, unit=f"{TOGETHER} films"):
            part = new[start : start + TOGETHER]
            small = pool.map(partial(small_copy, gray_mapping=gray_mapping), [place[digest] for digest in part])
            fresh = {one: perceptual_hash(seen) for one, seen in zip(part, small, strict=True) if seen is not None}
            known.add(fresh)
            found |= fresh
    return found


def small_copy(path: Path, gray_mapping: GrayMapping = "window", smallest: int = 1) -> np.ndarray | None:
    """The small copy of a film, uint8 [64, 64]; None if it cannot be read, or has a side of fewer pixels than the
    smallest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        try:
            image = load_image(path, gray_mapping)
        except (ImageError, OSError):
            return None
    return shrink(image) if min(image.size) >= smallest else None
