"""The pre-training loop: what it leaves, going on after a kill, several processes, faults."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, Dinov2WithRegistersConfig

from encoder.budget import estimate
from encoder.collapse import LEAST_INFORMATION, ROWS, CollapseWatch
from encoder.dino import Dino
from encoder.pretrain import Run, pretrain
from encoder.recipe import Architecture, CropConfig, DinoConfig, PretrainConfig, Watch
from encoder.start import load_start, new_backbone
from encoder.towers import load_tower
from raddraft.errors import DivergedError
from raddraft.processes import make_accelerator
from raddraft.studies import Study, StudyImage, read_studies, write_studies
from tests.conftest import ROOT
from tests.launch import Job, join, kill_midway, start_launcher
from tests.test_cli import files_no_larger_than, run
from tests.test_train import count_processes

TINY = PretrainConfig(
    tower=None,
    architecture=Architecture(width=32, depth=2, patch_size=7, layer_scale=1.0),
    drop_path=0.0,
    objective=DinoConfig(prototypes=32, head_hidden=32, bottleneck=16),
    crops=CropConfig(global_size=28, local_size=14, local_crops=2),
    steps=6,
    batch_size=8,
    micro_batch_size=8,
    watch=[Watch(("Bright",), "binary")],
    watch_every=3,
    save_every=2,
    log_every=1,
    map_images=0,
    workers=0,
)


def make_study(folder: Path, number: int, split: str) -> Study:
    """An image with a bright or a dark square, which its label tells."""
    random = np.random.default_rng(number)
    pixels = random.integers(60, 120, (40, 36), dtype=np.uint8)
    pixels[8:28, 8:28] += np.uint8(100 * (number % 2))
    path = folder / f"{number}.png"
    Image.fromarray(pixels).save(path)
    return Study(f"s{number}", f"p{number}", split, [StudyImage(path, "PA")], labels={"Bright": number % 2})


def write_manifest(folder: Path) -> Path:
    (folder / "images").mkdir()
    splits = ["train"] * 24 + ["val"] * 8 + ["test"] * 4
    write_studies(folder / "studies.jsonl", [make_study(folder / "images", i, s) for i, s in enumerate(splits)])
    return folder / "studies.jsonl"


@pytest.fixture
def manifest(tmp_path) -> Path:
    return write_manifest(tmp_path)


def run_here(manifest: Path, out: Path, config: PretrainConfig = TINY) -> Path:
    known = [study for study in read_studies(manifest) if study.split != "test"]
    return pretrain([read_studies(manifest, "train")], known, out, config)


def read_log(out: Path) -> list[dict]:
    """What was logged, without what depends on the clock."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def test_what_a_run_leaves(manifest, tmp_path):
    folder = run_here(manifest, tmp_path / "run", replace(TINY, map_images=2))
    model = AutoModel.from_pretrained(folder)
    assert type(model).__name__ == "Dinov2Model"
    assert AutoImageProcessor.from_pretrained(folder).crop_size.height == 28
    tower = load_tower(str(folder))
    assert tower.shape == (4, 4, 32)
    rows = read_log(tmp_path / "run")
    probes = [row for row in rows if "probes" in row]
    assert [row["step"] for row in probes] == [0, 3, 6]
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["score"] == max(row["probe_mean"] for row in probes[1:])
    checkpoint = load_file(next((tmp_path / "run" / "checkpoints").glob("step-*")) / "weights.safetensors")
    if best["step"] == 6:
        assert torch.equal(
            model.encoder.layer[1].mlp.fc1.weight, checkpoint["teacher.backbone.encoder.layer.1.mlp.fc1.weight"]
        )
    assert load_file(folder / "dino_head.safetensors").keys() == {
        name.removeprefix("teacher.head.") for name in checkpoint if name.startswith("teacher.head.")
    }
    assert len((tmp_path / "run" / "images.sha256").read_text().split()) == 24
    assert {path.stem for path in (tmp_path / "run" / "maps").iterdir()} == {f"step-000000{step}" for step in (0, 3, 6)}
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(text in page for text in ("step 6 of 6", "Loss and its parts", "crops of three films"))
    assert page.count("Similarity of film 2 at step") == 3
    assert {"dino_local", "dino_global", "ibot", "koleo", "teacher_entropy", "spread", "lr"} <= rows[1].keys()


