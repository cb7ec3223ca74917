"""Pictures with their reports, as the contrastive loop reads them: decoded once, tokenised, cropped at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from encoder.tower import Tower
from generator.confidence import split_sentences
from generator.prompts import PromptConfig
from generator.tiny import train_tokenizer
from raddraft.errors import RadDraftError
from raddraft.images import GrayMapping, ImageError, load_image
from raddraft.studies import Study

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from generator.contrast import ContrastConfig


@dataclass
class Pairs:
    """Pictures and reports of one split."""

    pictures: np.ndarray
    """Grey values 0 to 255 on the tower's input grid, uint8 [n, H, W]."""
    tokens: Tensor
    """[n, L], padded behind."""
    groups: Tensor
    """Equal where reports have the same sentences, see `key_of`: [n]."""

    def __len__(self) -> int:
        return len(self.groups)


def gather_pairs(
    studies: Mapping[str, Sequence[Study]],
    tower: Tower,
    config: ContrastConfig,
    gray_mapping: GrayMapping,
    out: Path,
    stack: ExitStack,
) -> tuple[dict[str, Pairs], PreTrainedTokenizerFast]:
    """Pictures and tokens of both splits; the tokenizer sees the training reports only."""
    answer = PromptConfig(targets=config.sections).answer
    texts = {split: [(study, text) for study in part if (text := answer(study))] for split, part in studies.items()}
    if len(texts["train"]) < 2 or len(texts["val"]) < 2:
        counts = ", ".join(f"{split} {len(part)}" for split, part in texts.items())
        raise RadDraftError(f"Studies with {', '.join(config.sections)}: {counts}; train and val need two or more each")
    tokenizer = train_tokenizer((text for _, text in texts["train"]), config.vocab_size)
    pairs = {}
    for split, part in texts.items():
        paths = [study.main_image.path for study, _ in part]
        pictures, readable = _decode(paths, tower, gray_mapping, config, out / f"{split}-pictures.bin", stack)
        kept = [part[row][1] for row in readable]
        if len(kept) < 2:
            raise RadDraftError(f"Split {split!r}: {len(kept)} of {len(part)} pictures can be read; two are needed")
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(key_of(text), len(numbers)) for text in kept]
        print(f"{split}: {len(kept)} pairs, {len(numbers)} different reports")
        pairs[split] = Pairs(pictures, _tokenise(kept, tokenizer, config.max_tokens), torch.tensor(groups))
    return pairs, tokenizer


def key_of(report: str) -> str:
    """The same for reports that differ in case, white space and order of the sentences only."""
    return " ".join(sorted(split_sentences(" ".join(report.lower().split()))))


def _tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, most: int) -> Tensor:
    """Begin token, text, end token, padding: [n, L], L at most `most`."""
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[start, *ids[: most - 2], end] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    length = max(map(len, rows))
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


class _Pictures(Dataset):
    """Grey values on the tower's input grid, uint8 [H, W]; or a sentence where a file cannot be read."""

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
    paths: Sequence[Path],
    tower: Tower,
    gray_mapping: GrayMapping,
    config: ContrastConfig,
    spill: Path,
    stack: ExitStack,
) -> tuple[np.ndarray, list[int]]:
    """Pictures [n, H, W] of the files that can be read, and their positions; `stack` removes the file `spill`."""
    from tqdm import tqdm

    shape = (len(paths), *tower.black_pixels.shape[-2:])
    held: np.ndarray
    if math.prod(shape) > config.memory_gb * 1e9:
        stack.callback(spill.unlink, missing_ok=True)
        held = np.memmap(spill, np.uint8, "w+", shape=shape)
    else:
        held = np.empty(shape, np.uint8)
    dataset = _Pictures(paths, tower.processor, gray_mapping)
    # With its own generator the loader draws nothing from the global one.
    loader: DataLoader = DataLoader(
        dataset, batch_size=32, num_workers=config.workers, collate_fn=list, generator=torch.Generator()
    )
    readable: list[int] = []
    found = (picture for batch in tqdm(loader, desc="pictures", unit="batch") for picture in batch)
    for row, picture in enumerate(found):
        if isinstance(picture, str):
            print(f"not trained on: {picture}")
        else:
            held[len(readable)] = picture
            readable.append(row)
    return held[: len(readable)], readable


def random_crops(pictures: Tensor, smallest: float) -> Tensor:
    """A random part of each picture [B, H, W], brought back to the whole size (bilinear): float [B, H, W].

    Area from `smallest` to 1, aspect from 3/4 to 4/3 as far as it fits, place at random.
    """
    n = len(pictures)
    device = pictures.device
    area = torch.empty(n, device=device).uniform_(smallest, 1)
    aspect = torch.empty(n, device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)  # width, height: [B, 2]
    centre = (torch.rand(n, 2, device=device) * 2 - 1) * (1 - size)  # in [-1, 1]
    theta = torch.cat([torch.diag_embed(size), centre[..., None]], 2)  # [B, 2, 3]
    whole = pictures[:, None].float()
    grid = functional.affine_grid(theta, list(whole.shape), align_corners=False)
    return functional.grid_sample(whole, grid, padding_mode="border", align_corners=False)[:, 0]


def to_pixels(processor: Any, pictures: Tensor) -> Tensor:
    """Grey values 0 to 255 [B, H, W] as the tower's own processor would hand them over: [B, 3, H, W]."""
    pixels = pictures[:, None].expand(-1, 3, -1, -1)
    if processor.do_rescale:
        pixels = pixels * processor.rescale_factor
    if processor.do_normalize:
        mean, sd = (
            torch.tensor(values, device=pixels.device) for values in (processor.image_mean, processor.image_std)
        )
        pixels = (pixels - mean[:, None, None]) / sd[:, None, None]
    return pixels
