"""A tower trained on pictures and their reports, as CLIP: what image-only pre-training is compared with.

    contrast({"train": …, "val": …}, out, load_tower("runs/demo/tower"), ContrastConfig(epochs=30))

An image encoder (any plain vision transformer: its class token, projected) and a small text transformer, trained from
nothing on the reports, learn to give a picture and its own report the same direction and all others different ones
(Radford et al., 2021, arXiv 2103.00020). What stays is the tower, an ordinary folder.

Reports repeat: "The lungs are clear. Heart size is normal." is no wrong answer for a second normal picture in the
batch. Reports of the same sentences, in any order, share the target between them (for those that are the same letter by
letter the plain loss comes to that too). The same in other words still counts as different.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoder.tower import NotPlainError, Tower
from generator.checkpoints import StagedRun
from generator.pairs import Pairs, gather_pairs, random_crops, to_pixels
from generator.train import lr_factor
from raddraft.errors import DivergedError, RadDraftError
from raddraft.files import whole_folder
from raddraft.studies import GrayMapping, Study

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_SCALE = math.log(100)
"""The temperature does not fall below 1 / 100, as in the paper (section 2.5)."""
TEXTS_AT_ONCE = 32


@dataclass
class ContrastConfig:
    """How the two encoders are trained. AdamW's constants and the temperature are those of the paper."""

    sections: list[str] = field(default_factory=lambda: ["findings"])
    """Sections of the report that are read; studies that lack one are left out."""
    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 128
    """Pairs in a step: each picture is told from the reports of all others, so more is harder."""
    lr: float = 5e-4
    """Peak learning rate of AdamW, down to 0 along a cosine; a tenth of it or less for a pretrained tower."""
    warmup: float = 0.05
    """Part of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.2
    """Decoupled, on matrices only."""
    smallest_crop: float = 0.6
    """Random crops hold this part of the picture or more. There are no flips: reports name sides."""
    width: int = 128
    """Of the space in which pictures and reports meet, and of the text transformer; a multiple of 32."""
    text_layers: int = 2
    """Blocks of the text transformer."""
    vocab_size: int = 2000
    """Tokens of the byte-level BPE that is trained on the training reports."""
    max_tokens: int = 128
    """Of a report; the rest is not read."""
    save_every: int = 200
    """Steps between checkpoints."""
    memory_gb: float = 8.0
    """Pictures are decoded once, 8 bits a pixel at the tower's size; what is more than this goes to a file in the run
    folder instead of memory."""
    workers: int = 2
    """Processes that decode."""
    seed: int = 0
    """Of new weights, order and crops."""

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("lr", self.lr > 0, "above 0"),
            ("smallest_crop", 0 < self.smallest_crop <= 1, "in (0, 1]"),
            ("width", self.width >= 32 and self.width % 32 == 0, "a multiple of 32"),
            ("max_tokens", self.max_tokens >= 3, "at least 3"),
        ):
            if not fine:
                raise RadDraftError(f"train.{name} must be {rule}, got {getattr(self, name)}")


class TwoEncoders(nn.Module):
    """A tower and a text transformer, each projected to one space; and the temperature between them."""

    def __init__(self, tower: Tower, tokenizer: PreTrainedTokenizerFast, config: ContrastConfig) -> None:
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

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> unit vectors [B, E]."""
        pooled = self.tower.encode(pixels, grad=True).pooled
        return functional.normalize(self.image_projection(pooled), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L], padded behind the end token -> unit vectors [B, E]."""
        lengths = tokens.ne(self.pad_id).sum(1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(TEXTS_AT_ONCE):  # of like length, so that little padding is computed
            part = tokens[rows, : int(lengths[rows].max())]
            parts.append(self.text_model(part, attention_mask=part.ne(self.pad_id).long()).pooler_output)
        pooled = torch.cat(parts)[order.argsort()]
        return functional.normalize(self.text_projection(pooled), dim=-1)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """Mean of the cross-entropies of picture -> report and report -> picture (Radford et al., 2021, figure 3).

    Where reports are the same, the target of each of their pictures is spread evenly over them, and the other way
    round. Without such reports it is the paper's loss.

    Args:
        images, texts: unit vectors [B, E], row by row of the same pair.
        scale: 1 / temperature, a scalar.
        groups: integers [B], equal where reports are the same.
    """
    logits = scale * images @ texts.T  # [B, B]
    same = (groups[:, None] == groups[None]).to(logits)
    target = same / same.sum(1, keepdim=True)  # the same in both directions, since `same` is symmetric
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def recalls(images: Tensor, texts: Tensor, groups: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k: parts of the pictures (reports) with a right report (picture) among the k nearest; 0 to 1.

    Each different report counts once. Right is any picture whose report is the same.

    Args:
        images, texts: unit vectors [n, E]. groups: as in `contrastive_loss`, [n].
    """
    first = torch.tensor([int((groups == group).nonzero()[0]) for group in groups.unique()])
    own = groups[:, None] == groups[first][None]  # [n, m]
    similarity = images @ texts[first].T
    found: dict[str, float] = {}
    for name, scores, right in (("image_to_text", similarity, own), ("text_to_image", similarity.T, own.T)):
        order = scores.argsort(dim=1, descending=True)
        hits = right.gather(1, order)
        found |= {f"{name}_r{k}": float(hits[:, :k].any(1).double().mean()) for k in ks}
    return found


