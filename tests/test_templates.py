"""Chat templates of model folders: the answer is marked and ends with its end token, the date stands, one BOS."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.utils import chat_template_utils

from generator.config import ModelConfig, Stage, TrainConfig
from generator.drafter import Drafter
from generator.model import build, load, save
from generator.prompts import PromptConfig
from generator.templates import chat_template, pin_date
from generator.tiny import train_tokenizer
from generator.train import train
from generator.vlm import load_chat
from raddraft.studies import Study, read_studies
from tests.conftest import SENTENCES
from tests.test_model import CHATML, LMS, TURNS, make_tokenizer, save_lm
from tests.vlm_families import make_tokenizer as tokenizer_with
from tests.vlm_families import save_vlm

# As those of Llama 3.2, Granite, gpt-oss and Mistral Small ask for the date.
DATED = (
    "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- else %}{%- set day = '' %}"
    "{%- endif %}"
    '{%- macro knowledge() %}Today Date: {{ day }} or {{ strftime_now("%B %d, %Y") }}.{%- endmacro %}'
    "{%- for message in messages %}{%- if loop.first %}{{ knowledge() }}\n{%- endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}\n"
)
# As Qwen 3's and Llama 2's, which write more round an answer than they ask for one with.
THINKING = CHATML.replace("{{ message.content }}", "{{ '<think>\n\n</think>\n\n' }} {{ message.content | trim }} ")


def with_template(template: str | None) -> Any:
    tokenizer = train_tokenizer(SENTENCES, 400)
    tokenizer.chat_template = template
    return tokenizer


def conversation(text: str = "Clear.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "?"}]}, *answers(text)]


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in texts]


@pytest.mark.parametrize("template", [None, CHATML, TURNS, DATED, THINKING, f"{TURNS}\n", f"{TURNS}\n\n"])
def test_an_answer_is_its_text_and_the_end_token_behind_the_prompt(template) -> None:
    tokenizer = with_template(template)
    asked = conversation()[:1]
    before = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}],
        add_generation_prompt=True,
        tokenize=False,
        **({"chat_template": chat_template(tokenizer, "<image>")} if template is None else {}),
    )
    tokenizer.chat_template = chat_template(tokenizer, "<image>")
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    if template != DATED:
        assert prompt == before, "what the language model's own template asks with"
    whole = tokenizer.apply_chat_template(conversation(" Clear. "), tokenize=False)
    assert whole == f"{prompt} Clear. </s>"
    going_on = tokenizer.apply_chat_template(conversation(), continue_final_message=True, tokenize=False)
    assert going_on == f"{prompt}Clear."
    marked = tokenizer.apply_chat_template(
        conversation(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [token for token, one in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if one]
    assert tokenizer.decode(learned) == "Clear.</s>"


@pytest.mark.parametrize("template", [None, CHATML, TURNS.replace("{{ bos_token }}", ""), DATED])
def test_a_template_that_was_extended_is_not_extended_again(template) -> None:
    tokenizer = make_tokenizer("bos")
    tokenizer.chat_template = template
    tokenizer.chat_template = chat_template(tokenizer, "<image>")
    assert chat_template(tokenizer, "<image>") == tokenizer.chat_template != template


def test_earlier_answers_and_those_to_be_followed_stay_as_the_language_model_has_them() -> None:
    for template in (CHATML, TURNS, THINKING):
        tokenizer = with_template(template)
        flat = [{**message, "content": message["content"][0]["text"]} for message in conversation()]
        chats = [[*flat, {"role": "user", "content": "Go on."}], flat]
        before = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in chats]
        tokenizer.chat_template = chat_template(tokenizer, "<image>")
        after = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in chats]
        assert after == before


@pytest.mark.parametrize("lm", [*LMS, "Llama-dated", "Llama-thinking"])
def test_the_marked_tokens_are_those_that_are_learned(tower_folder, studies_file, tmp_path, lm) -> None:
    """What another trainer reads of a saved folder, from pictures and messages."""
    folder = save_lm(lm, tmp_path / "lm")
    if lm in ("Llama-dated", "Llama-thinking"):
        with_template(DATED if lm == "Llama-dated" else THINKING).save_pretrained(folder)
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(folder))), PromptConfig(context=["indication"]))
    save(drafter, tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    studies = read_studies(studies_file)[:3]
    for study, example in zip(studies, drafter.encode(studies, answers=True), strict=True):
        ids, mask = read_answer(processor, drafter, study)
        assert ids.tolist() == [*example.prompt, *example.answer]
        assert ids[mask].tolist() == example.answer


def read_answer(processor: Any, drafter: Drafter, study: Study) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of a study with its answer, and which of them the template marks."""
    messages = [*drafter.prompt.messages(study), *answers(drafter.prompt.answer(study) or "")]
    images = [Image.open(study.main_image.path).convert("RGB")]
    batch = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"add_special_tokens": False, "images": images},
    )
    return batch["input_ids"][0], batch["assistant_masks"][0].bool()


