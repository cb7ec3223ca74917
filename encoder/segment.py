"""Segmentation on frozen features: a small head reads stored patch grids and outlines structures.

    store = open_store(tower, paths, FeatureConfig("tokens"))
    result, heads = segment(store, studies, tower.processor, SegmentConfig(("lungs",), head="linear"))
    result.to_dict()["scores"]["lungs"]["dice"]      # {"value": …, "low": …, "high": …}

The tower is not run here. Heads train on `train`, their epoch is chosen by Dice on `val`, `test` is only scored.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from encoder.features import FeatureStore
from encoder.masks import Geometry, MaskError, load_mask, prepare_mask, processor_geometry, restore_mask
from encoder.probe_config import Grid, SegmentConfig
from raddraft import stats
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, ImageWarning, shown_size
from raddraft.studies import SPLITS, Study, StudyImage

SCALES = (4, 2, 1, 0.5)
"""Sizes of the maps of a feature pyramid, relative to the patch grid (ViTDet, arXiv 2203.16527)."""


@dataclass
class Examples:
    """Images of one split, with their features and their masks on the tower's input grid."""

    store: FeatureStore
    structures: Sequence[str]
    images: list[StudyImage] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    geometries: list[Geometry] = field(default_factory=list)
    packed: list[np.ndarray] = field(default_factory=list)  # masks of all structures, one bit per pixel

    def __len__(self) -> int:
        return len(self.images)

    def grids(self, index: Sequence[int]) -> torch.Tensor:
        """Patch grids of some images: [B, H, W, D]."""
        return torch.stack([self.store.patches(self.images[i].path) for i in index]).float()

    def masks(self, index: Sequence[int]) -> torch.Tensor:
        """Masks of some images: bool [B, S, h, w]."""
        shape = (len(self.structures), *self.geometries[0].size)
        flat = np.unpackbits(np.stack([self.packed[i] for i in index]), axis=1, count=math.prod(shape))
        return torch.from_numpy(flat.reshape(-1, *shape)).bool()


@dataclass(frozen=True)
class Score:
    """A mean over images and its 95 % percentile interval by subject."""

    value: float
    low: float
    high: float


@dataclass
class SegmentResult:
    """Dice and IoU (intersection over union) on the test split; 1 where a structure is neither present nor drawn."""

    config: SegmentConfig
    n_images: dict[str, int]  # by split
    n_subjects: dict[str, int]  # by split
    left_out: dict[str, int]  # images that were not used, by reason
    errors: list[str]  # a sentence for each mask that cannot be used
    best_epochs: list[int]  # by seed, from 1
    val_dice: list[float]  # by seed, at that epoch
    test_dice: list[float]  # by seed, mean over images and structures
    scores: dict[str, dict[str, Score]]  # structure, and "mean" for the mean over structures -> dice, iou
    paths: list[Path]  # test images, in the order of the arrays
    subjects: list[str]  # of the test images
    dice: np.ndarray  # by image and structure, mean over seeds: [n, S]
    iou: np.ndarray  # likewise
    resampled: dict[str, np.ndarray]
    """dice, iou -> means on each resample of the subjects, [resamples, S + 1], the last column that of the mean.
    Towers scored on the same test images share their draws: subtract these to compare them in pairs."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the resampled values, which `resample` computes again."""
        row = asdict(self) | {"dice": self.dice.tolist(), "iou": self.iou.tolist(), "paths": list(map(str, self.paths))}
        del row["resampled"]
        return row


def segment(
    store: FeatureStore, studies: Sequence[Study], processor: Any, config: SegmentConfig, device: str = "cpu"
) -> tuple[SegmentResult, list[Head]]:
    """Train a head for each seed and score them on the test split.

    Args:
        store: patch grids of the images that have masks.
        studies: all splits.
        processor: the tower's image processor, which made the pixels that the features come from.
        config: what to outline, and how.
        device: where the heads run.

    Returns:
        The result, and the heads in eval mode, by seed; see `draw_masks`.

    Raises:
        RadDraftError: too few usable images in a split, or a processor that masks cannot follow.
    """
    started = time.perf_counter()
    examples, left_out, errors = gather(store, studies, processor, config.structures)
    for split, least in (("train", 2), ("val", 1), ("test", 1)):
        if len(examples[split]) < least:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
            raise RadDraftError(
                f"Split {split!r} has {len(examples[split])} images with features and masks of "
                f"{', '.join(config.structures)}, and needs {least}; left out in all: {reasons}"
            )
    trained = [train_head(examples["train"], examples["val"], config, seed, device) for seed in config.seeds]
    heads, best_epochs, val_dice = map(list, zip(*trained, strict=True))
    test = examples["test"]
    by_seed = np.array([_score(head, test, config, config.grid) for head in heads])  # [seeds, 2, n, S]
    scores: dict[str, dict[str, Score]] = {name: {} for name in (*config.structures, "mean")}
    resampled = {}
    for measure, values in zip(("dice", "iou"), by_seed.mean(0), strict=True):
        resampled[measure] = resample(values, test.subjects, config.resamples)
        bounds = np.quantile(resampled[measure], (0.025, 0.975), axis=0).T.tolist()  # [S + 1, 2]
        for name, value, (low, high) in zip(scores, [*values.mean(0), values.mean()], bounds, strict=True):
            scores[name][measure] = Score(float(value), low, high)
    result = SegmentResult(
        config=config,
        n_images={split: len(examples[split]) for split in SPLITS},
        n_subjects={split: len(set(examples[split].subjects)) for split in SPLITS},
        left_out=left_out,
        errors=errors,
        best_epochs=best_epochs,
        val_dice=val_dice,
        test_dice=by_seed[:, 0].mean((1, 2)).tolist(),
        scores=scores,
        paths=[image.path for image in test.images],
        subjects=test.subjects,
        dice=by_seed[:, 0].mean(0),
        iou=by_seed[:, 1].mean(0),
        resampled=resampled,
        seconds=time.perf_counter() - started,
    )
    return result, heads


