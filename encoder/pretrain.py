"""Pre-training a vision tower on chest X-rays without text: DINOv2 continued, or from scratch, as RAD-DINO was made.

The loop reads from top to bottom in `pretrain`. What it leaves is OUT/model, the teacher as an ordinary folder of
transformers' Dinov2Model with its image processor, chosen by a probe on the val split if one is watched.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from encoder.augment import Views
from encoder.dino import Dino, parameter_groups
from encoder.features import FeatureConfig, digest_files, store_features
from encoder.fitting import ProbeConfig
from encoder.probe import run_probe
from encoder.recipe import PretrainConfig, Watch, load_head, load_start
from encoder.resize import SOURCE
from encoder.stream import Collate, Order, ViewDataset, load_batches
from encoder.targets import Target, TargetSpec, make_target
from encoder.tower import Tower
from raddraft.errors import DivergedError, RadDraftError
from raddraft.files import whole_folder, write_whole
from raddraft.images import ImageError, load_image
from raddraft.processes import (
    WAIT,
    check_launch,
    clip_gradients,
    gather,
    prepare_model,
)
from raddraft.runs import RunFolder
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from accelerate import Accelerator


def pretrain(sources: Sequence[Sequence[Study]], labelled: Sequence[Study], out: Path, config: PretrainConfig) -> Path:
    """Pre-train a tower and return the folder it is saved in.

    Args:
        sources: for each manifest its train studies; every image of them is used, whatever its view.
        labelled: train and val studies that the probes read, if any; val images are also drawn.
        out: the run folder.
        config: the recipe.

    Raises:
        ValueError: nothing to train on, sizes that do not fit together.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, set_seed
    from tqdm import tqdm

    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=config.trackers or None,
        project_dir=out,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
    )
    check_launch(accelerator, "pretrain.shard")
    if config.trackers:
        accelerator.init_trackers("raddraft")
    images = [_images(part, config.fraction, config.seed) for part in sources]
    paths = [[image.path for image in part] for part in images]
    n_processes = accelerator.num_processes
    n_micro = _count_micro_batches(config, n_processes)
    if not all(paths):
        raise RadDraftError("A manifest has no image in its train split")
    counts = ", ".join(str(len(part)) for part in paths)
    accelerator.print(f"images by manifest: {counts}; on {n_processes} processes")
    set_seed(config.seed)
    start = load_start(config)
    processor: Any = start.processor
    run = Run(out, accelerator, start)
    model = Dino(start.model, config.objective)
    if config.head:
        load_head(model, config.head)
    side = config.views.global_size // start.model.config.patch_size
    masked = config.objective.mask_probability if config.objective.ibot_weight else 0.0
    collate = Collate((side, side), masked, config.objective.mask_ratio)
    views = Views(config.views, processor.image_mean, processor.image_std)
    dataset = ViewDataset([path for part in paths for path in part], views, config.gray_mapping)
    order = Order([len(part) for part in paths], config.weights, config.batch_size, config.seed)
    if config.calibrate and not run.newest:
        model.to(accelerator.device)
        n_steps = min(16, math.ceil(config.objective.prototypes / (2 * config.batch_size)))
        parts = load_batches(dataset, order, collate, 0, n_steps, config.micro_batch_size, (0, 1), config.workers)
        model.calibrate((part.global_crops.to(accelerator.device) for part in parts), config.seed)
    if config.checkpointing:
        model.backbone.activation_checkpointing_enable()
    wrapped = prepare_model(model, accelerator, config.shard)
    groups = parameter_groups(model, config.layer_decay, config.patch_embed_lr)
    optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=config.peak_lr))
    torch.manual_seed(config.seed + accelerator.process_index)  # drop path differs between processes
    step = run.read_progress().get("step", 0)
    run.resume(lambda row: row["step"] <= step)
    run.restore(model)
    run.restore(model, optimizer)
    batches = load_batches(
        dataset,
        order,
        collate,
        step,
        config.steps,
        config.micro_batch_size,
        (accelerator.process_index, n_processes),
        config.workers,
    )
    watches = [(watch, _val_target(labelled, watch)) for watch in config.watch]
    drawn = [study.main_image.path for study in labelled if study.split == "val"][: config.pictures]
    if step == 0 and watches:  # also finds what cannot be measured before the run
        weights = gather(model.teacher.state_dict().items(), accelerator)
        if accelerator.is_main_process:
            run.log_probes(0, watch_tower(run.teacher(weights), watches, config, out / "watch"))
        accelerator.wait_for_everyone()
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process)

    while step < config.steps:
        started = time.perf_counter()
        now = config.at(step)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * now["lr_prototypes" if group["prototypes"] else "lr"]
            group["weight_decay"] = now["weight_decay"] * group["decays"]
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(islice(batches, n_micro)):
            for sentence in sorted(set(batch.errors) - run.unreadable):
                tqdm.write(f"not trained on: {sentence}")
                run.unreadable.add(sentence)
            batch = batch.to(accelerator.device)
            with nullcontext() if number == n_micro - 1 else accelerator.no_sync(wrapped):
                losses = wrapped(batch.global_crops, batch.local_crops, batch.masks, now["temperature"])
                accelerator.backward(losses["loss"] / n_micro)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / n_micro
        names = sorted(sums)
        means = accelerator.reduce(torch.stack([sums[name] for name in names]), "mean").tolist()
        numbers = dict(zip(names, means, strict=True))
        if not math.isfinite(numbers["loss"]):
            broken = [name for name, value in numbers.items() if name != "loss" and not math.isfinite(value)]
            raise DivergedError(
                f"The loss is {numbers['loss']} at step {step + 1} (by {', '.join(broken) or 'overflow'}; lr "
                f"{now['lr']:.3g}); the last good checkpoint is {run.newest}. Try a lower base_lr"
            )
        accelerator.unscale_gradients()
        norms = {
            f"grad_norm_{name}": clip_gradients(part.parameters(), config.max_grad_norm)
            for name, part in model.student.items()
        }
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(now["momentum"])
        step += 1
        speed = config.batch_size / (time.perf_counter() - started)
        bar.set_description(f"loss {numbers['loss']:.3f}", refresh=False)
        bar.update()
        if step % config.log_every == 0 or step == config.steps:
            run.log({"step": step, **numbers, **norms, **now, "images_per_second": speed})
        if step % config.watch_every == 0 or step == config.steps:
            weights = gather(model.teacher.state_dict().items(), accelerator)
            if accelerator.is_main_process:
                tower = run.teacher(weights)
                found = watch_tower(tower, watches, config, out / "watch")
                draw_tower(tower, drawn, out / "pictures" / f"step-{step:07d}.png", config.gray_mapping)
                run.keep(step, found, tower, weights)
            accelerator.wait_for_everyone()
        if step % config.save_every == 0 or step == config.steps:
            run.save(f"step-{step:09d}", model.state_dict().items(), {"step": step}, optimizer)
    bar.close()
    if accelerator.is_main_process:  # `compare` warns of a tower that has seen test images
        seen = digest_files([path for part in paths for path in part], out / "watch", config.workers)
        digests = {file.digest for file in seen.values()}
        digests |= {image.extra[SOURCE] for part in images for image in part if SOURCE in image.extra}
        with write_whole(out / "images.sha256") as temporary:
            temporary.write_text("".join(f"{digest}\n" for digest in sorted(digests)))
    accelerator.end_training()
    return out / "model"


