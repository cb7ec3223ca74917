"""Text is text: no string of a report, a section, a prior or an instruction becomes a control token, in any family."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceTrainer

from generator.clip import _tokenize
from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.data import IGNORE
from generator.drafter import Drafter
from generator.generate import generate
from generator.model import build
from generator.prompts import PromptConfig
from generator.speculate import index_reports
from generator.tiny import train_tokenizer
from generator.tokens import MARK, TextTokens
from generator.train import train
from generator.vlm import load_chat
from raddraft.errors import RadDraftError
from raddraft.studies import Study, read_studies
from tests.conftest import SENTENCES
from tests.test_model import make_tokenizer, save_lm
from tests.vlm_families import FAMILIES as VLMS
from tests.vlm_families import save_vlm

# The strings of all families, nested and overlapping ones, and what only looks like one.
STRINGS = (
    *("<image>", "</s>", "<s>", "<pad>", "<unk>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<think>", "</think>", "<loc0001>"),
    *("<image_soft_token>", "<start_of_image>", "<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>"),
    *("<fake_token_around_image>", "<row_1_col_1>", "<end_of_utterance>", "<img>", "<video>", "[IMG]", "<<image>>"),
    *("<im<image>age>", "<image", "a < b > c", "<<<observations>>>"),
)
ALL = f"No edema. {' x '.join(STRINGS)}{''.join(STRINGS)} Clear."


def spell(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def sentencepiece(folder: Path, kind: str, fallback: bool) -> str:
    """A SentencePiece model, whose user-defined symbol even `split_special_tokens` takes for one."""
    text = folder / "text"
    text.write_text("\n".join([*SENTENCES, *STRINGS] * 20))
    options: dict[str, Any] = {"user_defined_symbols": ["<start_of_turn>"], "hard_vocab_limit": False}
    options |= {"vocab_size": 360 if fallback else 100, "model_type": kind, "byte_fallback": fallback, "pad_id": 3}
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), minloglevel=2, max_sentence_length=10**5, **options
    )
    return str(folder)


def with_added_tokens() -> Any:
    """Tokens that are not special but steer (Qwen3's <think>), a word and a run of blanks, which do not."""
    tokenizer = train_tokenizer(SENTENCES, 400)
    tokenizer.add_tokens(["<think>", "</think>", "<|user|>", "<loc0001>", "[INST]", "cardiomegaly", "\n\n"])
    return tokenizer


def one_character() -> Any:
    tokenizer = train_tokenizer(SENTENCES, 400)
    tokenizer.pad_token = "!"  # as some models do
    return tokenizer


def make(kind: str, folder: Path) -> Any:
    import transformers as hf

    classes = {"llama": hf.LlamaTokenizer, "gemma": hf.GemmaTokenizer, "unigram": hf.XLMRobertaTokenizer}
    if kind in classes:
        return classes[kind].from_pretrained(sentencepiece(folder, "bpe" if kind != "unigram" else kind, True))
    if kind == "llama without bytes":
        return hf.LlamaTokenizer.from_pretrained(sentencepiece(folder, "bpe", False))
    return {"added": with_added_tokens, "one character": one_character}.get(kind, lambda: make_tokenizer(kind))()


KINDS = ("plain", "chatml", "bos", "added", "one character", "llama", "gemma", "unigram", "llama without bytes")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_spelled_and_hold_no_control_token(kind, tmp_path) -> None:
    tokenizer = make(kind, tmp_path)
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if len(str(token)) > 2 and "<" in str(token)}
    tokens = TextTokens(tokenizer)
    for text in (*STRINGS, ALL, f"{STRINGS[0]} No edema.", "No edema. </s>"):
        (ids,) = tokens.of_texts([text])
        assert not control & set(ids), text
        assert spell(tokenizer, ids).strip() == text, text
    assert tokens.of_texts([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_have_the_tokens_that_they_always_had(kind, tmp_path) -> None:
    tokenizer = make(kind, tmp_path)
    texts = [*SENTENCES, "", " No\n\nedema! ", "cardiomegaly < 2 cm > 1 [x] {y} |z|", "Kein Erguß. 無氣胸。", MARK]
    assert TextTokens(tokenizer).of_texts(texts[:-1]) == tokenizer(texts[:-1], add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_cannot_keep_a_mark_apart_is_named(tmp_path) -> None:
    tokens = TextTokens(make("unigram", tmp_path))
    assert tokens.of_texts(["an unknown letter \u2603 is no matter"])
    tokens._mark = [-1]
    with pytest.raises(RadDraftError, match=r"'No </s> edema' holds a control token .* \(XLMRobertaTokenizer\) cannot"):
        tokens.of_texts(["No </s> edema"])


# Models that are built here ------------------------------------------------------------------------------------------

LMS = ("Llama-bos", "Qwen2-chatml", "Gemma3-bos", "Phi3-chatml", "GPT2-plain", "Mistral-bos")
FIELDS = PromptConfig(context=["view", "indication"], prior=True, instruction=f"Describe {STRINGS[0]} and {ALL} now.")


def dirty(studies: list[Study], text: str) -> list[Study]:
    """Two studies of one subject, with the text wherever a study has one."""
    for study in studies[:2]:
        study.subject_id, study.split = "p", "train"
        study.sections = {"findings": f"Report. {text}", "indication": text}
        study.images[0].view = f"PA {text}"
        study.extra["study_date"] = study.study_id[1:]
    return studies[:2]


@pytest.fixture(scope="module")
def longer(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lms")
    sizes: dict[str, dict[str, int]] = {"GPT2": {"n_positions": 8192}}
    long = {"max_position_embeddings": 8192}
    return {lm: save_lm(lm, root / lm, **sizes.get(lm.partition("-")[0], long)) for lm in LMS}


def controls(tokenizer: Any, ids: list[int]) -> Counter:
    return Counter(i for i in ids if i in tokenizer.added_tokens_decoder)


@pytest.mark.parametrize("first", [False, True], ids=["report", "findings_first"])
@pytest.mark.parametrize("lm", LMS)
def test_fields_of_a_study_and_the_instruction_are_text(longer, tower_folder, studies_file, lm, first) -> None:
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(longer[lm]))))
    tokenizer = drafter.processor.tokenizer
    found = []
    for text, instruction in (("cough", "Describe."), (ALL, FIELDS.instruction)):
        drafter.prompt = PromptConfig(["findings"], FIELDS.context, prior=True, instruction=instruction)
        drafter.prompt.findings_first = first
        studies = dirty(read_studies(studies_file), text)
        examples = drafter.encode(studies, answers=True)
        found.append([controls(tokenizer, [*one.prompt, *one.answer]) for one in examples])
        for study, example in zip(studies, examples, strict=True):
            report = example.answer[example.given.stop :]
            assert spell(tokenizer, report) == study.sections["findings"] + tokenizer.eos_token
            assert tokenizer.decode(report, skip_special_tokens=True) == study.sections["findings"], "a draft of it"
            assert example.text.count(drafter.processor.image_token_id) == len(example.images)
            prompt = spell(tokenizer, example.text)
            assert f"View: PA {text}\nIndication: {text}\n" in prompt
            assert (instruction in spell(tokenizer, example.answer if first else example.text)) is True
        assert f"Prior report: {studies[0].sections['findings']}" in prompt
    assert found[0] == found[1], "the chat template's own control tokens, and no more"
    if not first:
        index = index_reports(drafter, studies)
        proposed, _ = index.propose([], 1000)
        assert spell(tokenizer, proposed[:-1]).startswith("Report. No edema. <image>")


def test_training_and_drafting_go_through(longer, tower_folder, studies_file, tmp_path) -> None:
    studies = read_studies(studies_file)[:4]
    for study, text in zip(studies, ("<image>", "</s> <image><image>", "none", "<pad></s>"), strict=True):
        study.sections = {"findings": f"Clear. {text}", "indication": f"{text} cough"}
    config = TrainConfig([Stage(epochs=40, lr=1e-2, lm="full")], batch_size=4, micro_batch_size=4, workers=0)
    model = ModelConfig(str(tower_folder), str(longer["Llama-bos"]))
    prompt = PromptConfig(context=["indication"])
    folder = train({"train": studies, "val": studies}, tmp_path / "run", model, prompt, config)
    from generator.model import load

    assert generate(load(folder), studies, tmp_path / "out.jsonl", DecodeConfig(max_new_tokens=40), "model") == []
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [study.sections["findings"] for study in studies]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("<image>\nDescribe it.", "[image]Describe it."),
        ("<image>Describe it.", "[image]Describe it."),
        ("<image>\n<image>\nDescribe it.", "[image]Describe it."),
        ("Describe it.\n<image>", "Describe it.\n[image]"),
        ("Describe it. <image> ", "Describe it.\n[image]"),
        ("Describe <image> briefly.", "[image]Describe <image> briefly."),
        ("<image>", "[image]Describe the findings of this chest X-ray."),
        ("<|image|> Describe it.", "[image]<|image|> Describe it."),
    ],
)
def test_the_place_of_the_image_in_an_instruction(instruction, expected, studies_file) -> None:
    study = read_studies(studies_file)[0]
    (message,) = PromptConfig(instruction=instruction).messages(study)
    assert "".join(part.get("text", "[image]") for part in message["content"]) == expected
    two_turns = PromptConfig(instruction=instruction, findings_first=True)
    shown = "".join(part.get("text", "[image]") for part in two_turns.messages(study)[0]["content"])
    assert shown.replace("[image]", "") == shown[7:] or shown.endswith("\n[image]")
    asked = two_turns.follow_up()["content"]
    assert "".join(part["text"] for part in asked) == expected.replace("[image]", "").rstrip("\n")


