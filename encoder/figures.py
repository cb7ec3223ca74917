"""What an encoder sees: patch features as colors, attention of the class token, similarity to a point, on one sheet.

    errors = draw_figures([Path("a.png"), Path("b.dcm")], ["dinov2-small", "rad-dino"], Path("figures.png"))

The maps show where features differ, not why: an untrained tower also follows gray values, so compare with one.
"""

from __future__ import annotations

import io
import itertools
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import normalize

from encoder.timm_folder import plain_processor
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.images import ImageError, load_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image
    from transformers import PreTrainedModel

    from encoder.tower import Tower

# Layout of the sheet in pixels.
PANEL, GAP, BLOCK_GAP, MARGIN = 208, 10, 24, 28
HEADER, ROW_CAPTION, SCALE_BAR, FOOTER_LINE = 64, 26, 44, 17
DPI = 100

PAPER, FAINT, TEXT, MARK = "#101214", "#8d949c", "#e4e7ea", "#ffb340"
COLUMNS = ("Features", "Attention", "Similarity")
ATTENTION_TOP = "Attention"
"""Name in a sheet's PNG of the end of the scale of attention, in multiples of uniform attention."""

POINT = (0.32, 0.45)
"""In most frontal images the patient's right lung."""


@dataclass
class TowerMaps:
    """The maps of one tower for all images of the sheet; they may be as coarse as the tower's patches are."""

    name: str
    features: np.ndarray
    """Colors of the patches, uint8 [B, h, w, 3], see `pca_map`."""
    attention: torch.Tensor | None
    """Attention of the class token [B, h, w], see `class_attention`; None without a class token."""
    similarity: torch.Tensor
    """Cosine similarity to the patch at the point [B, h, w], see `similarity_map`."""


def draw_figures(
    paths: Sequence[Path],
    towers: Sequence[str],
    out: Path,
    point: Sequence[float] = POINT,
    image_size: int | None = None,
    device: str = "auto",
) -> list[str]:
    """Draw a sheet (PNG) of image files, a row each, as several towers see them.

    Args:
        paths: image files; of each the towers get the center square.
        towers: short names, hub ids or folders.
        out: the PNG file to write.
        point: where similarity is measured from, see `similarity_map`.
        image_size: side in pixels of the towers' input, instead of their own.
        device: as in `ComputeConfig`.

    Returns:
        A sentence for each file that could not be read.

    Raises:
        RadDraftError: a point outside the image, another suffix than .png, no readable image, an unknown tower.
    """
    from tqdm import tqdm

    from encoder.config import EncoderConfig

    check_point(point)
    if out.suffix.lower() != ".png":
        raise RadDraftError(f"{out}: figures are PNG files, so the name must end in .png")
    images: dict[Path, Image] = {}
    errors = []
    for path in dict.fromkeys(paths):
        try:
            images[path] = load_image(path)
        except (ImageError, OSError) as error:
            errors.append(str(error))
    if not images:
        raise RadDraftError(f"No image to draw: {'; '.join(errors)}")
    xrays, maps = [], []
    for name in tqdm(towers, unit="tower"):
        tower = EncoderConfig(tower=name, image_size=image_size, device=device).load()
        tower.name = _last_two_parts(name)
        found, of_tower = look(tower, list(images.values()), point)
        xrays.append(found)
        maps.append(of_tower)
    captions = [_last_two_parts(os.fsencode(path).decode(errors="replace")) for path in images]
    with write_whole(out) as temporary:
        temporary.write_bytes(draw(captions, xrays[0], maps, point))
    return errors


