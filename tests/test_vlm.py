"""Vision-language models that were not built here: drafts equal to plain transformers', LoRA, saving and reloading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.images import load_image
from encoder.studies import read_studies
from generator.generate import DecodeConfig, generate
from generator.prompts import PromptConfig
from generator.vlm import ChatDrafter, load_any
from tests.test_cli import run
from tests.vlm_families import FAMILIES, save_vlm

CHATTING = [family for family in FAMILIES if family != "paligemma"]
PROMPT = PromptConfig(context=["view", "indication"])
CONFIG = DecodeConfig(max_new_tokens=12, batch_size=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {family: save_vlm(family, root / family) for family in FAMILIES}


@pytest.fixture
def studies(studies_file: Path) -> list:
    """Five studies with prompts of different lengths and pictures of different sizes."""
    studies = read_studies(studies_file)[:5]
    studies[1].sections["indication"] = "fever."
    del studies[2].sections["indication"]
    generator = np.random.default_rng(0)
    for number, study in enumerate(studies):
        pixels = generator.integers(0, 256, (32 + 9 * number, 50)).astype(np.uint8)
        Image.fromarray(pixels).save(study.main_image.path)
    return studies


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load_plain(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def ask(processor: Any, prompt: PromptConfig, study: Any) -> Any:
    """What a user of plain transformers hands to the model for one study."""
    images = [load_image(image.path).convert("RGB") for image in prompt.pictures(study)]
    messages = prompt.messages(study)
    if processor.chat_template:
        waiting = iter(images)
        for part in messages[0]["content"]:
            if part["type"] == "image":
                part["image"] = next(waiting)
        return processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    text = messages[0]["content"][-1]["text"]
    inputs = processor(text="<image>" * len(images) + text, images=images, return_tensors="pt")
    del inputs["labels"]
    return inputs


def write_plainly(model: Any, processor: Any, prompt: PromptConfig, study: Any, **options: Any) -> str:
    inputs = ask(processor, prompt, study)
    plain = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": CONFIG.max_new_tokens}
    tokens = model.generate(**inputs, **plain | options)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


# Drafts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_those_of_plain_transformers_one_at_a_time(folders, studies, tmp_path, family) -> None:
    drafter = load_any(str(folders[family]), prompt=PROMPT)
    assert generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "model") == []
    ours = [row["prediction"] for row in read(tmp_path / "out.jsonl")]
    model, processor = load_plain(folders[family])
    assert ours == [write_plainly(model, processor, PROMPT, study) for study in studies]
    assert len(set(ours)) > 2, "pictures and prompts reach the text"


@pytest.mark.parametrize("family", ["qwen3_vl", "idefics3"])
def test_beams_are_those_of_plain_transformers(folders, studies, tmp_path, family) -> None:
    drafter = load_any(str(folders[family]), prompt=PROMPT)
    generate(drafter, studies, tmp_path / "out.jsonl", replace(CONFIG, num_beams=3), "model")
    model, processor = load_plain(folders[family])
    plain = [write_plainly(model, processor, PROMPT, study, num_beams=3) for study in studies]
    assert [row["prediction"] for row in read(tmp_path / "out.jsonl")] == plain


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, sample=True, temperature=1.5)])
def test_an_interrupted_run_goes_on_to_the_same_file_and_a_bad_image_costs_one_draft(
    folders, studies, tmp_path, config
) -> None:
    studies[1].main_image.path.write_bytes(b"")
    drafter = load_any(str(folders["gemma3"]), prompt=PROMPT)
    errors = generate(drafter, studies, tmp_path / "whole.jsonl", config, "model")
    assert [error.split(":")[0] for error in errors] == ["s1"]
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    (tmp_path / "cut.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:-9])
    generate(drafter, studies, tmp_path / "cut.jsonl", config, "model")
    assert (tmp_path / "cut.jsonl").read_bytes() == b"".join(lines)


def test_deep_pictures_keep_their_grey_values(folders, studies, tmp_path) -> None:
    """A 12-bit ramp, which Pillow's own conversion would turn white, gives the text of the same ramp in 8 bits."""
    ramp = np.tile(np.linspace(0, 4095, 64), (64, 1))
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.rint(ramp.astype(np.uint16) * (255 / 4095)).astype(np.uint8)).save(tmp_path / "flat.png")
    drafter = load_any(str(folders["qwen3_vl"]))
    batches = []
    for name in ("deep.png", "flat.png"):
        studies[0].main_image.path = tmp_path / name
        dataset = drafter.dataset(drafter.encode(studies[:1], answers=False))
        batches.append(dataset.collate([dataset[0]])["pixel_values"])
    assert torch.equal(*batches)
    assert len(batches[0].unique()) > 50


