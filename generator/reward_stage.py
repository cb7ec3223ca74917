"""The loop of a reward stage: sample drafts, score them, make the better ones more likely, validate along the way.

A step is on-policy and exact on resume: drafts come from the weights that it updates, and from its own numbers. While
one chunk of studies is sampled, and while the start's log-probabilities are taken, a thread scores the chunks before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from generator.config import RewardConfig, Stage, TrainConfig
from generator.drafter import Drafter
from generator.reward import advantages, spread, token_loss, token_weights
from generator.reward_drafts import Chunk, Prompts, draft_greedily, load_chunks, sample_drafts
from generator.rewards import Counts, Rewards, Scored, recall, watch
from generator.rollout import draft_log_probs
from generator.runs import Progress, StagedRun, lr_factor
from metrics.report import LOWER_IS_BETTER
from raddraft.errors import DivergedError, RadDraftError, UnavailableError
from raddraft.processes import clip_gradients, local, whole_model

if TYPE_CHECKING:
    from accelerate import Accelerator

FLAT_STEPS = 5
"""Steps in a row without a group whose rewards differ that end a run."""


@dataclass
class RewardStage:
    """What the loop works with."""

    number: int
    """Position of the stage in the recipe, from 0."""
    stage: Stage
    config: TrainConfig
    drafter: Drafter
    train: Prompts
    val: Prompts | None
    """None: the last weights are kept."""

    @property
    def reward(self) -> RewardConfig:
        """The settings of the stage."""
        assert self.stage.reward is not None
        return self.stage.reward


def learn_from_rewards(
    this: RewardStage,
    model: nn.Module,
    wrapped: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    run: StagedRun,
    progress: Progress,
    steps: int,
) -> None:
    """Run a reward stage from where `progress` stands to its end.

    Args:
        this: recipe and studies.
        model, wrapped, optimizer: the drafter's model, both prepared to train; only what trains needs gradients.
        accelerator, run, progress: of the run; `progress` is carried on.
        steps: of the stage.

    Raises:
        RadDraftError: a metric cannot run or is not finite; all drafts of a step are blank, or cut; in some steps in a
            row no draft is worth more than another.
        DivergedError: the loss is not finite.
        UnavailableError: no image of a step, or of the val split, can be read.
    """
    from tqdm import tqdm

    reward, stage, config = this.reward, this.stage, this.config
    worker = ThreadPoolExecutor(1)
    rewards = worker.submit(make_rewards, this).result()
    progress.counts = progress.counts or {**rewards.first_counts()}
    start = _keep_start(model, run, progress) if reward.kl else None
    eval_every = config.eval_every or math.ceil(len(this.train.dataset) / reward.batch_size)
    unreadable: set[str] = set()
    wrapped.eval()  # without dropout, or the first ratio of a step would not be 1
    if this.val and not progress.begun:
        _validate(this, model, accelerator, worker, rewards, run, progress)
        run.save_progress(model, progress, optimizer)
    bar = tqdm(total=steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
    loaded = load_chunks(this.train.dataset, config, reward, this.number, range(progress.step, steps), accelerator)
    while progress.step < steps and not progress.stopped:
        began = time.perf_counter()
        where = f"step {progress.step + 1} of stage {this.number + 1}"
        lr = stage.peak * lr_factor(progress.step, steps, stage.warmup, stage.schedule)
        for group in optimizer.param_groups:
            group["lr"] = lr
        errors, chunks = next(loaded)
        for sentence in sorted(set(errors) - unreadable):
            tqdm.write(f"no drafts of: {sentence}")
            unreadable.add(sentence)
        with whole_model(model):
            for chunk in chunks:
                sample_drafts(chunk, model, this.drafter, reward, f"{config.seed} {this.number} {progress.step}")
                chunk.rewards = worker.submit(_score, rewards, chunk, progress.counts)
        passes = [(chunk, index) for chunk in chunks for index in range(len(chunk.parts))]
        sampled = time.perf_counter()
        if start is not None:
            with torch.no_grad(), _swapped(model, start), whole_model(model):
                for chunk, index in passes:
                    chunk.start.append(draft_log_probs(wrapped, *chunk.part(index), reward.temperature)[0])
        waiting = time.perf_counter()
        told = _compare(chunks, reward, accelerator, progress)
        _check(told, where, reward, run, progress)
        counted, learning = int(told["counted"]), time.perf_counter()
        for _ in range(reward.updates):
            sums = torch.zeros(5, device=accelerator.device)
            with whole_model(model):
                for at, (chunk, index) in enumerate(passes):
                    inputs, drafts = chunk.part(index)
                    advantage, counts = chunk.compared(index)
                    lengths = torch.tensor([*map(len, drafts)], device=accelerator.device)
                    with nullcontext() if at == len(passes) - 1 else accelerator.no_sync(wrapped):
                        log_probs, entropy = draft_log_probs(wrapped, inputs, drafts, reward.temperature)
                        if len(chunk.before) == index:
                            chunk.before.append(log_probs.detach())
                        from_start = None if start is None else chunk.start[index]
                        each = token_loss(log_probs, chunk.before[index], from_start, advantage, reward.clip, reward.kl)
                        weights = token_weights(lengths, counts, reward.advantage, reward.max_new_tokens, counted)
                        loss = (each.loss * weights).sum()
                        # Gradients are averaged over processes; this loss is already divided by the drafts of all.
                        accelerator.backward(loss * accelerator.num_processes)
                    inside = (weights > 0).float()
                    of_tokens = (inside, entropy * inside, each.kl * inside, each.clipped * inside)
                    sums += torch.stack([loss.detach(), *(one.sum() for one in of_tokens)]).float()
            loss_value, tokens, *totals = accelerator.reduce(sums).tolist()
            if not math.isfinite(loss_value):
                raise DivergedError(
                    f"The loss is {loss_value} at {where} (lr {lr:.3g}); the last good checkpoint is {run.newest}. "
                    "Try a lower lr, or a higher reward.kl"
                )
            accelerator.unscale_gradients()
            norm = clip_gradients(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        ended = time.perf_counter()
        if progress.step % config.log_every == 0:
            row = {"loss": loss_value, "lr": lr, "grad_norm": norm} | told
            for name, total in zip(("entropy", "kl", "clipped"), totals, strict=True):
                row |= {name: total / max(tokens, 1)} if name != "kl" or start is not None else {}
            row |= {"seconds_sampling": sampled - began, "seconds_start": waiting - sampled}
            row |= {"seconds_waiting": learning - waiting, "seconds_learning": ended - learning}
            row |= {"seconds_scoring": sum(chunk.seconds for chunk in chunks)}
            run.note(progress, row | {"drafts_per_second": told["drafts"] / (ended - began)})
        bar.set_description(f"stage {this.number + 1} reward {told['reward']:.3f}", refresh=False)
        bar.update()
        if this.val and (progress.step % eval_every == 0 or progress.step == steps):
            _validate(this, model, accelerator, worker, rewards, run, progress)
        if progress.step % config.save_every == 0 and progress.step < steps:
            run.save_progress(model, progress, optimizer)
    bar.close()
    worker.shutdown()


def make_rewards(this: RewardStage) -> Rewards:
    """What scores the drafts of the stage. Raises RadDraftError where a metric cannot run."""
    return Rewards(this.reward, this.train.references, this.val.references if this.val else {})


def _keep_start(model: nn.Module, run: StagedRun, progress: Progress) -> dict[str, Tensor]:
    """This process's part of the weights that train, as they were when the stage began."""
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if progress.begun:
        run.load_best(model, "start")
    else:
        run.save_best(named.items(), "start")
    start = {name: local(one).detach().clone() for name, one in named.items()}
    if progress.begun:
        run.restore(model)
    return start