def masked_paths(studies: Sequence[Study], structures: Sequence[str]) -> list[Path]:
    """Images that have a mask of each structure; raises RadDraftError if there is none."""
    images = [image for study in studies for image in study.images]
    paths = [image.path for image in images if set(structures) <= image.masks.keys()]
    if not paths:
        names = ", ".join(sorted({name for image in images for name in image.masks})) or "none"
        raise RadDraftError(f"No image has masks of {', '.join(structures)}. Choices: {names}")
    return paths


def gather(
    store: FeatureStore, studies: Sequence[Study], processor: Any, structures: Sequence[str]
) -> tuple[dict[str, Examples], dict[str, int], list[str]]:
    """Usable images by split; how many were left out, by reason; a sentence for each mask that cannot be used.

    Raises:
        RadDraftError: masks cannot follow the processor.
    """
    examples = {split: Examples(store, structures) for split in SPLITS}
    left_out: Counter[str] = Counter()
    errors: list[str] = []
    geometries: dict[tuple[int, int], Geometry] = {}
    for study, image in ((owner, image) for owner in studies for image in owner.images):
        if not set(structures) <= image.masks.keys():
            left_out["without mask"] += 1
        elif image.path not in store:
            left_out["without features"] += 1
        else:
            try:
                masks = load_masks(image, structures)
            except (MaskError, ImageError) as error:
                errors.append(str(error))
                left_out["with an unusable mask"] += 1
                continue
            size = masks.shape[1:]
            if size not in geometries:
                geometries[size] = processor_geometry(processor, size)
            rows = examples[study.split]
            rows.images.append(image)
            rows.subjects.append(study.subject_id)
            rows.geometries.append(geometries[size])
            rows.packed.append(np.packbits([prepare_mask(mask, geometries[size]) for mask in masks]))
    return examples, dict(left_out), errors


def load_masks(image: StudyImage, structures: Sequence[str]) -> np.ndarray:
    """Masks of an image on its own grid: bool [S, H, W]; raises MaskError or ImageError if one cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # given when the features were made
        size = shown_size(image.path)
    return np.stack([load_mask(image.masks[name], size, image_path=image.path) for name in structures])


def train_head(
    train: Examples, val: Examples, config: SegmentConfig, seed: int, device: str = "cpu"
) -> tuple[Head, int, float]:
    """Train a head on `segmentation_loss` at the resolution of the tower's input; global random numbers are untouched.

    Returns:
        The head of the epoch with the highest mean Dice on `val`, in eval mode; that epoch, from 1; that Dice.
    """
    from tqdm import trange

    n_batches = math.ceil(len(train) / config.head_batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kept = train.store.config
        n_layers = len(kept.layers) if kept.layers and not kept.average else 1  # side by side in the features
        head = Head(config, train.store.shape[1], n_layers).to(device)
        lr = config.lr or (1e-2 if config.head == "linear" else 1e-3)
        optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * n_batches)
        best: tuple[float, int, dict[str, torch.Tensor]] = (-1.0, 0, {})
        for epoch in trange(1, config.epochs + 1, desc=f"{config.head} head, seed {seed}"):
            head.train()
            for index in torch.randperm(len(train)).tensor_split(n_batches):
                masks = train.masks(index.tolist()).to(device).float()
                logits = head(train.grids(index.tolist()).to(device), masks.shape[-2:])
                optimizer.zero_grad()
                segmentation_loss(logits, masks).backward()
                optimizer.step()
                schedule.step()
            value = float(_score(head.eval(), val, config, "input")[0].mean())
            if value > best[0]:
                best = (value, epoch, {key: tensor.clone() for key, tensor in head.state_dict().items()})
    head.load_state_dict(best[2])
    return head, best[1], best[0]


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy + 1 - soft Dice (V-Net, arXiv 1606.04797) of logits and masks [B, S, h, w].

    Dice is over all pixels of the batch for each structure, then averaged over structures.
    """
    probabilities = logits.sigmoid()
    shared = (probabilities * masks).sum((0, 2, 3))
    total = probabilities.sum((0, 2, 3)) + masks.sum((0, 2, 3))
    soft_dice = (2 * shared + 1) / (total + 1)
    return functional.binary_cross_entropy_with_logits(logits, masks) + 1 - soft_dice.mean()


