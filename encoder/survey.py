"""One look at each film of a collection: what it holds, and what is odd about it, by simple statistics of the image.

    films = survey([Path("a.png"), Path("b.dcm")])
    films[0].findings  # [Finding("inverted", "looks like a negative: air bright, bone dark")]

Whether a film is inverted, turned, a lateral or no chest at all is guessed from 8 x 8 cells of it: from their ranks, so
that neither window nor gamma matters, and by weights that `python -m benchmarks.check` fits. These are heuristics;
docs/data.md states how often they are wrong.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from raddraft.images import ImageError, ImageWarning, load_image
from raddraft.isolated import end_with_parent
from raddraft.studies import GrayMapping

SIDE, CELLS = 64, 8
"""Sides of the small copy of a film that all statistics are of, and of the grid of cells in it."""
FLAT = 8
"""Gray levels: a row or column of the small copy that differs by no more is of one shade."""
EDGE = 20
"""Gray levels, mean over a line, between a burned-in border and the film beside it; air fades more gently."""
BORDER = 0.05
"""Share of the image in borders from which on they are reported."""

# Left halves, from the top, of weights that are symmetric from side to side; fitted by benchmarks/check.py.
# fmt: off
UPRIGHT = np.array(
    [[-26, -26, -24, 9], [-4, 2, -18, -2], [-1, 6, -28, 5], [-2, -4, -26, 22], [-6, -11, -15, 28], [-12, -9, 1, 32],
     [-21, 2, 20, 39], [-28, 21, 34, 40]]
)
"""Weights of cells in an upright frontal film: what is bright in one (spine, heart, abdomen) has positive ones."""
LATERAL_MEAN = np.array(
    [[-3, -1, 7, 4], [-4, 1, 9, 8], [-4, 1, 5, -3], [-3, 0, 5, -11], [-1, 2, 4, -11], [1, 6, 5, -9],
     [0, 1, 1, -4], [-1, -4, -2, 0]]
)
"""Weights, for telling laterals from frontals, of the mean of a cell and its mirror image …"""
LATERAL_DIFFERENCE = np.array(
    [[1, 8, 8, 1], [1, 13, 5, -1], [2, 8, 4, -5], [1, 3, 0, -5], [0, 1, -1, -3], [0, 2, -2, -2],
     [-1, 0, 1, 0], [-2, -1, 0, -1]]
)
"""… and of half the absolute difference between them."""
# fmt: on
LATERAL_BIAS = -3.3
MARGIN = 0.05
"""How much better than upright another position must fit (the fits are correlations, -1 to 1)."""
LEAST_FIT, LEAST_FIT_TURNED = 0.3, 0.42
"""The worst fit of a chest in the position that fits best, if that is upright or not: odd images are mostly others."""

HASH_SIDE = 16
NEAR = 28
"""Of the 256 bits of a hash: films that differ in no more are near-duplicates. Between films of different patients it
is 48 or more, in 1.9 million pairs of four public collections; by a 64-bit difference hash some are equal."""
ROWS, COLUMNS = 256, 2**15
"""Hashes that are compared in one go: few enough to stay in the processor's cache, which is several times as fast."""
SILENT = 10.0
"""Seconds of comparing before a progress bar is shown."""
BLUR, SAME_DETAILS = 1.0, 0.92
"""What a blur of this many pixels takes from the small copy are its details; of near-duplicates with this correlation
of details, or more, one is a copy of the other. Of 474 near pairs of 4,000 phantoms none has more than 0.89."""


class Finding(NamedTuple):
    """Something odd about a film or a study."""

    kind: str
    what: str


@dataclass
class Film:
    """What was seen of an image file."""

    path: Path
    size: tuple[int, int] | None = None
    """Width and height in pixels; None if it cannot be read."""
    digest: str = ""
    """Of the gray values and their grid; the same for files that show the same."""
    hash: np.ndarray | None = None
    """Perceptual hash, uint64 [4]."""
    findings: list[Finding] = field(default_factory=list)