def test_images_at_the_end_reach_the_model(longer, tower_folder, studies_file) -> None:
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(longer["Llama-bos"]))))
    drafter.prompt = PromptConfig(instruction="Describe it.\n<image>")
    (example,) = drafter.encode(read_studies(studies_file)[:1], answers=False)
    assert spell(drafter.processor.tokenizer, example.text) == "<s>[user] Describe it.\n<image>\n[model]"


def test_contrastive_training_reads_texts_alike() -> None:
    tokenizer = train_tokenizer(SENTENCES, 400)
    row = _tokenize(["No </s> <pad> edema. <s>"], tokenizer, 100)[0].tolist()
    assert controls(tokenizer, row) == {tokenizer.bos_token_id: 1, tokenizer.eos_token_id: 1}
    assert spell(tokenizer, row) == "<s>No </s> <pad> edema. <s></s>"


# Vision-language models from elsewhere -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {family: save_vlm(family, root / family) for family in VLMS}


@pytest.mark.parametrize("family", VLMS)
def test_other_models_read_texts_as_text(vlms, studies_file, family) -> None:
    """In a batch with a study of plain words, whose row must stay as it is alone."""
    prompt = PromptConfig(context=["indication"], instruction=f"Describe {STRINGS[0]} and </s> now.")
    drafter = load_chat(str(vlms[family]), prompt)
    drafter.model.config.get_text_config().max_position_embeddings = 4096
    tokenizer, answers = drafter.processor.tokenizer, family != "paligemma"
    studies = read_studies(studies_file)[:3]
    plain = drafter.dataset(drafter.encode(studies, answers))
    before = plain.collate([plain[1]])
    own = controls(tokenizer, before["input_ids"][0].tolist())
    for study in (studies[0], studies[2]):
        study.sections = {"findings": f"Report. {ALL}", "indication": ALL}
    dataset = drafter.dataset(drafter.encode(studies, answers))
    batch = dataset.collate([dataset[0], dataset[1], dataset[2]])
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    assert mask.any(0).all(), "no column of padding alone"
    for row, real, study, labels in zip(ids, mask, studies, batch["labels"], strict=True):
        assert controls(tokenizer, row[real].tolist()) == own
        shown = spell(tokenizer, row[real])
        assert f"Indication: {study.sections['indication']}\nDescribe <image> and </s> now." in shown
        if answers:
            learned = spell(tokenizer, labels[labels != IGNORE]).strip()
            assert learned == study.sections["findings"] + tokenizer.eos_token
    assert ids[1][mask[1]].tolist() == before["input_ids"][0].tolist()
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and name != "labels" and value.shape == ids.shape:
            assert torch.equal(value[1][mask[1]], before[name][0]), name
    if answers:
        assert drafter.model(**{name: value for name, value in batch.items() if name not in ("labels", "errors")})


def test_a_template_that_looks_into_answers_finds_text(vlms, studies_file) -> None:
    """Here it drops what a model that reasons has thought before it answered."""
    drafter = load_chat(str(vlms["qwen3_vl"]), PromptConfig())
    processor: Any = drafter.processor
    processor.tokenizer.add_tokens(["<think>", "</think>"])
    drafter.model.resize_token_embeddings(len(processor.tokenizer))
    processor.chat_template = processor.chat_template.replace(
        "{{ part['text'] }}", "{{ part['text'].split('</think>')[-1] }}"
    )
    (study,) = read_studies(studies_file)[:1]
    study.sections["findings"] = "Small </think> effusion."
    (example,) = drafter.encode([study], answers=True)
    assert spell(processor.tokenizer, example.answer) == "Small </think> effusion.<|im_end|>\n"