def test_a_finished_run_started_again_does_nothing(manifest, tmp_path):
    config = replace(TINY, steps=2, watch=[])  # which do not read all films
    run_here(manifest, tmp_path / "run", config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "model").iterdir()}
    images = tmp_path / "run" / "images.sha256"
    log, seen = read_log(tmp_path / "run"), images.read_text()
    images.write_text(seen[:99])
    run_here(manifest, tmp_path / "run", config)
    assert images.read_text() == seen, "what is damaged is made again"
    (tmp_path / "run" / "watch" / "files.jsonl").write_text("")  # lost, while the list made of it is there
    run_here(manifest, tmp_path / "run", config)
    assert images.read_text() == seen != ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "model").iterdir()} == before
    assert read_log(tmp_path / "run") == log


def test_the_student_learns_what_a_teacher_that_stands_still_says(manifest, tmp_path):
    still = {"momentum": (1.0, 1.0), "temperature": (0.07, 0.07), "watch": [], "watch_every": 100, "save_every": 100}
    run_here(manifest, tmp_path / "run", replace(TINY, steps=60, lr=0.02, **still))
    rows = read_log(tmp_path / "run")
    missed = [row["dino_local"] + row["dino_global"] - row["teacher_entropy"] for row in rows]  # divergence
    # The running center settles in the first ten steps.
    assert np.mean(missed[-10:]) < 0.7 * np.mean(missed[10:20])


def test_an_architecture_with_gated_layers_and_registers_trains(manifest, tmp_path):
    config = replace(TINY, architecture=replace(TINY.architecture, swiglu=True, registers=2), steps=2, watch=[])
    model = AutoModel.from_pretrained(run_here(manifest, tmp_path / "run", config))
    assert (model.config.use_swiglu_ffn, model.config.num_register_tokens) == (True, 2)
    assert type(model.encoder.layer[0].mlp).__name__ == "Dinov2WithRegistersSwiGLUFFN"


COLLAPSING = {"watch": [], "watch_every": 100, "save_every": 4, "warmup": 0.0, "temperature": (9.0, 9.0)}
"""A teacher this soft calls all prototypes alike."""


def test_a_run_that_collapses_says_so_and_ends_if_asked(manifest, tmp_path, capsys):
    run_here(manifest, tmp_path / "told", replace(TINY, steps=8, **COLLAPSING))
    assert (
        capsys.readouterr().out.count("step 5: the run has collapsed: the teacher's answers tell images apart by") == 1
    )
    with pytest.raises(DivergedError, match=r"step 5: the run has collapsed.* the last checkpoint is .*step-000000004"):
        run_here(manifest, tmp_path / "ended", replace(TINY, steps=8, stop_on_collapse=True, **COLLAPSING))
    assert "Step 5: the run has collapsed" in (tmp_path / "ended" / "report.html").read_text()


def test_a_run_that_learns_does_not_collapse(manifest, tmp_path, capsys):
    good = {"watch": [], "watch_every": 100, "save_every": 100, "stop_on_collapse": True, "calibrate": True}
    run_here(manifest, tmp_path / "run", replace(TINY, steps=40, **good))
    assert "collapsed" not in capsys.readouterr().out
    last = read_log(tmp_path / "run")[-1]
    assert last["mean_entropy"] - last["teacher_entropy"] > 10 * LEAST_INFORMATION


def test_an_answer_that_says_nothing_is_a_collapse_after_the_warm_up_or_if_it_has_said_something():
    def first_told(rows: list[float], warmup: int) -> list[int]:
        watch = CollapseWatch(warmup)
        signs = ({"mean_entropy": 3 + one, "teacher_entropy": 3.0, "cosine": 0.9} for one in rows)
        return [step for step, one in enumerate(signs, 1) if watch.look(step, one)]

    nothing = 0.1 * LEAST_INFORMATION
    assert first_told([nothing] * 30, warmup=10) == [10 + ROWS]
    assert first_told([nothing] * 3 + [1.0] + [nothing] * 30, warmup=100) == [4 + ROWS]
    assert first_told(([nothing] * (ROWS - 1) + [1.0]) * 5, warmup=0) == []
    assert first_told([2 * LEAST_INFORMATION] * 30, warmup=0) == []


