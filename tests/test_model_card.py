"""The card of a trained model: what it tells, that its code runs as it stands, and scores that come in later."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from generator.card import BEGIN, END, NO_SCORES, write_card
from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.generate import decode
from generator.model import load
from generator.prompts import PromptConfig
from raddraft.studies import Study, write_studies
from tests.conftest import make_study
from tests.test_cli import run


@pytest.fixture(scope="module")
def trained(tower_folder: Path, lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two stages that a command trained on studies of two sources."""
    folder = tmp_path_factory.mktemp("card")
    studies = [make_study(folder, i, "train" if i < 9 else "val" if i < 13 else "test") for i in range(16)]
    for study in studies:
        study.source = "phantom" if study.study_id in ("s0", "s1", "s9") else "iu-xray"
    studies[2].sections.pop("findings")  # not trained on, so not counted
    write_studies(folder / "studies.jsonl", studies)
    command = {
        "studies": folder / "studies.jsonl",
        "out": folder / "run",
        "model.tower": tower_folder,
        "model.lm": lm_folder,
        "prompt.context": '["indication"]',
        "train.stages": '[{"epochs": 1, "lr": 0.001}, {"epochs": 2, "lr": 0.002, "lm": "lora", "tower": 1}]',
        "train.batch_size": 4,
        "train.workers": 0,
    }
    assert run("train", *(word for name, value in command.items() for word in (f"--{name}", value))) == (0, "")
    return folder / "run"


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_tells_recipe_data_and_losses(trained) -> None:
    card = ModelCard.load(trained / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.base_model is None  # both parts are local folders
    assert "synthetic-data" not in card.data.tags
    text = card.text
    assert "draft for a radiologist" in text
    assert "Nothing about it is clinically validated" in text
    assert "| 1 | 1 | 0.001 | cosine, warm-up 0.03 | 0 | trains | frozen | frozen |\n| 2 | 2 | 0.002 " in text
    assert "| trains | lora | last 1 blocks |" in text
    for row in ("train | iu-xray | 6", "train | phantom (synthetic) | 2", "val | iu-xray | 3"):
        assert f"| {row} |" in text
    assert "test |" not in text
    assert str(trained.parent.parent) not in text  # where things lie on a machine is nobody's business
    losses = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    for stage in (0, 1):
        values = [row["val_loss"] for row in losses if row["stage"] == stage and "val_loss" in row]
        assert f"- stage {stage + 1}: {values[0]:.4f} at step 2, lowest {min(values):.4f} at step" in text
    assert text.count(NO_SCORES) == 1


def write_a_card(folder: Path, studies: list[Study], prompt: PromptConfig, model: ModelConfig) -> None:
    """The card of a model of one stage that was not validated."""
    (folder.parent / "log.jsonl").touch()
    train = TrainConfig(stages=[Stage(lm="full")], eval_every=0)
    write_card(folder, folder.parent / "studies.jsonl", {"train": studies}, model, prompt, train)


def test_the_code_on_the_card_drafts_what_our_command_drafts(model_folder, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    drafter = load(folder)
    study = make_study(tmp_path, 3, "train")
    study.images[0].path.rename(tmp_path / "chest.png")
    study.images[0].path = tmp_path / "chest.png"
    study.sections["indication"] = "…"
    write_a_card(folder, [study], drafter.prompt, ModelConfig("a/b", "c/d"))
    code = text_of(folder).split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    [draft] = decode(drafter, drafter.encode([study], answers=False), DecodeConfig(batch_size=1))
    assert printed.getvalue().strip() == draft.text != ""


def test_the_card_tells_how_to_call_the_model_elsewhere(tmp_path) -> None:
    def said(name: str, sidecar: dict, prompt: PromptConfig, model: ModelConfig) -> str:
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / "raddraft.json").write_text(json.dumps(sidecar))
        write_a_card(folder, [make_study(tmp_path, 0, "train")], prompt, model)
        return text_of(folder).split("## How to load it")[1]

    llava, parts = {"kind": "llava", "gray_mapping": "window", "prompt": {}}, ModelConfig("a/b", "c/d")
    text = said("usual", llava, PromptConfig(), parts)
    assert "Needs transformers 5.23 or newer. Version 4 refuses the tokenizer" in text
    for sentence in (
        "- The images come first,",
        "- Pictures are 8-bit",
        "end after 150 tokens",
        "--model-impl transformers",
    ):
        assert sentence in text
    assert "stretched" not in text
    last = said("last", llava | {"gray_mapping": "minmax"}, PromptConfig(instruction="Describe it.\n<image>"), parts)
    assert "- The images come last, behind the text," in last
    assert "must be stretched first**: this model was trained with `gray_mapping: minmax`" in last
    other = said("other", {"kind": "chat", "prompt": {}}, PromptConfig(), ModelConfig(vlm="x/y"))
    assert "Needs transformers" not in other
    assert "vllm serve" not in other
    assert "- Drafts are greedy" in other


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ModelConfig("rad-dino", "lmsys/vicuna-7b-v1.5"), ["microsoft/rad-dino", "lmsys/vicuna-7b-v1.5"]),
        (ModelConfig("biovil-t", "../x"), None),
        (ModelConfig(vlm="google/medgemma-4b-it"), ["google/medgemma-4b-it"]),
    ],
)
def test_parts_from_the_hub_are_named_as_base_models(tmp_path, model, expected) -> None:
    study = make_study(tmp_path, 0, "train")
    study.source = "phantom"
    write_a_card(tmp_path, [study], PromptConfig(), model)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == expected
    assert "synthetic-data" in data.tags
    assert "trained on synthetic data only" in text_of(tmp_path)


