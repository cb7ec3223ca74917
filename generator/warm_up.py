"""A random tower's first lessons, before a decoder learns from it: what the reports of its images say.

A decoder's loss is mostly about wording, so a tower that learns from it alone learns slowly. Here one linear layer on
the mean patch tells from an image which words its report has (as in Joulin et al., arXiv 1511.02251), and which
observations a rule-based labeler reads in it. Nothing but the report is used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from encoder.encoding import prepare_pixels
from encoder.towers import load_tower
from generator.clip import random_crops
from generator.config import TinyConfig, WarmUpConfig
from generator.prompts import PromptConfig
from generator.runs import lr_factor, parameter_groups
from generator.tiny import make_levit, make_lm
from metrics.rules import label
from raddraft.files import whole_folder
from raddraft.studies import Study


def make_parts(
    folder: Path, studies: Sequence[Study], prompt: PromptConfig, config: TinyConfig, warm: WarmUpConfig, seed: int
) -> None:
    """Save `folder`/tower and `folder`/lm with random weights, and `folder`/warm, the tower after its warm-up.

    The tokenizer is trained on reports and prompts.
    """
    texts = [prompt.answer(study) or "" for study in studies]
    contents = [prompt.messages(study)[0]["content"] for study in studies]
    texts += [part["text"] for content in contents for part in content if part["type"] == "text"]
    make_levit(folder / "tower", hidden=config.tower_width, layers=config.tower_layers, seed=seed)
    make_lm(folder / "lm", texts, hidden=config.lm_width, layers=config.lm_layers, seed=seed)
    warm_up(folder / "tower", folder / "warm", studies, prompt, warm, seed)


def warm_up(
    start: Path, out: Path, studies: Sequence[Study], prompt: PromptConfig, config: WarmUpConfig, seed: int
) -> None:
    """Train a tower on words and observations of reports, and save it.

    Args:
        start: folder of a tower whose processor gives the three channels of a gray image the same values.
        out: folder to save it in.
        studies: to train on, each with a report.
        prompt: says which sections are the report.
        config: how long and how fast.
        seed: of the linear layer, the order and the crops.

    Raises:
        ImageError: an image cannot be read.
    """
    from tqdm import tqdm

    torch.manual_seed(seed)
    tower = load_tower(str(start))
    files = [study.main_image.path for study in studies]
    gray = torch.stack([prepare_pixels(tower.processor, file, "window")[0] for file in files])  # [n, H, W]
    targets = find_targets([prompt.answer(study) or "" for study in studies])
    head = nn.Linear(tower.shape[2], sum(one.shape[1] for one in targets))
    groups = parameter_groups(nn.ModuleList([tower.model.train(), head]), config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    per_epoch = max(1, len(files) // config.batch_size)
    steps = config.epochs * per_epoch
    bce = nn.functional.binary_cross_entropy_with_logits
    bar = tqdm(total=steps, desc="tower", unit="step")
    for step in range(steps):
        if step % per_epoch == 0:
            batches = torch.randperm(len(files)).tensor_split(per_epoch)
        rows = batches[step % per_epoch]
        pixels = random_crops(gray[rows], config.smallest_crop)[:, None].expand(-1, 3, -1, -1)
        logits = head(tower.encode(pixels, grad=True).patches.mean((1, 2)))
        parts = logits.split([one.shape[1] for one in targets], 1)
        losses = [bce(part, one[rows]) for part, one in zip(parts, targets, strict=True)]
        loss = torch.stack(losses).sum()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(step, steps, config.warmup)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_description(f"tower loss {loss.item():.3f}", refresh=False)
        bar.update()
    bar.close()
    with whole_folder(out) as temporary:
        tower.model.eval().save_pretrained(temporary)
        tower.processor.save_pretrained(temporary)


def find_targets(reports: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Words [n, W] and observations [n, 14] of reports, 1 where a report has the word or states the observation.

    Words are those of 1 % to half of the reports: the others are too rare to learn, or say nothing.
    """
    words = [set(re.findall(r"[a-z]+", report.lower())) for report in reports]
    counts = Counter(word for one in words for word in one)
    known = sorted(word for word, count in counts.items() if 0.01 <= count / len(reports) <= 0.5)
    has = torch.tensor([[float(word in one) for word in known] for one in words])
    states = torch.tensor([[float(value == 1) for value in label(report).values()] for report in reports])
    return has, states
