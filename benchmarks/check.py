"""The heuristics of `raddraft check`: their weights, how often they are wrong, how fast films are looked at.

    raddraft prepare iu-xray --root $CXR/iu --out iu.jsonl
    raddraft prepare folder --root $CXR/vqa_rad --out vqa.jsonl
    python -m benchmarks.check $CXR/studies.jsonl iu.jsonl vqa.jsonl --others my-photographs

The weights in `encoder/survey.py` are fitted on the films of these manifests, each source counting the same. Error
rates are of films of one source with weights fitted on the others: as they are, and turned and inverted here.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encoder import survey
from generator.corpora.folder import find_image_files
from raddraft.cli import run
from raddraft.images import ImageError, ImageWarning, load_image
from raddraft.studies import read_studies

POSITIONAL = ("manifests",)
RIDGE, LATERAL_RIDGE = 1e-4, 1e-5
"""Weights of the squared weights beside the mean loss."""
LATERAL_ODDS = 1.0
"""Logarithm of the odds at which a film, were laterals as frequent as frontals, is called one."""
NAMES = ("UPRIGHT", "LATERAL_MEAN", "LATERAL_DIFFERENCE", "LATERAL_BIAS")


def main(manifests: list[Path], others: Path | None = None, films: int = 3000) -> None:
    """Print weights, error rates and speed.

    Args:
        manifests: Films of several sources, which state views; films without a view are judged by the weights of all.
        others: A folder of images that show no chest.
        films: Synthetic films of 300 x 300 pixels to measure the speed with.
    """
    images = [
        (study.source or manifest.stem, image)
        for manifest in manifests
        for study in read_studies(manifest)
        for image in study.images
    ]
    stated = [(source, image) for source, image in images if image.direction in ("frontal", "lateral")]
    small = _read([image.path for _, image in stated])
    sources, lateral = np.array([source for source, _ in stated]), np.array([image.lateral for _, image in stated])
    found: dict[str, list[str]] = {}
    for source in np.unique(sources):
        held = sources == source
        _use(fit(small[~held], lateral[~held], sources[~held]))
        for name, change in _changes().items():
            kinds = [_verdict(change(one)) for one in small[held & ~lateral]]
            found.setdefault(name, []).extend(kinds)
            if name == "upright":
                print(f"{source}, frontal: {_shares(kinds)}")
        found.setdefault("lateral", []).extend(_verdict(one) for one in small[held & lateral])
    for name, kinds in found.items():
        print(f"{name}: {_shares(kinds)}")
    weights = fit(small, lateral, sources)
    _use(weights)
    for source in sorted({source for source, image in images if image.direction is None}):
        rest = [image.path for one, image in images if one == source and image.direction is None]
        print(f"{source}, view not stated: {_shares([_verdict(one) for one in _read(rest)])}")
    if others:
        print(f"others: {_shares([_verdict(one) for one in _read(find_image_files(others))])}")
    for name, value in zip(NAMES, weights, strict=True):
        print(f"{name} = {np.array2string(np.asarray(value), separator=', ')}")
    _measure_speed(films)


def fit(small: np.ndarray, lateral: np.ndarray, sources: np.ndarray) -> tuple[Any, ...]:
    """Values of NAMES for small copies of films [n, 64, 64]; integers.

    UPRIGHT is to tell a frontal from itself turned and inverted, LATERAL_… laterals from frontals.
    """
    from sklearn.linear_model import LogisticRegression

    grids = np.array([survey.cells(one) for one in small])
    names, counts = np.unique(sources[~lateral], return_counts=True)
    share = dict(zip(names, 0.5 / len(names) / counts, strict=True))
    weights = np.where(lateral, 0.5 / lateral.sum(), [share.get(source, 0) for source in sources])
    pairs = []
    for grid in grids[~lateral]:
        positions = np.array([sign * np.rot90(grid, turns) for sign in (1, -1) for turns in range(4)])
        folded = survey.halves(positions)[:, 0].reshape(8, -1)
        pairs.append(folded[0] - folded[1:])
    differences = np.concatenate(pairs)
    upright = LogisticRegression(C=1 / (2 * RIDGE), fit_intercept=False, max_iter=1000).fit(
        np.concatenate([differences, -differences]),
        np.repeat([1, 0], len(differences)),
        np.tile(np.repeat(weights[~lateral], 7), 2) / 7,
    )
    sides = survey.halves(grids).reshape(len(grids), -1)
    view = LogisticRegression(C=1 / (2 * LATERAL_RIDGE), max_iter=5000).fit(sides, lateral, weights)
    shape = (survey.CELLS, survey.CELLS // 2)
    mean, difference = np.rint(view.coef_[0]).astype(int).reshape(2, *shape)
    whole = np.rint(10 * upright.coef_[0]).astype(int).reshape(shape)  # their scale does not matter
    return whole, mean, difference, round(float(view.intercept_[0]) - LATERAL_ODDS, 1)


def _use(weights: Sequence[Any]) -> None:
    for name, value in zip(NAMES, weights, strict=True):
        setattr(survey, name, value)


def _read(paths: Sequence[Path]) -> np.ndarray:
    """Small copies [n, 64, 64] of the images that can be read."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        for path in paths:
            try:
                found.append(survey.shrink(load_image(path)))
            except ImageError as error:
                print(f"left out: {error}")
    return np.array(found)


def _changes() -> dict[str, Any]:
    """Name -> what it does to a small copy."""
    turned = {f"turned by {90 * turns}": (lambda one, turns=turns: np.rot90(one, -turns)) for turns in (1, 2, 3)}
    whole = {"upright": lambda one: one, **turned}
    return whole | {
        f"{name}, inverted": (lambda one, change=change: 255 - change(one)) for name, change in whole.items()
    }


def _verdict(small: np.ndarray) -> str:
    return ", ".join(what if kind == "rotated" else kind for kind, what in survey.judge(small)) or "nothing"


def _shares(kinds: Sequence[Any]) -> str:
    counts = Counter(kinds).most_common()
    return f"{len(kinds)} films: " + "; ".join(f"{kind} {count} ({count / len(kinds):.1%})" for kind, count in counts)


def _measure_speed(count: int) -> None:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.png") for number in range(count)]
        for path in paths:
            coarse = Image.fromarray(generator.integers(0, 256, (10, 10), dtype=np.uint8)).resize((300, 300))
            noise = generator.integers(-4, 5, (300, 300))
            Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path)
        started, busy = time.perf_counter(), time.process_time()
        survey.duplicates(survey.survey(paths, processes=1))
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    print(f"{count} synthetic films of 300 x 300 pixels (PNG), one process: {seconds:.1f} s, processor {busy:.1f} s")


if __name__ == "__main__":
    run("check", package="benchmarks")