def test_a_tower_beside_the_model_is_said(tmp_path) -> None:
    (tmp_path / "raddraft.json").write_text('{"tower": "tower", "prompt": {}}')
    write_a_card(tmp_path, [make_study(tmp_path, 0, "train")], PromptConfig(), ModelConfig("a/b", "c/d"))
    assert "mm_encoder_outputs" in text_of(tmp_path)
    assert "```python" not in text_of(tmp_path)


def test_scores_come_in_between_the_marks_and_stay(tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    study = make_study(tmp_path, 0, "train")
    write_a_card(folder, [study], PromptConfig(), ModelConfig("a/b", "c/d"))
    empty = text_of(folder)
    for name, texts in (("drafts", ["The heart is enlarged.", "No effusion."]), ("control", ["No effusion."] * 2)):
        rows = [
            {"study_id": str(i), "prediction": text, "reference": "The heart is large."} for i, text in enumerate(texts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = (tmp_path / "drafts.jsonl", tmp_path / "control.jsonl")
    for metrics in ("bleu", "rouge"):  # the second time in the place of the first
        code = run("score", *files, "--metrics", metrics, "--resamples", 20, "--model_card", folder, "--title", "Ours")
        assert code == (0, "")
    scored = text_of(folder)
    assert "bleu" not in scored
    score = json.loads((tmp_path / "scores" / "scores.json").read_text())["metrics"]["rouge_l"]
    assert "| | drafts | control |" in scored
    assert (
        f"| `rouge_l` | {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] | 0.000 [0.000, 0.000] |"
        in scored
    )
    assert f"- `rouge_l`: `{score['signature']}`" in scored
    assert "Ours: 2 studies" in scored
    before, after = scored.split(BEGIN)[0], scored.split(END)[1]
    assert empty == f"{before}{BEGIN}\n{NO_SCORES}\n{END}{after}"
    write_a_card(folder, [study], PromptConfig(), ModelConfig("a/b", "c/d"))  # as the same command started again does
    assert text_of(folder) == scored


def test_without_a_card_nothing_is_scored(tmp_path) -> None:
    row = {"study_id": "1", "prediction": "Clear.", "reference": "Clear."}
    (tmp_path / "drafts.jsonl").write_text(json.dumps(row))
    for text, sentence in ((None, "README.md is missing"), ("# By hand", "README.md has no lines <!-- scores -->")):
        if text:
            (tmp_path / "README.md").write_text(text)
        status, said = run("score", tmp_path / "drafts.jsonl", "--model_card", tmp_path)
        assert status == 1
        assert sentence in said
    assert not (tmp_path / "scores").exists()


def test_names_that_hold_the_cards_marks_or_a_table_delete_nothing(tmp_path) -> None:
    folder, name = tmp_path / "model", f"a {END} | {BEGIN}"
    folder.mkdir()
    study = make_study(tmp_path, 0, "train")
    study.source = f"{BEGIN}|b"
    write_a_card(folder, [study], PromptConfig(), ModelConfig("a/b", "c/d"))
    empty = text_of(folder)
    row = {"study_id": "1", "prediction": "Clear.", "reference": "Clear."}
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    for _ in range(2):
        arguments = ("--metrics", "rouge", "--resamples", 20, "--model_card", folder, "--title", f"{END}\nmore")
        assert run("score", tmp_path / f"{name}.jsonl", *arguments) == (0, "")
        scored = text_of(folder)
        assert scored.count(BEGIN) == scored.count(END) == 1
        assert scored.split(BEGIN)[0] == empty.split(BEGIN)[0]
        assert "| | a &lt;!-- end of scores --> \\| &lt;!-- scores --> |" in scored
        assert "| train | &lt;!-- scores -->\\|b | 1 |" in scored
