"""Configs: every recipe parses, faults are refused by name, and a run's own config.yaml starts the same run again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from raddraft.grammar import CONFIGS
from tests.test_cli import run

# The action that a recipe belongs to, by the first part of its path below configs/.
ACTIONS = {"demo.yaml": "demo", "report": "train", "compare": "compare", "pretrain": "pretrain"}
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.y*ml"))
RECIPES = [name for name in FILES if not name.startswith("accelerate/")]


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested mappings and lists by dotted key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {key: leaf for name, item in items for key, leaf in flat(item, f"{prefix}.{name}").items()}


def resolve(capsys, action: str, *arguments: object) -> dict[str, object]:
    """The resolved config that the action's parser makes of a command line, flat."""
    capsys.readouterr()
    assert run(action, *arguments, "--print_config") == (0, "")
    return flat(yaml.safe_load(capsys.readouterr().out))


def test_there_are_recipes() -> None:
    assert "demo.yaml" in RECIPES


@pytest.mark.parametrize("name", [name for name in FILES if name not in RECIPES])
def test_launch_configs_are_accelerates(name: str) -> None:
    """`accelerate launch --config_file` refuses keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / name))
    assert config.num_processes in (1, 8, 16)
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_parses_and_keeps_every_value(recipe: str, tmp_path, capsys, monkeypatch) -> None:
    for name in re.findall(r"\$(\w+)", (CONFIGS / recipe).read_text(encoding="utf-8")):
        monkeypatch.setenv(name, str(tmp_path / "nowhere.jsonl"))
    action = ACTIONS[recipe.partition("/")[0]]
    stated = flat(yaml.safe_load((CONFIGS / recipe).read_text(encoding="utf-8")))
    needed: tuple[object, ...] = ()
    if action == "train":  # what a recipe may leave to the command line stands before it, so that it has the last word
        needed = ("--model.tower", "some-tower", "--model.lm", "some-lm", "--studies", tmp_path / "nowhere.jsonl")
    if action == "pretrain":
        needed = ("--studies", tmp_path / "nowhere.jsonl")
    # An output folder below a file cannot be made: the action stops as soon as it has been handed its arguments.
    blocked = tmp_path / "file"
    blocked.touch()
    arguments = (*needed, "--config", CONFIGS / recipe, "--out", blocked / "run")
    resolved = resolve(capsys, action, *arguments)
    assert {key: resolved.get(key) for key in stated} == stated
    status, sentence = run(action, *arguments)
    assert (status, capsys.readouterr().err) == (1, ""), "2 would be the parser's"
    assert "nowhere.jsonl" in sentence or "studies.jsonl" in sentence or str(blocked) in sentence


@pytest.mark.parametrize(
    ("config", "culprits"),
    [
        ("trian: {batch_size: 4}", ["my.yaml: unknown key trian; did you mean train"]),
        ("out_folder: x", ["unknown key out_folder"]),
        ("train: {batchsize: 4}", ["unknown key train.batchsize; did you mean train.batch_size"]),
        ("train: {stages: [{lr: 1.0e-3}, {lrr: 1.0e-3}]}", ["unknown key train.stages.lrr", "train.stages.N.lr"]),
        ("train: {lora: {rnk: 4}}", ["unknown key train.lora.rnk; did you mean train.lora.rank"]),
        ("train: {batch_size: many}", ["--train.batch-size: expected a whole number, got 'many'"]),
        ("train: {stages: [{lr: fast}]}", ["--train.stages.N.lr: expected a number, got 'fast'"]),
        (
            "train: {stages: [{tower: some}]}",
            ["--train.stages.N.tower: expected frozen or full or a whole number, got 'some'"],
        ),
        ("train: {precision: fp8}", ["--train.precision: expected no, bf16 or fp16, got 'fp8'"]),
        ("prompt: {targets: findings}", ["--prompt.targets: expected a list, each item text, got 'findings'"]),
        ("gray_mapping: log", ["--gray-mapping: expected window, minmax or percentile, got 'log'"]),
        ("image_mapping: minmax", ["key image_mapping was renamed to gray_mapping"]),
        ("train: {stages: [{lr: 1.0e-3}", ["not valid YAML", "line 1, column 17"]),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused_by_name_and_value(tmp_path, capsys, config, culprits) -> None:
    (tmp_path / "my.yaml").write_text(config)
    needed = ("--model.tower", "t", "--model.lm", "l", "--studies", "studies.jsonl", "--out", tmp_path / "run")
    assert run("train", *needed, "--config", tmp_path / "my.yaml")[0] == 2
    error = capsys.readouterr().err
    assert [culprit for culprit in culprits if culprit not in error] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "culprits"),
    [
        ("train: {stages: [{epochs: 0}]}", ["stage.epochs must be above 0, got 0"]),
        ("train: {stages: []}", ["train.stages is empty"]),
        ("prompt: {targets: [findings], context: [findings]}", ["prompt: 'findings' is in targets and in context"]),
    ],
)
def test_values_that_make_no_sense_are_one_sentence(tmp_path, config, culprits) -> None:
    (tmp_path / "my.yaml").write_text(config)
    needed = ("--model.tower", "t", "--model.lm", "l", "--studies", "studies.jsonl", "--out", tmp_path / "run")
    status, sentence = run("train", *needed, "--config", tmp_path / "my.yaml")
    assert status == 1
    assert all(culprit in sentence for culprit in culprits)


def test_numbers_without_a_point_are_numbers(tmp_path, capsys) -> None:
    """Plain PyYAML reads 3e-4 as a string."""
    (tmp_path / "my.yaml").write_text("train: {stages: [{lr: 3e-4, epochs: 2}], max_grad_norm: 1e0}")
    needed = ("--model.tower", "t", "--model.lm", "l", "--studies", "studies.jsonl", "--out", "run")
    resolved = resolve(capsys, "train", *needed, "--config", tmp_path / "my.yaml")
    assert resolved[".train.stages.0.lr"] == 3e-4
    assert resolved[".train.stages.0.epochs"] == 2.0
    assert resolved[".train.max_grad_norm"] == 1.0


@pytest.fixture
def finished_run(studies_file: Path, tower_folder: Path, lm_folder: Path, tmp_path: Path) -> Path:
    """A run of one step that was started from the command line alone."""
    model = ("--model.tower", tower_folder, "--model.lm", lm_folder)
    stages = '[{"lr": 2e-4, "lm": "lora", "tower": 0}]'
    train = ("--train.stages", stages, "--train.batch_size", 24, "--train.workers", 0, "--train.cached")
    train = (*train, "--features", tmp_path / "c")
    arguments = (*model, *train, "--prompt.context", "[indication]", "--gray_mapping", "minmax")
    assert run("train", "--studies", studies_file, "--out", tmp_path / "run", *arguments) == (0, "")
    return tmp_path / "run"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_runs_own_config_starts_it_again_and_changes_are_refused_by_name(finished_run, tmp_path, capsys) -> None:
    config = finished_run / "config.yaml"
    stated = flat(yaml.safe_load(config.read_text(encoding="utf-8")))
    assert stated[".train.stages.0.lr"] == 2e-4
    assert stated[".train.stages.0.tower"] == 0
    assert stated[".features"] == str(tmp_path / "c")
    resolved = resolve(capsys, "train", "--config", config, "--out", tmp_path / "another")
    assert resolved.pop(".out") == str(tmp_path / "another")
    assert {key: value for key, value in resolved.items() if key in stated} == stated
    planning = {".dry_run", ".gpu", ".gpus"}  # no part of a run
    assert all(value is None or value == [] for key, value in resolved.items() if key not in {*stated, *planning})

    before = snapshot(finished_run)
    harmless = ("--train.workers", 1, "--train.save_every", 7, "--train.micro_batch_size", 3, "--train.shard", "true")
    for change in ((), harmless):
        assert run("train", "--config", config, "--out", finished_run, *change) == (0, "")
    again = snapshot(finished_run)
    for kept in ("config.yaml", "log.jsonl", "model/model.safetensors"):
        assert again[kept] == before[kept], kept

    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "studies.jsonl").read_bytes())
    for change, words in [
        (("--train.batch_size", 8), r"train\.batch_size was 24, now 8"),
        (
            ("--train.stages.0.lr", "3e-4"),
            r"train\.stages\.0\.lr was 0\.0002, now 0\.0003",
        ),
        (("--prompt.context", "[]"), r"prompt\.context\.0 was 'indication', now None"),
        (("--gray_mapping", "window"), r"gray_mapping was 'minmax', now 'window'"),
        (("--studies", tmp_path / "copy.jsonl"), r"studies was '.*studies\.jsonl', now '.*copy\.jsonl'"),
    ]:
        status, sentence = run("train", "--config", config, "--out", finished_run, *change)
        assert status == 1
        assert re.search(rf"{finished_run} holds a run with another config: {words}; choose another --out", sentence)
    assert snapshot(finished_run) == again
