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

from generator.api import load_model
from generator.config import DecodeConfig, LoraConfig, ModelConfig, Stage, TrainConfig
from generator.data import IGNORE
from generator.drafter import Drafter
from generator.generate import generate
from generator.model import PROJECTOR
from generator.prompts import PromptConfig
from generator.train import train
from generator.vlm import ChatDrafter
from raddraft.images import load_image
from raddraft.studies import read_studies
from tests.test_cli import run
from tests.vlm_families import FAMILIES, save_vlm


def load_any(name: str, **options: Any) -> Drafter:
    return load_model(name, "cpu", **options).drafter


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
    images = [load_image(image.path).convert("RGB") for image in prompt.choose_images(study)]
    messages = prompt.messages(study)
    if processor.chat_template:
        waiting = iter(images)
        for part in messages[0]["content"]:
            if part["type"] == "image":
                part["image"] = next(waiting)
        return processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    text = "".join(part.get("text", "") for part in messages[0]["content"])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_from_one_to_three_pictures_are_those_of_plain_transformers(folders, studies, tmp_path, family) -> None:
    studies[1].images += [replace(studies[0].main_image, view="LL"), studies[3].main_image]
    studies[2].images += [replace(studies[4].main_image, view="LL")]
    prompt = PromptConfig(images="all", context=["indication"])
    drafter = load_any(str(folders[family]), prompt=prompt)
    assert generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "model") == []
    model, processor = load_plain(folders[family])
    plain = [write_plainly(model, processor, prompt, study) for study in studies]
    assert [row["prediction"] for row in read(tmp_path / "out.jsonl")] == plain


@pytest.mark.parametrize("family", ["qwen3_vl", "idefics3"])
def test_beams_are_those_of_plain_transformers(folders, studies, tmp_path, family) -> None:
    drafter = load_any(str(folders[family]), prompt=PROMPT)
    generate(drafter, studies, tmp_path / "out.jsonl", replace(CONFIG, num_beams=3), "model")
    model, processor = load_plain(folders[family])
    plain = [write_plainly(model, processor, PROMPT, study, num_beams=3) for study in studies]
    assert [row["prediction"] for row in read(tmp_path / "out.jsonl")] == plain


@pytest.mark.parametrize("family", ["qwen3_vl", "idefics3"])
def test_candidates_are_those_that_plain_transformers_samples(folders, studies, tmp_path, family) -> None:
    drafter = load_any(str(folders[family]), prompt=PROMPT)
    config = replace(CONFIG, candidates=3, batch_size=1)
    generate(drafter, studies[:2], tmp_path / "out.jsonl", config, "model")
    model, processor = load_plain(folders[family])
    options = {"do_sample": True, "temperature": 0.5, "top_k": 0, "num_return_sequences": 3, "repetition_penalty": 1.0}
    for number, (study, row) in enumerate(zip(studies, read(tmp_path / "out.jsonl"), strict=False)):
        inputs = ask(processor, PROMPT, study)
        torch.manual_seed(number)
        tokens = model.generate(**inputs, max_new_tokens=12, **options)[:, inputs["input_ids"].shape[1] :]
        plain = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert row["candidates"] == [text.strip() for text in plain]
    with pytest.raises(ValueError, match=r"decode\.confidence need a model that was built by RadDraft"):
        generate(drafter, studies, tmp_path / "x.jsonl", replace(CONFIG, confidence=True), "model")


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


def test_text_and_pictures_longer_than_the_context_are_named(folders, studies) -> None:
    drafter = load_any(str(folders["internvl"]), prompt=PROMPT)
    studies[1].sections["indication"] = "cough " * 450
    with pytest.raises(
        ValueError, match=r"Study 's1': \d+ tokens of text \+ 40 for the draft exceed the context of 512"
    ):
        drafter.encode(studies, answers=False, reserve=40)
    dataset = drafter.dataset(drafter.encode(studies, answers=False))
    with pytest.raises(ValueError, match=r"Study 's1': \d+ tokens of text and images exceed the context of 512"):
        dataset.collate([dataset[0], dataset[1]])


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


