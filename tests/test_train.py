"""The training loop: what trains, exact resume after a kill, several processes, cached features, faults."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import raddraft.cli
from generator.config import DecodeConfig, LoraConfig, ModelConfig, Stage, TrainConfig
from generator.data import batch_indices, split_batch
from generator.drafter import StoredFeatures
from generator.generate import generate
from generator.model import Drafter, add_lora, build, choose_trainable, load
from generator.prompts import PromptConfig
from generator.runs import lr_factor
from generator.train import train
from raddraft.runs import RunFolder
from raddraft.studies import Study, read_studies, write_studies
from tests.launch import Job, kill_midway
from tests.test_cli import run
from tests.test_towers import FAMILIES, save_tower


@pytest.fixture
def parts(studies_file: Path) -> dict:
    return {split: read_studies(studies_file, split) for split in ("train", "val")}


@pytest.fixture
def parts_config(tower_folder: Path, lm_folder: Path) -> ModelConfig:
    return ModelConfig(str(tower_folder), str(lm_folder))


def quick(**changes) -> TrainConfig:
    config = TrainConfig(
        stages=[Stage(epochs=1, lr=1e-3), Stage(epochs=2, lr=1e-3, lm="full", tower="full")],
        batch_size=8,
        micro_batch_size=4,
        workers=0,
    )
    return replace(config, **changes)


def losses(run: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"], row.get("loss"), row.get("val_loss"), row.get("grad_norm")) for row in rows]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("stage", "parts_that_change"),
    [
        (Stage(lr=1e-2), {"multi_modal_projector"}),
        (Stage(lr=1e-2, projector=False, lm="full"), {"language_model", "lm_head"}),
        (Stage(lr=1e-2, projector=False, lm="lora"), {"language_model"}),
        (Stage(lr=1e-2, projector=False, tower=1), {"vision_tower.encoder.layer.1"}),
        (Stage(lr=1e-2, tower="full", lm="lora"), {"multi_modal_projector", "language_model", "vision_tower"}),
    ],
)
def test_a_stage_changes_the_intended_parameters_only(parts, parts_config, tmp_path, stage, parts_that_change) -> None:
    torch.manual_seed(0)
    before = weights(build(parts_config)[0])
    folder = train(parts, tmp_path / "run", parts_config, PromptConfig(), quick(stages=[stage], eval_every=0))
    after = weights(load(folder).model)
    moved = changed(before, after)
    for part in parts_that_change:
        assert any(part in name for name in moved), f"{part} has not moved"
    allowed = {name for name in before if any(part in name for part in parts_that_change)}
    assert moved <= allowed
    if stage.tower == "full":
        still = {name for name in allowed - moved if "vision_tower" in name}
        assert still == {
            "model.vision_tower.embeddings.mask_token",
            "model.vision_tower.layernorm.weight",
            "model.vision_tower.layernorm.bias",
        }, "the hidden state before the last LayerNorm depends on everything else"


def test_lora_wraps_no_vision_layer(parts_config) -> None:
    model = add_lora(build(parts_config)[0], LoraConfig(rank=4))
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted
    assert all("language_model.layers" in name for name in adapted)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapted} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


def test_lora_run_reloads_with_adapters_merged(parts, parts_config, tmp_path) -> None:
    config = quick(stages=[Stage(lr=1e-3), Stage(lr=1e-2, lm="lora")], lora=LoraConfig(rank=4, dropout=0.1))
    folder = train(parts, tmp_path / "run", parts_config, PromptConfig(), config)
    assert not list(folder.glob("adapter*")), "a plain loader must find merged weights"
    assert not (tmp_path / "run" / "adapter").exists(), "there is no folder that it could belong to"
    validation = [row for row in losses(tmp_path / "run") if row[3] is not None]
    assert evaluate(load(folder), parts["val"]) == pytest.approx(validation[-1][3], abs=1e-5)


def test_a_finished_run_started_again_keeps_its_model(parts, parts_config, tmp_path) -> None:
    first = weights(load(train(parts, tmp_path / "run", parts_config, PromptConfig(), quick())).model)
    log = losses(tmp_path / "run")
    again = weights(load(train(parts, tmp_path / "run", parts_config, PromptConfig(), quick())).model)
    assert changed(first, again) == set()
    assert losses(tmp_path / "run") == log


def evaluate(drafter: Drafter, studies: list) -> float:
    """Loss per report token by plain transformers: one study at a time, labels over the whole sequence."""
    total, count = 0.0, 0
    for study in studies:
        messages = drafter.prompt.messages(study)
        prompt = drafter.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        text = prompt + drafter.prompt.answer(study) + drafter.processor.tokenizer.eos_token
        image = Image.open(study.main_image.path).convert("RGB")
        inputs = drafter.processor(images=image, text=text, add_special_tokens=False, return_tensors="pt")
        start = drafter.processor(images=image, text=prompt, add_special_tokens=False, return_tensors="pt")
        labels = inputs["input_ids"].clone()
        labels[:, : start["input_ids"].shape[1]] = -100
        with torch.no_grad():
            loss = drafter.model(**inputs, labels=labels).loss
        n = int((labels != -100).sum())
        total, count = total + loss.item() * n, count + n
    return total / count


def test_loss_is_the_plain_transformers_loss(parts, parts_config, tmp_path) -> None:
    config = quick(stages=[Stage(lr=1e-9)], eval_every=1)
    folder = train(parts, tmp_path / "run", parts_config, PromptConfig(context=["view", "indication"]), config)
    logged = next(row[3] for row in losses(tmp_path / "run") if row[3] is not None)
    assert logged == pytest.approx(evaluate(load(folder), parts["val"]), abs=1e-5)


def test_training_learns(parts, parts_config, tmp_path) -> None:
    config = quick(stages=[Stage(epochs=12, lr=3e-3, lm="full", tower="full")], eval_every=0)
    train(parts, tmp_path / "run", parts_config, PromptConfig(), config)
    values = [row[2] for row in losses(tmp_path / "run")]
    assert values[-1] < 0.6 * values[0]


def test_the_control_trains_on_other_subjects_pictures(studies_file, tmp_path, monkeypatch) -> None:
    studies = {study.study_id: study for study in read_studies(studies_file)}
    owner = {study.main_image.path: study.subject_id for study in studies.values()}
    seen: dict[str, list[Study]] = {}
    monkeypatch.setattr("generator.train.train", lambda parts, out, *_: seen.update(parts) or out / "model")
    command = ["train", "--studies", studies_file, "--model.tower", "a", "--model.lm", "b", "--out", tmp_path / "run"]
    assert run(*command, "--control", "shuffled-images", "--prompt.targets", "[findings]") == (0, "")
    assert {split: len(part) for split, part in seen.items()} == {"train": 24, "val": 8}
    for study in (study for part in seen.values() for study in part):
        assert study.sections == studies[study.study_id].sections
        assert owner[study.main_image.path] != study.subject_id
        assert {owner[image.path] for image in study.images} <= {one.subject_id for one in seen[study.split]}
    assert not (tmp_path / "run" / "model").exists(), "a control gets no card"
    (tmp_path / "run" / "log.jsonl").touch()  # as a run that has begun
    status, said = run(*command)
    assert status == 1
    assert "control was 'shuffled-images', now None" in said


def test_the_dry_run_and_the_names_of_options(studies_file, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    command = ["train", "--studies", studies_file, "--out", out]
    status, said = run(*command, "--model.vlm", "google/gemma-3-4b-it", "--dry-run")
    assert (status, "--dry-run cannot plan for a VLM (google/gemma-3-4b-it)" in said) == (1, True)
    command += ["--model.tower", "a", "--model.lm", "b"]
    status, said = run(*command, "--features", tmp_path / "features")
    assert (status, "--train.cached" in said) == (1, True)
    assert not out.exists()
    for old, new in (
        ("train.features", "train.cached"),
        ("train.cache", "features"),
        ("image_mapping", "gray-mapping"),
    ):
        assert run(*command, f"--{old}", "cached")[0] == 2
        assert f"was renamed to --{new}\n" in capsys.readouterr().err


def test_a_run_started_before_the_renames_is_refused(studies_file, parts_config, tmp_path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    old = {"model": {}, "train": {"features": "cached", "cache": None}, "image_mapping": "window"}
    (out / "config.yaml").write_text(yaml.safe_dump(old))
    (out / "log.jsonl").touch()
    status, said = run("train", *arguments(write_config(tmp_path, studies_file, parts_config), out))
    assert status == 1
    assert f"{out} holds a run of another version of RadDraft (config.yaml has image_mapping" in said
    assert yaml.safe_load((out / "config.yaml").read_text()) == old


def test_a_manifest_without_training_studies_tells_how_to_make_splits(studies_file, tmp_path) -> None:
    studies = read_studies(studies_file)
    write_studies(tmp_path / "own.jsonl", [replace(study, split="test") for study in studies[:20]])
    command = ["train", "--model.tower", "a", "--model.lm", "b", "--out", tmp_path / "run"]
    for dry in ([], ["--dry-run"]):
        status, said = run(*command, "--studies", tmp_path / "own.jsonl", *dry)
        assert status == 1
        assert "no study in split 'train' (val 0, test 20)" in said
        assert "raddraft prepare folder … --split random" in said
    status, said = run(*command, "--studies", studies_file, "--sources", "iu-xray")
    assert (status, "no study of source iu-xray; its sources: none stated" in said) == (1, True)


def write_config(folder: Path, studies: Path, model: ModelConfig, **train_fields) -> Path:
    stages = [
        {"epochs": 2, "lr": 1e-3},
        {"epochs": 3, "lr": 1e-3, "lm": "lora", "tower": 1, "weight_decay": 0.01},
    ]
    fields = {"stages": stages, "batch_size": 8, "micro_batch_size": 3, "save_every": 2, "workers": 0, "eval_every": 2}
    config = {
        "studies": str(studies),
        "model": {"tower": model.tower, "lm": model.lm},
        "prompt": {"context": ["indication"]},
        "train": fields | train_fields,
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def arguments(config: Path, out: Path) -> list[str]:
    return ["--config", str(config), "--out", str(out)]


def run_here(config: Path, out: Path) -> None:
    """`raddraft train` in this process, which has paid for the imports."""
    with pytest.raises(SystemExit) as end:
        raddraft.cli.run("train", arguments(config, out))
    assert end.value.code == 0


def kill_training(config: Path, out: Path, steps: int, expected: list, n: int = 1) -> None:
    """Start a run and kill it after so many steps; `expected` is the log of one that was left alone."""
    log = out / "log.jsonl"
    kill_midway(
        lambda: Job("train", *arguments(config, out), n=n),
        lambda: log.is_file() and log.read_text().count('"loss"') >= steps,
        lambda: 0 < len(losses(out)) < len(expected),
        out,
    )


def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(studies_file, parts_config, tmp_path) -> None:
    config = write_config(tmp_path, studies_file, parts_config)
    run_here(config, tmp_path / "whole")
    expected = losses(tmp_path / "whole")
    assert len([row for row in expected if row[2] is not None]) == 6 + 9
    kill_after = random.Random().randint(1, 12)
    kill_training(config, tmp_path / "killed", kill_after, expected)
    run_here(config, tmp_path / "killed")
    assert losses(tmp_path / "killed") == expected, f"killed after {kill_after} steps"
    a, b = (load(tmp_path / name / "model").model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def count_processes(run: Path) -> int:
    """How many processes wrote the newest checkpoint."""
    return len(torch.load(next(run.glob("checkpoints/st*/state.pt")), weights_only=True)["random"])


def test_two_processes_follow_one(studies_file, parts_config, tmp_path) -> None:
    config = write_config(tmp_path, studies_file, parts_config, batch_size=7, lora={"dropout": 0.0})
    Job("train", *arguments(config, tmp_path / "two"), n=2).finish()
    run_here(config, tmp_path / "one")
    assert count_processes(tmp_path / "two") == 2
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) > 20
    for ours, theirs in zip(one, two, strict=True):
        assert ours[:2] == theirs[:2]
        for a, b in zip(ours[2:], theirs[2:], strict=True):
            assert a == pytest.approx(b, abs=1e-4)


def test_a_run_goes_on_with_another_number_of_processes(studies_file, parts_config, tmp_path, monkeypatch) -> None:
    """Started on two processes and killed, finished by one; started by one and stopped, finished on two."""
    config = write_config(tmp_path, studies_file, parts_config, lora={"dropout": 0.0})
    run_here(config, tmp_path / "whole")
    expected = losses(tmp_path / "whole")

    kill_training(config, tmp_path / "two-one", 9, expected, n=2)
    run_here(config, tmp_path / "two-one")

    saves, save = [0], RunFolder.save

    def stop_later(self, *arguments) -> None:
        save(self, *arguments)
        saves[0] += 1
        if saves[0] == 5:
            raise OSError("stopped")

    monkeypatch.setattr(RunFolder, "save", stop_later)
    with pytest.raises(SystemExit, match="stopped"):
        raddraft.cli.run("train", arguments(config, tmp_path / "one-two"))
    monkeypatch.undo()
    assert 0 < len(losses(tmp_path / "one-two")) < len(expected)
    Job("train", *arguments(config, tmp_path / "one-two"), n=2).finish()
    for name in ("two-one", "one-two"):
        for ours, theirs in zip(expected, losses(tmp_path / name), strict=True):
            assert ours[:2] == theirs[:2]
            assert ours[2:] == pytest.approx(theirs[2:], abs=1e-4)


def close_models(one: Path, other: Path) -> None:
    a, b = (load(run / "model").model.state_dict() for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("lm", ["full", "lora"])
def test_two_processes_that_share_the_model_out_follow_one(studies_file, parts_config, tmp_path, lm) -> None:
    """The second stage trains more than the first; adapters beside frozen weights in one block."""
    stages = [{"lr": 1e-3, "epochs": 1}, {"lr": 1e-3, "epochs": 1, "lm": lm, "tower": 1}]
    settings = {"stages": stages, "batch_size": 7, "lora": {"dropout": 0.0}, "activation_checkpointing": True}
    run_here(write_config(tmp_path, studies_file, parts_config, **settings), tmp_path / "one")
    config = write_config(tmp_path, studies_file, parts_config, **settings, shard=True)
    Job("train", *arguments(config, tmp_path / "two"), n=2).finish()
    assert count_processes(tmp_path / "two") == 2
    one = losses(tmp_path / "one")
    assert len(one) == 12
    for ours, theirs in zip(one, losses(tmp_path / "two"), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2:] == pytest.approx(theirs[2:], abs=1e-4)
    close_models(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_with_the_model_shared_out_or_whole(studies_file, parts_config, tmp_path, first) -> None:
    """Stopped in the second stage, with the optimizer's state; `shard` on one process is an ordinary run."""
    stages = [{"lr": 1e-3}, {"lr": 1e-3, "epochs": 2, "lm": "lora"}]
    settings = {"stages": stages, "lora": {"dropout": 0.0}, "shard": True}
    config = write_config(tmp_path, studies_file, parts_config, **settings)
    run_here(config, tmp_path / "whole")
    expected = losses(tmp_path / "whole")
    kill_training(config, tmp_path / "run", 6, expected, n=first)
    Job("train", *arguments(config, tmp_path / "run"), n=3 - first).finish()
    for ours, theirs in zip(expected, losses(tmp_path / "run"), strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2:] == pytest.approx(theirs[2:], abs=1e-4)
    assert count_processes(tmp_path / "run") == 3 - first
    close_models(tmp_path / "whole", tmp_path / "run")