def test_continuing_starts_from_the_towers_own_features(manifest, tmp_path, tower_folder):
    config = replace(TINY, tower=str(tower_folder), architecture=None, drop_path=0.2)
    start = load_start(replace(config, crops=CropConfig(global_size=28, local_size=14)), "cpu")
    original = load_tower(str(tower_folder))
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(start.encode(pixels).patches, original.encode(pixels).patches)  # no path is dropped here
    start.model.train()
    torch.manual_seed(0)
    assert not torch.equal(start.model(pixels).last_hidden_state, original.model(pixels).last_hidden_state)
    assert list(start.processor.image_mean) == [pytest.approx(np.mean(original.processor.image_mean))] * 3, "gray"


def test_small_crops_in_bf16_are_attended_to_step_by_step_on_a_cpu():
    """The same numbers in half the time of a step: torch's fused attention is slow backwards there."""
    torch.manual_seed(0)
    wanted = replace(TINY, precision="bf16")
    steps, fused = (load_start(wanted, device).model.eval() for device in ("cpu", "cuda"))
    assert (steps.config._attn_implementation, fused.config._attn_implementation) == ("eager", "sdpa")
    fused.load_state_dict(steps.state_dict())
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.allclose(steps(pixels)[0], fused(pixels)[0], atol=1e-5)


def test_registers_and_a_published_head(manifest, tmp_path):
    first = run_here(manifest, tmp_path / "first", replace(TINY, steps=2, watch=[]))
    wanted = replace(TINY, steps=2, watch=[], architecture=replace(TINY.architecture, registers=2))
    second = run_here(manifest, tmp_path / "second", replace(wanted, head=first / "dino_head.safetensors"))
    tower = load_tower(str(second))
    assert isinstance(tower.model.config, Dinov2WithRegistersConfig)
    assert tower.n_prefix == 3


def write_config(folder: Path, manifest: Path, config: PretrainConfig) -> Path:
    path = folder / "pretrain.yaml"
    body = json.loads(json.dumps(asdict(config), default=str))
    path.write_text(yaml.safe_dump({"studies": [str(manifest)], "pretrain": body}))
    return path


def arguments(config: Path, out: Path) -> list[str]:
    return ["--config", str(config), "--out", str(out)]


