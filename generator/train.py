"""The training loop: stages of projector, language model and tower training, with Accelerate.

A run folder holds config.yaml (resolved), log.jsonl, checkpoints/ and model/. Starting the same command again goes on
where the last checkpoint stands, and gives the same numbers as a run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from encoder.features import FeatureStore, compute_features, digest_files, read_features
from generator.checkpoints import Progress, StagedRun
from generator.config import ModelConfig, TrainConfig
from generator.data import IGNORE, Example, ExampleDataset, batch_indices, load_micro_batches, split_batch
from generator.foreign import ForeignTower
from generator.model import Drafter, add_lora, choose_trainable, save
from generator.priors import find_priors
from generator.prompts import PromptConfig
from generator.vlm import make_drafter
from raddraft.errors import DivergedError, RadDraftError, UnavailableError
from raddraft.processes import WAIT, check_launch, clip_gradients, prepare_model, release_model
from raddraft.studies import GrayMapping, Study

if TYPE_CHECKING:
    from accelerate import Accelerator


class StoredFeatures(nn.Module):
    """Stands in for the frozen tower: what it is given as pixels are hidden states [B, T, D] computed before."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(hidden_states=defaultdict(lambda: pixel_values))  # type: ignore[arg-type]


def train(
    studies: Mapping[str, Sequence[Study]],
    out: Path,
    model_config: ModelConfig,
    prompt: PromptConfig,
    config: TrainConfig,
    gray_mapping: GrayMapping = "window",
) -> Path:
    """Train a drafting model and return the folder it is saved in.

    Args:
        studies: split -> studies; `train`, and `val` unless config.eval_every is 0. The test split is not for here.
        out: the run folder.
        model_config, prompt, config, gray_mapping: the recipe.

    Raises:
        ValueError: nothing to train on or to validate with, a prompt too long, parts that do not fit together.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
        OSError: no picture of a step, or of the val split, can be read.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
    from tqdm import tqdm

    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=config.trackers or None,
        project_dir=out,
        # Every process computes the same buffers; without this DDP would send them at each validation too.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=WAIT),
        ],
    )
    check_launch(accelerator, "train.shard")
    if config.trackers:
        accelerator.init_trackers("raddraft")
    if model_config.dtype == "bfloat16" and config.precision != "bf16":
        raise RadDraftError("model.dtype is bfloat16, so train.precision must be bf16")
    if model_config.quantize != "no" and any(stage.lm == "full" for stage in config.stages):
        raise RadDraftError(
            f"model.quantize is {model_config.quantize}, so the language model can train by lm: lora only"
        )
    if model_config.quantize != "no" and config.shard:
        raise RadDraftError(
            f"model.quantize is {model_config.quantize}, and packed weights cannot be cut; leave train.shard"
        )
    set_seed(config.seed)
    drafter = make_drafter(model_config, prompt, gray_mapping)
    examples = {split: drafter.encode(part, answers=True) for split, part in studies.items()}
    validate = config.eval_every != 0
    for split in ("train", "val") if validate else ("train",):
        if not examples.get(split):
            raise RadDraftError(f"No study in split {split!r} has the sections to write: {', '.join(prompt.targets)}")
    if prompt.prior and not find_priors(studies["train"]):
        raise RadDraftError(
            "prompt.prior: no training study has an earlier one of its subject; the manifest is to state `prior`, "
            "`study_date` or `study_order`"
        )
    counts = ", ".join(f"{split}: {len(part)} studies" for split, part in examples.items())
    accelerator.print(f"{counts}; on {accelerator.num_processes} processes")

    model: nn.Module = drafter.model
    store = None
    tower: Any = drafter.model.get_encoder(modality="image")
    if isinstance(tower, ForeignTower) and any(stage.tower not in ("frozen", 0) for stage in config.stages):
        raise RadDraftError(
            f"train.stages: a stage trains the tower {model_config.tower!r}, which a LLaVA model cannot hold, so that "
            "it serves as it is; use tower: frozen"
        )
    if config.features == "cached":
        store = _cache_features(accelerator, drafter, examples, config.cache or out / "features", config.workers)
        drafter.model.model.vision_tower = StoredFeatures()
    if config.activation_checkpointing:
        drafter.model.activation_checkpointing_enable()
    if any(stage.lm == "lora" for stage in config.stages):
        model = add_lora(model, config.lora)
    # For all stages at once, since parameters of a model that is shared out keep their type.
    chosen = [set(choose_trainable(model, stage.projector, stage.lm, stage.tower)) for stage in config.stages]
    datasets = {split: drafter.dataset(part, store) for split, part in examples.items()}
    steps_per_epoch = math.ceil(len(datasets["train"]) / config.batch_size)
    steps_of = [max(1, round(stage.epochs * steps_per_epoch)) for stage in config.stages]
    run = StagedRun(out, accelerator)
    progress = run.find_progress()
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
        groups = _parameter_groups(model, stage.weight_decay)
        optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, stage.beta2)))
        run.restore(model, optimizer)
        n_steps = steps_of[number]
        run.earlier_steps = sum(steps_of[:number])
        eval_every = config.eval_every or steps_per_epoch
        accelerator.print(_describe(model, number, len(config.stages), n_steps))
        bar = tqdm(total=n_steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
        batches = _steps(datasets["train"], config, number, progress.step, n_steps, accelerator)
        while progress.step < n_steps and not progress.stopped:
            started = time.perf_counter()
            wrapped.train()
            if stage.tower in ("frozen", 0):
                tower.eval()
            lr = stage.lr * lr_factor(progress.step, n_steps, stage.warmup, stage.schedule)
            for group in optimizer.param_groups:
                group["lr"] = lr
            micro_batches, n_tokens = next(batches)
            sums = torch.zeros(2, device=accelerator.device)
            for index, batch in enumerate(micro_batches):
                for sentence in sorted(set(batch["errors"]) - unreadable):
                    tqdm.write(f"not trained on: {sentence}")
                    unreadable.add(sentence)
                last = index == len(micro_batches) - 1
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    loss = summed_loss(wrapped, batch, accelerator.device) / n_tokens
                    # Gradients are averaged over processes; this loss is already divided by the tokens of all.
                    accelerator.backward(loss * accelerator.num_processes)
                sums += torch.stack([loss.detach(), (batch["labels"] != IGNORE).sum().to(loss)])
            loss_value, n_readable = accelerator.reduce(sums).tolist()
            if not n_readable:
                raise UnavailableError(
                    f"No picture of step {progress.step + 1} of stage {number + 1} can be read; "
                    "the files are named above"
                )
            if not math.isfinite(loss_value):
                raise DivergedError(
                    f"The loss is {loss_value} at step {progress.step + 1} of stage {number + 1} (lr {lr:.3g}); the "
                    f"last good checkpoint is {run.newest}. Try a lower lr, or precision bf16 instead of fp16"
                )
            accelerator.unscale_gradients()
            norm = clip_gradients(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            speed = config.batch_size / (time.perf_counter() - started)
            where = {"stage": number, "step": progress.step}
            if progress.step % config.log_every == 0:
                numbers = {"loss": loss_value, "lr": lr, "grad_norm": norm, "studies_per_second": speed}
                run.log(where | numbers, run.earlier_steps + progress.step)
            bar.set_description(f"stage {number + 1} loss {loss_value:.3f}", refresh=False)
            bar.update()
            if validate and (progress.step % eval_every == 0 or progress.step == n_steps):
                val_loss = _validate(wrapped, datasets["val"], config, accelerator)
                run.log(where | {"val_loss": val_loss}, run.earlier_steps + progress.step)
                if val_loss < progress.best:
                    progress.best, progress.bad_rounds = val_loss, 0
                    run.save_best(run.select(model))
                else:
                    progress.bad_rounds += 1
                    progress.stopped = config.patience is not None and progress.bad_rounds >= config.patience
            if progress.step % config.save_every == 0 and progress.step < n_steps:
                run.save_progress(model, progress, optimizer)
        bar.close()
        release_model(model, wrapped, accelerator)
        if validate:
            run.load_best(model)
        progress = Progress(stage=number + 1)
        run.save_progress(model, progress)

    run.restore(model)  # where every stage had been done before, the weights are still to be loaded
    if store is not None:
        drafter.model.model.vision_tower = tower
    if accelerator.is_main_process:
        if model_config.quantize != "no" or config.shard:
            model, drafter = _build_again(drafter, model_config, config, run)
        _save_model(model, drafter, out, model_config.dtype)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out / "model"


def summed_loss(model: nn.Module, batch: dict[str, Any], device: torch.device) -> torch.Tensor:
    """Cross-entropy of the reports' tokens, summed over the batch. Logits are made for the reports' columns only."""
    labels = batch["labels"].to(device)  # [B, A]
    inputs = {name: value.to(device) for name, value in batch.items() if name not in ("labels", "errors")}
    logits = model(**inputs, logits_to_keep=labels.shape[1], use_cache=False).logits  # [B, A, V]
    logits = logits[:, -labels.shape[1] :]  # a few models take logits_to_keep without heeding it
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )


def lr_factor(step: int, n_steps: int, warmup: float, schedule: Literal["cosine", "constant"]) -> float:
    """Part of the peak learning rate at `step` (from 0): linear warm-up, then constant or half a cosine to zero."""
    n_warmup = round(warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def _steps(
    dataset: ExampleDataset, config: TrainConfig, stage: int, start: int, n_steps: int, accelerator: Accelerator
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """For each step from `start`: this process's micro-batches, and the number of report tokens in all of them."""
    lengths = [len(example) for example in dataset.examples]
    steps_per_epoch = math.ceil(len(lengths) / config.batch_size)
    rank, world = accelerator.process_index, accelerator.num_processes
    while start < n_steps:
        epoch, first = divmod(start, steps_per_epoch)
        order = batch_indices(lengths, config.batch_size, f"{config.seed} {stage} {epoch}")
        batches = order[first : first + n_steps - start]
        plan = [split_batch(batch, rank, world, config.micro_batch_size) for batch in batches]
        loader = load_micro_batches(dataset, [part for parts in plan for part in parts], config.workers)
        for batch, parts in zip(batches, plan, strict=True):
            yield list(islice(loader, len(parts))), sum(dataset.examples[i].n_learnt for i in batch)
        start += len(batches)


