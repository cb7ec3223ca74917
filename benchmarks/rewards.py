"""Speed of reward stages: trl's GRPOTrainer as a user would set it up, and the stage of `raddraft train`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.metrics import timed
from generator.config import ModelConfig, RewardConfig, Stage, TrainConfig
from generator.model import load
from generator.train import train
from metrics.models import Models
from metrics.scoring import per_report
from metrics.text import Once
from raddraft.errors import RadDraftError
from raddraft.studies import Study

METRIC = "rouge_l"
STEPS_BEFORE = 60
"""Supervised steps that a model of new parts gets first, so that its drafts end."""


def bench_rewards(
    run: Path, studies: Sequence[Study], n_steps: int, batch_size: int, image_size: int, group: int = 8
) -> None:
    """Print drafts per second of trl's GRPOTrainer and of our stage, on two models, and where our time goes.

    The models are that of the run, whose tower is tiny, and one with its language model behind a frozen ViT-S/14 of
    random weights. Both ways sample as many drafts of as many studies a step from the same weights, score them by
    ROUGE-L and train projector and language model by the mean-free objective, without a divergence. They draw different
    drafts, so only mean rewards and lengths can be compared. Speeds are those of the median step; our features are
    stored before, whose time is stated.

    Args:
        run: a run folder with model/ and lm/.
        studies: what to sample drafts of; as many are used as a step takes.
        n_steps: steps of each way, after one that does not count.
        batch_size: studies of a step.
        image_size: of the ViT-S/14, in pixels.
        group: drafts of each study.

    Raises:
        RadDraftError: trl is not installed.
    """
    from generator.tiny import make_tower

    if not find_spec("trl"):
        raise RadDraftError("the part rewards compares with trl: pip install trl")
    prompt = load(run / "model").prompt
    studies = [study for study in studies if prompt.answer(study)][: 2 * batch_size]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_tower(folder / "tower", image_size=image_size, patch_size=14, hidden=384, layers=12)
        parts = ModelConfig(str(folder / "tower"), str(run / "lm"))
        stage = Stage(STEPS_BEFORE * 16 / len(studies), 3e-3, lm="full", beta2=0.98)
        before = TrainConfig((stage,), batch_size=16, cached=True, eval_every=0, workers=0)
        larger = train({"train": studies}, folder / "before", parts, prompt, before, features=folder / "features")
        for name, model in (("the run's model", run / "model"), (f"ViT-S/14 at {image_size} px", larger)):
            print(f"{name}: {batch_size} studies a step, {group} drafts each")
            ours = _ours(model, studies, folder / f"ours of {model.parent.name}", n_steps, batch_size, group)
            theirs = _trl(model, studies, folder / f"trl of {model.parent.name}", n_steps, batch_size, group)
            print(f"  {ours / theirs:.2f} times as fast")


def _ours(model: Path, studies: Sequence[Study], folder: Path, n_steps: int, batch_size: int, group: int) -> float:
    """Drafts per second of the stage."""
    drafter = load(model)
    reward = RewardConfig({METRIC: 1.0}, group, max_new_tokens=100, kl=0.0, models=Models(keep=False))
    reward = replace(reward, batch_size=batch_size, micro_batch_size=batch_size)
    stage = Stage((n_steps + 1) * batch_size / len(studies), 1e-4, lm="full", warmup=0, reward=reward)
    config = TrainConfig((stage,), cached=True, eval_every=0, workers=0)
    start = partial(train, {"train": studies}, folder, ModelConfig(vlm=str(model)), drafter.prompt, config)
    whole, _ = timed(partial(start, drafter.gray_mapping))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][1:]
    speed = statistics.median(row["drafts_per_second"] for row in rows)
    parts = {
        part: sum(row[f"seconds_{part}"] for row in rows) for part in ("sampling", "scoring", "waiting", "learning")
    }
    total = sum(parts.values()) - parts["scoring"]
    shares = ", ".join(f"{part} {100 * seconds / total:.1f} %" for part, seconds in parts.items())
    means = f"{_mean(rows, 'reward')}, {_mean(rows, 'words')}"
    print(f"  our stage: {speed:.1f} drafts/s; {shares}; {means}; {whole:.1f} s in all")
    return speed


def _mean(rows: Sequence[dict[str, Any]], name: str) -> str:
    return f"{name} {statistics.mean(row[name] for row in rows):.3f}"


def _trl(model: Path, studies: Sequence[Study], folder: Path, n_steps: int, batch_size: int, group: int) -> float:
    """Drafts per second of GRPOTrainer, as its documentation sets it up for a model that reads images."""
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        """Notes when steps end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    lengths: list[float] = []

    def reward(completions: list[Any], reference: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        lengths.append(statistics.mean(len(text.split()) for text in texts))
        return per_report(texts, reference, [METRIC], Models(keep=False), Once())[METRIC].tolist()

    prompt, clock = load(model).prompt, Clock()
    rows = [
        {
            "prompt": prompt.messages(study),
            "image": Image.open(study.main_image.path).convert("RGB"),
            "reference": prompt.answer(study),
        }
        for study in studies
    ]
    network: Any = AutoModelForImageTextToText.from_pretrained(model)
    network.model.vision_tower.requires_grad_(False)
    arguments = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size * group,
        num_generations=group,
        max_completion_length=100,
        temperature=1.0,
        beta=0.0,
        loss_type="dr_grpo",
        scale_rewards="none",
        mask_truncated_completions=True,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        max_steps=n_steps + 1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=network,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(model),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    whole, _ = timed(trainer.train)
    told = [row for row in trainer.state.log_history if "reward" in row][1:]
    step = statistics.median(end - begin for begin, end in zip(clock.times, clock.times[1:], strict=False))
    speed = batch_size * group / step
    words = f"words {statistics.mean(lengths[1:]):.3f}"
    print(f"  trl's GRPOTrainer: {speed:.1f} drafts/s; {_mean(told, 'reward')}, {words}; {whole:.1f} s in all")
    return speed