def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(manifest, tmp_path):
    config = replace(TINY, steps=12, drop_path=0.2, watch_every=6, save_every=3, workers=1)
    path = write_config(tmp_path, manifest, config)
    run_here(manifest, tmp_path / "whole", config)
    out = tmp_path / "killed"
    kill_midway(
        lambda: Job("pretrain", *arguments(path, out)),
        lambda: bool(list(out.glob("checkpoints/step-*[1-9]*"))),
        lambda: 0 < len(read_log(out)) < 15,
        out,
    )
    Job("pretrain", *arguments(path, out)).finish()
    assert read_log(out) == read_log(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_two_processes_follow_one(manifest, tmp_path, centering):
    objective = replace(TINY.objective, centering=centering)
    config = replace(TINY, steps=8, objective=objective, watch=[], map_images=0, save_every=100, watch_every=100)
    path = write_config(tmp_path, manifest, config)
    Job("pretrain", *arguments(path, tmp_path / "two"), n=2).finish()
    run_here(manifest, tmp_path / "one", config)
    assert count_processes(tmp_path / "two") == 2
    for one, two in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        for name in ("loss", "dino_local", "dino_global", "ibot", "koleo", "mean_entropy", "grad_norm_backbone"):
            assert two[name] == pytest.approx(one[name], abs=1e-3), f"{name} at step {one['step']}"


SHARED_OUT = replace(TINY, steps=12, shard=True, map_images=0, save_every=5, watch_every=100)


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("followed")
    run_here(write_manifest(folder), folder / "one", SHARED_OUT)
    return folder / "one"


@pytest.mark.parametrize("stops", [None, "shared", "whole"])
def test_two_processes_that_share_the_model_out_follow_one(followed, manifest, tmp_path, stops):
    """From the start; from the checkpoint of a run that shared it out; and the other way round."""
    path = write_config(tmp_path, manifest, SHARED_OUT)
    if stops:
        kill_midway(
            lambda: Job("pretrain", *arguments(path, tmp_path / "run"), n=2 if stops == "shared" else 1),
            lambda: bool(list(tmp_path.glob("run/checkpoints/step-*"))),
            lambda: 0 < len(read_log(tmp_path / "run")) < 12,
            tmp_path / "run",
        )
    Job("pretrain", *arguments(path, tmp_path / "run"), n=1 if stops == "shared" else 2).finish()
    assert count_processes(tmp_path / "run") == (1 if stops == "shared" else 2)
    for one, other in zip(read_log(followed), read_log(tmp_path / "run"), strict=True):
        if "probes" in one:
            assert other["probes"] == pytest.approx(one["probes"], abs=1e-3)
            continue
        for name in ("loss", "dino_local", "dino_global", "ibot", "koleo", "grad_norm_backbone", "grad_norm_head"):
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-4), f"{name} at step {one['step']}"
    for file in ("model.safetensors", "dino_head.safetensors"):
        one, other = (load_file(run / "model" / file) for run in (followed, tmp_path / "run"))
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-5) for name in one), file


def test_micro_batches_make_one_step(manifest, tmp_path):
    """Only what is computed across a batch differs: the center, here beside a temperature that takes it out."""
    config = replace(TINY, steps=1, temperature=(1e3, 1e3), watch=[], map_images=0)
    config = replace(config, objective=replace(TINY.objective, koleo_weight=0.0))
    run_here(manifest, tmp_path / "whole", config)
    run_here(manifest, tmp_path / "halves", replace(config, micro_batch_size=4))
    (whole,), (halves,) = read_log(tmp_path / "whole"), read_log(tmp_path / "halves")
    for name in ("loss", "dino_local", "ibot", "grad_norm_backbone", "grad_norm_head"):
        assert halves[name] == pytest.approx(whole[name], rel=1e-3), name


def test_faults_of_images_are_named_and_the_rest_trains(manifest, tmp_path, capsys):
    images = tmp_path / "images"
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:50])  # cut off
    Image.new("L", (40, 40), 128).save(images / "4.png")  # constant
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 9), dtype=np.uint8)).save(images / "5.png")  # small
    run_here(manifest, tmp_path / "run", replace(TINY, steps=9))
    printed = capsys.readouterr().out
    assert f"not trained on: {images / '3.png'}" in printed
    assert f"not trained on: {images / '4.png'}" in printed
    assert str(images / "5.png") not in printed
    assert len([row for row in read_log(tmp_path / "run") if "loss" in row]) == 9


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(manifest, tmp_path):
    run_here(manifest, tmp_path / "run", replace(TINY, steps=2, watch=[]))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    with pytest.raises(FloatingPointError, match=r"step 3 \(by .*dino_global.*step-000000002"):
        run_here(manifest, tmp_path / "run", poisoned(checkpoint))
    assert checkpoint.is_dir()
    assert len(read_log(tmp_path / "run")) == 2


def poisoned(checkpoint: Path) -> PretrainConfig:
    """Put a NaN into a checkpoint; the settings that go on from there."""
    from safetensors.torch import save_file

    weights = load_file(checkpoint / "weights.safetensors")
    weights["student.head.mlp.0.weight"][0, 0] = float("nan")
    save_file(weights, checkpoint / "weights.safetensors", metadata={"format": "pt"})
    return replace(TINY, steps=4, watch=[])


