"""The heuristics of `raddraft check`: their weights, how often they are wrong, how fast films are looked at.

    raddraft prepare iu-xray --root $CXR/iu --out iu.jsonl
    raddraft prepare folder --root $CXR/vqa_rad --out vqa.jsonl
    python -m benchmarks.check $CXR/studies.jsonl iu.jsonl vqa.jsonl --others my-photographs

The weights in `encoder/survey.py` are fitted on the films of these manifests, each source counting the same. Error
rates are of films of one source with weights fitted on the others: as they are, and turned and inverted here.

    python -m benchmarks.check $CXR/studies.jsonl phantoms/studies.jsonl --part copies

How many films are found again, and taken for copies, after they were saved again, resized and more; and how near films
of different subjects are.
"""

from __future__ import annotations

import io
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from encoder import survey
from generator.corpora.folder import find_image_files
from raddraft.cli import run
from raddraft.images import ImageError, ImageWarning, load_image
from raddraft.studies import Study, read_studies

POSITIONAL = ("manifests",)
RIDGE, LATERAL_RIDGE = 1e-4, 1e-5
"""Weights of the squared weights beside the mean loss."""
LATERAL_ODDS = 1.0
"""Logarithm of the odds at which a film, were laterals as frequent as frontals, is called one."""
NAMES = ("UPRIGHT", "LATERAL_MEAN", "LATERAL_DIFFERENCE", "LATERAL_BIAS")


def main(
    manifests: list[Path],
    others: Path | None = None,
    films: int = 3000,
    part: Literal["looks", "copies"] = "looks",
) -> None:
    """Print weights, error rates and speed; or how well copies are told from other films.

    Args:
        manifests: Films of several sources, which state views; films without a view are judged by the weights of all.
        others: A folder of images that show no chest.
        films: Synthetic films of 300 x 300 pixels to measure the speed with.
        part: What is measured. Copies are looked for in each manifest by itself.
    """
    if part == "copies":
        for manifest in manifests:
            print(f"{manifest}:")
            _measure_copies(read_studies(manifest))
        return
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


def _measure_copies(studies: Sequence[Study]) -> None:
    films = [(study.subject_id, image.path) for study in studies for image in study.images]
    images = {path: load_image(path) for _, path in films}
    small = [survey.shrink(images[path]) for _, path in films]
    hashes, details = np.array([survey.perceptual_hash(one) for one in small]), [survey.details(one) for one in small]
    for name, change in _savings().items():
        changed = [survey.shrink(change(images[path])) for _, path in films]
        bits = np.bitwise_count(hashes ^ np.array([survey.perceptual_hash(one) for one in changed])).sum(1)
        alike = np.array([own @ survey.details(one) for own, one in zip(details, changed, strict=True)])
        near = bits <= survey.NEAR
        shares = f"near {near.mean():.1%}, copies {(near & (alike >= survey.SAME_DETAILS)).mean():.1%}"
        print(
            f"  {name}: {shares}; bits up to {bits.max()}, details from {alike.min():.3f}, 1 % below {_low(alike):.3f}"
        )
    pairs = [
        (bits, float(details[one] @ details[other]))
        for one, other, bits in survey.near_pairs(hashes)
        if films[one][0] != films[other][0]
    ]
    alike = np.stack(details) @ np.stack(details).T
    subjects = np.array([subject for subject, _ in films])
    highest = alike[subjects[:, None] != subjects].max()
    told = f"; of these details up to {max(one for _, one in pairs):.3f}" if pairs else ""
    print(f"  {len(films)} films, different subjects: {len(pairs)} near pairs{told}; of any pair up to {highest:.3f}")


def _low(values: np.ndarray) -> float:
    return float(np.percentile(values, 1))


def _savings() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Name -> what may happen to a film on its way into another set."""

    def save(image: Image.Image, quality: int) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("L")

    def scale(image: Image.Image, factor: float) -> Image.Image:
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)

    def cut(image: Image.Image, share: float) -> Image.Image:
        x, y = round(share * image.width), round(share * image.height)
        return image.crop((x, y, image.width - x, image.height - y))

    def gray(image: Image.Image, level: Callable[[float], float]) -> Image.Image:
        return image.point([round(min(255.0, max(0.0, 255 * level(value / 255)))) for value in range(256)])

    return {
        "JPEG of quality 40": lambda image: save(image, 40),
        "JPEG of quality 15": lambda image: save(image, 15),
        "half the size": lambda image: scale(image, 0.5),
        "twice the size": lambda image: scale(image, 2),
        "gamma 0.7": lambda image: gray(image, lambda value: value**0.7),
        "gamma 1.4": lambda image: gray(image, lambda value: value**1.4),
        "1.3 times the contrast": lambda image: gray(image, lambda value: 0.5 + 1.3 * (value - 0.5)),
        "equalized": ImageOps.equalize,
        "moved by a pixel": lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 1)),
        "1 % cut off each side": lambda image: cut(image, 0.01),
        "2 % cut off each side": lambda image: cut(image, 0.02),
    }


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