def survey(
    paths: Sequence[Path],
    laterals: frozenset[Path] = frozenset(),
    smallest: int = 200,
    largest: int = 5000,
    gray_mapping: GrayMapping = "window",
    processes: int | None = None,
) -> list[Film]:
    """Look at each file once; one that cannot be read is a finding like others.

    Args:
        paths: image files.
        laterals: those that are stated to be no frontals, whose position is not judged.
        smallest: shorter side in pixels under which a film is tiny.
        largest: longer side in pixels over which it is huge.
        gray_mapping: how gray values become 8 bits.
        processes: that read; None for one per core.
    """
    from tqdm import tqdm

    jobs = [(path, path in laterals) for path in paths]
    look = partial(look_at, smallest=smallest, largest=largest, gray_mapping=gray_mapping)
    workers = min(processes or os.cpu_count() or 1, max(1, len(jobs)))
    if workers == 1:
        return list(tqdm(map(look, jobs), "films", len(jobs), unit="film", disable=None))
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        return list(tqdm(pool.map(look, jobs, chunksize=16), "films", len(jobs), unit="film", disable=None))


def look_at(job: tuple[Path, bool], smallest: int, largest: int, gray_mapping: GrayMapping) -> Film:
    """Read one file, given with whether it is stated to be no frontal, and say what is odd about it."""
    path, lateral = job
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        try:
            image = load_image(path, gray_mapping)
        except (ImageError, OSError, MemoryError) as error:
            return Film(path, findings=[Finding("unreadable", _without(path, str(error)))])
    said = [_without(path, str(one.message)) for one in caught if issubclass(one.category, ImageWarning)]
    findings = [Finding(kind, text) for text in said if (kind := _kind_of(text)) != "inverted"]
    small = shrink(image)
    if not lateral:
        findings += judge(small) or [Finding("inverted", text) for text in said if _kind_of(text) == "inverted"]
    width, height = image.size
    if min(width, height) < smallest:
        findings.append(Finding("tiny", f"{width} x {height} pixels"))
    if max(width, height) > largest:
        findings.append(Finding("huge", f"{width} x {height} pixels"))
    if (share := border(small)) >= BORDER:
        findings.append(Finding("border", f"{share:.0%} of the image are bars of one shade along its edges"))
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, salt=f"{width}x{height}".encode()[:16])
    return Film(path, image.size, digest.hexdigest(), perceptual_hash(small), findings)


def _without(path: Path, text: str) -> str:
    return text.removeprefix(f"{path}: ")


def _kind_of(warning: str) -> str:
    """Kind of finding that a warning of `load_image` is."""
    if warning.startswith("looks inverted"):
        return "inverted"
    if warning.startswith(("modality ", "body part ")):
        return "not a chest"
    return "rotated" if "mirrored" in warning or "turned" in warning else "repaired"


# ---- statistics of the small copy


