"""The training loop: stages of projector, language model and tower training, with Accelerate.

A run folder holds config.yaml (resolved), log.jsonl, checkpoints/ and model/. An interrupted run that is started again
resumes bit-exactly from its last checkpoint.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from encoder.config import EncoderConfig
from encoder.features import FeatureStore, find_settings, open_store
from encoder.towers import load_tower
from generator.card import CARD, write_card
from generator.config import ModelConfig, TrainConfig
from generator.controls import shuffle_images
from generator.data import IGNORE, Batches, ExampleDataset, load_micro_batches, split_batch
from generator.drafter import Drafter, StoredFeatures
from generator.examples import Examples
from generator.foreign import ForeignTower
from generator.model import add_lora, choose_trainable, save, save_adapter
from generator.priors import find_priors
from generator.prompts import PromptConfig
from generator.reward_drafts import read_prompts
from generator.reward_stage import RewardStage, learn_from_rewards, make_rewards
from generator.runs import Progress, StagedRun, check_types, lr_factor, parameter_groups, split_studies
from generator.standardize import Standard, standardize
from generator.vlm import make_drafter
from raddraft.errors import DivergedError, RadDraftError, UnavailableError
from raddraft.files import whole_folder
from raddraft.locks import hold, holds_out
from raddraft.processes import (
    clip_gradients,
    is_main_process,
    make_accelerator,
    prepare_model,
    process_share,
    release_model,
)
from raddraft.runs import keep_config
from raddraft.studies import GrayMapping, Study, skim

if TYPE_CHECKING:
    from accelerate import Accelerator

FEW_STEPS = 10
"""Stages of fewer optimizer steps are pointed out."""


def run_training(
    manifest: Path,
    out: Path,
    model: ModelConfig,
    prompt: PromptConfig,
    config: TrainConfig,
    gray_mapping: GrayMapping = "window",
    features: Path | None = None,
    sources: list[str] | None = None,
    shuffled: bool = False,
    store: FeatureStore | None = None,
) -> Path:
    """Train on a manifest in a run folder, write the model card, and return the model's folder.

    Args:
        manifest: the `studies.jsonl`; the test split is not used.
        out: the run folder; a run that stands there resumes.
        model, prompt, config, gray_mapping, features, store: as for `train`.
        sources: `source` of the studies to use; by default all.
        shuffled: train on the images of other subjects, a control, which gets no card.

    Raises:
        RadDraftError: as `train`; a run of another recipe is in the folder, or another process writes to it.
    """
    if features and not config.cached:
        raise RadDraftError(f"--features {features} is for stored features; add --train.cached")
    parts = split_studies(manifest, sources)
    recipe: dict[str, Any] = {"model": asdict(model), "prompt": asdict(prompt), "train": asdict(config)}
    recipe |= {"studies": manifest.absolute(), "gray_mapping": gray_mapping, "features": features, "sources": sources}
    with hold(out):
        keep_config(out / "config.yaml", recipe | {"control": "shuffled-images" if shuffled else None})
        if shuffled:
            parts = {split: shuffle_images(part) if part else part for split, part in parts.items()}
        folder = train(parts, out, model, prompt, config, gray_mapping, features, store)
        if is_main_process() and not shuffled:
            write_card(folder, manifest, parts, model, prompt, config)
    return folder


@holds_out
def train(
    studies: Mapping[str, Sequence[Study]],
    out: Path,
    model_config: ModelConfig,
    prompt: PromptConfig,
    config: TrainConfig,
    gray_mapping: GrayMapping = "window",
    features: Path | None = None,
    store: FeatureStore | None = None,
) -> Path:
    """Train a drafting model and return the folder it is saved in.

    Args:
        studies: split -> studies: train, and val unless config.eval_every is 0.
        out: the run folder.
        model_config, prompt, config, gray_mapping: the recipe.
        features: folder of stored features, for `config.cached`; by default `features` in the run folder.
        store: for `config.cached`, the features themselves: `Drafter.features` of every image.

    Raises:
        RadDraftError: nothing to train on or to validate with, a prompt too long, parts that do not fit together.
        DivergedError: the loss is not finite; the last checkpoint is kept.
        UnavailableError: no image of a step, or of the val split, can be read.
    """
    from accelerate.utils import set_seed
    from tqdm import tqdm

    check_types(model_config, config)
    accelerator = make_accelerator(out, config.precision, config.trackers, "train.shard")
    set_seed(config.seed)
    drafter = make_drafter(model_config, prompt, gray_mapping)
    drafter.is_synthetic = all(study.is_synthetic for study in skim(studies["train"]))
    validate = config.eval_every != 0
    examples = {split: _encode(drafter, studies, split) for split in (("train", "val") if validate else ("train",))}
    if prompt.prior and not find_priors(studies["train"]):
        raise RadDraftError(
            "prompt.prior: no training study has an earlier one of its subject; the manifest must state `prior`, "
            "`study_date` or `study_order`"
        )
    counts = ", ".join(f"{split} {len(part)} of {len(studies[split])} studies" for split, part in examples.items())
    accelerator.print(f"{counts}; processes: {accelerator.num_processes}")

    model: nn.Module = drafter.model
    tower: Any = drafter.model.get_encoder(modality="image")
    if isinstance(tower, ForeignTower) and any(stage.trains_tower for stage in config.stages):
        raise RadDraftError(
            f"train.stages: the tower {model_config.tower!r} cannot train, because a LLaVA model cannot hold it; use "
            "tower: frozen"
        )
    if config.cached:
        encoder = EncoderConfig(
            tower=model_config.tower or model_config.vlm,
            image_size=model_config.image_size,
            gray_mapping=gray_mapping,
            precision=model_config.dtype,
            workers=config.workers,
            features=features or out / "features",
        )
        store = store or _store_features(accelerator, drafter, examples, encoder)
        drafter.model.model.vision_tower = StoredFeatures()
    standard = standardize(drafter, store, examples["train"].images()) if config.standardize and store else None
    if config.activation_checkpointing:
        drafter.model.activation_checkpointing_enable()
    if config.uses_lora:
        model = add_lora(model, config.lora)
    # For all stages at once, since sharded parameters keep their type.
    chosen = [set(choose_trainable(model, stage.projector, stage.lm, stage.tower)) for stage in config.stages]
    datasets = {split: drafter.dataset(part, store) for split, part in examples.items()}
    per_epoch = [math.ceil(len(datasets["train"]) / config.batch_of(stage)) for stage in config.stages]
    steps_of = [max(1, round(stage.epochs * one)) for stage, one in zip(config.stages, per_epoch, strict=True)]
    run = StagedRun(out, accelerator)
    progress = run.find_progress()
    by_reward = {}
    for number, stage in enumerate(config.stages):
        if stage.reward and number >= progress.stage:
            prompts = {split: read_prompts(drafter, studies[split], stage.reward, store) for split in examples}
            by_reward[number] = RewardStage(number, stage, config, drafter, prompts["train"], prompts.get("val"))
            make_rewards(by_reward[number])  # whether its metrics can run is to be known before hours of other stages
    unreadable: set[str] = set()
    torch.manual_seed(config.seed + accelerator.process_index)  # dropout differs between processes
    for number, stage in enumerate(config.stages):
        run.trained |= chosen[number]
        if number < progress.stage:
            continue
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen[number])
        run.restore(model)
        wrapped = prepare_model(model, accelerator, config.shard)
        groups = parameter_groups(model, stage.weight_decay)
        optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=stage.peak, betas=(0.9, stage.beta2)))
        run.restore(model, optimizer)
        steps = steps_of[number]
        run.earlier_steps = sum(steps_of[:number])
        eval_every = config.eval_every or per_epoch[number]
        accelerator.print(_describe(model, number, config, steps))
        if number in by_reward:
            learn_from_rewards(by_reward[number], model, wrapped, optimizer, accelerator, run, progress, steps)
            steps = progress.step  # so the loop below has nothing to do
        hidden = number in by_reward or not accelerator.is_main_process
        bar = tqdm(total=steps, initial=progress.step, unit="step", disable=hidden)
        batches = _batches(datasets["train"], examples["train"], config, number, progress.step, steps, accelerator)
        while progress.step < steps and not progress.stopped:
            started = time.perf_counter()
            wrapped.train()
            if not stage.trains_tower:
                tower.eval()
            lr = stage.peak * lr_factor(progress.step, steps, stage.warmup, stage.schedule)
            for group in optimizer.param_groups:
                group["lr"] = lr
            micro_batches, tokens = next(batches)
            sums = torch.zeros(2, device=accelerator.device)
            for index, batch in enumerate(micro_batches):
                for sentence in sorted(set(batch["errors"]) - unreadable):
                    tqdm.write(f"not trained on: {sentence}")
                    unreadable.add(sentence)
                last = index == len(micro_batches) - 1
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    loss = summed_loss(wrapped, batch, accelerator.device) / tokens
                    # Gradients are averaged over processes; this loss is already divided by the tokens of all.
                    accelerator.backward(loss * accelerator.num_processes)
                sums += torch.stack([loss.detach(), (batch["labels"] != IGNORE).sum().to(loss)])
            loss_value, readable = accelerator.reduce(sums).tolist()
            where = f"step {progress.step + 1} of stage {number + 1}"
            if not readable:
                raise UnavailableError(f"No image of {where} can be read; the files are named above")
            if not math.isfinite(loss_value):
                raise DivergedError(
                    f"The loss is {loss_value} at {where} (lr {lr:.3g}); the last good checkpoint is {run.newest}. "
                    "Try a lower lr, or precision bf16 instead of fp16"
                )
            accelerator.unscale_gradients()
            norm = clip_gradients(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            speed = config.batch_size / (time.perf_counter() - started)
            if progress.step % config.log_every == 0:
                run.note(progress, {"loss": loss_value, "lr": lr, "grad_norm": norm, "studies_per_second": speed})
            bar.set_description(f"stage {number + 1} loss {loss_value:.3f}", refresh=False)
            bar.update()
            if validate and (progress.step % eval_every == 0 or progress.step == steps):
                val_loss = _validate(wrapped, datasets["val"], examples["val"], config, accelerator)
                run.note(progress, {"val_loss": val_loss})
                if val_loss < progress.best:
                    progress.best, progress.bad_rounds = val_loss, 0
                    run.save_best(run.select(model))
                else:
                    progress.bad_rounds += 1
                    progress.stopped = config.patience is not None and progress.bad_rounds >= config.patience
            if progress.step % config.save_every == 0 and progress.step < steps:
                run.save_progress(model, progress, optimizer)
        bar.close()
        release_model(model, wrapped, accelerator)
        if validate:
            run.load_best(model)
        progress = Progress(stage=number + 1)
        run.save_progress(model, progress)

    run.restore(model)  # if all stages were done before, the weights are still to be loaded
    if store is not None:
        drafter.model.model.vision_tower = tower
    if accelerator.is_main_process:
        _save_model(model, drafter, model_config, config, run, standard)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out / "model"


def _encode(drafter: Drafter, studies: Mapping[str, Sequence[Study]], split: str) -> Examples:
    """The studies of a split that have a report, as token ids.

    Raises:
        RadDraftError: there are none.
    """
    part = studies.get(split, ())
    examples = drafter.encode(part, answers=True)
    if examples:
        return examples
    if part:
        counts = Counter(name for study in skim(part) for name, text in study.sections.items() if text.strip())
        found = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
        raise RadDraftError(
            f"No study in split {split!r} has the sections to write: {', '.join(drafter.prompt.targets)}; sections of "
            f"its {len(part)} studies: {found}. "
            + ("Choose with prompt.targets" if counts else "`raddraft prepare folder … --table FILE.csv` adds reports")
        )
    hint = "" if split == "train" else ", or train without validation (train.eval_every: 0)"
    raise RadDraftError(f"No study in split {split!r}; move some subjects to it in the manifest{hint}")


def summed_loss(model: nn.Module, batch: dict[str, Any], device: torch.device) -> torch.Tensor:
    """Cross-entropy of the reports' tokens, summed over the batch. Logits are made for the reports' columns only."""
    labels = batch["labels"].to(device)  # [B, A]
    inputs = {name: value.to(device) for name, value in batch.items() if name not in ("labels", "errors")}
    logits = model(**inputs, logits_to_keep=labels.shape[1], use_cache=False).logits  # [B, A, V]
    logits = logits[:, -labels.shape[1] :]  # a few models ignore logits_to_keep
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )


def _batches(
    dataset: ExampleDataset,
    examples: Examples,
    config: TrainConfig,
    stage: int,
    start: int,
    steps: int,
    accelerator: Accelerator,
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """For each step from `start`: this process's micro-batches, and the number of report tokens in all of them."""

    def share(batch: Sequence[int]) -> list[list[int]]:
        return split_batch(batch, *process_share(accelerator), config.micro_batch_size)

    steps_per_epoch = math.ceil(len(examples) / config.batch_size)
    while start < steps:
        epoch, first = divmod(start, steps_per_epoch)
        order = Batches(len(examples), examples.lengths, config.batch_size, f"{config.seed} {stage} {epoch}")
        numbers = range(first, min(first + steps - start, steps_per_epoch))
        parts = (part for number in numbers for part in share(order[number]))
        loader = load_micro_batches(dataset, parts, config.workers)
        for number in numbers:
            yield list(islice(loader, len(share(order[number])))), examples.learned(order[number])
        start += len(numbers)


