"""A tower trained on images and their reports, as CLIP: the text-supervised rival of image-only pre-training.

    train_clip({"train": …, "val": …}, out, load_tower("runs/demo/tower"), ClipConfig(epochs=30))

A vision transformer (its class token, projected) and a small text transformer, trained from scratch, learn to embed an
image and its own report in the same direction and all others apart (Radford et al., 2021, arXiv 2103.00020). Normal
reports repeat, so reports of the same sentences, in any order, share the target between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from encoder.tower import NotPlainError, Tower
from generator.confidence import split_sentences
from generator.config import ClipConfig
from generator.prompts import PromptConfig
from generator.runs import StagedRun, lr_factor, parameter_groups
from generator.tiny import train_tokenizer
from generator.tokens import TextTokens
from raddraft.errors import DivergedError, RadDraftError
from raddraft.files import whole_folder
from raddraft.images import ImageError, load_image
from raddraft.locks import holds_out
from raddraft.studies import GrayMapping, Study

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_SCALE = math.log(100)
"""The temperature stays above 1 / 100, as in the paper (section 2.5)."""
TEXTS_AT_ONCE = 32


@dataclass
class Pairs:
    """Images and reports of one split."""

    images: np.ndarray
    """Gray values 0 to 255 on the tower's input grid, uint8 [n, H, W]."""
    tokens: Tensor
    """Token ids of the reports, padded on the right: [n, L]."""
    groups: Tensor
    """Integers, equal where reports have the same sentences, see `key_of`: [n]."""

    def __len__(self) -> int:
        return len(self.groups)


