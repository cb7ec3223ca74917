"""Random crops of chest X-rays and masks of their patches, for pre-training an encoder in the manner of DINOv2.

    multi_crop = MultiCrop(CropConfig(global_size=112, local_crops=4, local_size=56), mean=0.53, std=0.26)
    global_crops, local_crops = multi_crop(image, seed=7)      # [1, H, W] in 0..1 -> [2, 1, 112, 112], [4, 1, 56, 56]
    masks = block_masks(2 * batch_size, grid=(8, 8), seed=7)      # the patches that iBOT hides from the student

Radiographs have one channel and a gray scale with a meaning: there are no color tricks, and intensities change as they
do between detectors, exposures and display windows. Values stay float32, so images of 12 or 16 bits keep their depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from encoder.recipe import CropConfig
from raddraft.errors import RadDraftError

Range = tuple[float, float]
Random = np.random.Generator
TRIES = 10
"""Draws of a crop's box, or of a mask's next block, before giving up."""
MIN_BLOCK = 4
"""Patches in the smallest block of a mask."""
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
"""Range of the logarithm of height : width of a block, as in BEiT (arXiv 2106.08254)."""


class MultiCrop:
    """Cuts random crops out of an image, and normalizes them.

    Args:
        config: what to cut.
        mean, std: of the tower's image processor, on the scale 0..1; the channels' mean is used, since images are gray.
    """

    def __init__(self, config: CropConfig, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.config = config
        self.mean, self.std = float(np.mean(mean)), float(np.mean(std))
        if not self.std > 0:
            raise RadDraftError(f"std must be above 0, got {std}")

    def __call__(self, image: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Crops of one image, resized with an antialiased bicubic filter.

        Args:
            image: [1, H, W], floating point, 0..1, on the CPU.
            seed: at least 0. It alone decides what is drawn; global random states are neither read nor changed.

        Returns:
            Global crops [2, 1, S, S] and local crops [n, 1, s, s], float32, normalized.

        Raises:
            RadDraftError: an image of another shape or of integers.
        """
        if image.ndim != 3 or image.shape[0] != 1 or not image.is_floating_point():
            raise RadDraftError(f"Crops are cut out of floats [1, H, W] in 0..1, got {image.dtype} {list(image.shape)}")
        c, n = self.config, self.config.local_crops
        generator = np.random.default_rng(seed)
        image = image.float()
        global_crops = self._cut(image, c.global_size, c.global_scale, c.blur_global, (0.0, c.solarize), generator)
        local_crops = self._cut(image, c.local_size, c.local_scale, [c.blur_local] * n, [0.0] * n, generator)
        return global_crops, local_crops

    def _cut(
        self,
        image: Tensor,
        size: int,
        scale: Range,
        blur: Sequence[float],
        solarize: Sequence[float],
        generator: Random,
    ) -> Tensor:
        """As many crops [n, 1, size, size] as there are probabilities of blurring and solarizing them."""
        from scipy.ndimage import gaussian_filter
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        config, n = self.config, len(blur)
        crops = image.new_empty(n, 1, size, size)
        flipped = generator.random(n) < config.flip
        for i in range(n):
            box = draw_box(image.shape[1], image.shape[2], scale, config.aspect_ratio, generator)
            crop = functional.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
            crops[i] = crop.flip(-1) if flipped[i] else crop
        low, high = np.array([config.brightness, config.contrast, config.gamma]).T
        changed = generator.random((n, 1)) < config.jitter
        factors = np.where(changed, generator.uniform(low, high, (n, 3)), 1).T.reshape(3, n, 1, 1, 1)
        # Bicubic filters overshoot at edges.
        crops = change_intensity(crops.clamp_(0, 1), *torch.from_numpy(factors).to(crops.dtype))
        sigmas = generator.uniform(*config.blur_sigma, n)
        for i in np.flatnonzero(generator.random(n) < blur).tolist():
            # One axis after the other: several times as fast on one core as torchvision's blur.
            blurred = gaussian_filter(crops[i, 0].numpy(), sigmas[i], truncate=3)
            crops[i, 0] = torch.from_numpy(blurred)
        for i in np.flatnonzero(generator.random(n) < solarize).tolist():
            crops[i] = torch.where(crops[i] < 0.5, crops[i], 1 - crops[i])
        return crops.sub_(self.mean).div_(self.std)