def dice_and_iou(drawn: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice 2|A∩B| / (|A| + |B|) and |A∩B| / |A∪B| of masks, bool [..., h, w] -> [...]; both empty is 1."""
    shared = (drawn & true).sum((-2, -1)).double()
    total = drawn.sum((-2, -1)) + true.sum((-2, -1))
    dice, iou = 2 * shared / total, shared / (total - shared)
    return torch.where(total == 0, 1.0, dice), torch.where(total == 0, 1.0, iou)


@torch.no_grad()
def draw_masks(head: Head, grids: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Where a head's probability is above 0.5, from patch grids [B, H, W, D]: bool [B, S, h, w], size is (h, w)."""
    device = next(head.parameters()).device
    return (head(grids.to(device, torch.float32), size) > 0).cpu()


def resample(values: np.ndarray, subjects: Sequence[str], resamples: int, seed: int = 0) -> np.ndarray:
    """Means over the images of subjects drawn with replacement: values [n, S] -> [resamples, S + 1].

    The last column is the mean over structures. The order of the images does not matter.
    """
    columns = [stats.mean_measure(column, "") for column in (*values.T, values.mean(1))]
    return stats.resample(columns, resamples, seed, subjects).T


class Head(nn.Module):
    """Patch grids [B, H, W, D] to logits [B, S, h, w]; features are batch-normalized first."""

    def __init__(self, config: SegmentConfig, width: int, n_layers: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        linear = config.head == "linear"
        self.body = nn.Conv2d(width, len(config.structures), 1) if linear else _Pyramid(config, width, n_layers)

    def forward(self, grids: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        logits = self.body(self.norm(grids.permute(0, 3, 1, 2)))
        return functional.interpolate(logits, tuple(size), mode="bilinear")


class _Pyramid(nn.Module):
    """Maps at four scales, then UPerNet's head, or a sum at the finest scale as in Panoptic FPN (arXiv 1901.02446)."""

    def __init__(self, config: SegmentConfig, width: int, n_layers: int) -> None:
        super().__init__()
        channels, n_structures = config.channels, len(config.structures)
        self.width = width // n_layers
        self.sources = [n_layers - 1] * len(SCALES)  # layer of each map
        self.levels = nn.ModuleList(_level(self.width, channels, scale) for scale in SCALES)
        self.top: nn.Module | None = None
        if config.head == "upernet":
            from transformers import UperNetConfig
            from transformers.models.upernet.modeling_upernet import UperNetHead

            self.sources = [round(i * (n_layers - 1) / (len(SCALES) - 1)) for i in range(len(SCALES))]
            shape = UperNetConfig(hidden_size=channels, num_labels=n_structures)  # type: ignore[call-arg]
            self.top = UperNetHead(shape, [channels] * len(SCALES))
        else:
            self.smooth = nn.ModuleList(_block(channels, nn.Conv2d(channels, channels, 3, padding=1)) for _ in SCALES)
            self.classify = nn.Conv2d(channels, n_structures, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        layers = features.split(self.width, dim=1)
        maps = [level(layers[source]) for level, source in zip(self.levels, self.sources, strict=True)]
        if self.top is not None:
            return self.top(maps)
        smooth = [block(one) for block, one in zip(self.smooth, maps, strict=True)]
        size = smooth[0].shape[-2:]
        return self.classify(sum(functional.interpolate(one, size, mode="bilinear") for one in smooth))


def _level(width: int, channels: int, scale: float) -> nn.Sequential:
    """A layer [B, width, H, W] at another scale [B, channels, scale H, scale W]; narrowed first, to save work."""
    steps: list[nn.Module] = [_block(channels, nn.Conv2d(width, channels, 1))]
    steps += [_block(channels, nn.ConvTranspose2d(channels, channels, 2, 2)) for _ in range(round(math.log2(scale)))]
    steps += [nn.MaxPool2d(2, ceil_mode=True)] if scale < 1 else []
    return nn.Sequential(*steps)


def _block(channels: int, convolution: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution, nn.GroupNorm(1, channels), nn.GELU())


def _score(head: Head, examples: Examples, config: SegmentConfig, grid: Grid) -> np.ndarray:
    """Dice and IoU of every image and structure: [2, n, S]."""
    found = []
    for index in torch.arange(len(examples)).split(config.head_batch_size):
        true = examples.masks(index.tolist())
        drawn = draw_masks(head, examples.grids(index.tolist()), (true.shape[-2], true.shape[-1]))
        if grid == "input":
            found.append(torch.stack(dice_and_iou(drawn, true)))
            continue
        for i, masks in zip(index.tolist(), drawn.numpy(), strict=True):
            restored = np.stack([restore_mask(mask, examples.geometries[i]) for mask in masks])
            own = load_masks(examples.images[i], config.structures)
            found.append(torch.stack(dice_and_iou(torch.from_numpy(restored), torch.from_numpy(own)))[:, None])
    return torch.cat(found, dim=1).numpy()