def test_without_a_chat_template_pictures_stand_before_the_text(folders, studies) -> None:
    drafter = load_any(str(folders["paligemma"]), prompt=PromptConfig(instruction="caption en"))
    dataset = drafter.dataset(drafter.encode(studies[:1], answers=False))
    tokens = dataset.collate([dataset[0]])["input_ids"][0]
    assert drafter.processor.tokenizer.decode(tokens) == "<image>" * 16 + "<s>caption en\n"
    with pytest.raises(ValueError, match="type 'paligemma' cannot be trained: its processor has no chat template"):
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
    assert "type 'qwen3_vl' was not built by RadDraft, so its tower gives no features" in sentence


def test_models_that_cannot_be_asked_are_refused_in_one_sentence(folders, lm_folder, tmp_path) -> None:
    def fault(name: str, **options: Any) -> str:
        with pytest.raises((ValueError, OSError)) as error:
            load_any(name, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert fault(str(lm_folder)).startswith(f"{lm_folder} is not a vision-language model that transformers knows: ")
    assert fault(str(tmp_path)) == f"{tmp_path} is not a model folder: it has no config.json"
    assert fault("./nowhere") == "The model './nowhere' cannot be loaded: folder ./nowhere does not exist"
    assert "there is no folder nobody/vlm here, and it could not be downloaded" in fault("nobody/vlm")
    coded = tmp_path / "coded"
    coded.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Model"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text("raise SystemExit('this code must not run')")
    assert fault(str(coded)) == f"{coded} comes with its own code; if you trust it, --remote-code runs it"


def test_a_model_that_was_trained_here_keeps_its_prompt(tmp_path, tower_folder, lm_folder) -> None:
    from generator.config import ModelConfig
    from generator.model import build, save

    save(Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder))), PROMPT), tmp_path)
    assert type(load_any(str(tmp_path))) is Drafter
    assert load_any(str(tmp_path), prompt=PROMPT).prompt == PROMPT
    with pytest.raises(ValueError, match="was trained with its own prompt"):
        load_any(str(tmp_path), prompt=PromptConfig(context=["view"]))
    (tmp_path / "raddraft.json").unlink()
    assert isinstance(load_any(str(tmp_path)), ChatDrafter), "any LLaVA model of transformers is asked as such"


# Training ------------------------------------------------------------------------------------------------------------


def recipe(**changes: Any) -> TrainConfig:
    stage = Stage(epochs=2, lr=1e-2, lm="lora", projector=True)
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0)
    return replace(TrainConfig([stage], lora, batch_size=5, micro_batch_size=3, workers=0), **changes)


def evaluate_plainly(model: Any, processor: Any, studies: list) -> float:
    """Loss per token of the answers, each study by itself, labels over the whole sequence."""
    total, count = 0.0, 0
    for study in studies:
        prompt = ask(processor, PROMPT, study)
        (question,) = PROMPT.messages(study)
        question["content"][0]["image"] = load_image(study.main_image.path).convert("RGB")
        answer = {"role": "assistant", "content": [{"type": "text", "text": study.sections["findings"]}]}
        inputs = processor.apply_chat_template([question, answer], tokenize=True, return_dict=True, return_tensors="pt")
        labels = inputs["input_ids"].clone()
        labels[:, : prompt["input_ids"].shape[1]] = -100
        with torch.no_grad():
            logits = model(**inputs).logits
        targets = labels[0, 1:]
        total += torch.nn.functional.cross_entropy(logits[0, :-1].float(), targets, reduction="sum").item()
        count += int((targets != -100).sum())
    return total / count


def validations(run: Path) -> list[float]:
    return [row["val_loss"] for row in read(run / "log.jsonl") if "val_loss" in row]


@pytest.mark.parametrize("family", CHATTING)
def test_two_steps_with_lora_save_and_reload_in_plain_transformers(folders, studies, tmp_path, family) -> None:
    config = ModelConfig(vlm=str(folders[family]))
    folder = train({"train": studies, "val": studies}, tmp_path / "run", config, PROMPT, recipe())
    before, _ = load_plain(folders[family])
    model, processor = load_plain(folder)
    first, last = validations(tmp_path / "run")
    assert last < first < evaluate_plainly(before, processor, studies)
    assert evaluate_plainly(model, processor, studies) == pytest.approx(last, abs=2e-4)

    changed = {
        name
        for (name, old), (_, new) in zip(before.named_parameters(), model.named_parameters(), strict=True)
        if not torch.equal(old, new)
    }
    decoder = {id(parameter) for parameter in model.get_decoder().layers.parameters()}
    inside = {name for name, parameter in model.named_parameters() if id(parameter) in decoder}
    outside = changed - inside
    assert {name.rsplit(".", 2)[-2] for name in changed & inside} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert outside, "the projector has trained"
    assert all(PROJECTOR.search(name) for name in outside)

    drafter = load_any(str(folder))
    assert isinstance(drafter, ChatDrafter)
    assert drafter.prompt == PROMPT
    generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "model")
    plain = [write_plainly(model, processor, PROMPT, study) for study in studies]
    assert [row["prediction"] for row in read(tmp_path / "out.jsonl")] == plain
    inputs = ask(processor, PROMPT, studies[0])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, drafter.model(**inputs).logits)