class TwoEncoders(nn.Module):
    """A tower and a text transformer, each projected to one space, and the temperature."""

    def __init__(self, tower: Tower, tokenizer: PreTrainedTokenizerFast, config: ClipConfig) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        self.tower, self.pad_id = tower, int(tokenizer.pad_token_id)
        self.image_model = tower.model
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        self.text_model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                projection_dim=config.width,
                hidden_act="gelu",
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.width // 32,
                max_position_embeddings=config.max_tokens,
                **{name: getattr(tokenizer, name) for name in ids},
            )
        )
        self.image_projection = nn.Linear(tower.shape[2], config.width, bias=False)
        self.text_projection = nn.Linear(config.width, config.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_images(self, images: Tensor) -> Tensor:
        """Gray values 0 to 255 [B, H, W] -> unit vectors [B, E]."""
        pixels = to_pixels(self.tower.processor, images)
        pooled = self.tower.encode(pixels, grad=True).pooled
        return functional.normalize(self.image_projection(pooled), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], padded on the right -> unit vectors [B, E]."""
        lengths = tokens.ne(self.pad_id).sum(1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(TEXTS_AT_ONCE):  # of similar length, so that little padding is computed
            part = tokens[rows, : int(lengths[rows].max())]
            parts.append(self.text_model(part, attention_mask=part.ne(self.pad_id).long()).pooler_output)
        pooled = torch.cat(parts)[order.argsort()]
        return functional.normalize(self.text_projection(pooled), dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """Mean of the cross-entropies of image -> report and report -> image (Radford et al., 2021, figure 3).

    Where reports are equal, the target of each of their images is spread evenly over them, and vice versa. Without
    equal reports it is the paper's loss.

    Args:
        images, texts: unit vectors [B, E], row by row of the same pair.
        scale: 1 / temperature, a scalar.
        groups: integers [B], equal where reports are equal.
    """
    logits = scale * images @ texts.T  # [B, B]
    same = (groups[:, None] == groups[None]).to(logits)
    target = same / same.sum(1, keepdim=True)  # the same in both directions, since `same` is symmetric
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def recalls(images: Tensor, texts: Tensor, groups: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k: fractions of images (reports) with a correct report (image) among the k nearest, 0 to 1.

    Each different report counts once; any image with that report is correct.

    Args:
        images, texts: unit vectors [n, E].
        groups: as in `contrastive_loss`, [n].
        ks: numbers of nearest neighbors.
    """
    first = torch.tensor([int((groups == group).nonzero()[0]) for group in groups.unique()])
    own = groups[:, None] == groups[first][None]  # [n, m]
    similarity = images @ texts[first].T
    found: dict[str, float] = {}
    for name, scores, right in (("image_to_text", similarity, own), ("text_to_image", similarity.T, own.T)):
        hits = right.gather(1, scores.argsort(dim=1, descending=True))
        found |= {f"{name}_r{k}": float(hits[:, :k].any(1).double().mean()) for k in ks}
    return found


@holds_out
def train_clip(
    studies: Mapping[str, Sequence[Study]],
    out: Path,
    tower: Tower,
    config: ClipConfig,
    gray_mapping: GrayMapping = "window",
) -> Path:
    """Train a tower on images and reports, or resume; return the folder of the one with the lowest val loss, OUT/tower.

    Args:
        studies: train and val; the main image of each study is used.
        out: run folder: log.jsonl, checkpoints/, tower/.
        tower: a plain vision transformer, random or pretrained. All of it trains.
        config, gray_mapping: the recipe.

    Raises:
        RadDraftError: not a plain vision transformer, several processes, too few studies with report and image.
        DivergedError: the loss is not finite; the last checkpoint is kept.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from tqdm import tqdm

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise RadDraftError(f"raddraft clip runs in one process; it was launched with {accelerator.num_processes}")
    _check_plain(tower)
    set_seed(config.seed)
    run = StagedRun(out, accelerator)
    progress = run.find_progress()
    with ExitStack() as stack:
        pairs, tokenizer = gather_pairs(studies, tower, config, gray_mapping, out, stack)
        model = TwoEncoders(tower, tokenizer, config).to(accelerator.device)
        run.trained = {name for name, _ in model.named_parameters()}
        groups = parameter_groups(model, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6)
        run.restore(model)
        run.restore(model, optimizer)
        steps_per_epoch = _count_batches(len(pairs["train"]), config.batch_size)
        steps = config.epochs * steps_per_epoch
        bar = tqdm(total=steps, initial=progress.step, unit="step")
        while progress.step < steps:
            started = time.perf_counter()
            rows = _rows(len(pairs["train"]), steps_per_epoch, config.seed, progress.step)
            model.train()
            lr = config.lr * lr_factor(progress.step, steps, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            images, texts = _embed(model, pairs["train"], rows, config.smallest_crop)
            loss = contrastive_loss(images, texts, model.log_scale.exp(), pairs["train"].groups[rows])
            if not loss.isfinite():
                raise DivergedError(
                    f"The loss is {loss.item()} at step {progress.step + 1}; the last good checkpoint is {run.newest}. "
                    "Try a lower lr"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.log_scale.clamp_(max=MOST_SCALE)
            progress.step += 1
            numbers = {"loss": loss.item(), "lr": lr, "temperature": math.exp(-model.log_scale.item())}
            run.note(progress, numbers | {"images_per_second": len(rows) / (time.perf_counter() - started)})
            bar.update()
            if progress.step % steps_per_epoch == 0:
                row = evaluate(model, pairs["val"], config.batch_size)
                run.note(progress, row)
                bar.set_postfix(val_loss=row["val_loss"], r5=row["val_image_to_text_r5"])
                if row["val_loss"] < progress.best:
                    progress.best = row["val_loss"]
                    run.save_best(run.select(model))
            if progress.step % config.save_every == 0 or progress.step == steps:
                run.save_progress(model, progress, optimizer)
        bar.close()
    run.load_best(model)
    with whole_folder(out / "tower") as temporary:
        tower.model.eval().cpu().save_pretrained(temporary)
        tower.processor.save_pretrained(temporary)
    return out / "tower"


def _check_plain(tower: Tower) -> None:
    """Raise RadDraftError unless the tower is a plain vision transformer whose processor is one of transformers."""
    try:
        plain = tower.n_prefix >= 0 and hasattr(tower.processor, "do_resize")
    except NotPlainError:
        plain = False
    if not plain:
        raise RadDraftError(
            f"{tower.name} cannot train here: it is not a plain vision transformer with a processor of transformers"
        )


def _embed(model: TwoEncoders, pairs: Pairs, rows: Tensor, smallest_crop: float = 1.0) -> tuple[Tensor, Tensor]:
    """Unit vectors [B, E] of the images in these rows, on random crops if these may be smaller, and of the reports."""
    device = model.log_scale.device
    images = torch.from_numpy(pairs.images[rows.numpy()]).to(device)
    crops = random_crops(images, smallest_crop) if smallest_crop < 1 else images.float()
    return model.encode_images(crops), model.encode_texts(pairs.tokens[rows].to(device))


@torch.no_grad()
def evaluate(model: TwoEncoders, pairs: Pairs, batch_size: int) -> dict[str, float]:
    """val_loss, of batches in a fixed order, and `recalls` over the whole split."""
    model.eval()
    total, embedded = 0.0, []
    for rows in torch.arange(len(pairs)).tensor_split(_count_batches(len(pairs), batch_size)):
        images, texts = _embed(model, pairs, rows)
        total += len(rows) * float(contrastive_loss(images, texts, model.log_scale.exp(), pairs.groups[rows]))
        embedded.append((images.cpu(), texts.cpu()))
    images, texts = (torch.cat(part) for part in zip(*embedded, strict=True))
    found = recalls(images, texts, pairs.groups)
    return {"val_loss": total / len(pairs)} | {f"val_{name}": value for name, value in found.items()}


def _count_batches(n: int, batch_size: int) -> int:
    """Batches of nearly equal size, none of them of one pair, which would have nothing to be told apart from."""
    return min(math.ceil(n / batch_size), n // 2)


def _rows(n: int, per_epoch: int, seed: int, step: int) -> Tensor:
    """Rows of a step: every epoch all n in another order, in batches of nearly equal size."""
    epoch, batch = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    return order.tensor_split(per_epoch)[batch]


def gather_pairs(
    studies: Mapping[str, Sequence[Study]],
    tower: Tower,
    config: ClipConfig,
    gray_mapping: GrayMapping,
    out: Path,
    stack: ExitStack,
) -> tuple[dict[str, Pairs], PreTrainedTokenizerFast]:
    """Images and tokens of both splits, and the tokenizer, trained on the training reports.

    Images beyond `config.memory_gb` go to a file in `out`, which `stack` removes.

    Raises:
        RadDraftError: a split has fewer than two studies with a report and a readable image.
    """
    answer = PromptConfig(targets=config.sections).answer
    texts = {split: [(study, text) for study in part if (text := answer(study))] for split, part in studies.items()}
    if len(texts["train"]) < 2 or len(texts["val"]) < 2:
        counts = ", ".join(f"{split} {len(part)}" for split, part in texts.items())
        raise RadDraftError(
            f"Studies with {', '.join(config.sections)}: {counts}; train and val need two or more each; "
            "choose other sections with clip.sections, or move subjects between splits in the manifest"
        )
    tokenizer = train_tokenizer((text for _, text in texts["train"]), config.vocab_size)
    pairs = {}
    for split, part in texts.items():
        dataset = _Images([study.main_image.path for study, _ in part], tower.processor, gray_mapping)
        images, readable = _decode(dataset, tower.black_pixels.shape[-2:], config, out / f"{split}-images.bin", stack)
        kept = [part[row][1] for row in readable]
        if len(kept) < 2:
            raise RadDraftError(f"Split {split!r}: {len(kept)} of {len(part)} images can be read; two are needed")
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(key_of(text), len(numbers)) for text in kept]
        print(f"{split}: {len(kept)} pairs, {len(numbers)} different reports")
        pairs[split] = Pairs(images, _tokenize(kept, tokenizer, config.max_tokens), torch.tensor(groups))
    return pairs, tokenizer


def key_of(report: str) -> str:
    """The same for reports that differ only in case, white space and the order of sentences."""
    return " ".join(sorted(split_sentences(" ".join(report.lower().split()))))


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, most: int) -> Tensor:
    """Begin token, text, end token, padding: [n, L], L at most `most`."""
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[start, *ids[: most - 2], end] for ids in TextTokens(tokenizer).of_texts(texts)]
    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


class _Images(Dataset):
    """Gray values on the tower's input grid, uint8 [H, W]; or a sentence if a file cannot be read."""

    def __init__(self, paths: Sequence[Path], processor: Any, gray_mapping: GrayMapping) -> None:
        self.paths, self.processor, self.gray_mapping = paths, processor, gray_mapping

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray | str:
        try:
            image = load_image(self.paths[row], gray_mapping=self.gray_mapping).convert("RGB")
        except (ImageError, OSError) as error:
            return str(error)
        plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        return self.processor([image], **plain)["pixel_values"][0, 0].round().clamp(0, 255).byte().numpy()


def _decode(
    dataset: _Images, size: Sequence[int], config: ClipConfig, spill: Path, stack: ExitStack
) -> tuple[np.ndarray, list[int]]:
    """Images [n, H, W] of the files that can be read, and their positions; `stack` removes the file `spill`."""
    from tqdm import tqdm

    shape = (len(dataset), *size)
    held: np.ndarray
    if math.prod(shape) > config.memory_gb * 1e9:
        stack.callback(spill.unlink, missing_ok=True)
        held = np.memmap(spill, np.uint8, "w+", shape=shape)
    else:
        held = np.empty(shape, np.uint8)
    # With its own generator the loader draws nothing from the global one.
    loader: DataLoader = DataLoader(
        dataset, batch_size=32, num_workers=config.workers, collate_fn=list, generator=torch.Generator()
    )
    readable: list[int] = []
    found = (image for batch in tqdm(loader, desc="images", unit="batch") for image in batch)
    for row, image in enumerate(found):
        if isinstance(image, str):
            print(f"not trained on: {image}")
        else:
            held[len(readable)] = image
            readable.append(row)
    return held[: len(readable)], readable


def random_crops(images: Tensor, smallest: float) -> Tensor:
    """A random part of each image [B, H, W], resized to the whole size (bilinear): float [B, H, W].

    Area from `smallest` to 1, aspect ratio from 3/4 to 4/3 as far as it fits, random position.
    """
    n = len(images)
    device = images.device
    area = torch.empty(n, device=device).uniform_(smallest, 1)
    aspect = torch.empty(n, device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)  # width, height: [B, 2]
    center = (torch.rand(n, 2, device=device) * 2 - 1) * (1 - size)  # in [-1, 1]
    theta = torch.cat([torch.diag_embed(size), center[..., None]], 2)  # [B, 2, 3]
    whole = images[:, None].float()
    grid = functional.affine_grid(theta, list(whole.shape), align_corners=False)
    return functional.grid_sample(whole, grid, padding_mode="border", align_corners=False)[:, 0]


def to_pixels(processor: Any, images: Tensor) -> Tensor:
    """Gray values 0 to 255 [B, H, W] as the tower's own processor would pass them: [B, 3, H, W]."""
    pixels = images[:, None].expand(-1, 3, -1, -1)
    if processor.do_rescale:
        pixels = pixels * processor.rescale_factor
    if processor.do_normalize:
        mean, sd = (
            torch.tensor(values, device=pixels.device) for values in (processor.image_mean, processor.image_std)
        )
        pixels = (pixels - mean[:, None, None]) / sd[:, None, None]
    return pixels