def test_without_a_chat_template_the_parts_stand_in_a_row(folders, studies) -> None:
    drafter = load_any(str(folders["paligemma"]), prompt=PromptConfig(instruction="caption en"))
    dataset = drafter.dataset(drafter.encode(studies[:1], answers=False))
    tokens = dataset.collate([dataset[0]])["input_ids"][0]
    assert drafter.processor.tokenizer.decode(tokens) == "<image>" * 16 + "<s>caption en\n"
    with pytest.raises(ValueError, match="type 'paligemma' cannot train here: its processor has no chat template"):
        drafter.encode(studies, answers=True)


def test_actions_take_such_a_model(folders, studies_file, tmp_path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("--model", folders["qwen3_vl"], "--studies", studies_file, "--out", out, "--decode.max_new_tokens", 6)
    assert run("generate", *arguments, "--prompt.context", "[indication]") == (0, "")
    rows = read(out)
    assert [row["model"] for row in rows] == [f"{folders['qwen3_vl']} context=['indication']"] * 8
    drafter = load_any(str(folders["qwen3_vl"]), prompt=PromptConfig(context=["indication"]))
    generate(drafter, read_studies(studies_file, "test"), tmp_path / "x.jsonl", DecodeConfig(max_new_tokens=6), "x")
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in read(tmp_path / "x.jsonl")]
    status, sentence = run("generate", *arguments)
    assert status == 1
    assert "was written with model" in sentence
    picture = read_studies(studies_file, "test")[0].main_image.path
    assert run("draft", folders["qwen3_vl"], picture, "--decode.max_new_tokens", 6) == (0, "")
    assert "DRAFT for a radiologist" in capsys.readouterr().out
    status, sentence = run("generate", *arguments[:4], "--out", tmp_path / "n.jsonl", "--control", "nearest-report")
    assert status == 1
    assert "type 'qwen3_vl' was not built here, so its tower cannot be used by itself" in sentence


def test_models_that_cannot_be_asked_are_refused_in_one_sentence(folders, lm_folder, tmp_path) -> None:
    def fault(name: str, **options: Any) -> str:
        with pytest.raises((ValueError, OSError)) as error:
            load_any(name, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert fault(str(lm_folder)).startswith(f"{lm_folder} is no vision-language model that transformers knows: ")
    assert fault(str(tmp_path)) == f"{tmp_path} is not a model folder: it has no config.json"
    assert fault("./nowhere") == "The model './nowhere' cannot be loaded: there is no folder ./nowhere"
    assert "is not on this machine, and the Hugging Face hub" in fault("nobody/vlm")
    coded = tmp_path / "coded"
    coded.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Model"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text("raise SystemExit('this code must not run')")
    assert fault(str(coded)) == f"{coded} comes with code of its own; --remote_code true runs it, if you trust it"


def test_a_model_that_was_trained_here_keeps_its_prompt(tmp_path, tower_folder, lm_folder) -> None:
    from generator.model import Drafter, ModelConfig, build, save

    save(Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder))), PROMPT), tmp_path)
    assert type(load_any(str(tmp_path))) is Drafter
    assert load_any(str(tmp_path), prompt=PROMPT).prompt == PROMPT
    with pytest.raises(ValueError, match="was trained with its own prompt"):
        load_any(str(tmp_path), prompt=PromptConfig(context=["view"]))
    (tmp_path / "raddraft.json").unlink()
    assert isinstance(load_any(str(tmp_path)), ChatDrafter), "any LLaVA model of transformers is asked as such"
