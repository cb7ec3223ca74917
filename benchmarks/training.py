"""Training speed: a script around transformers' Trainer, TRL's SFTTrainer if it is there, and the loop of RadDraft."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.metrics import timed
from encoder.config import ComputeConfig
from encoder.features import open_store
from generator.config import ModelConfig, Stage, TrainConfig
from generator.data import IGNORE, batch_indices
from generator.model import Drafter, build
from generator.prompts import PromptConfig
from generator.train import train
from raddraft.studies import Study

EPOCHS = 3  # as in the RAD-DINO paper; they share the one pass that stores the features
LARGEST_DIFFERENCE = {False: 1e-3, True: 1e-2}  # of the losses: float32, and stored features in float16


def bench_training(lm: Path, studies: Sequence[Study], n_steps: int, batch_size: int, image_size: int) -> bool:
    """Print studies per second of the ways to train; return whether their losses are equal.

    They are the script of `train_plainly`, the same with SFTTrainer where trl is installed, our loop with the frozen
    tower in every step, and our loop with stored features. All start from the same weights and see the same batches in
    the same order at the same learning rates. Speeds are those of the median step.

    Args:
        lm: folder of the language model, all of which trains, with the projector.
        studies: what to train on; as many are used as `n_steps` batches in three epochs hold.
        n_steps: optimizer steps.
        batch_size: studies per step.
        image_size: side of the images in pixels; the tower is a ViT-S/14 with random weights.
    """
    from generator.tiny import make_tower

    prompt = PromptConfig()
    studies = [study for study in studies if prompt.answer(study)][: batch_size * max(1, n_steps // EPOCHS)]
    print(f"training {n_steps} steps of {batch_size} on a frozen ViT-S/14 at {image_size} px")
    with TemporaryDirectory() as scratch:
        tower, features = Path(scratch) / "tower", Path(scratch) / "features"
        make_tower(tower, image_size=image_size, patch_size=14, hidden=384, layers=12)
        parts = ModelConfig(str(tower), str(lm))
        stage = Stage(epochs=n_steps / -(-len(studies) // batch_size), lr=1e-3, lm="full", warmup=0)
        config = TrainConfig((stage,), batch_size=batch_size, micro_batch_size=batch_size, eval_every=0)
        drafter = _new_drafter(parts, prompt, config.seed)
        batches = _batches(drafter, studies, config, n_steps)
        folder = Path(scratch) / "plain"
        seconds, (plain, losses) = timed(partial(train_plainly, drafter, batches, config, folder))
        print(f"  a script around transformers' Trainer: {plain:.1f} studies/s; {seconds:.1f} s in all")
        trl = 0.0
        if find_spec("trl"):
            drafter = _new_drafter(parts, prompt, config.seed)
            seconds, (trl, theirs) = timed(partial(train_plainly, drafter, batches, config, folder, sft=True))
            difference = max(abs(one - loss) for one, loss in zip(theirs, losses, strict=True))
            print(f"  TRL's SFTTrainer: {trl:.1f} studies/s; {seconds:.1f} s in all; losses differ by {difference:.1e}")
        filling, _ = timed(
            partial(
                open_store,
                drafter.tower,
                [study.main_image.path for study in studies],
                drafter.features,
                ComputeConfig(features=features),
            )
        )
        equal, speed = True, 0.0
        for cached, largest in LARGEST_DIFFERENCE.items():
            config.cached, out = cached, Path(scratch) / str(cached)
            seconds, _ = timed(partial(train, {"train": studies}, out, parts, prompt, config, features=features))
            rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
            speed = statistics.median(row["studies_per_second"] for row in rows)
            difference = max(abs(row["loss"] - loss) for row, loss in zip(rows, losses, strict=True))
            equal &= difference <= largest
            way = "stored features" if cached else "tower in every step"
            print(
                f"  our loop, {way}: {speed:.1f} studies/s, {speed / plain:.2f} times as fast"
                + (f" ({speed / trl:.2f} times SFTTrainer)" if trl else "")
                + f"; {seconds:.1f} s in all; losses from {losses[0]:.3f} to {losses[-1]:.3f} differ by at most "
                f"{difference:.1e}"
            )
    counted = 1 / (1 / speed + filling / (n_steps * batch_size))
    print(
        f"  with the {filling:.1f} s that store the features, over {n_steps * batch_size / len(studies):.0f} "
        f"epochs: {counted:.1f} studies/s, {counted / plain:.2f} times as fast"
    )
    return equal


def _new_drafter(parts: ModelConfig, prompt: PromptConfig, seed: int) -> Drafter:
    """The model as `train` starts from it."""
    from accelerate.utils import set_seed

    set_seed(seed)
    return Drafter(*build(parts), prompt)


def _batches(drafter: Drafter, studies: Sequence[Study], config: TrainConfig, n_steps: int) -> list[list[Study]]:
    """The studies of each step, in the order of `train`."""
    lengths = [len(example) for example in drafter.encode(studies, answers=True)]
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < n_steps:
        batches += batch_indices(lengths, config.batch_size, f"{config.seed} 0 {epoch}")
        epoch += 1
    return [[studies[i] for i in batch] for batch in batches[:n_steps]]


def train_plainly(
    drafter: Drafter, batches: Sequence[Sequence[Study]], config: TrainConfig, folder: Path, sft: bool = False
) -> tuple[float, list[float]]:
    """What a user of plain transformers would write, on batches of one size in the order given.

    Args:
        sft: with TRL's SFTTrainer, to which images, prompts and reports are handed as its documentation shows.

    Returns:
        Studies per second of the median step, and the loss of each step.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """Notes when steps end, so that waiting for a batch counts, as in the log of `train`."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    stage, clock = config.stages[0], Clock()
    model: Any = drafter.model
    model.model.vision_tower.requires_grad_(False)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": len(batches[0]),
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": stage.peak,
        "lr_scheduler_type": "cosine",
        "weight_decay": stage.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "dataloader_num_workers": config.workers,
        "dataloader_pin_memory": torch.cuda.is_available(),  # as in ours
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    studies = [study for batch in batches for study in batch]
    trainer: Trainer
    if sft:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        settings = SFTConfig(**arguments, max_length=None, gradient_checkpointing=False, bf16=False)
        given = Dataset.from_list([_conversation(drafter.prompt, study) for study in studies])
        trainer = SFTTrainer(
            model, settings, train_dataset=given, processing_class=drafter.processor, callbacks=[clock]
        )
    else:
        collator: Any = partial(_collate, drafter.processor, drafter.prompt)
        trainer = Trainer(model, TrainingArguments(**arguments), collator, studies, callbacks=[clock])  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    step = statistics.median(end - start for start, end in zip(clock.times, clock.times[1:], strict=False))
    return len(batches[0]) / step, losses


def _conversation(prompt: PromptConfig, study: Study) -> dict[str, Any]:
    """A study in TRL's prompt-completion form."""
    from PIL import Image

    answer = {"role": "assistant", "content": [{"type": "text", "text": prompt.answer(study)}]}
    image = Image.open(study.main_image.path).convert("RGB")
    return {"prompt": prompt.messages(study), "completion": [answer], "images": [image]}


def _collate(processor: Any, prompt: PromptConfig, studies: Sequence[Study]) -> dict[str, Any]:
    """Texts and images through the processor; the labels are the report's tokens and the end token."""
    from PIL import Image

    prompts = [processor.apply_chat_template(prompt.messages(study), add_generation_prompt=True) for study in studies]
    answers = [f"{prompt.answer(study)}{processor.tokenizer.eos_token}" for study in studies]
    batch = processor(
        text=[asked + answer for asked, answer in zip(prompts, answers, strict=True)],
        images=[Image.open(study.main_image.path).convert("RGB") for study in studies],
        padding=True,
        return_tensors="pt",
        add_special_tokens=False,
    )
    labels = batch["input_ids"].clone()
    for row, answer in zip(labels, processor.tokenizer(answers, add_special_tokens=False)["input_ids"], strict=True):
        row[: -len(answer)] = IGNORE  # padding is on the left
    return {**batch, "labels": labels}