def contrast(
    studies: Mapping[str, Sequence[Study]],
    out: Path,
    tower: Tower,
    config: ContrastConfig,
    gray_mapping: GrayMapping = "window",
) -> Path:
    """Train a tower on pictures and reports, and return the folder it is saved in: OUT/tower, of the lowest val loss.

    Started again it goes on from the last checkpoint, with the numbers of a run that was never stopped.

    Args:
        studies: train and val; of each study its main image.
        out: run folder: log.jsonl, checkpoints/, tower/.
        tower: a plain vision transformer, random or pretrained. All of it trains.
        config, gray_mapping: the recipe.

    Raises:
        ValueError: no plain vision transformer, several processes, too few studies with report and readable picture.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from tqdm import tqdm

    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise RadDraftError("A report is told from those of its own process only: run it in one, not in several")
    try:
        plain = tower.n_prefix >= 0 and hasattr(tower.processor, "do_resize")
    except NotPlainError:
        plain = False
    if not plain:
        raise RadDraftError(f"{tower.name} is no plain vision transformer with an image processor of transformers")
    set_seed(config.seed)
    run = StagedRun(out, accelerator)
    progress = run.find_progress()
    with ExitStack() as stack:
        pairs, tokenizer = gather_pairs(studies, tower, config, gray_mapping, out, stack)
        model = TwoEncoders(tower, tokenizer, config).to(accelerator.device)
        run.trained = {name for name, _ in model.named_parameters()}
        optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, 0.98), eps=1e-6)
        run.restore(model)
        run.restore(model, optimizer)
        n_batches = math.ceil(len(pairs["train"]) / config.batch_size)
        n_steps = config.epochs * n_batches
        bar = tqdm(total=n_steps, initial=progress.step, unit="step")
        for rows in _batches(len(pairs["train"]), n_batches, config.seed, progress.step, n_steps):
            started = time.perf_counter()
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(progress.step, n_steps, config.warmup, "cosine")
            loss = _loss(model, pairs["train"], rows, config.smallest_crop)
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
            where = {"stage": 0, "step": progress.step}
            numbers = {"loss": loss.item(), "lr": group["lr"], "temperature": math.exp(-model.log_scale.item())}
            run.log(
                where | numbers | {"images_per_second": len(rows) / (time.perf_counter() - started)},
                run.earlier_steps + progress.step,
            )
            bar.update()
            if progress.step % n_batches == 0:
                row = evaluate(model, pairs["val"], config.batch_size)
                run.log(where | row, run.earlier_steps + progress.step)
                bar.set_postfix(val_loss=row["val_loss"], r5=row["val_image_to_text_r5"])
                if row["val_loss"] < progress.best:
                    progress.best = row["val_loss"]
                    run.save_best(run.select(model))
            if progress.step % config.save_every == 0 or progress.step == n_steps:
                run.save_progress(model, progress, optimizer)
        bar.close()
    run.load_best(model)
    return _save_tower(tower, out / "tower")


def _loss(model: TwoEncoders, pairs: Pairs, rows: Tensor, smallest_crop: float = 1.0) -> Tensor:
    """Of the pairs in these rows; crops are drawn unless they hold the whole picture."""
    device = model.log_scale.device
    pictures = torch.from_numpy(pairs.pictures[rows.numpy()]).to(device)
    crops = random_crops(pictures, smallest_crop) if smallest_crop < 1 else pictures.float()
    images = model.encode_images(to_pixels(model.tower.processor, crops))
    texts = model.encode_texts(pairs.tokens[rows].to(device))
    return contrastive_loss(images, texts, model.log_scale.exp(), pairs.groups[rows].to(device))


@torch.no_grad()
def evaluate(model: TwoEncoders, pairs: Pairs, batch_size: int) -> dict[str, float]:
    """val_loss, of batches in a fixed order, and `recalls` over the whole split."""
    model.eval()
    device = model.log_scale.device
    batches = torch.arange(len(pairs)).tensor_split(math.ceil(len(pairs) / batch_size))
    total = sum(float(_loss(model, pairs, rows)) * len(rows) for rows in batches)
    images, texts = [], []
    for rows in batches:
        pictures = torch.from_numpy(pairs.pictures[rows.numpy()]).to(device).float()
        images.append(model.encode_images(to_pixels(model.tower.processor, pictures)).cpu())
        texts.append(model.encode_texts(pairs.tokens[rows].to(device)).cpu())
    found = recalls(torch.cat(images), torch.cat(texts), pairs.groups)
    return {"val_loss": total / len(pairs)} | {f"val_{name}": value for name, value in found.items()}


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: not on biases, norms or the temperature."""
    parameters = list(model.parameters())
    return [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]


def _batches(n: int, n_batches: int, seed: int, start: int, n_steps: int) -> Iterator[Tensor]:
    """Rows of each step from `start`: every epoch all n in another order, in batches of nearly equal size."""
    for epoch in range(start // n_batches, n_steps // n_batches):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
        first = start % n_batches if epoch == start // n_batches else 0
        yield from order.tensor_split(n_batches)[first:]


def _save_tower(tower: Tower, folder: Path) -> Path:
    """Model and image processor as an ordinary folder, whole or not at all."""
    with whole_folder(folder) as temporary:
        tower.model.eval().requires_grad_(True).cpu().save_pretrained(temporary)
        tower.processor.save_pretrained(temporary)
    return folder