# The date ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tomorrow(monkeypatch) -> str:
    """A clock that templates read, far from the day on which the template is pinned."""

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Tomorrow:
            return cls(2031, 5, 9)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    return "09 May 2031"


def test_a_template_states_the_same_date_every_day(tomorrow) -> None:
    tokenizer = with_template(DATED)
    messages = [{"role": "user", "content": "?"}]
    assert f"Today Date: {tomorrow} or May 09, 2031." in tokenizer.apply_chat_template(messages, tokenize=False)
    tokenizer.chat_template = chat_template(tokenizer, "<image>")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "Today Date: 26 Jul 2024 or July 26, 2024.<|user|>?<|end|>"
    )
    assert pin_date(tokenizer.chat_template) == tokenizer.chat_template, "once is enough"
    for other in (CHATML, TURNS, None, {"default": CHATML}):
        assert pin_date(other) == other


def test_models_from_elsewhere_and_folders_of_before_are_pinned_too(tower_folder, tmp_path, tomorrow) -> None:
    folder = save_vlm("qwen3_vl", tmp_path / "vlm")
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d') }}" + template.read_text())
    assert load_chat(str(folder), PromptConfig()).processor.chat_template.startswith("{%- macro strftime_now")
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(save_lm("Llama-bos", tmp_path / "lm")))))
    save(drafter, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d') }}" + template.read_text())
    asked = [{"role": "user", "content": "?"}]
    shown = load(tmp_path / "model").processor.apply_chat_template(asked, tokenize=False)
    assert shown.startswith("2024-07-26<s>[user]")


# Tokenizers with tokens of their own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [TURNS, TURNS.replace("{{ bos_token }}", ""), None], ids=["both", "one", "plain"])
def test_a_prompt_has_one_bos_whoever_puts_it_there(tower_folder, studies_file, tmp_path, template) -> None:
    """`both`: the template and the tokenizer, as Llama 3's. `one`: the tokenizer alone, as TinyLlama's and Zephyr's."""
    folder = save_lm("Llama-bos", tmp_path)
    tokenizer = make_tokenizer("bos")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(folder))))
    studies = read_studies(studies_file)[:1]
    (example,) = drafter.encode(studies, answers=True)
    (message,) = drafter.prompt.messages(studies[0])
    message["content"][0]["image"] = Image.open(studies[0].main_image.path).convert("RGB")
    at_once = drafter.processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert example.prompt == at_once["input_ids"][0]
    assert [place for place, token in enumerate(example.prompt) if token == tokenizer.bos_token_id] == [0]


def test_a_language_model_with_an_image_token_of_its_own(tower_folder, studies_file, tmp_path) -> None:
    """Gemma 3's text models have one, which their embeddings do not reach."""
    special = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = tokenizer_with(special, "<end_of_turn>", image_token="<image_soft_token>", boi_token="<start_of_image>")
    tokenizer.chat_template = CHATML
    own = tokenizer.convert_tokens_to_ids("<image_soft_token>")
    folder = save_lm("Gemma3-bos", tmp_path / "lm", vocab_size=own)
    tokenizer.save_pretrained(folder)
    parts = {split: read_studies(studies_file, split)[:4] for split in ("train", "val")}
    config = TrainConfig([Stage(epochs=1, lr=1e-3, lm="full")], batch_size=4, micro_batch_size=4, workers=0)
    saved = train(parts, tmp_path / "run", ModelConfig(str(tower_folder), str(folder)), PromptConfig(), config)
    drafter = load(saved)
    processor = drafter.processor
    assert (processor.image_token, processor.image_token_id) == ("<image_soft_token>", own)
    assert drafter.model.config.image_token_index == own
    assert len(processor.tokenizer) == len(tokenizer)
    (example,) = drafter.encode(parts["val"][:1], answers=True)
    assert example.prompt.count(own) == 4
    parts["val"][0].sections["findings"] = "No <image_soft_token> edema."
    (example,) = drafter.encode(parts["val"][:1], answers=True)
    assert own not in example.answer, "what a report says is text"


def test_the_saved_prompt_is_the_one_that_was_trained_on(tower_folder, studies_file, tmp_path: Path, tomorrow) -> None:
    folder = save_lm("Llama-plain", tmp_path / "lm")
    with_template(DATED).save_pretrained(folder)
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(folder))))
    save(drafter, tmp_path / "model")
    studies = read_studies(studies_file)[:2]
    again = load(tmp_path / "model").encode(studies, answers=True)
    for before, after in zip(drafter.encode(studies, answers=True), again, strict=True):
        assert (before.prompt, before.answer) == (after.prompt, after.answer)
        assert tomorrow not in drafter.processor.tokenizer.decode(before.prompt)