def draw_box(
    height: int, width: int, scale: Range, aspect_ratio: Range, generator: Random
) -> tuple[int, int, int, int]:
    """A random box in an image: top, left, height and width in pixels.

    Its area is uniform on `scale`, its width : height log-uniform on `aspect_ratio`, as in torchvision's
    RandomResizedCrop, which only draws from the global random state. A box that does not fit is drawn again; after ten
    draws it is the largest centered box with an admissible width : height.
    """
    low, high = (math.log(limit) for limit in aspect_ratio)
    for _ in range(TRIES):
        area, ratio = height * width * generator.uniform(*scale), math.exp(generator.uniform(low, high))
        box = max(1, round(math.sqrt(area / ratio))), max(1, round(math.sqrt(area * ratio)))
        if box[0] <= height and box[1] <= width:
            return int(generator.integers(height - box[0] + 1)), int(generator.integers(width - box[1] + 1)), *box
    largest = min(height, max(1, round(width / aspect_ratio[0]))), min(width, max(1, round(height * aspect_ratio[1])))
    return (height - largest[0]) // 2, (width - largest[1]) // 2, *largest


def change_intensity(crops: Tensor, brightness: Tensor, contrast: Tensor, gamma: Tensor) -> Tensor:
    """Gray values [n, 1, H, W] in 0..1: times brightness, spread by contrast about their mean, to the power gamma.

    Values are clipped to 0..1 before the power, as in a display window. The three factors are [n, 1, 1, 1].
    """
    mean = crops.mean((-2, -1), keepdim=True)
    return (crops * (brightness * contrast)).add_(mean * brightness * (1 - contrast)).clamp_(0, 1).pow_(gamma)


def block_masks(
    n_crops: int, grid: tuple[int, int], probability: float = 0.5, ratio: Range = (0.1, 0.5), seed: int = 0
) -> Tensor:
    """Which patches of a batch of crops to hide, in blocks.

    As in DINOv2 (arXiv 2304.07193), n * probability of n crops are masked, a fraction being rounded up with its own
    probability. `ratio` is divided into as many equal strata, one for the share of each of them, so every batch holds
    light and heavy masks. Blocks are laid as in BEiT (arXiv 2106.08254), until the crop has exactly int(H * W * share)
    masked patches; where no further block fits, single patches make up the number.

    Args:
        n_crops: number of crops.
        grid: patches down and across a crop.
        probability: share of the crops that are masked.
        ratio: lowest and highest share of masked patches.
        seed: at least 0; it alone decides what is drawn.

    Returns:
        bool [n_crops, H, W], true where a patch is hidden.

    Raises:
        RadDraftError: a negative number of crops, an empty grid, shares outside 0..1 or in the wrong order.
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


def _lay_blocks(mask: np.ndarray, missing: int, generator: Random) -> None:
    """Set exactly `missing` patches of an empty mask [H, W], in blocks as far as they fit."""
    height, width = mask.shape
    failures = 0
    while missing >= MIN_BLOCK and failures < TRIES:
        failures += 1
        area, aspect = generator.uniform(MIN_BLOCK, missing), math.exp(generator.uniform(*LOG_ASPECT))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (1 <= rows <= height and 1 <= columns <= width):
            continue
        top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
        block = mask[top : top + rows, left : left + columns]
        gained = block.size - int(np.count_nonzero(block))
        if 0 < gained <= missing:
            block[:] = True
            missing, failures = missing - gained, 0
    free = np.flatnonzero(~mask)
    mask.flat[generator.choice(free, missing, replace=False)] = True
