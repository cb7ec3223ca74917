"""A manifest's pictures, decoded and made small once: what pre-training reads again and again.

    done = resize_studies("studies.jsonl", "small", size=518)
    small/images/…   a PNG for each picture, its shorter side `size` pixels; paths as below the manifest's folder
    small/masks/…    its masks on the same grid
    small/studies.jsonl

As RAD-DINO's pictures were prepared (arXiv 2401.10815): shorter side to 518 by B-spline interpolation, minimum and
maximum to 0 and 255, PNG.
"""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from encoder.masks import Geometry, MaskError, load_mask, prepare_mask, write_mask
from raddraft.errors import RadDraftError
from raddraft.files import digest_file, write_whole
from raddraft.images import GrayMapping, ImageError, ImageWarning, load_gray
from raddraft.studies import Study, StudyImage, read_studies, write_studies

MADE_OF = "raddraft-made-of"
"""Text in a PNG: SHA-256 of the files that it and its masks were made from."""

SOURCE = "source_sha256"
"""Key of a picture in the new manifest: SHA-256 of the file that it was made from."""


@dataclass(frozen=True)
class ResizeConfig:
    """What becomes of every picture."""

    size: int = 518
    """Shorter side in pixels. Pictures are made larger, too, where they are smaller than that."""
    bits: int = 8
    """Of a grey value in the PNG: 8 as RAD-DINO has it, or 16 where the pictures have more and shall keep it."""
    gray_mapping: GrayMapping = "minmax"
    """How pixel values become grey values, see encoder/images.py. minmax is taken after resizing: a full scale."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise RadDraftError(f"size must be at least 8 pixels, got {self.size}")
        if self.bits not in (8, 16):
            raise RadDraftError(f"Unknown number of bits {self.bits}. Choices: 8, 16")
        if self.bits == 16 and self.gray_mapping != "minmax":
            raise RadDraftError(
                f"16 bits go with minmax only, since such files are stretched when read, not {self.gray_mapping}"
            )


@dataclass
class Resized:
    """What `resize_studies` did."""

    manifest: Path
    n_written: int = 0
    n_kept: int = 0
    """Pictures that stood there already."""
    errors: list[str] = field(default_factory=list)
    """A sentence for each picture or mask that could not be read."""


@dataclass
class _Picture:
    """A picture to resize, and what came of it; the same in every study that shows it."""

    source: Path
    target: Path
    masks: dict[Path, Path] = field(default_factory=dict)
    """Source -> target; what could not be read is taken out."""
    digest: str | None = None
    """SHA-256 of the source, if it can be read."""
    state: str = ""
    """written, kept or broken"""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def resize_grey(values: np.ndarray, size: int) -> np.ndarray:
    """Resize a picture so that its shorter side has `size` pixels, by cubic B-splines; the outer edges stay in place.

    Before it shrinks it is blurred by a Gaussian with a standard deviation of (factor - 1) / 2 pixels, scikit-image's
    rule: interpolation alone reads a few of the pixels, so that noise and grid lines would turn into patterns.
    RAD-DINO's paper speaks of B-splines only. Splines overshoot at sharp edges.

    Args:
        values: float32 [H, W].
        size: in pixels.

    Returns:
        float32 [h, w].
    """
    from scipy.ndimage import gaussian_filter, zoom

    target = [max(1, round(side * size / min(values.shape))) for side in values.shape]
    factors = [new / old for new, old in zip(target, values.shape, strict=True)]
    smooth = gaussian_filter(values, [max(0.0, (1 / factor - 1) / 2) for factor in factors])
    return zoom(smooth, factors, order=3, mode="reflect", grid_mode=True)


def resize_studies(
    studies: str | Path, out: str | Path, config: ResizeConfig | None = None, processes: int | None = None
) -> Resized:
    """Resize every picture of a manifest and its masks. The same call again goes on where the last one ended.

    A picture that cannot be read is left out of the new manifest, with its study if it was the only one; so is a mask.

    Args:
        studies: the manifest.
        out: folder to write to.
        config: what to make of the pictures; RAD-DINO's preparation by default.
        processes: worker processes; None for one a core.

    Raises:
        ManifestError: the manifest breaks its format.
        ValueError: `out` is the manifest's folder, or holds pictures made with another config; no picture can be read.
    """
    from tqdm import tqdm

    config = config or ResizeConfig()
    studies, out = Path(studies).absolute(), Path(out).absolute()
    if out.resolve() == studies.parent.resolve():
        raise RadDraftError(f"{out}: is the manifest's own folder; choose another one for the resized pictures")
    manifest = read_studies(studies)
    _claim(out, config)
    pictures = _plan(manifest, studies.parent, out)
    work = partial(_resize, config=config)
    workers = min(processes or os.cpu_count() or 1, len(pictures))
    done: dict[Path, _Picture] = {}
    resized = Resized(out / "studies.jsonl")
    with ProcessPoolExecutor(workers) as pool:
        for picture in tqdm(pool.map(work, pictures, chunksize=4), "resize", len(pictures), unit="image"):
            done[picture.source] = picture
            resized.errors += picture.errors
            for text in picture.warnings:
                warnings.warn(text, ImageWarning, stacklevel=2)
    states = [picture.state for picture in done.values()]
    resized.n_written, resized.n_kept = states.count("written"), states.count("kept")
    if small := [moved for study in manifest if (moved := _move(study, done)).images]:
        write_studies(resized.manifest, small)
        return resized
    raise RadDraftError(f"No picture of {studies} can be read: {'; '.join(resized.errors[:3])}")


def _claim(out: Path, config: ResizeConfig) -> None:
    """Note the config in the folder, and refuse a folder with another one's pictures."""
    record, now = out / "resize.json", asdict(config)
    if record.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        changes = [
            f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in now if before.get(name) != now[name]
        ]
        if changes:
            raise RadDraftError(
                f"{out} holds pictures made with another config: {', '.join(changes)}; choose another --out"
            )
    with write_whole(record) as temporary:
        temporary.write_text(json.dumps(now) + "\n", encoding="utf-8")