def shrink(image: Image.Image) -> np.ndarray:
    """The small copy of a film, uint8 [64, 64]."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def cells(small: np.ndarray) -> np.ndarray:
    """Ranks of the 8 x 8 cells of an image without rows and columns of one shade: mean 0, length 1."""
    inner = small[np.ptp(small, axis=1) > FLAT][:, np.ptp(small, axis=0) > FLAT]
    inner = inner if min(inner.shape) >= CELLS else small
    shrunk = np.asarray(Image.fromarray(inner.astype(np.float32)).resize((CELLS, CELLS), Image.Resampling.BOX))
    ranks = shrunk.ravel().argsort(kind="stable").argsort().reshape(CELLS, CELLS) - (CELLS * CELLS - 1) / 2
    return ranks / np.linalg.norm(ranks)


def halves(grid: np.ndarray) -> np.ndarray:
    """Cells [..., 8, 8] -> mean of each with its mirror image, then half their absolute difference: [..., 2, 8, 4]."""
    left, right = grid[..., : CELLS // 2], grid[..., : CELLS // 2 - 1 : -1]
    return np.stack([(left + right) / 2, np.abs(left - right) / 2], axis=-3)


def fits(grid: np.ndarray) -> np.ndarray:
    """How well cells [8, 8] fit an upright frontal film after k quarter turns counterclockwise, and as negatives.

    Returns:
        Correlations [8], -1 to 1: k = 0 to 3 as they are, then k = 0 to 3 inverted.
    """
    whole = np.concatenate([UPRIGHT, UPRIGHT[:, ::-1]], axis=1)
    whole = whole / np.linalg.norm(whole)
    found = np.array([(np.rot90(grid, turns) * whole).sum() for turns in range(4)])
    return np.concatenate([found, -found])


def judge(small: np.ndarray) -> list[Finding]:
    """Whether what should be an upright frontal film looks inverted, turned, like a lateral, or like no chest."""
    grid = cells(small)
    fit = fits(grid)
    best = int(fit.argmax())
    turned = fit[best] - fit[0] > MARGIN
    if not turned and (halves(grid) * np.stack([LATERAL_MEAN, LATERAL_DIFFERENCE])).sum() + LATERAL_BIAS > 0:
        return [Finding("lateral", "looks like a lateral view")]
    position = ("", "turned by 90 degrees clockwise", "turned by 180 degrees", "turned by 90 degrees counterclockwise")
    if fit[best] < (LEAST_FIT_TURNED if turned else LEAST_FIT):
        nearest = [*(["inverted"] if best >= 4 else []), *([position[best % 4]] if best % 4 else [])] or ["upright"]
        return [Finding("not a chest", f"resembles no chest film; most of all one {' and '.join(nearest)}")]
    found = []
    if turned and best >= 4:
        found.append(Finding("inverted", "looks like a negative: air bright, bone dark"))
    if turned and best % 4:
        found.append(Finding("rotated", f"looks {position[best % 4]}"))
    return found


def border(small: np.ndarray) -> float:
    """Share of the image in bars of one shade along its edges that end abruptly, as burned-in frames do."""
    top, right, bottom, left = (_bar(np.rot90(small, turns)) for turns in range(4))
    return 1 - max(0, SIDE - top - bottom) * max(0, SIDE - left - right) / SIDE**2


def _bar(small: np.ndarray) -> int:
    """Rows of one shade at the top, if what is below them differs."""
    flat = np.ptp(small, axis=1) <= FLAT
    count = int(flat.argmin())
    if not count:
        return 0
    below = small[min(count + 1, SIDE - 1)].astype(np.float64)  # the row before it may be of both
    return count if np.abs(below - small[0].mean()).mean() > EDGE else 0


def perceptual_hash(small: np.ndarray) -> np.ndarray:
    """256 bits, uint64 [4]: which of the 16 x 16 lowest cosine coefficients are above their median ("pHash")."""
    from scipy.fft import dctn

    shrunk = small.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    low = dctn(shrunk)[:HASH_SIDE, :HASH_SIDE]
    return np.packbits(low > np.median(low)).view(np.uint64)


def details(small: np.ndarray) -> np.ndarray:
    """What a blur takes from a small copy, float32 [4096], mean 0 and length 1; the product of two is a correlation."""
    from scipy.ndimage import gaussian_filter

    values = small.astype(np.float32)
    lost = (values - gaussian_filter(values, BLUR)).ravel()
    lost -= lost.mean()
    return lost / max(float(np.linalg.norm(lost)), 1e-6)


# ---- films that show the same


def duplicates(films: Sequence[Film]) -> dict[int, tuple[int, int]]:
    """Films that show what an earlier one shows: position -> position of that one, and the bits that differ.

    0 bits: pixel by pixel the same. Others are near-duplicates: saved again, at another size, with another window.
    """
    first: dict[str, int] = {}
    found: dict[int, tuple[int, int]] = {}
    kept = []
    for number, film in enumerate(films):
        if film.hash is None:
            continue
        if (same := first.setdefault(film.digest, number)) != number:
            found[number] = same, 0
        else:
            kept.append(number)
    for row, column, bits in near_pairs(np.array([films[number].hash for number in kept]).reshape(-1, 4)):
        found.setdefault(kept[column], (kept[row], max(1, bits)))
    return found


def near_pairs(hashes: np.ndarray, others: np.ndarray | None = None) -> Iterator[tuple[int, int, int]]:
    """Pairs with at most `NEAR` different bits, of hashes [n, 4] with others [m, 4]: (position, position, bits).

    Without others, of the hashes with each other: (earlier, later, bits).
    """
    from tqdm import tqdm

    words = np.ascontiguousarray((hashes if others is None else others).T)
    blocks = range(0, len(hashes), ROWS)
    for start in tqdm(blocks, "pairs", unit=f"{ROWS} films", disable=None, delay=SILENT):
        found = []
        for left in range(0, words.shape[1], COLUMNS):
            part = words[:, left : left + COLUMNS]
            for row in range(start, min(start + ROWS, len(hashes))):
                bits = np.zeros(part.shape[1], np.uint16)
                for word, own in zip(part, hashes[row], strict=True):
                    bits += np.bitwise_count(word ^ own)
                near = np.flatnonzero(bits <= NEAR)
                found += [(row, left + int(at), int(bits[at])) for at in near if others is not None or left + at > row]
        yield from sorted(found)
