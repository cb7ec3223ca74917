"""Reward stages of `train`: the same after a kill, on two processes and in parts; what is kept; faults."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import raddraft.cli
from generator.config import DecodeConfig, ModelConfig, RewardConfig, Stage, TrainConfig
from generator.generate import generate, read_drafts
from generator.model import load, save
from generator.prompts import PromptConfig
from generator.train import train
from metrics import score
from metrics.models import Models
from raddraft.errors import RadDraftError, UnavailableError
from raddraft.runs import RunFolder
from raddraft.studies import read_studies, write_studies
from tests.conftest import SENTENCES
from tests.launch import Job, kill_midway
from tests.test_cli import run
from tests.test_train import arguments, close_models, count_processes, run_here

PROMPT = PromptConfig(context=["view", "indication"])


def recipe(folder: Path, studies: Path, model: Path, **changes) -> Path:
    """A supervised stage, then a reward stage whose divergence and clip act, both of adapters."""
    reward = {
        **{"metrics": {"rouge_l": 1.0, "rule_macro_f1_14": 0.5}, "group": 3, "updates": 2, "clip": 0.05, "kl": 0.1},
        **{"batch_size": 7, "micro_batch_size": 2, "sample_batch_size": 4, "max_new_tokens": 25},
        **{"val_metrics": ["rouge_l"], "models": {"keep": False}},
    }
    stages = [{"lr": 1e-3, "lm": "lora"}, {"lr": 1e-3, "lm": "lora", "epochs": 1, "reward": reward}]
    fields = {"stages": stages, "lora": {"rank": 4, "dropout": 0.0}, "batch_size": 8, "eval_every": 3, "save_every": 2}
    config = {
        "studies": str(studies),
        "model": {"vlm": str(model)},
        "prompt": {"context": PROMPT.context},
        "train": fields | {"workers": 0} | changes,
    }
    path = folder / f"recipe{len(list(folder.glob('recipe*')))}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def rows(folder: Path) -> list[dict]:
    """The log without what tells the time."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds") and not key.endswith("per_second")}
        for row in read
    ]