def test_a_full_disk_stops_the_run_which_then_goes_on(manifest, tmp_path):
    config = replace(TINY, steps=4, watch=[], map_images=0)
    full = pytest.raises((OSError, RuntimeError, SafetensorError), match=r"(?i)file too large|write|I/O")
    with files_no_larger_than(60_000), full:
        run_here(manifest, tmp_path / "run", config)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    run_here(manifest, tmp_path / "run", config)
    run_here(manifest, tmp_path / "whole", config)
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")


def test_a_lost_process_ends_the_run_which_then_goes_on(manifest, tmp_path):
    config = replace(TINY, steps=24, watch=[], map_images=0, save_every=2, watch_every=100)
    path = write_config(tmp_path, manifest, config)
    out = tmp_path / "run"
    pids = tmp_path / "pids"
    pids.mkdir()
    launcher = start_launcher("pretrain", *arguments(path, out), n=2, pids=pids)
    while launcher.is_alive() and not list(out.glob("checkpoints/step-*[1-9]*")):
        time.sleep(0.02)
    os.kill(int((pids / "1").read_text()), signal.SIGKILL)
    join(launcher)
    assert launcher.exitcode != 0
    assert list(out.glob("checkpoints/step-*"))
    Job("pretrain", *arguments(path, out)).finish()
    assert [row["step"] for row in read_log(out)] == list(range(1, 25))