@pytest.mark.parametrize("family", CHATTING)
def test_the_loss_is_that_of_plain_transformers(folders, studies, tmp_path, family) -> None:
    """On the answers' tokens alone, and whatever the neighbors in a batch."""
    config = recipe(stages=[Stage(epochs=1, lr=1e-9, lm="lora", projector=False)])
    train({"train": studies, "val": studies}, tmp_path, ModelConfig(vlm=str(folders[family])), PROMPT, config)
    (loss,) = validations(tmp_path)
    assert loss == pytest.approx(evaluate_plainly(*load_plain(folders[family]), studies), abs=2e-4)


@pytest.mark.parametrize("family", CHATTING)
def test_what_is_learnt_is_the_answer_and_its_end(folders, studies, family) -> None:
    drafter = load_any(str(folders[family]), prompt=PROMPT)
    tokenizer = drafter.processor.tokenizer
    dataset = drafter.dataset(drafter.encode(studies, answers=True))
    batch = dataset.collate([dataset[i] for i in range(len(studies))])
    for labels, study in zip(batch["labels"], studies, strict=True):
        text = tokenizer.decode(labels[labels != IGNORE])
        assert text.strip() == study.sections["findings"] + tokenizer.eos_token


def test_an_unreadable_image_is_not_trained_on(folders, studies, tmp_path, capsys) -> None:
    studies[3].main_image.path.write_bytes(b"not a picture")
    config = recipe(eval_every=0)
    train({"train": studies}, tmp_path, ModelConfig(vlm=str(folders["idefics3"])), PROMPT, config)
    assert "not trained on: s3: " in capsys.readouterr().out


def test_what_cannot_train_is_refused(folders, studies, tmp_path) -> None:
    config, parts = ModelConfig(vlm=str(folders["gemma3"])), {"train": studies, "val": studies}
    with pytest.raises(ValueError, match="type 'gemma3' was not built by RadDraft, so its tower gives no features"):
        train(parts, tmp_path / "a", config, PROMPT, recipe(cached=True))
    with pytest.raises(ValueError, match="tower of a model of type 'gemma3' cannot train; use tower: frozen"):
        train(parts, tmp_path / "b", config, PROMPT, recipe(stages=[Stage(tower=1)]))
    for parts_named in ((), ("x",), ("", "x"), ("x", "", "y"), ("", "x", "y")):
        with pytest.raises(ValueError, match="model: set tower and lm "):
            ModelConfig(*parts_named)
    drafter = load_any(str(folders["qwen3_vl"]))
    processor: Any = drafter.processor
    template = processor.chat_template
    for changed, message in [
        (template.replace("assistant\n", "assistant\n<think>\n"), "does not begin with the prompt alone"),
        (template.replace("<|im_end|>", "--"), r"without any of the model's end tokens \[\d+\]"),
    ]:
        processor.chat_template = changed
        with pytest.raises(ValueError, match=message):
            drafter.encode(studies, answers=True)


def test_a_stopped_run_goes_on_to_the_same_weights(folders, studies, tmp_path) -> None:
    config, parts = ModelConfig(vlm=str(folders["qwen3_vl"])), {"train": studies, "val": studies}
    whole = train(parts, tmp_path / "whole", config, PROMPT, recipe(save_every=1))
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("generator.train._validate", lambda *_: 1 / 0)  # at the end of the first epoch
        with pytest.raises(ZeroDivisionError):
            train(parts, stopped, config, PROMPT, recipe(save_every=1, eval_every=2))
    again = train(parts, stopped, config, PROMPT, recipe(save_every=1, eval_every=2))
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