def test_a_stage_goes_on_bit_exactly_and_processes_share_it(studies_file, model_folder, tmp_path, monkeypatch) -> None:
    config = recipe(tmp_path, studies_file, model_folder)
    run_here(config, tmp_path / "whole")
    expected = rows(tmp_path / "whole")
    steps = [row for row in expected if row["stage"] == 1 and "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["step"] for row in expected if row["stage"] == 1 and "val_rouge_l" in row] == [0, 3, 4]
    assert max(row["clipped"] for row in steps) > 0
    assert max(row["kl"] for row in steps) > 1e-4

    killed, lines = tmp_path / "killed", random.Random().randint(5, 9)
    log = killed / "log.jsonl"
    kill_midway(
        lambda: Job("train", *arguments(config, killed)),
        lambda: log.is_file() and log.read_text().count("\n") >= lines,
        lambda: rows(killed) != expected,
        killed,
    )
    run_here(config, tmp_path / "killed")
    assert rows(tmp_path / "killed") == expected, f"killed after {lines} lines"
    a, b = (load(tmp_path / name / "model").model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)

    save_whole = RunFolder.save

    def stop(self, name, *rest) -> None:
        if name.endswith("-validated"):
            raise OSError("stopped")
        save_whole(self, name, *rest)

    monkeypatch.setattr(RunFolder, "save", stop)
    with pytest.raises(SystemExit, match="stopped"):
        raddraft.cli.run("train", arguments(config, tmp_path / "unsaved"))
    monkeypatch.undo()
    assert [row["step"] for row in rows(tmp_path / "unsaved") if row["stage"] == 1] == [0]
    run_here(config, tmp_path / "unsaved")
    assert rows(tmp_path / "unsaved") == expected, (
        "the validation before the first step is neither lost nor there twice"
    )

    for shard in (False, True):
        two = tmp_path / f"two-{shard}"
        Job("train", *arguments(recipe(tmp_path, studies_file, model_folder, shard=shard), two), n=2).finish()
        assert count_processes(two) == 2
        theirs = rows(two)
        assert len(theirs) == len(expected)
        for one, other in zip(expected, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
        close_models(tmp_path / "whole", two)


def stage(**changes) -> Stage:
    settings = {"group": 3, "kl": 0.0, "batch_size": 8, "max_new_tokens": 30, "val_metrics": ["rouge_l"]}
    reward = RewardConfig(**({"metrics": {"rouge_l": 1.0}, "models": Models(keep=False)} | settings | changes))
    return Stage(epochs=3, lr=1e-3, lm="full", warmup=0, reward=reward)


def teach(model: Path, studies_file: Path, out: Path, one: Stage, **changes) -> Path:
    parts = {split: read_studies(studies_file, split) for split in ("train", "val")}
    config = replace(TrainConfig((one,), eval_every=2, save_every=2, workers=0), **changes)
    return train(parts, out, ModelConfig(vlm=str(model)), PROMPT, config)


def test_the_reward_rises_and_the_best_validated_weights_are_kept(model_folder, studies_file, tmp_path) -> None:
    """The model was taught these studies; now a good report is one sentence of all that it may write."""
    studies = [replace(one, sections=one.sections | {"findings": SENTENCES[1]}) for one in read_studies(studies_file)]
    write_studies(studies_file, studies)
    one = stage(group=8, metrics={"rouge_l": 1.0, "length": 0.2}, temperature=1.5)
    folder = teach(model_folder, studies_file, tmp_path / "run", replace(one, lr=5e-3), cached=True)
    log = rows(tmp_path / "run")
    values = [row["val_rouge_l"] for row in log if "val_rouge_l" in row]
    assert {"val_words", "val_no_finding", "val_repeated_sentences", "val_repeated", "val_blank"} <= log[0].keys()
    kept, val = load(folder), [study for study in studies if study.split == "val"]
    generate(kept, val, tmp_path / "drafts.jsonl", DecodeConfig(max_new_tokens=30), "kept")
    drafts = [draft.text for draft in read_drafts(tmp_path / "drafts.jsonl")]
    found = score(drafts, [SENTENCES[1]] * len(val), ["rouge_l"], resamples=2)["metrics"]["rouge_l"]["value"]
    assert found == pytest.approx(max(values), abs=1e-3)
    assert max(values) > values[0] + 0.1


def test_faults_are_named_in_a_sentence_and_the_last_checkpoint_stays(
    model_folder, studies_file, tmp_path, monkeypatch
) -> None:
    def fails(words: str, model: Path = model_folder, error: type = RadDraftError, **changes) -> Path:
        out = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        with pytest.raises(error, match=words) as raised:
            teach(model, studies_file, out, stage(**changes))
        assert "\n" not in str(raised.value)
        return out

    out = fails(
        "worth the same in 5 steps up to step 5 of stage 1.*the last checkpoint is .*step-00000004",
        metrics={"rouge_l": 0.0},
    )
    assert (next(out.glob("checkpoints/*step-00000004")) / "weights.safetensors").is_file()
    fails("No draft of step 1 of stage 1 ends within 2 tokens; raise reward.max_new_tokens", max_new_tokens=2)
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path))
    out = fails("radgraph is missing", metrics={"radgraph_er": 1.0})
    assert not (out / "log.jsonl").exists()
    monkeypatch.setattr("generator.rewards.per_report", lambda ours, *_: {"rouge_l": [float("nan")] * len(ours)})
    fails("The reward rouge_l of a draft of study 's[0-9]+' is nan")
    monkeypatch.undo()
    fails("All drafts of step 1 of stage 1 are blank, since the model ends them at once", mute(model_folder, tmp_path))
    studies = read_studies(studies_file)
    lost = [
        replace(one, images=[replace(one.images[0], path=tmp_path / "none.png")]) if one.split == "train" else one
        for one in studies
    ]
    write_studies(tmp_path / "lost.jsonl", lost)
    studies_file = tmp_path / "lost.jsonl"
    fails("No image of step 1 of stage 1 can be read; the files are named above", error=UnavailableError)


def mute(model_folder: Path, tmp_path: Path) -> Path:
    """The same model, but the end token is always by far the most likely."""
    drafter = load(model_folder)
    decoder, head = drafter.model.model.language_model, drafter.model.lm_head.weight
    (end,) = drafter.model.generation_config.eos_token_id
    with torch.no_grad():
        decoder.embed_tokens.weight[:, 0] = 1e3  # a constant, as no layer has a bias
        decoder.norm.weight.fill_(1.0)
        head.zero_()[end, 0] = 1e2
    save(drafter, tmp_path / "mute")
    return tmp_path / "mute"


def test_what_cannot_learn_by_reward_is_refused(model_folder, studies_file, tmp_path, tower_folder, lm_folder) -> None:
    with pytest.raises(RadDraftError, match="a reward stage leaves the tower frozen"):
        Stage(tower=1, reward=RewardConfig({"rouge_l": 1.0}))
    parts = ("--model.tower", tower_folder, "--model.lm", lm_folder, "--prompt.findings_first", "true")
    command = ["train", "--studies", studies_file, "--out", tmp_path / "run", "--train.workers", 0]
    status, said = run(*command, *parts, "--train.stages", '[{"reward": {"metrics": {"rouge_l": 1}}}]')
    assert (status, "A reward stage cannot ask in two turns" in said) == (1, True)
    status, said = run(*command, "--model.vlm", model_folder)
    assert (status, "was trained with PromptConfig(targets=['findings'], context=['view', 'indication']" in said) == (
        1,
        True,
    )
    assert Stage().peak == 1e-4
    assert Stage(reward=RewardConfig({"rouge_l": 1.0})).peak == 1e-6