@torch.no_grad()
def _validate(
    model: nn.Module, dataset: ExampleDataset, examples: Examples, config: TrainConfig, accelerator: Accelerator
) -> float:
    """Mean cross-entropy per report token of the val split."""
    model.eval()
    lengths = examples.lengths(range(len(examples)))
    order = sorted(range(len(examples)), key=lambda row: lengths[row])
    parts = split_batch(order, *process_share(accelerator), config.micro_batch_size)
    sums = torch.zeros(2, device=accelerator.device)
    for batch in load_micro_batches(dataset, parts, config.workers):
        loss = summed_loss(model, batch, accelerator.device)
        sums += torch.stack([loss, (batch["labels"] != IGNORE).sum().to(loss)])
    loss, tokens = accelerator.reduce(sums).tolist()
    if not tokens:
        raise UnavailableError("No image of the val split can be read")
    return loss / tokens


def _store_features(
    accelerator: Accelerator, drafter: Drafter, examples: Mapping[str, Examples], encoder: EncoderConfig
) -> FeatureStore:
    """Features of all images of the examples, in types in which they are stored already; processes share the work.

    The tower is loaded by itself, as `raddraft features` does it, so that what that has stored is found.
    """
    paths = [path for part in examples.values() for images in part.images() for path in images]
    kept = drafter.features  # refused where a model gives none, before a tower is looked for
    tower = load_tower(encoder.tower, encoder.image_size)
    encoder = find_settings(tower, paths, kept, encoder)
    tower.model.to(accelerator.device, getattr(torch, encoder.precision))
    accelerator.print(f"features: {encoder.precision}, stored as {encoder.dtype} in {encoder.features}")
    return open_store(tower, paths, kept, encoder, accelerator)