@contextmanager
def _swapped(model: nn.Module, others: Mapping[str, Tensor]) -> Iterator[None]:
    """The model has these weights for as long as this lasts, and `others` its own."""

    def swap() -> None:
        named = dict(model.named_parameters())
        for name, other in others.items():
            own, kept = local(named[name]), other.clone()
            other.copy_(own)
            own.copy_(kept)

    swap()
    yield
    swap()


def _score(rewards: Rewards, chunk: Chunk, late: Counts) -> Scored:
    """Rewards of the chunk's texts, 0 for studies that take no part."""
    began = time.perf_counter()
    rows = [row for row, asked in enumerate(chunk.asked) if asked]
    found = rewards([chunk.study_ids[row] for row in rows], [chunk.texts[row] for row in rows], late)
    values = np.zeros((len(rewards.metrics), len(chunk.texts), len(chunk.texts[0])))
    if rows:
        values[:, rows] = found.values
    chunk.seconds = time.perf_counter() - began
    return replace(found, values=values)


def _compare(
    chunks: Sequence[Chunk], reward: RewardConfig, accelerator: Accelerator, progress: Progress
) -> dict[str, float]:
    """Wait for rewards, set advantages, and tell of the drafts of the step on all processes.

    Raises:
        RadDraftError: a reward is not finite.
    """
    from accelerate.utils import gather_object

    groups: list[dict[str, float]] = []
    counted: list[Counts] = []
    error = None
    weights = torch.tensor([*reward.metrics.values()], dtype=torch.float64)
    for chunk in chunks:
        assert chunk.rewards is not None
        if failed := chunk.rewards.exception():
            if not isinstance(failed, RadDraftError):
                raise failed
            error = str(failed)
            continue
        scored: Scored = chunk.rewards.result()
        values = torch.from_numpy(scored.values)
        counted.append(scored.counts)
        sampled, greedy = values[..., : reward.group], values[..., -1]
        counts = torch.tensor(chunk.ended) & torch.tensor(chunk.asked)[:, None]
        advantage, apart = advantages(sampled, weights, counts, reward.advantage, greedy), spread(sampled, counts)
        chunk.advantage, chunk.counts = advantage.float().to(accelerator.device), counts.to(accelerator.device)
        for row in (row for row, asked in enumerate(chunk.asked) if asked):
            texts = chunk.texts[row][: reward.group]
            told = {"reward": float((weights @ sampled[:, row]).mean())}
            for part, name in enumerate(reward.metrics):
                told[f"reward_{name}"], told[f"spread_{name}"] = (
                    float(sampled[part, row].mean()),
                    float(apart[part, row]),
                )
            told |= {"informative": float(advantage[row].any()), "counted": float(counts[row].sum())}
            told |= {"cut": 1 - sum(chunk.ended[row]) / reward.group, "duplicates": 1 - len({*texts}) / reward.group}
            groups.append(told | watch(texts))
    everything = gather_object([(error, groups, counted)])
    if errors := [failed for failed, _, _ in everything if failed]:
        raise RadDraftError(errors[0])
    groups = [group for _, part, _ in everything for group in part]
    progress.counts = recall(progress.counts, [one for _, _, part in everything for one in part])
    means = {name: sum(group[name] for group in groups) / len(groups) for name in (groups[0] if groups else ())}
    return means | {"counted": sum(group["counted"] for group in groups), "drafts": len(groups) * reward.group}


