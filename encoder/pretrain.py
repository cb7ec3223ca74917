"""Pre-training a vision tower on chest X-rays without text: DINOv2 continued, or from scratch, as RAD-DINO was made.

OUT/model is the teacher as a folder of transformers' Dinov2Model with its image processor: the one with the best probes
on the val split, if any are watched.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from encoder.collapse import CollapseWatch
from encoder.config import EncoderConfig
from encoder.crop_sheet import write_crops
from encoder.digests import FileList
from encoder.dino import Dino, parameter_groups
from encoder.features import open_store
from encoder.figures import draw, look
from encoder.pretrain_page import read_kept, read_probes, tell_lower, write_page
from encoder.probe import run_probe
from encoder.probe_config import ProbeConfig
from encoder.recipe import PretrainConfig, Watch
from encoder.resize import SOURCE
from encoder.start import load_head, load_start
from encoder.stream import Batch, CropDataset, Order, load_batches
from encoder.targets import Target, make_target
from encoder.tower import Tower
from raddraft.errors import DivergedError, RadDraftError
from raddraft.files import read_object, whole_folder, write_text, write_whole
from raddraft.images import ImageError, load_image
from raddraft.locks import holds_out
from raddraft.processes import clip_gradients, gather, make_accelerator, prepare_model, process_share
from raddraft.runs import RunFolder
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from accelerate import Accelerator


@holds_out
def pretrain(sources: Sequence[Sequence[Study]], labeled: Sequence[Study], out: Path, config: PretrainConfig) -> Path:
    """Pre-train a tower and return the folder it is saved in.

    Args:
        sources: for each manifest its train studies; every image of them is used, whatever its view.
        labeled: train and val studies for the probes, if any; feature maps of val images are drawn.
        out: the run folder.
        config: the recipe.

    Raises:
        RadDraftError: nothing to train on, sizes that do not fit together.
        DivergedError: the loss is not finite, or the run has collapsed and the recipe says to stop; the last checkpoint
            is kept.
    """
    from accelerate.utils import send_to_device, set_seed
    from tqdm import tqdm

    accelerator = make_accelerator(out, config.precision, config.trackers, "pretrain.shard")
    images = [_images(part, config.fraction, config.seed) for part in sources]
    paths = [image.path for part in images for image in part]
    n_micro = _count_micro_batches(config, accelerator.num_processes)
    if not all(images):
        raise RadDraftError("A manifest has no image in its train split")
    counts = ", ".join(str(len(part)) for part in images)
    accelerator.print(f"images by manifest: {counts}; on {accelerator.num_processes} processes")
    set_seed(config.seed)
    start = load_start(config, accelerator.device.type)
    run = Run(out, accelerator, config, start, labeled)
    model = Dino(start.model, config.objective)
    if config.head:
        load_head(model, config.head)
    dataset = CropDataset(paths, config, start)
    files = FileList(out / "watch")
    dataset.listed[:] = torch.tensor([digest is not None for digest in files.find(paths)])
    order = Order([len(part) for part in images], config.weights, config.batch_size, config.seed)
    if config.calibrate and not run.newest:
        model.to(accelerator.device)
        n_steps = min(16, math.ceil(config.objective.prototypes / (2 * config.batch_size)))
        parts = load_batches(dataset, order, range(n_steps), config.micro_batch_size, workers=config.workers)
        parts = (_list_files(part, dataset, files) for part in parts)
        model.calibrate((part.global_crops.to(accelerator.device) for part in parts), config.seed)
    if config.activation_checkpointing:
        model.backbone.activation_checkpointing_enable()
    wrapped = prepare_model(model, accelerator, config.shard)
    groups = parameter_groups(model, config.layer_decay, config.patch_embed_lr)
    optimizer = accelerator.prepare(torch.optim.AdamW(groups, lr=config.peak_lr))
    torch.manual_seed(config.seed + accelerator.process_index)  # drop path differs between processes
    step = run.read_progress().get("step", 0)
    run.resume(lambda row: 0 < step >= row["step"])  # step 0 is probed again
    run.restore(model)
    run.restore(model, optimizer)
    share = process_share(accelerator)
    batches = load_batches(dataset, order, range(step, config.steps), config.micro_batch_size, share, config.workers)
    run.draw_crops(paths)
    if step == 0:  # also finds what cannot be measured before the run
        run.evaluate(0, model)
    unreadable: set[str] = set()
    watch = CollapseWatch(round(config.warmup * config.steps))
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not accelerator.is_main_process)

    while step < config.steps:
        started = time.perf_counter()
        now = config.at(step)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * now["lr_prototypes" if group["prototypes"] else "lr"]
            group["weight_decay"] = now["weight_decay"] * group["decays"]
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(islice(batches, n_micro)):
            for sentence in sorted(set(batch.errors) - unreadable):
                tqdm.write(f"not trained on: {sentence}")
                unreadable.add(sentence)
            batch = send_to_device(_list_files(batch, dataset, files), accelerator.device, non_blocking=True)
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
                f"{now['lr']:.3g}); the last good checkpoint is {run.newest}. Try a lower pretrain.lr"
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
            if collapse := watch.look(step, numbers):
                run.write_page()
                if config.stop_on_collapse:
                    raise DivergedError(f"{collapse}; the last checkpoint is {run.newest}")
                tqdm.write(f"{collapse}; pretrain.stop_on_collapse: true would end it here")
        if step % config.watch_every == 0 or step == config.steps:
            run.evaluate(step, model)
        if step % config.save_every == 0 or step == config.steps:
            run.save(f"step-{step:09d}", model.state_dict().items(), {"step": step}, optimizer)
    bar.close()
    if accelerator.is_main_process:
        seen = out / "images.sha256"  # by which `compare` warns of a tower that has seen test images
        origins = (image.extra.get(SOURCE) for part in images for image in part)
        known = [(digest, origin) for digest, origin in zip(files.find(paths), origins, strict=True) if digest]
        digests = {digest for pair in known for digest in pair if digest}
        if seen.is_file():  # of a run long done: films may be gone, or the list damaged
            digests |= set(re.findall("^[0-9a-f]{64}$", seen.read_text(errors="replace"), re.MULTILINE))
        write_text(seen, "".join(f"{digest}\n" for digest in sorted(digests)))
        if lower := tell_lower(read_probes(out), read_kept(out), config):
            accelerator.print(lower)
    run.write_page()
    accelerator.end_training()
    return out / "model"


def _list_files(batch: Batch, dataset: CropDataset, files: FileList) -> Batch:
    """List the files that were read for the first time. The batch goes on without them."""
    files.add(list(batch.read.values()))
    dataset.listed[list(batch.read)] = True
    return batch._replace(read={})


def _images(studies: Sequence[Study], fraction: float, seed: int) -> list[StudyImage]:
    """All images of a share of the subjects."""
    subjects = sorted({study.subject_id for study in studies})
    kept = np.random.default_rng(seed).permutation(len(subjects))[: math.ceil(fraction * len(subjects))]
    chosen = {subjects[number] for number in kept}
    return [image for study in studies if study.subject_id in chosen for image in study.images]


def _count_micro_batches(config: PretrainConfig, processes: int) -> int:
    """Micro-batches of one process in a step."""
    share, rest = divmod(config.batch_size, processes)
    if rest or share % min(share, config.micro_batch_size):
        raise RadDraftError(
            f"batch_size {config.batch_size} on {processes} processes does not divide into micro-batches of "
            f"{config.micro_batch_size}"
        )
    return max(1, share // config.micro_batch_size)


class Run(RunFolder):
    """The run folder, with the best teacher so far as model/, its probes and feature maps."""

    def __init__(
        self, folder: Path, accelerator: Accelerator, config: PretrainConfig, start: Tower, labeled: Sequence[Study]
    ) -> None:
        super().__init__(folder, accelerator)
        self.config, self.start = config, start
        self.watches = [(watch, _val_target(labeled, watch)) for watch in config.watch]
        self.mapped = [study.main_image.path for study in labeled if study.split == "val"][: config.map_images]

    def evaluate(self, step: int, model: Dino) -> None:
        """Probe the teacher, draw its maps and the page; after step 0 also keep it unless an earlier one is better.

        Every process has to take part.
        """
        weights = {name: gather(part.state_dict().items(), self.accelerator) for name, part in model.teacher.items()}
        if self.accelerator.is_main_process:
            tower = self._teacher(weights["backbone"])
            found = self._probe(tower)
            self._draw_maps(tower, step)
            score = float(np.mean(list(found.values()))) if found else None
            if found:
                self.log({"step": step, "probes": found, "probe_mean": score})
            record = self.folder / "best.json"
            way_out = "remove it, and the next weights that are probed count as the best so far"
            best = read_object(record, way_out, ("step", "score")) if record.is_file() else None
            if step and (not best or best["step"] >= step or score is None or score > best["score"]):
                with whole_folder(self.folder / "model") as temporary:
                    tower.model.save_pretrained(temporary)
                    tower.processor.save_pretrained(temporary)
                    save_file(weights["head"], temporary / "dino_head.safetensors")
                write_text(record, json.dumps({"step": step, "score": score, "probes": found}) + "\n")
            self.write_page()
        self.accelerator.wait_for_everyone()

    def draw_crops(self, paths: Sequence[Path]) -> None:
        """A sheet of the crops of three films, unless it is there."""
        if self.accelerator.is_main_process and not (self.folder / "crops.png").is_file():
            with suppress(RadDraftError):  # training tells of films that cannot be read
                patch_size = self.start.model.config.patch_size
                write_crops(paths, self.config, self.folder / "crops.png", 3, patch_size, numbered=True)

    def write_page(self) -> None:
        """Write report.html of what is there. Whatever that is, training goes on without a page."""
        if self.accelerator.is_main_process:
            try:
                write_page(self.folder, self.config)
            except Exception as error:
                warnings.warn(f"{self.folder / 'report.html'} was not written: {error!r}", stacklevel=2)

    def _teacher(self, weights: dict[str, torch.Tensor]) -> Tower:
        """The teacher's backbone as a tower of its own."""
        from transformers import AutoModel

        backbone = AutoModel.from_config(self.start.model.config)
        backbone.load_state_dict(weights)
        backbone.config.drop_path_rate = 0.0
        return Tower("teacher", backbone.to(self.accelerator.device), self.start.processor)

    def _probe(self, tower: Tower) -> dict[str, float]:
        """Macro AUROC (regression: R²) of each probe on val, from the class token and the mean patch."""
        found: dict[str, float] = {}
        paths = list(dict.fromkeys(path for _, target in self.watches for path in target.paths))
        if not paths:
            return found
        compute = EncoderConfig(
            workers=self.config.workers, features=self.folder / "watch", gray_mapping=self.config.gray_mapping
        )
        store = open_store(tower, paths, compute=compute, quiet=True)
        for watch, target in self.watches:
            decays = (watch.weight_decay,) if watch.solver == "lbfgs" else None
            settings = ProbeConfig("both", watch.solver, decays, resamples=1, evaluate="val")
            measured = run_probe(store, target, settings).measures["macro"]
            estimate = measured["r2" if watch.kind == "regression" else "auroc"].estimate
            if estimate.value is None:
                raise RadDraftError(f"watch {watch.name}: val cannot be measured, since {estimate.reason}")
            found[watch.name] = estimate.value
        shutil.rmtree(store.folder)  # digests of the images beside it stay
        return found

    def _draw_maps(self, tower: Tower, step: int) -> None:
        """Feature maps of the val images that can be read, as one PNG."""
        names, images = [], []
        for path in self.mapped:
            with suppress(ImageError, OSError):
                images.append(load_image(path, self.config.gray_mapping))
                names.append(path.name)
        if images:
            point = (0.32, 0.45)
            xrays, maps = look(tower, images, point)
            with write_whole(self.folder / "maps" / f"step-{step:07d}.png") as temporary:
                temporary.write_bytes(draw(names, xrays, [maps], point))


def _val_target(studies: Sequence[Study], watch: Watch) -> Target:
    """Train and val images with the labels of a watched probe."""
    wanted = [study for study in studies if watch.sources is None or study.source in watch.sources]
    target = make_target(wanted, watch)
    if missing := {"train", "val"} - set(target.splits.tolist()):
        raise RadDraftError(f"watch {watch.name}: there is no labeled image in {', '.join(sorted(missing))}")
    return target.keep(target.splits != "test")
