"""Random views of chest X-rays and masks of their patches, for pre-training an encoder in the manner of DINOv2.

    views = Views(ViewConfig(global_size=112, n_local=4, local_size=56), mean=0.53, std=0.26)
    global_views, local_views = views(image, seed=7)      # [1, H, W] in 0..1 -> [2, 1, 112, 112], [4, 1, 56, 56]
    masks = block_masks(2 * batch_size, grid=(8, 8), seed=7)      # the patches that iBOT hides from the student

Radiographs have one channel and a grey scale that means something: there are no colour tricks, and intensities change
as they do between detectors, exposures and display windows. Values stay float32 throughout, so a picture of 12 or 16
bits keeps its depth until the tower gets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raddraft.errors import RadDraftError

CROP_TRIES = 10
BLOCK_TRIES = 10
MIN_BLOCK = 4
"""Patches, of the smallest block of a mask."""
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
"""Logarithm of the height : width of the blocks, as in BEiT (arXiv 2106.08254)."""


@dataclass
class ViewConfig:
    """Two large global crops, which the teacher sees, and small local crops, which only the student sees.

    Defaults are those of DINOv2 (arXiv 2304.07193) unless a field says otherwise. RAD-DINO (arXiv 2401.10815) takes
    larger crops and blurs less on the teacher's branch; the numbers for that here are this project's own.
    """

    global_size: int = 518
    """Side of a global view in pixels, a multiple of the patch. RAD-DINO's: small findings need resolution."""
    n_local: int = 8
    """Number of local views."""
    local_size: int = 196
    """Side of a local view in pixels, a multiple of the patch. DINOv2's 96 to 224 would be 222 to 518; 14 patches of 14
    cost a fifth less and show what is cut out at no lower magnification than the global views."""
    global_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area in a global view. DINOv2 starts at 0.32, where one lung can be missing."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    """Share of the picture's area in a local view. DINOv2 has 0.05 to 0.32; in less than a tenth of a chest X-ray there
    is often no landmark left to tell the place by."""
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width : height of what is cut out and then made square, drawn on a logarithmic scale."""
    flip: float = 0.5
    """Probability of exchanging left and right. 0 where the side matters, as for a heart on the right."""
    jitter: float = 0.8
    """Probability of changing brightness, contrast and gamma, all three."""
    brightness: tuple[float, float] = (0.85, 1.1)
    """Factor on all values, as another exposure. DINOv2 has 0.6 to 1.4, which burns out mediastinum and abdomen."""
    contrast: tuple[float, float] = (0.7, 1.25)
    """Factor on the distance from the view's mean, as another width of the display window. DINOv2 has 0.6 to 1.4."""
    gamma: tuple[float, float] = (0.6, 1.6)
    """Exponent of the values, as another detector's characteristic curve: darker or brighter without burning out. In
    place of DINOv2's saturation and hue."""
    blur_global: tuple[float, float] = (0.5, 0.1)
    """Probability of blurring the first and the second global view. DINOv2 blurs the first one always; fine texture is
    what a nodule or an interstitial pattern consists of."""
    blur_local: float = 0.5
    """Probability of blurring a local view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, in pixels of the view; less for views much smaller than DINOv2's 224 and 96."""
    solarise: float = 0.0
    """Probability of inverting the brighter half of the grey scale of the second global view. DINOv2 has 0.2; in a
    radiograph bone would become air."""

    def __post_init__(self) -> None:
        for name, least in {"global_size": 1, "local_size": 1, "n_local": 0}.items():
            if getattr(self, name) < least:
                raise RadDraftError(f"{name} must be at least {least}, got {getattr(self, name)}")
        probabilities = {name: getattr(self, name) for name in ("flip", "jitter", "blur_local", "solarise")}
        probabilities |= {"blur_global[0]": self.blur_global[0], "blur_global[1]": self.blur_global[1]}
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise RadDraftError(f"{name} is a probability, 0 to 1, got {value}")
        highest = {"global_scale": 1.0, "local_scale": 1.0}
        for name in ("global_scale", "local_scale", "aspect_ratio", "brightness", "contrast", "gamma", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= highest.get(name, math.inf) or math.isinf(high):
                limit = " and at most 1" if name in highest else ""
                raise RadDraftError(f"{name} must be a range from low to high, above 0{limit}, got {low} to {high}")


class Views:
    """Cuts random views out of a picture."""

    def __init__(self, config: ViewConfig, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        """Prepare to cut views.

        Args:
            config: what views to cut.
            mean: of the tower's image processor, on the scale of 0..1. A grey picture stays one channel and is
                normalised once, so of several channels the mean counts (equal in RAD-DINO, nearly so for ImageNet).
            std: likewise.

        Raises:
            ValueError: a standard deviation that is not positive.
        """
        self.config = config
        self.mean, self.std = float(np.mean(mean)), float(np.mean(std))
        if not self.std > 0:
            raise RadDraftError(f"std must be above 0, got {std}")

    def __call__(self, image: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Views of one picture.

        What is cut out is resized with an antialiased bicubic filter to the view's size, upwards too where the picture
        is small.

        Args:
            image: [1, H, W], floating point, 0..1, on the CPU.
            seed: at least 0. It alone decides what is drawn; global random states are neither read nor changed.

        Returns:
            The global views [2, 1, S, S] and the local views [n_local, 1, s, s], float32, normalised.

        Raises:
            ValueError: an image of another shape or of integers.
        """
        if image.ndim != 3 or image.shape[0] != 1 or not image.is_floating_point():
            raise RadDraftError(f"Views are cut out of floats [1, H, W] in 0..1, got {image.dtype} {list(image.shape)}")
        config = self.config
        generator = np.random.default_rng(seed)
        image = image.float()
        blur, solarise = list(config.blur_global), [0.0, config.solarise]
        global_views = self._cut(image, config.global_size, config.global_scale, blur, solarise, generator)
        blur, solarise = [config.blur_local] * config.n_local, [0.0] * config.n_local
        local_views = self._cut(image, config.local_size, config.local_scale, blur, solarise, generator)
        return global_views, local_views

    def _cut(
        self,
        image: Tensor,
        size: int,
        scale: tuple[float, float],
        blur: list[float],
        solarise: list[float],
        generator: np.random.Generator,
    ) -> Tensor:
        """As many views [n, 1, size, size] as there are probabilities; cut out first, as the rest is cheaper then."""
        from scipy.ndimage import gaussian_filter
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        config, n = self.config, len(blur)
        height, width = image.shape[-2:]
        views = image.new_empty(n, 1, size, size)
        flipped = generator.random(n) < config.flip
        for i in range(n):
            box = draw_box(height, width, scale, config.aspect_ratio, generator)
            view = functional.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
            views[i] = view.flip(-1) if flipped[i] else view
        low, high = np.array([config.brightness, config.contrast, config.gamma]).T
        changed = generator.random((n, 1)) < config.jitter
        factors = np.where(changed, generator.uniform(low, high, (n, 3)), 1).T.reshape(3, n, 1, 1, 1)
        # Bicubic filters overshoot at edges.
        views = change_intensity(views.clamp_(0, 1), *torch.from_numpy(factors).to(views.dtype))
        sigmas = generator.uniform(*config.blur_sigma, n)
        for i in np.flatnonzero(generator.random(n) < blur).tolist():
            # In one direction after the other: several times as fast on one core as torchvision's blur.
            blurred = gaussian_filter(views[i, 0].numpy(), sigmas[i], truncate=3)
            views[i, 0] = torch.from_numpy(blurred)
        for i in np.flatnonzero(generator.random(n) < solarise).tolist():
            views[i] = torch.where(views[i] < 0.5, views[i], 1 - views[i])
        return views.sub_(self.mean).div_(self.std)


def draw_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random box in a picture: top, left, height and width in pixels.

    Its area is uniform on `scale`, its width : height uniform on a logarithmic scale, as in torchvision's
    RandomResizedCrop, which can only draw from the global random state. What does not fit is drawn again; after ten
    times it is the largest box around the centre with an admissible width : height.
    """
    low, high = (math.log(limit) for limit in aspect_ratio)
    for _ in range(CROP_TRIES):
        area, ratio = height * width * generator.uniform(*scale), math.exp(generator.uniform(low, high))
        box = max(1, round(math.sqrt(area / ratio))), max(1, round(math.sqrt(area * ratio)))
        if box[0] <= height and box[1] <= width:
            return int(generator.integers(height - box[0] + 1)), int(generator.integers(width - box[1] + 1)), *box
    largest = min(height, max(1, round(width / aspect_ratio[0]))), min(width, max(1, round(height * aspect_ratio[1])))
    return (height - largest[0]) // 2, (width - largest[1]) // 2, *largest


def change_intensity(views: Tensor, brightness: Tensor, contrast: Tensor, gamma: Tensor) -> Tensor:
    """Grey values [n, 1, H, W] in 0..1: times brightness, spread by contrast about their mean, to the power gamma.

    What would leave 0..1 before the power is cut off, as in a display window. The three are [n, 1, 1, 1].
    """
    mean = views.mean((-2, -1), keepdim=True)
    return (views * (brightness * contrast)).add_(mean * brightness * (1 - contrast)).clamp_(0, 1).pow_(gamma)


def block_masks(
    n_crops: int,
    grid: tuple[int, int],
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    seed: int = 0,
) -> Tensor:
    """Which patches of a batch of crops to hide, block by block.

    As in DINOv2 (arXiv 2304.07193), n * probability of n crops are masked; a fraction is rounded up with its own
    probability, since n is a few crops here and a whole batch there. `ratio` is divided into as many equal strata, each
    giving the share of one of these crops, so every batch holds light and heavy masks; which crop gets which is random.
    Blocks are laid as in BEiT (arXiv 2106.08254), at least 4 patches each, until the crop has exactly
    int(H * W * share) masked patches; where no further block fits, single patches make up the number.

    Args:
        n_crops: number of crops.
        grid: patches down and across a crop.
        probability: share of the crops that are masked.
        ratio: lowest and highest share of masked patches.
        seed: at least 0; it alone decides what is drawn.

    Returns:
        bool [n_crops, H, W], true where a patch is hidden.

    Raises:
        ValueError: a negative number of crops, an empty grid, shares that leave 0..1 or that are in the wrong order.
    """
    if n_crops < 0 or min(grid) < 1:
        raise RadDraftError(f"Masks need n_crops >= 0 and a grid of at least 1 x 1, got {n_crops} and {grid}")
    if not 0 <= probability <= 1 or not 0 <= ratio[0] <= ratio[1] <= 1:
        raise RadDraftError(
            f"probability and ratio are shares, 0 to 1, the lower first; got probability {probability}, ratio {ratio}"
        )
    generator = np.random.default_rng(seed)
    masks = np.zeros((n_crops, *grid), bool)
    fraction = np.random.default_rng([seed, 1]).random()  # in [0, 1)
    chosen = generator.permutation(n_crops)[: int(n_crops * probability + fraction)]
    strata = np.linspace(*ratio, len(chosen) + 1)
    for crop, low, high in zip(chosen, strata[:-1], strata[1:], strict=True):
        _lay_blocks(masks[crop], int(grid[0] * grid[1] * generator.uniform(low, high)), generator)
    return torch.from_numpy(masks)


def _lay_blocks(mask: np.ndarray, count: int, generator: np.random.Generator) -> None:
    """Set exactly `count` patches of an empty mask [H, W], in blocks as far as they fit."""
    height, width = mask.shape
    missing, failures = count, 0
    while missing >= MIN_BLOCK and failures < BLOCK_TRIES:
        area, aspect = generator.uniform(MIN_BLOCK, missing), math.exp(generator.uniform(*LOG_ASPECT))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (1 <= rows <= height and 1 <= columns <= width):
            failures += 1
            continue
        top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
        block = mask[top : top + rows, left : left + columns]
        gained = block.size - int(np.count_nonzero(block))
        if not 0 < gained <= missing:
            failures += 1
            continue
        block[:] = True
        missing, failures = missing - gained, 0
    free = np.flatnonzero(~mask)
    mask.flat[generator.choice(free, missing, replace=False)] = True