def _describe(model: nn.Module, number: int, config: TrainConfig, steps: int) -> str:
    training = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    size = config.batch_of(config.stages[number])
    few = f" (few; for more, lower the batch size, {size}, or raise epochs)" if steps < FEW_STEPS else ""
    return f"stage {number + 1} of {len(config.stages)}: {training:,} of {total:,} parameters train, {steps} steps{few}"


def _save_model(
    model: Any,
    drafter: Drafter,
    model_config: ModelConfig,
    config: TrainConfig,
    run: StagedRun,
    standard: Standard | None,
) -> None:
    """Save the model with adapters merged; and by themselves, where the model that they belong to can be loaded."""
    from accelerate.utils import set_seed

    if model_config.quantize != "no" or config.shard:  # put it together again from its parts and the last checkpoint
        set_seed(config.seed)
        drafter = make_drafter(replace(model_config, quantize="no"), drafter.prompt, drafter.gray_mapping)
        model = add_lora(drafter.model, config.lora) if config.uses_lora else drafter.model
        run.restore(model)
    if config.uses_lora:
        if model_config.vlm:  # a tower and a language model are one model only here, with a projector of this run
            with whole_folder(run.folder / "adapter") as temporary:
                save_adapter(model, temporary, run.trained, model_config.vlm)
        model = model.merge_and_unload()
    if standard:
        standard.fold(model.model.multi_modal_projector.linear_1)
    model = model.to(getattr(torch, model_config.dtype)).eval()
    with whole_folder(run.folder / "model") as temporary:
        save(replace(drafter, model=model), temporary)
        card = run.folder / "model" / CARD  # of a run that was done before, with its scores
        if card.is_file():
            shutil.copy2(card, temporary)
