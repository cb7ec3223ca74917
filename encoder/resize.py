"""Resizing the images of a manifest once, for pre-training, which reads them again and again.

    done = resize_studies("studies.jsonl", "small", ResizeConfig(size=518))
    small/images/…   a PNG for each image, its shorter side `size` pixels; paths as below the manifest's folder
    small/masks/…    its masks on the same grid
    small/studies.jsonl

As RAD-DINO's images were prepared (arXiv 2401.10815): shorter side to 518 by B-spline interpolation, minimum and
maximum to 0 and 255, PNG.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from encoder.masks import Geometry, MaskError, load_mask, prepare_mask, write_mask
from raddraft.errors import RadDraftError
from raddraft.files import digest_file, write_whole
from raddraft.images import GrayMapping, ImageError, ImageWarning, load_gray
from raddraft.isolated import end_with_parent
from raddraft.locks import holds_out
from raddraft.ranges import Range, check_ranges
from raddraft.runs import keep_config
from raddraft.studies import Study, StudyImage, read_studies, write_studies

MADE_OF = "raddraft-made-of"
"""Text in a PNG: SHA-256 of the files that it and its masks were made from, and the config."""

SOURCE = "source_sha256"
"""Key of an image in the new manifest: SHA-256 of the file that it was made from."""


@dataclass(frozen=True)
class ResizeConfig:
    """Size and gray values of the new images."""

    size: Annotated[int, Range(8)] = 518
    """Shorter side in pixels; smaller images are enlarged."""
    bits: int = 8
    """Bits per pixel: 8 as in RAD-DINO, or 16 to keep the depth of deeper images."""
    gray_mapping: GrayMapping = "minmax"
    """How pixel values become gray values, see `raddraft.images`. minmax is applied after resizing: the full scale."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.bits not in (8, 16):
            raise RadDraftError(f"bits must be 8 or 16, got {self.bits}")
        if self.bits == 16 and self.gray_mapping != "minmax":
            raise RadDraftError(
                f"16 bits need gray_mapping minmax, got {self.gray_mapping}: 16-bit PNGs are stretched when read"
            )


class Resized(NamedTuple):
    """What `resize_studies` did."""

    manifest: Path
    written: int
    kept: int  # images that were there already
    errors: list[str]  # a sentence for each image or mask that could not be read