def test_a_page_that_cannot_be_made_does_not_end_the_run(tmp_path):
    config = replace(TINY, watch=[])
    run = Run(tmp_path, make_accelerator(tmp_path, "no", [], "pretrain.shard"), config, load_start(config, "cpu"), [])
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "step-0000001.png").write_text("damaged")
    with pytest.warns(UserWarning, match=r"report\.html was not written: UnidentifiedImageError"):
        run.write_page()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tower": "x"}, "either a tower"),
        ({"batch_size": 10, "micro_batch_size": 4}, "does not divide"),
        ({"crops": CropConfig(global_size=30, local_size=14)}, "not a multiple of the patch"),
        ({"watch": [Watch(("Nonsense",), "binary")]}, "Nonsense"),
        ({"weights": [1.0, 1.0]}, "weight of at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(manifest, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_here(manifest, tmp_path / "run", replace(TINY, **changes))


def test_towers_that_are_not_dinov2_are_refused(tmp_path):
    from tests.test_towers import save_tower

    with pytest.raises(ValueError, match="takes DINOv2 towers"):
        load_start(replace(TINY, tower=str(save_tower("clip", tmp_path)), architecture=None), "cpu")


def test_budget_of_the_public_recipe():
    """ViT-B/14 of DINOv2 has 86,580,480 parameters with the 518-pixel grid; FLOPs by hand."""
    config = PretrainConfig(
        tower="dinov2-base", batch_size=2560, micro_batch_size=40, crops=CropConfig(global_size=518, local_size=196)
    )
    budget = estimate(replace(config, shard=True), "a100", 64)
    assert budget.backbone == 86_580_480
    assert budget.heads == 23_138_560
    assert budget.tokens == 2560 * (2 * 1370 + 8 * 197)
    blocks = 85_054_464 + 12 * 2 * 768  # twelve blocks with their layer scales
    large, small = (2 * blocks * t + 4 * 12 * 768 * t * t for t in (1370, 197))
    patches = 2 * 0.15 * 1369
    by_hand = 2560 * (
        3 * (2 * large + 8 * small + (10 + patches) * 2 * 23_138_560) + 2 * large + (2 + patches) * 2 * 23_138_560
    )
    assert budget.flops == pytest.approx(by_hand, rel=1e-3)
    assert budget.hours == pytest.approx(100_000 * by_hand / (64 * 312e12 * 0.35) / 3600, rel=1e-3)
    whole = estimate(config, "a100", 64)
    part = "weights, gradients, optimizer"
    assert whole.memory[part] == pytest.approx(64 * budget.memory[part])
    again = estimate(replace(config, activation_checkpointing=True), "a100", 64)
    inputs = 40 * (2 * 1370 + 8 * 197) * 768 * 12 * 4 / 2**30
    assert again.memory["activations"] == pytest.approx(inputs + whole.memory["activations"] / 12)
    with pytest.raises(OSError, match="nowhere/tower"):
        estimate(replace(config, tower="nowhere/tower"), "a100", 1)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_of_the_budget_are_what_a_network_keeps(precision, swiglu):
    """By the layers and images that one network has more than another; norms keep a few numbers a token besides."""

    def keep(depth: int, images: int) -> tuple[int, float]:
        architecture = Architecture(width=64, depth=depth, swiglu=swiglu)
        crops = CropConfig(global_size=56, local_size=28, local_crops=0)
        config = replace(TINY, architecture=architecture, crops=crops, batch_size=images, micro_batch_size=images)
        config = replace(config, precision=precision, drop_path=0.0)
        backbone, kept = new_backbone(config).train(), {}
        weights = {one.untyped_storage().data_ptr() for one in backbone.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if (storage := tensor.untyped_storage()).data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            _answer = backbone(torch.randn(2 * images, 3, 56, 56))  # held, or storages are given out again
        return sum(kept.values()), estimate(config, "a100", 1).memory["activations"] * 2**30

    counted, estimated = (
        (large_more - large) - (small_more - small)
        for large_more, large, small_more, small in zip(keep(3, 4), keep(1, 4), keep(3, 2), keep(1, 2), strict=True)
    )
    assert estimated == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_logits_of_the_budget_are_what_a_step_holds(precision, centering):
    """Prototypes so many that nothing else counts; a second micro-batch, so that gradients are held meanwhile."""
    objective = DinoConfig(prototypes=65_536, head_hidden=8, bottleneck=4, centering=centering)
    crops = CropConfig(global_size=56, local_size=28, local_crops=2)
    config = replace(TINY, objective=objective, crops=crops, precision=precision, batch_size=16, micro_batch_size=8)
    model, per_side = Dino(new_backbone(config), objective), 56 // config.architecture.patch_size
    masks = torch.zeros(16, per_side, per_side, dtype=torch.bool)
    masks.flatten()[: round(8 * config.mask_probability * sum(objective.mask_ratio) * per_side**2)] = True
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = model(torch.randn(16, 3, 56, 56), torch.randn(16, 3, 28, 28), masks, 0.05)
        losses["loss"].backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max()
    assert estimate(config, "a100", 1).memory["logits"] * 2**30 == pytest.approx(held, rel=0.1)
    first = estimate(replace(config, batch_size=8), "a100", 1)  # no gradients yet
    assert first.memory["logits"] < estimate(config, "a100", 1).memory["logits"]


def test_the_dry_run_says_what_it_costs_and_what_does_not_fit(capsys):
    recipe = ("--config", ROOT / "configs" / "pretrain" / "phantom.yaml", "--studies", "x", "--out", "y")
    assert run("pretrain", *recipe, "--dry-run", "--gpus", 2) == (0, "")
    said = capsys.readouterr().out
    assert "2 x h100: 989 TFLOP/s peak (16-bit), 35% utilization assumed" in said
    assert "more than" not in said
    large = ("--pretrain.crops.global-size", 1120, "--pretrain.micro-batch-size", 4096, "--pretrain.batch-size", 4096)
    assert run("pretrain", *recipe, *large, "--dry-run", "--gpu", "a10") == (0, "")
    assert "more than the 24 GiB of one a10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--pretrain.views.n_local", "--pretrain.crops.local-crops"),
        ("--pretrain.views.blur-local", "--pretrain.crops.blur-local"),
        ("--pretrain.base_lr", "--pretrain.lr"),
        ("--pretrain.checkpointing", "--pretrain.activation-checkpointing"),
        ("--pretrain.objective.centring", "--pretrain.objective.centering"),
        ("--pretrain.pictures", "--pretrain.map-images"),
        ("--labelled", "--labeled"),
        ("--n_gpus", "--gpus"),
    ],
)
def test_options_with_an_old_name_are_refused_with_the_new_one(capsys, old, new):
    assert run("pretrain", "--studies", "x", "--out", "y", old, 1) == (2, "")
    assert f"was renamed to {new}\n" in capsys.readouterr().err