def _last_two_parts(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def look(tower: Tower, images: Sequence[Image], point: Sequence[float]) -> tuple[list[np.ndarray], TowerMaps]:
    """The center squares of images of any size as a tower gets them, uint8 [H, W] each, and its maps of them.

    `point` is as in `similarity_map`.
    """
    pixels, processor = square_pixels(tower, images)
    patches = torch.cat([tower.encode(image[None]).patches.cpu() for image in pixels])
    maps = TowerMaps(
        tower.name,
        pca_map(patches),
        class_attention(tower.model, pixels, tower.n_prefix) if tower.is_plain else None,
        torch.stack([similarity_map(features, point) for features in patches]),
    )
    return [gray_image(image, processor) for image in pixels], maps


def square_pixels(tower: Tower, images: Sequence[Image]) -> tuple[torch.Tensor, Any]:
    """The center squares of images of any size as pixels [B, 3, H, W] for a tower, and the processor that made them."""
    from PIL import ImageOps

    squares = [ImageOps.fit(image.convert("RGB"), (min(image.size), min(image.size))) for image in images]
    height, width = tower.prepare(squares[:1]).shape[-2:]
    # Some processors cut a margin off and some do not: a place must be the same for all of them.
    whole = {"size": {"height": height, "width": width}, "do_center_crop": False}
    processor: Any = plain_processor(tower.processor)
    return processor(squares, return_tensors="pt", **whole)["pixel_values"], processor


def pca_map(patches: torch.Tensor) -> np.ndarray:
    """Patch features as colors: their first three principal components in the perceptual color space Oklab.

    Components are found over all images together, so equal features have equal colors in every image; colors of two
    towers cannot be compared. Features are scaled to unit length first: the few patches of extreme norm that large
    towers have would dominate the components otherwise. Each component runs from its 2nd to its 98th percentile, the
    first as lightness, the others as hue. The largest entry of each is positive.

    Args:
        patches: [B, h, w, D] of one tower, D >= 3.

    Returns:
        uint8 [B, h, w, 3], sRGB.
    """
    unit = normalize(patches.double().flatten(0, 2), dim=-1)  # [B h w, D]
    centered = unit - unit.mean(0)
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -3:].flip(1)  # [D, 3], greatest variance first
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    components = (centered @ (axes * largest.sign())).numpy()
    low, high = np.percentile(components, (2, 98), axis=0)
    scaled = ((components - low) / np.maximum(high - low, 1e-9)).clip(0, 1)
    return _oklab_to_srgb(scaled * [0.45, 0.24, 0.24] + [0.41, -0.12, -0.12]).reshape(*patches.shape[:3], 3)


def similarity_map(patches: torch.Tensor, point: Sequence[float]) -> torch.Tensor:
    """Cosine similarity [h, w] of all patches [h, w, D] to the one at `point`.

    Args:
        patches: features of one image.
        point: (x, y) as fractions of the width from the left and of the height from the top.

    Raises:
        RadDraftError: the point is outside the image.
    """
    check_point(point)
    height, width = patches.shape[:2]
    unit = normalize(patches.float(), dim=-1)
    return unit @ unit[min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1)]


def check_point(point: Sequence[float]) -> None:
    """Raise RadDraftError unless `point` is two fractions of an image's width and height."""
    if len(point) != 2 or not all(0 <= value <= 1 for value in point):
        raise RadDraftError(
            f"Point {' '.join(map(str, point))} is not in the image; give two numbers from 0 to 1, the fractions of "
            "its width (from the left) and height (from the top)"
        )