@torch.no_grad()
def _validate(model: nn.Module, dataset: ExampleDataset, config: TrainConfig, accelerator: Accelerator) -> float:
    """Mean cross-entropy per report token of the validation split."""
    model.eval()
    order = sorted(range(len(dataset)), key=lambda i: len(dataset.examples[i]))
    parts = split_batch(order, accelerator.process_index, accelerator.num_processes, config.micro_batch_size)
    sums = torch.zeros(2, device=accelerator.device)
    for batch in load_micro_batches(dataset, parts, config.workers):
        loss = summed_loss(model, batch, accelerator.device)
        sums += torch.stack([loss, (batch["labels"] != IGNORE).sum().to(loss)])
    loss, n_tokens = accelerator.reduce(sums).tolist()
    if not n_tokens:
        raise UnavailableError("No picture of the val split can be read")
    return loss / n_tokens


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What trains, with weight decay on matrices only."""
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in training if parameter.ndim >= 2]
    vectors = [parameter for parameter in training if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _cache_features(
    accelerator: Accelerator, drafter: Drafter, examples: Mapping[str, Sequence[Example]], folder: Path, workers: int
) -> FeatureStore:
    """Features of all images of the examples; every process computes its share, and then reads them all."""
    tower = drafter.tower
    tower.model.to(accelerator.device)
    paths = [path for part in examples.values() for example in part for path in example.images]
    process = (accelerator.process_index, accelerator.num_processes)
    digest_files(paths[process[0] :: process[1]], folder, workers)  # else every process would read every file
    accelerator.wait_for_everyone()
    computed = compute_features(tower, paths, folder, drafter.features, workers=workers, process=process)
    for sentence in computed.errors:
        print(f"no features: {sentence}")
    accelerator.wait_for_everyone()
    store = read_features(tower, paths, folder, drafter.features)
    tower.model.to("cpu")
    return store


def _describe(model: nn.Module, number: int, n_stages: int, n_steps: int) -> str:
    training = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"stage {number + 1} of {n_stages}: {training:,} of {total:,} parameters train, {n_steps} steps"


def _build_again(
    drafter: Drafter, model_config: ModelConfig, config: TrainConfig, run: StagedRun
) -> tuple[nn.Module, Drafter]:
    """The whole model in its own type, from its parts and the newest checkpoint; what trained was packed or cut."""
    from accelerate.utils import set_seed

    set_seed(config.seed)
    drafter = make_drafter(replace(model_config, quantize="no"), drafter.prompt, drafter.gray_mapping)
    lora = any(stage.lm == "lora" for stage in config.stages)
    model = add_lora(drafter.model, config.lora) if lora else drafter.model
    run.restore(model)
    return model, drafter


def _save_model(model: Any, drafter: Drafter, out: Path, dtype: str) -> None:
    """Save the model with adapters merged, and the adapters by themselves."""
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out / "adapter")
        model = model.merge_and_unload()
    drafter = replace(drafter, model=model.to(getattr(torch, dtype)).eval())
    save(drafter, out / "model")