def _plan(manifest: list[Study], root: Path, out: Path) -> list[_Picture]:
    images = [image for study in manifest for image in study.images]
    files = [path for image in images for path in (image.path, *image.masks.values())]
    if not all(path.is_relative_to(root) for path in files):
        root = Path(os.path.commonpath([path.parent for path in files]))

    def target(path: Path, kind: str) -> Path:
        # With the old suffix in the name, x.dcm and x.jpg stay apart.
        place = out / kind / path.relative_to(root)
        return place if path.suffix == ".png" else place.with_name(f"{path.name}.png")

    pictures: dict[Path, _Picture] = {}
    for image in images:
        picture = pictures.setdefault(image.path, _Picture(image.path, target(image.path, "images")))
        picture.masks |= {mask: target(mask, "masks") for mask in image.masks.values()}
    sources: dict[Path, Path] = {}
    for picture in pictures.values():
        for source, place in {picture.source: picture.target, **picture.masks}.items():
            if (other := sources.setdefault(place, source)) != source:
                raise RadDraftError(f"{other} and {source} would both become {place}; rename one of them")
    return list(pictures.values())


def _resize(picture: _Picture, config: ResizeConfig) -> _Picture:
    """Write one picture and its masks, unless they are there and were made of the same files."""
    picture = replace(picture, digest=digest_file(picture.source))
    made_of = " ".join(map(str, [picture.digest, *map(digest_file, picture.masks)]))
    if _made_of(picture.target) == made_of and all(map(_made_of, picture.masks.values())):
        return replace(picture, state="kept")
    errors: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        try:
            values = load_gray(picture.source, config.gray_mapping)
        except ImageError as error:
            return replace(picture, masks={}, state="broken", errors=[str(error)])
    small = resize_grey(values, config.size)
    if config.gray_mapping == "minmax":
        small = (small - small.min()) / max(float(np.ptp(small)), 1e-6)
    levels = np.rint(small.clip(0, 1) * (2**config.bits - 1)).astype(np.uint8 if config.bits == 8 else np.uint16)
    with write_whole(picture.target) as temporary:
        text = PngInfo()
        text.add_text(MADE_OF, made_of)
        Image.fromarray(levels).save(temporary, format="PNG", pnginfo=text)
    masks = {}
    for source, target in picture.masks.items():
        try:
            mask = load_mask(source, values.shape)
        except MaskError as error:
            errors.append(str(error))
        else:
            write_mask(target, prepare_mask(mask, Geometry(values.shape, small.shape, (0, 0), small.shape)))
            masks[source] = target
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, ImageWarning)]
    return replace(picture, masks=masks, state="written", errors=errors, warnings=texts)


def _made_of(path: Path) -> str | None:
    """What a PNG states of the files it was made of, or "-" if nothing; None unless it is there with all its chunks."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # chunks carry check sums
            return str(image.info.get(MADE_OF, "-"))
    except (OSError, SyntaxError, UnidentifiedImageError):
        return None


def _move(study: Study, done: dict[Path, _Picture]) -> Study:
    """The study with its pictures and masks where they are now; without those that could not be read."""
    images: list[StudyImage] = []
    for image in study.images:
        picture = done[image.path]
        if picture.state != "broken":
            masks = {name: picture.masks[mask] for name, mask in image.masks.items() if mask in picture.masks}
            extra = image.extra | {SOURCE: image.extra.get(SOURCE, picture.digest)}
            images.append(replace(image, path=picture.target, masks=masks, extra=extra))
    return replace(study, images=images)