def test_cached_features_give_the_live_losses(parts, parts_config, tmp_path) -> None:
    stages = [Stage(lr=1e-3), Stage(lr=1e-3, lm="full")]
    for features in ("live", "cached"):
        config = quick(stages=stages, cached=features == "cached")
        train(parts, tmp_path / features, parts_config, PromptConfig(), config)
    for live, cached in zip(losses(tmp_path / "live"), losses(tmp_path / "cached"), strict=True):
        assert live[2:4] == pytest.approx(cached[2:4], abs=2e-4)  # features are kept in float16
    live, cached = (load(tmp_path / name / "model").model for name in ("live", "cached"))
    for a, b in zip(live.model.vision_tower.parameters(), cached.model.vision_tower.parameters(), strict=True):
        assert torch.equal(a, b), "the tower itself is saved, not its stand-in"


@pytest.mark.parametrize(("number", "family"), [*enumerate(FAMILIES)])
def test_every_tower_family_trains_and_drafts_in_plain_transformers(parts, lm_folder, tmp_path, number, family) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    features = ("cached", "live")[number % 2]
    model_config = ModelConfig(str(save_tower(family, tmp_path / "tower")), str(lm_folder))
    stage = Stage(epochs=2, lr=1e-2, lm="full", tower="full" if features == "live" else "frozen", warmup=0)
    few = {"train": parts["train"][:8]}
    config = quick(stages=[stage], cached=features == "cached", eval_every=0)
    torch.manual_seed(0)
    before = weights(build(model_config)[0])
    folder = train(few, tmp_path / "run", model_config, PromptConfig(), config)
    assert [row[1] for row in losses(tmp_path / "run")] == [1, 2]

    drafter = load(folder)
    moved = {name.split(".")[1] for name in changed(before, weights(drafter.model)) if name.startswith("model.")}
    assert moved == {"multi_modal_projector", "language_model"} | ({"vision_tower"} if features == "live" else set())
    decoding = DecodeConfig(max_new_tokens=20, batch_size=4)
    assert generate(drafter, parts["val"], tmp_path / "drafts.jsonl", decoding, "model") == []
    ours = [json.loads(line)["prediction"] for line in (tmp_path / "drafts.jsonl").read_text().splitlines()]
    assert all(ours)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    for study, text in zip(parts["val"], ours, strict=True):
        prompt = drafter.prompt.messages(study)
        prompt = processor.apply_chat_template(prompt, add_generation_prompt=True)
        image = Image.open(study.main_image.path).convert("RGB")
        inputs = processor(text=prompt, images=image, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(tokens, skip_special_tokens=True).strip() == text


def test_early_stopping_keeps_the_best_weights(parts, parts_config, tmp_path) -> None:
    config = quick(stages=[Stage(epochs=40, lr=3e-2, lm="full", schedule="constant")], patience=2)
    folder = train(parts, tmp_path / "run", parts_config, PromptConfig(), config)
    validation = [row[3] for row in losses(tmp_path / "run") if row[3] is not None]
    assert len(validation) < 40
    assert min(validation) == validation[-3], "two validations in a row without a better one, then the end"
    assert evaluate(load(folder), parts["val"]) == pytest.approx(min(validation), abs=1e-4)


def test_a_shorter_list_of_stages_takes_nothing_from_the_one_it_replaces(studies_file, tmp_path, monkeypatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("generator.train.train", lambda *parts: seen.append(parts[4]) or tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {stages: [{epochs: 60, lm: full}, {tower: 1}]}")
    command = ["train", "--studies", studies_file, "--model.tower", "a", "--model.lm", "b", "--config", recipe]
    command += ["--control", "shuffled-images"]  # which writes no card
    assert run(*command, "--out", tmp_path / "a") == (0, "")
    assert run(*command, "--train.stages", '[{"lr": 0.1}, {"lr": 0.2}]', "--out", tmp_path / "b") == (0, "")
    assert [config.stages for config in seen] == [
        (Stage(epochs=60, lm="full"), Stage(tower=1)),
        (Stage(lr=0.1), Stage(lr=0.2)),
    ]


def test_a_bfloat16_model_trains_its_tower(studies_file, parts_config, tmp_path) -> None:
    config = write_config(tmp_path, studies_file, parts_config, precision="bf16", stages=[{"epochs": 0.4, "tower": 1}])
    job = Job("train", *arguments(config, tmp_path / "run"), "--model.dtype", "bfloat16")
    job.finish()
    assert [row[1] for row in losses(tmp_path / "run") if row[2]] == [1]


def test_stored_features_pass_where_accelerate_casts_outputs() -> None:
    from accelerate.utils import convert_outputs_to_fp32

    states = torch.rand(1, 2, 3).bfloat16()
    found = convert_outputs_to_fp32(StoredFeatures().forward)(states)
    assert torch.equal(found.hidden_states[-2].float(), states.float())


def test_a_run_too_short_for_a_line_of_the_log_ends_well(studies_file, tower_folder, lm_folder, tmp_path) -> None:
    command = ["train", "--studies", studies_file, "--model.tower", tower_folder, "--model.lm", lm_folder]
    short = ["--train.stages", '[{"epochs": 0.3}]', "--train.log_every", 9, "--train.eval_every", 0]
    assert run(*command, *short, "--out", tmp_path / "run") == (0, "")
    assert "not measured; the last weights are kept" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_an_unreadable_image_is_named_and_the_rest_trains(parts, parts_config, tmp_path, capsys) -> None:
    bad = parts["train"][3]
    bad.main_image.path.write_bytes(b"not a picture")
    train(parts, tmp_path / "run", parts_config, PromptConfig(), quick(stages=[Stage()]))
    assert capsys.readouterr().out.count(f"not trained on: {bad.study_id}: ") == 1
    assert all(row[2] is None or row[2] > 0 for row in losses(tmp_path / "run"))
    for split, message in (("val", "No image of the val split"), ("train", "No image of step 1 of stage 1")):
        for study in parts[split]:
            study.main_image.path.unlink()
        with pytest.raises(OSError, match=message):
            train(parts, tmp_path / split, parts_config, PromptConfig(), quick(stages=[Stage()], eval_every=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(stages=[]), "stages is empty"),
        (lambda: ModelConfig("a", "b", quantize="nf4", gguf_file="x.gguf"), r"quantize cannot .* gguf_file x\.gguf"),
        (
            lambda: ModelConfig("a"),
            r"set tower and lm \(--model.tower, --model.lm\), or vlm alone \(--model.vlm\); got tower 'a', lm '', vlm",
        ),
        (lambda: ModelConfig(vlm="a", image_size=28), "image_size, .* cannot be used with vlm"),
        (lambda: TrainConfig(stages=[Stage(lm="lora"), Stage(lm="full")]), "'lora' in one stage and 'full'"),
        (lambda: TrainConfig(stages=[Stage(tower=1)], cached=True), "a stage trains the tower"),
        (lambda: TrainConfig(standardize=True), r"train\.standardize .* add cached: true"),
        (lambda: TrainConfig(save_every=0), "train.save_every must be at least 1, got 0"),
        (lambda: Stage(epochs=0), "stage.epochs must be above 0, got 0"),
        (lambda: PromptConfig(targets=[]), "targets is empty"),
        (lambda: PromptConfig(targets=["findings"], context=["findings"]), "gives the answer away"),
    ],
)
def test_configs_that_make_no_sense_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_faults_of_data_and_model_are_named(parts, parts_config, tower_folder, lm_folder, tmp_path) -> None:
    prompt = PromptConfig()
    with pytest.raises(ValueError, match=r"No study in split 'val'; .* without validation \(train\.eval_every: 0\)"):
        train({"train": parts["train"], "val": []}, tmp_path / "a", parts_config, prompt, quick())
    with pytest.raises(
        ValueError, match=r"write: impression; sections of its 24 studies: findings \(24\), indication \(24\)\. Choose"
    ):
        train(parts, tmp_path / "b", parts_config, PromptConfig(targets=["impression"]), quick())
    with pytest.raises(ValueError, match=r"prompt\.prior: no training study has an earlier one"):
        train(parts, tmp_path / "p", parts_config, PromptConfig(prior=True), quick())
    parts["train"][5].sections["findings"] = "The heart is enlarged. " * 100
    with pytest.raises(ValueError, match=r"Study 's5': 4 image tokens .* exceed the context of 256 tokens"):
        train(parts, tmp_path / "c", parts_config, prompt, quick())
    with pytest.raises(ValueError, match=r"Unknown tower 'rad-din'\. Choices: rad-dino, "):
        train(parts, tmp_path / "d", ModelConfig("rad-din", str(lm_folder)), prompt, quick())
    with pytest.raises((ValueError, OSError), match="No tokenizer for the language model"):
        train(parts, tmp_path / "e", ModelConfig(str(tower_folder), str(tmp_path)), prompt, quick())
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of the patch size 14"):
        train(parts, tmp_path / "f", replace(parts_config, image_size=30), prompt, quick())


def test_a_loss_that_is_not_finite_stops_the_run(parts, parts_config, tmp_path) -> None:
    config = quick(stages=[Stage(epochs=50, lr=2e9, lm="full", warmup=0)], save_every=1)
    with pytest.raises(
        FloatingPointError, match=r"The loss is (nan|inf) at step \d+ of stage 1 .* last good checkpoint"
    ):
        train(parts, tmp_path / "run", parts_config, PromptConfig(), config)


def test_choosing_blocks_counts_from_the_end(parts_config) -> None:
    model, _ = build(parts_config)
    names = choose_trainable(model, projector=False, lm="frozen", tower=2)
    assert {name.split("layer.")[1][0] for name in names} == {"0", "1"}
    with pytest.raises(ValueError, match="3 blocks cannot train, the tower has 2"):
        choose_trainable(model, projector=False, lm="frozen", tower=3)
    with pytest.raises(ValueError, match="Nothing to train"):
        choose_trainable(model, projector=False, lm="frozen", tower="frozen")


def test_batches_cover_an_epoch_once_and_repeat_by_seed() -> None:
    lengths = [random.Random(1).randint(5, 90) for _ in range(1003)]
    batches = batch_indices(lengths, 8, "0 0 0")
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert batches == batch_indices(lengths, 8, "0 0 0")
    assert batches != batch_indices(lengths, 8, "0 0 1")
    padding = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches) / sum(lengths)
    assert padding < 1.1, "batches hold reports of similar length"


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8, 16])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_batch_and_stay_in_step(size: int, world: int) -> None:
    batch = list(range(size))
    shares = [split_batch(batch, rank, world, 2) for rank in range(world)]
    assert sorted(i for share in shares for part in share for i in part) == batch
    assert len({len(share) for share in shares}) == 1
    assert all(len(part) <= 2 for share in shares for part in share)


def test_learning_rate_schedule() -> None:
    cosine = [lr_factor(step, 100, 0.1, "cosine") for step in range(100)]
    assert cosine[0] == pytest.approx(1 / 11)
    assert cosine[10] == 1.0
    assert max(cosine) == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert 0 < cosine[99] < 0.001
    assert lr_factor(99, 100, 0.1, "constant") == 1.0