@torch.no_grad()
def class_attention(model: PreTrainedModel, pixels: torch.Tensor, n_prefix: int) -> torch.Tensor | None:
    """Attention of the class token to the patches in the last layer, mean over heads.

    Args:
        model: a vision transformer of transformers, in eval mode; it is left as it was.
        pixels: [B, 3, H, W]; one image goes through at a time, since the attentions of all layers are kept.
        n_prefix: tokens before the patches, the class token first.

    Returns:
        [B, h, w]; an image's values and the attention to its prefix tokens add up to 1. None if `n_prefix` is 0.
    """
    if n_prefix == 0:
        return None
    side = model.config.patch_size
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others never hold the attentions
    try:
        outputs = (
            model(image[None].to(model.device, model.dtype), output_attentions=True).attentions[-1] for image in pixels
        )
        rows = torch.cat([attention[:, :, 0, n_prefix:].mean(1).float().cpu() for attention in outputs])
    finally:
        model.set_attn_implementation(before)
    return rows.reshape(-1, pixels.shape[-2] // side, pixels.shape[-1] // side)


def gray_image(pixels: torch.Tensor, processor: Any) -> np.ndarray:
    """The image, uint8 [H, W], in the pixels [3, H, W] that a processor made: normalization undone."""
    if processor.do_normalize:
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    return (pixels.mean(0) * 255).round().clip(0, 255).byte().numpy()


def draw(
    captions: Sequence[str], xrays: Sequence[np.ndarray], towers: Sequence[TowerMaps], point: Sequence[float]
) -> bytes:
    """One sheet as a PNG: a row for each image; the X-ray, then for each tower features, attention and similarity.

    Attention has one scale for the whole sheet, in multiples of uniform attention; similarity always runs from 0 to 1.

    Args:
        captions: title of each row.
        xrays: uint8 [H, W], one for each row.
        towers: their maps, in the order of the rows.
        point: the one of `similarity_map`.
    """
    from matplotlib.figure import Figure

    width, height = sheet_size(len(xrays), len(towers))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
    canvas = figure.add_axes((0, 0, 1, 1))  # its coordinates are pixels, from the upper left corner
    top = _attention_top(towers)
    for row, (caption, xray) in enumerate(zip(captions, xrays, strict=True)):
        left, upper, *_ = panel_box(row, 0)
        _write(canvas, left, upper - 8, caption, TEXT)
        _show(canvas, row, 0, xray, cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
        _mark(canvas, row, 0, point)
        for column, tower in zip(itertools.count(1, 3), towers):
            _show(canvas, row, column, tower.features[row])
            if tower.attention is None:
                left, upper, *_ = panel_box(row, column + 1)
                _write(canvas, left + PANEL / 2, upper + PANEL / 2, "no class token", FAINT, ha="center")
            else:
                relative = tower.attention[row].numpy() * tower.attention[row].numel()
                _show(canvas, row, column + 1, _attention_shades(relative, top))
            _show(canvas, row, column + 2, _similarity_shades(tower.similarity[row].numpy()))
            _mark(canvas, row, column + 2, point)
    _write_frame(canvas, towers, len(xrays), top, _footer(width, point))
    canvas.set(xlim=(0, width), ylim=(height, 0))
    canvas.axis("off")
    file = io.BytesIO()
    about = {ATTENTION_TOP: f"{top:.1f}"}
    # A Figure of its own: no pyplot, no backend to choose.
    figure.savefig(file, format="png", dpi=DPI, facecolor=PAPER, metadata=about)
    return file.getvalue()


def panel_box(row: int, column: int) -> tuple[int, int, int, int]:
    """Left, upper, right, lower edge of a panel in pixels; column 0 is the X-ray, then there are three per tower."""
    left = MARGIN + column * (PANEL + GAP) + (column + 2) // 3 * (BLOCK_GAP - GAP)
    upper = HEADER + ROW_CAPTION + row * (PANEL + ROW_CAPTION + GAP)
    return left, upper, left + PANEL, upper + PANEL


def sheet_size(n_images: int, n_towers: int) -> tuple[int, int]:
    """Width and height of the sheet in pixels."""
    _, _, right, lower = panel_box(n_images - 1, 3 * n_towers)
    width = right + MARGIN
    return width, lower + SCALE_BAR + len(_footer(width, (0, 0))) * FOOTER_LINE + MARGIN


def _attention_top(towers: Sequence[TowerMaps]) -> float:
    """Upper end of the attention scale: a robust maximum in multiples of uniform attention, at least 2."""
    maps = [tower.attention * tower.attention[0].numel() for tower in towers if tower.attention is not None]
    return max([2.0, *(float(np.percentile(values, 99.5)) for values in maps)])


def _attention_shades(values: np.ndarray, top: float) -> np.ndarray:
    """Colors [..., 4] of attention from 0 to `top`."""
    from matplotlib import colormaps

    return colormaps["magma"](values / top)


def _similarity_shades(values: np.ndarray) -> np.ndarray:
    """Colors [..., 4] of cosines from 0 to 1; cubed, since those within one image crowd near 1."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("teal", ["#080c10", "#123f4e", "#3b98a3", "#dff5f0"])
    return colors(values.clip(0, 1) ** 3)


def _show(canvas: Axes, row: int, column: int, image: np.ndarray, **options: Any) -> None:
    """Fill a panel with an image."""
    left, upper, right, lower = panel_box(row, column)
    canvas.imshow(image, aspect="auto", extent=(left, right, lower, upper), **{"interpolation": "nearest"} | options)


def _mark(canvas: Axes, row: int, column: int, point: Sequence[float]) -> None:
    """A ring around the point in a panel, legible on dark and bright."""
    left, upper, *_ = panel_box(row, column)
    place = (left + point[0] * PANEL, upper + point[1] * PANEL)
    for color, line in (("black", 3.2), (MARK, 1.5)):
        canvas.plot(*place, "o", markersize=9, markerfacecolor="none", markeredgecolor=color, markeredgewidth=line)


def _write(canvas: Axes, x: float, y: float, text: str, color: str, size: float = 8, **options: Any) -> None:
    """Text with its baseline at x, y. File names may hold $, which would begin a formula."""
    canvas.text(x, y, text, parse_math=False, color=color, fontsize=size, family="DejaVu Sans", **options)


def _write_frame(canvas: Axes, towers: Sequence[TowerMaps], n_rows: int, top: float, footer: Sequence[str]) -> None:
    """Headings over the columns, color bars under them, and the footer."""
    _write(canvas, MARGIN, HEADER - 10, "X-ray", FAINT)
    for number, tower in enumerate(towers):
        left = panel_box(0, 1 + 3 * number)[0]
        size = " × ".join(map(str, tower.features.shape[1:3]))
        _write(canvas, left, HEADER - 32, f"{tower.name}  ·  {size} patches", TEXT, 10)
        for column, title in enumerate(COLUMNS, 1 + 3 * number):
            _write(canvas, panel_box(0, column)[0], HEADER - 10, title, FAINT)
        bars = [(3 + 3 * number, _similarity_shades(np.linspace(0, 1, PANEL)), "≤ 0", "1")]
        if tower.attention is not None:
            bars.append((2 + 3 * number, _attention_shades(np.linspace(0, top, PANEL), top), "0", f"{top:.1f} ×"))
        for column, shades, low, high in bars:
            left, _, right, lower = panel_box(n_rows - 1, column)
            canvas.imshow(shades[None], aspect="auto", extent=(left, right, lower + 14, lower + 9))
            _write(canvas, left, lower + 28, low, FAINT, 7)
            _write(canvas, right, lower + 28, high, FAINT, 7, ha="right")
    lower = panel_box(n_rows - 1, 0)[3] + SCALE_BAR
    for number, line in enumerate(footer, 1):
        _write(canvas, MARGIN, lower + number * FOOTER_LINE, line, FAINT)


def _footer(width: int, point: Sequence[float]) -> list[str]:
    """What the columns are, in lines that fit the sheet."""
    sentences = (
        f"X-ray: the image as the first tower gets it; the ring marks the point {point[0]:.2f}, {point[1]:.2f}.",
        "Features: first three principal components of the patch features over all images of a tower; similar colors, "
        "similar features. Colors of two towers cannot be compared.",
        "Attention: from the class token to the patches in the last layer, mean over heads; 1 × is uniform.",
        "Similarity: cosine of each patch's features with those at the point.",
        "An untrained tower follows gray values too. Not for diagnosis.",
    )
    n_letters = int((width - 2 * MARGIN) / 6.6)  # the mean width of a letter in pixels, with some to spare
    return [line for sentence in sentences for line in textwrap.wrap(sentence, n_letters)]


def _oklab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Oklab [N, 3] (L 0..1, a, b) to sRGB, uint8 [N, 3]. B. Ottosson, "A perceptual color space", 2020; IEC 61966."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = ((lab @ to_lms.T) ** 3 @ to_rgb.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)