@dataclass
class _Job:
    """An image to resize, and what came of it; the same in every study that shows it."""

    source: Path
    target: Path
    masks: dict[Path, Path] = field(default_factory=dict)  # source -> target; without those that could not be read
    digest: str | None = None  # SHA-256 of the source
    state: str = "broken"  # or written, or kept
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def resize_gray(values: np.ndarray, size: int) -> np.ndarray:
    """Resize an image so that its shorter side has `size` pixels, by cubic B-splines; the outer edges stay in place.

    Before shrinking it is blurred by a Gaussian with a standard deviation of (factor - 1) / 2 pixels, scikit-image's
    rule against aliasing. RAD-DINO's paper mentions B-splines only. Splines overshoot at sharp edges.

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


@holds_out
def resize_studies(
    studies: str | Path, out: str | Path, config: ResizeConfig = ResizeConfig(), processes: int | None = None
) -> Resized:
    """Resize every image of a manifest and its masks. The same call resumes an interrupted one.

    An image that cannot be read is left out of the new manifest, with its study if it was the only one; so is a mask.

    Args:
        studies: the manifest.
        out: folder to write to.
        config: RAD-DINO's preparation by default.
        processes: worker processes; None for one per core.

    Raises:
        RadDraftError: the manifest is malformed, `out` is its folder or holds images made with another config, or no
            image can be read.
    """
    from tqdm import tqdm

    studies, out = Path(studies).absolute(), Path(out).absolute()
    if out.resolve() == studies.parent.resolve():
        raise RadDraftError(f"{out} is the manifest's own folder; choose another one for the resized images")
    manifest = read_studies(studies)
    keep_config(out / "resize.yaml", asdict(config))
    jobs = _plan(manifest, studies.parent, out)
    with ProcessPoolExecutor(min(processes or os.cpu_count() or 1, len(jobs)), initializer=end_with_parent) as pool:
        work = pool.map(partial(_resize, config=config), jobs, chunksize=4)
        jobs = list(tqdm(work, "resize", len(jobs), unit="image"))
    for text in [text for job in jobs for text in job.warnings]:
        warnings.warn(text, ImageWarning, stacklevel=2)
    errors = [sentence for job in jobs for sentence in job.errors]
    done = {job.source: job for job in jobs}
    small = [replace(study, images=_images(study, done)) for study in manifest]
    if not any(study.images for study in small):
        raise RadDraftError(f"No image of {studies} can be read: {'; '.join(errors[:3])}")
    write_studies(out / "studies.jsonl", [study for study in small if study.images])
    states = [job.state for job in jobs]
    return Resized(out / "studies.jsonl", states.count("written"), states.count("kept"), errors)


def _plan(manifest: list[Study], root: Path, out: Path) -> list[_Job]:
    images = [image for study in manifest for image in study.images]
    files = [path for image in images for path in (image.path, *image.masks.values())]
    if not all(path.is_relative_to(root) for path in files):
        root = Path(os.path.commonpath([path.parent for path in files]))

    def target(path: Path, kind: str) -> Path:
        # With the old suffix in the name, x.dcm and x.jpg stay apart.
        place = out / kind / path.relative_to(root)
        return place if path.suffix == ".png" else place.with_name(f"{path.name}.png")

    jobs: dict[Path, _Job] = {}
    for image in images:
        job = jobs.setdefault(image.path, _Job(image.path, target(image.path, "images")))
        job.masks |= {mask: target(mask, "masks") for mask in image.masks.values()}
    sources: dict[Path, Path] = {}
    for job in jobs.values():
        for source, place in {job.source: job.target, **job.masks}.items():
            if (other := sources.setdefault(place, source)) != source:
                raise RadDraftError(f"{other} and {source} would both become {place}; rename one of them")
    return list(jobs.values())


def _resize(job: _Job, config: ResizeConfig) -> _Job:
    """Write one image and its masks, unless they are there and were made of the same files."""
    job.digest = digest_file(job.source)
    made_of = " ".join(map(str, [job.digest, *map(digest_file, job.masks), *asdict(config).values()]))
    if _made_of(job.target) == made_of and all(map(_made_of, job.masks.values())):
        return replace(job, state="kept")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        try:
            values = load_gray(job.source, config.gray_mapping)
        except ImageError as error:
            return replace(job, masks={}, errors=[str(error)])
    small = resize_gray(values, config.size)
    if config.gray_mapping == "minmax":
        small = (small - small.min()) / max(float(np.ptp(small)), 1e-6)
    levels = np.rint(small.clip(0, 1) * (2**config.bits - 1)).astype(np.uint8 if config.bits == 8 else np.uint16)
    with write_whole(job.target, sync=False) as temporary:  # the next run checks its check sums
        text = PngInfo()
        text.add_text(MADE_OF, made_of)
        Image.fromarray(levels).save(temporary, format="PNG", pnginfo=text)
    for source, target in list(job.masks.items()):
        try:
            mask = load_mask(source, values.shape, image_path=job.source)
        except MaskError as error:
            job.errors.append(str(error))
            del job.masks[source]
        else:
            write_mask(target, prepare_mask(mask, Geometry(values.shape, small.shape, (0, 0), small.shape)))
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, ImageWarning)]
    return replace(job, state="written", warnings=texts)


def _made_of(path: Path) -> str | None:
    """What a PNG states of the files it was made of, or "-" if nothing; None unless it is there with all its chunks."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # chunks carry check sums
            return str(image.info.get(MADE_OF, "-"))
    except (OSError, SyntaxError, UnidentifiedImageError):
        return None


def _images(study: Study, done: dict[Path, _Job]) -> list[StudyImage]:
    """The study's images and masks where they are now; without those that could not be read."""
    images = []
    for image in study.images:
        job = done[image.path]
        if job.state != "broken":
            masks = {name: job.masks[mask] for name, mask in image.masks.items() if mask in job.masks}
            extra = image.extra | {SOURCE: image.extra.get(SOURCE, job.digest)}
            images.append(replace(image, path=job.target, masks=masks, extra=extra))
    return images