def _check(told: Mapping[str, float], where: str, reward: RewardConfig, run: StagedRun, progress: Progress) -> None:
    """Raise an error where there is nothing to learn from in a step."""
    kept = f"the last checkpoint is {run.newest}" if run.newest else "there is no checkpoint yet"
    if not told["drafts"]:
        raise UnavailableError(f"No image of {where} can be read; the files are named above")
    if told["blank"] == 1:
        raise RadDraftError(
            f"All drafts of {where} are blank, since the model ends them at once; train it on reports before a reward "
            f"stage, or lower its lr; {kept}"
        )
    if not told["counted"]:
        raise RadDraftError(
            f"No draft of {where} ends within {reward.max_new_tokens} tokens; raise reward.max_new_tokens, or train "
            f"the model on reports before a reward stage; {kept}"
        )
    progress.flat = 0 if told["informative"] else progress.flat + 1
    if progress.flat == FLAT_STEPS:
        raise RadDraftError(
            f"The drafts of each study are worth the same in {FLAT_STEPS} steps up to {where}, so there is nothing to "
            f"learn; choose other reward.metrics, or raise reward.temperature or reward.group; {kept}"
        )


def _validate(
    this: RewardStage,
    model: nn.Module,
    accelerator: Accelerator,
    worker: ThreadPoolExecutor,
    rewards: Rewards,
    run: StagedRun,
    progress: Progress,
) -> None:
    """Log scores of greedy drafts of the val split, and keep the weights if they are the best so far."""
    from accelerate.utils import broadcast_object_list

    assert this.val is not None
    drafts = draft_greedily(model, this.drafter, this.val, this.reward, this.config.workers, accelerator)
    scores = [worker.submit(rewards.validate, drafts).result() if accelerator.is_main_process else {}]
    found, select, patience = broadcast_object_list(scores)[0], this.reward.select, this.config.patience
    run.note(progress, {f"val_{name}": value for name, value in found.items()})
    score = found[select] if select in LOWER_IS_BETTER else -found[select]
    if score < progress.best:
        progress.best, progress.bad_rounds = score, 0
        run.save_best(run.select(model))
    else:
        progress.bad_rounds += 1
        progress.stopped = patience is not None and progress.bad_rounds >= patience