def _images(studies: Sequence[Study], fraction: float, seed: int) -> list[StudyImage]:
    """All images of a share of the subjects."""
    subjects = sorted({study.subject_id for study in studies})
    kept = np.random.default_rng(seed).permutation(len(subjects))[: math.ceil(fraction * len(subjects))]
    chosen = {subjects[number] for number in kept}
    return [image for study in studies if study.subject_id in chosen for image in study.images]


def _count_micro_batches(config: PretrainConfig, n_processes: int) -> int:
    """Micro-batches of one process in a step."""
    share, rest = divmod(config.batch_size, n_processes)
    if rest or share % min(share, config.micro_batch_size):
        raise RadDraftError(
            f"batch_size {config.batch_size} on {n_processes} processes does not divide into micro-batches of "
            f"{config.micro_batch_size}"
        )
    return max(1, share // config.micro_batch_size)


class Run(RunFolder):
    """The run folder with the best teacher so far."""

    def __init__(self, folder: Path, accelerator: Accelerator, start: Tower) -> None:
        super().__init__(folder, accelerator)
        self.start = start
        self.unreadable: set[str] = set()

    def log_probes(self, step: int, found: dict[str, float]) -> float:
        """Log what the probes found, and return their mean."""
        mean = float(np.mean(list(found.values())))
        self.log({"step": step, "probes": found, "probe_mean": mean})
        return mean

    def teacher(self, weights: dict[str, torch.Tensor]) -> Tower:
        """The teacher's backbone as a tower of its own, from the teacher's weights."""
        from transformers import AutoModel

        root = "backbone."
        backbone = AutoModel.from_config(self.start.model.config)
        backbone.load_state_dict({name[len(root) :]: value for name, value in weights.items() if name.startswith(root)})
        backbone.config.drop_path_rate = 0.0
        return Tower("teacher", backbone.to(self.accelerator.device), self.start.processor)

    def keep(self, step: int, found: dict[str, float], tower: Tower, weights: dict[str, torch.Tensor]) -> None:
        """Log what the probes found; save this teacher and its head if no earlier one did better."""
        record = self.folder / "best.json"
        score = self.log_probes(step, found) if found else None
        best = json.loads(record.read_text()) if record.is_file() else None
        if best and best["step"] < step and score is not None and score <= best["score"]:
            return
        root = "head."
        head = {name[len(root) :]: value for name, value in weights.items() if name.startswith(root)}
        with whole_folder(self.folder / "model") as temporary:
            tower.model.save_pretrained(temporary)
            tower.processor.save_pretrained(temporary)
            save_file(head, temporary / "dino_head.safetensors")
        with write_whole(record) as path:
            path.write_text(json.dumps({"step": step, "score": score, "probes": found}) + "\n")


def _val_target(studies: Sequence[Study], watch: Watch) -> Target:
    """What a watched probe is to tell; val stands where a finished comparison has test."""
    wanted = [study for study in studies if watch.sources is None or study.source in watch.sources]
    target = make_target(wanted, TargetSpec(watch.kind, tuple(watch.targets)))
    if missing := {"train", "val"} - set(target.splits.tolist()):
        raise RadDraftError(f"watch {watch.name}: there is no labelled image in {', '.join(sorted(missing))}")
    target = target.keep(target.splits != "test")
    return replace(target, splits=np.where(target.splits == "val", "test", target.splits))


def watch_tower(
    tower: Tower, watches: Sequence[tuple[Watch, Target]], config: PretrainConfig, folder: Path
) -> dict[str, float]:
    """Macro AUROC (of numbers R²) of each watched probe on val, from the class token and the mean patch.

    In the folder digests of the images are kept; features only as long as they are needed.
    """
    paths = list(dict.fromkeys(path for _, target in watches for path in target.paths))
    found: dict[str, float] = {}
    if not paths:
        return found
    store, _ = store_features(
        tower, paths, folder, FeatureConfig(gray_mapping=config.gray_mapping), workers=config.workers
    )
    for watch, target in watches:
        decays = (watch.weight_decay,) if watch.solver == "lbfgs" else None
        settings = ProbeConfig("both", watch.solver, decays, resamples=1)
        measured = run_probe(store, target, settings).measures["macro"]
        estimate = measured["r2" if watch.kind == "regression" else "auroc"].estimate
        if estimate.value is None:
            raise RadDraftError(f"watch {watch.name}: val cannot be measured, since {estimate.reason}")
        found[watch.name] = estimate.value
    shutil.rmtree(store.folder)
    return found


def draw_tower(tower: Tower, paths: Sequence[Path], out: Path, gray_mapping: Any) -> None:
    """Feature maps of some images as one PNG; nothing where no image can be read."""
    from encoder.figures import draw, look

    pictures = []
    for path in paths:
        try:
            pictures.append((path.name, load_image(path, gray_mapping)))
        except (ImageError, OSError):
            continue
    if not pictures:
        return
    captions, images = zip(*pictures, strict=True)
    point = (0.32, 0.45)
    xrays, maps = look(tower, images, point)
    with write_whole(out) as temporary:
        temporary.write_bytes(draw(captions, xrays, [maps], point))
