"""Tower families x language models: built, saved and reloaded alike; what trains; prompts, tokens and batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceTrainer

from encoder.tower import weights_digest
from generator.config import LoraConfig, ModelConfig
from generator.data import IGNORE, Example, ExampleDataset, Item, collate, load_micro_batches
from generator.model import Drafter, add_lora, build, choose_trainable, load, save
from generator.prompts import PromptConfig
from generator.tiny import make_lm, make_tower, train_tokenizer
from generator.train import StoredFeatures, summed_loss
from raddraft.studies import Study, read_studies
from tests.conftest import SENTENCES
from tests.test_towers import FAMILIES, save_tower

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def make_tokenizer(kind: str):
    """plain: no template. chatml: its own template and special tokens, no BOS. bos: puts a BOS before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(SENTENCES, vocab_size=400)
    if kind == "chatml":
        tokenizer.bos_token = None
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.chat_template = CHATML
    if kind == "bos":
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        tokenizer.chat_template = TURNS
    return tokenizer


def save_lm(name: str, folder: Path, **changes: Any) -> Path:
    """Save a two-layer language model with random weights: NAME of the class before its -TOKENIZER."""
    import transformers as hf

    torch.manual_seed(1)
    family, _, kind = name.partition("-")
    tokenizer = make_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
    gated = size | {"intermediate_size": 64, "num_key_value_heads": 1}
    own: dict[str, Any] = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
        "OPT": size | {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "GPTNeoX": size | {"intermediate_size": 64},
        "Phi": size | {"intermediate_size": 64},
        "Qwen3": gated | {"head_dim": 16, "tie_word_embeddings": True},
        "Gemma": gated | {"head_dim": 16},
        "Gemma2": gated | {"head_dim": 16},
        # One layer of each kind, the window shorter than the prompts; its head is tied.
        "Gemma3": gated | {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        "Phi3": gated | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True},  # as Phi-4-mini
        "Granite": gated | {"logits_scaling": 8.0},
    }.get(family, gated)
    config_class = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(hf, config_class)(**common | own | changes)
    suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    getattr(hf, family + suffix)(config).save_pretrained(folder)
    return folder


LMS = (
    *("Llama-bos", "Qwen2-chatml", "Qwen3-chatml", "Gemma-bos", "Gemma3-bos", "Phi3-chatml"),
    *("GPT2-plain", "OPT-plain", "GPTNeoX-plain"),
)
PAIRS = [*((tower, "Llama-bos") for tower in FAMILIES), *(("dinov2", lm) for lm in LMS[1:])]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folder of each tower and language model."""
    folder = tmp_path_factory.mktemp("parts")
    towers = {family: str(save_tower(family, folder / family)) for family in FAMILIES}
    return towers | {name: str(save_lm(name, folder / name)) for name in LMS}


@pytest.fixture(scope="module")
def join(parts: dict[str, str]) -> Callable[..., Drafter]:
    """Gives a drafter built of a tower and a language model, named as in `parts`; every test gets its own copy."""

    built: dict[str, Any] = {}

    def make(tower: str = "dinov2", lm: str = "Llama-bos", **options) -> Drafter:
        key = f"{tower} {lm} {options}"
        if key not in built:
            torch.manual_seed(2)
            built[key] = Drafter(*build(ModelConfig(parts[tower], parts[lm], **options)), PROMPT)
        return deepcopy(built[key])

    return make


PROMPT = PromptConfig(context=["view", "indication"])


@pytest.fixture
def studies(studies_file: Path) -> list[Study]:
    studies = read_studies(studies_file)[:6]
    studies[1].sections["indication"] = "fever."
    del studies[4].sections["indication"]
    return studies


def plain_inputs(processor, prompt: PromptConfig, study: Study) -> Any:
    """What a user of plain transformers hands to the model."""
    messages = prompt.messages(study)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = Image.open(study.main_image.path).convert("RGB")
    return processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def logits_of(model, batch: dict[str, Any]) -> torch.Tensor:
    names = ("input_ids", "attention_mask", "position_ids", "pixel_values")
    return model(**{name: batch[name] for name in names}).logits


def items_of(drafter: Drafter, studies: list[Study], answers: bool = True) -> list[Item]:
    dataset = drafter.dataset(drafter.encode(studies, answers))
    return [dataset[i] for i in range(len(dataset))]


# Tower families x language models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tower", "lm"), PAIRS)
def test_a_saved_model_is_the_same_in_plain_transformers(join, studies, tmp_path, tower, lm) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    drafter = join(tower, lm)
    save(drafter, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert not model.training
    inputs = plain_inputs(drafter.processor, drafter.prompt, studies[0])
    again = plain_inputs(processor, drafter.prompt, studies[0])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(drafter.model(**inputs).logits, model(**again).logits)
        other = plain_inputs(processor, drafter.prompt, studies[3])["pixel_values"]
        changed = model(**again | {"pixel_values": other}).logits
        assert not torch.equal(changed, model(**again).logits), "the image reaches the text"
    tokens = drafter.model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(tokens, model.generate(**again, max_new_tokens=8))
    for one in (drafter.model, model):
        tied = one.lm_head.weight is one.get_input_embeddings().weight
        assert tied == one.config.tie_word_embeddings
    restored = load(tmp_path)
    assert (restored.prompt, restored.gray_mapping) == (drafter.prompt, drafter.gray_mapping)
    saved = restored.model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in drafter.model.state_dict().items())


@pytest.mark.parametrize("feature_layer", [-1, -2, 1])
@pytest.mark.parametrize("tower", FAMILIES)
def test_stored_hidden_states_are_what_the_model_projects(join, studies, tower, feature_layer) -> None:
    """The features that are kept on disk, put in the tower's place, give the same logits as the pictures."""
    drafter = join(tower, feature_layer=feature_layer)
    batch = collate(items_of(drafter, studies), 0)
    expected = logits_of(drafter.model, batch)
    with torch.no_grad():
        states = drafter.model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states
    drafter.model.model.vision_tower = StoredFeatures()
    assert torch.equal(logits_of(drafter.model, batch | {"pixel_values": states[feature_layer]}), expected)


@pytest.mark.parametrize("lm", LMS)
def test_neighbours_in_a_batch_change_nothing(join, studies, lm) -> None:
    """Left padding: positions and masks are right for absolute, rotary and learnt position embeddings."""
    drafter = join(lm=lm)
    for answers in (True, False):
        items = items_of(drafter, studies, answers)
        assert len({len(item.example) for item in items}) > 2
        batch = collate(items, drafter.processor.tokenizer.pad_token_id)
        together = logits_of(drafter.model, batch)
        for row, item in enumerate(items):
            alone = logits_of(drafter.model, collate([item], 0))[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    steps = drafter.model.generate(**inputs, **options).logits
    for row, study in enumerate(studies):
        alone_steps = drafter.model.generate(**plain_inputs(drafter.processor, PROMPT, study), **options).logits
        for step, alone_step in zip(steps, alone_steps, strict=False):
            torch.testing.assert_close(step[row], alone_step[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lm", LMS)
def test_text_alone_reads_as_in_the_language_model_itself(join, parts, lm) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(parts[lm]).eval()
    drafter = join(lm=lm)
    tokens = torch.tensor(
        [drafter.processor.tokenizer.encode("The heart is normal in size.", add_special_tokens=False)]
    )
    with torch.no_grad():
        ours, theirs = drafter.model(tokens).logits, reference(tokens).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs)


@pytest.mark.parametrize("lm", LMS)
def test_adapters_merge_into_every_language_model(join, studies, tmp_path, lm) -> None:
    drafter = join(lm=lm)
    before = {name: value.clone() for name, value in drafter.model.state_dict().items()}
    model: Any = add_lora(drafter.model, LoraConfig(rank=2, alpha=4))
    choose_trainable(model, projector=False, lm="lora", tower="frozen")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = collate(items_of(drafter, studies), 0)
    adapted = logits_of(model.eval(), batch)
    drafter.model = model.merge_and_unload()
    torch.testing.assert_close(logits_of(drafter.model, batch), adapted, rtol=1e-4, atol=1e-4)
    after = drafter.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert before.keys() == after.keys()
    assert moved
    assert all(name.startswith("model.language_model.") and name.endswith(".weight") for name in moved)
    save(drafter, tmp_path)
    torch.testing.assert_close(logits_of(load(tmp_path).model, batch), adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("lm", "changes", "message"),
    [
        ("OPT-plain", {"word_embed_proj_dim": 16}, r"type 'opt' .* no place for lm_head\.weight"),
        ("Phi-plain", {}, r"type 'phi' .* no place for lm_head\.bias"),
        ("Granite-plain", {}, r"type 'granite' .* leave out what they do to the logits"),
        ("Gemma2-plain", {"final_logit_softcapping": 1.0}, r"type 'gemma2' .* leave out what they do to the logits"),
    ],
)
def test_language_models_that_would_be_saved_wrongly_are_refused(parts, tmp_path, lm, changes, message) -> None:
    """Each of these would load again without an error, and write other text."""
    folder = save_lm(lm, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(parts["dinov2"], str(folder)))


def test_faults_of_the_parts_are_named(parts, tmp_path) -> None:
    def fault(lm: str, **options) -> str:
        with pytest.raises((ValueError, OSError)) as error:
            build(ModelConfig(parts["dinov2"], lm, **options))
        assert "\n" not in str(error.value)
        return str(error.value)

    for layer in (0, 4, -5):
        message = fault(parts["Llama-bos"], feature_layer=layer)
        assert message == f"model.feature_layer is {layer}. Choices for {parts['dinov2']}: -4 to -1, or 1 to 3"
    assert fault("nobody/lm").startswith(
        "No tokenizer for the language model 'nobody/lm': there is no folder nobody/lm here, and it could not"
    )
    assert fault("./nowhere") == "No tokenizer for the language model './nowhere': folder ./nowhere does not exist"
    broken = Path(shutil.copytree(parts["Llama-bos"], tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"")
    assert fault(str(broken)).startswith(f"The language model '{broken}' cannot be loaded: ")
    (broken / "tokenizer.json").write_text("{")
    assert fault(str(broken)).startswith(f"No tokenizer for the language model '{broken}': ")
    tokenizer = make_tokenizer("plain")
    tokenizer.eos_token = None
    endless = Path(shutil.copytree(parts["Llama-bos"], tmp_path / "endless"))
    tokenizer.save_pretrained(endless)
    assert "has no eos token, so a report could not end" in fault(str(endless))


def test_the_tower_of_a_trained_model_is_a_tower(join, parts, tmp_path) -> None:
    drafter = join()
    save(drafter, tmp_path)
    again, _ = build(ModelConfig(str(tmp_path), parts["Llama-bos"]))
    assert weights_digest(again.model.vision_tower) == weights_digest(drafter.model.model.vision_tower)


@pytest.mark.parametrize("tower", ["dinov2", "registers"])
def test_another_image_size_is_kept_by_the_saved_model(join, studies, tmp_path, tower) -> None:
    drafter = join(tower, image_size=56)
    n_registers = 4 if tower == "registers" else 0
    examples = drafter.encode(studies[:1], answers=False)
    assert examples[0].prompt.count(drafter.model.config.image_token_index) == 16 + n_registers
    save(drafter, tmp_path)
    inputs = plain_inputs(load(tmp_path).processor, PROMPT, studies[0])
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)
    assert inputs["input_ids"][0].tolist() == examples[0].prompt


def test_a_model_held_in_bfloat16(join, studies, tmp_path) -> None:
    drafter = join("clip", "Qwen3-chatml", dtype="bfloat16")
    assert {parameter.dtype for parameter in drafter.model.parameters()} == {torch.bfloat16}
    save(drafter, tmp_path)
    batch = collate(items_of(drafter, studies), 0)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    assert torch.equal(logits_of(drafter.model, batch), logits_of(load(tmp_path).model, batch))
    names = choose_trainable(drafter.model, projector=True, lm="frozen", tower=1)
    types = {name: parameter.dtype for name, parameter in drafter.model.named_parameters()}
    tower = {name for name in types if "vision_tower" in name}  # whole in one type, though one block trains
    assert {name for name, dtype in types.items() if dtype == torch.float32} == set(names) | tower
    assert tower - set(names)


# Vocabulary ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lm", LMS)
def test_the_vocabulary_grows_by_the_image_token_alone(join, parts, lm) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old = AutoModelForCausalLM.from_pretrained(parts[lm])
    drafter = join(lm=lm)
    tokenizer, model = drafter.processor.tokenizer, drafter.model
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(parts[lm])) + 1
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    assert image_id == model.config.image_token_index == drafter.processor.image_token_id == len(tokenizer) - 1
    assert tokenizer.decode([image_id], skip_special_tokens=True) == ""
    rows = old.config.vocab_size
    for new_weight, old_weight in (
        (model.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (model.lm_head.weight, old.get_output_embeddings().weight),
    ):
        assert len(new_weight) == model.config.text_config.vocab_size >= len(tokenizer)
        assert torch.equal(new_weight[:rows], old_weight)


def test_spare_rows_of_the_embedding_are_used(parts, tmp_path) -> None:
    folder = save_lm("Llama-plain", tmp_path, vocab_size=512)
    model, processor = build(ModelConfig(parts["dinov2"], str(folder)))
    assert model.lm_head.weight.shape == (512, 32)
    assert processor.image_token_id == len(processor.tokenizer) - 1 < 512


def test_the_language_models_own_special_tokens_stay_special(join, tmp_path) -> None:
    drafter = join(lm="Qwen3-chatml")
    own = {"<|im_start|>", "<|im_end|>", "<image>"}
    save(drafter, tmp_path)
    for processor in (drafter.processor, load(tmp_path).processor):
        tokenizer = processor.tokenizer
        assert own <= set(tokenizer.all_special_tokens)
        tokens = tokenizer.encode("<|im_start|>The heart<image><|im_end|>", add_special_tokens=False)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == "The heart"
    assert drafter.model.generation_config.eos_token_id == [drafter.processor.tokenizer.eos_token_id]


def test_every_end_token_of_the_language_model_ends_a_draft(parts, tmp_path) -> None:
    folder = Path(shutil.copytree(parts["Llama-bos"], tmp_path / "lm"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.3}))
    model, processor = build(ModelConfig(parts["dinov2"], str(folder)))
    assert model.generation_config.eos_token_id == sorted({7, 9, processor.tokenizer.eos_token_id})
    assert not model.generation_config.do_sample
    assert model.generation_config.temperature is None


def test_without_a_pad_token_the_end_token_pads(parts, tmp_path) -> None:
    folder = Path(shutil.copytree(parts["Llama-bos"], tmp_path / "lm"))
    tokenizer = make_tokenizer("plain")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    model, processor = build(ModelConfig(parts["dinov2"], str(folder)))
    assert processor.tokenizer.pad_token_id == tokenizer.eos_token_id == model.generation_config.pad_token_id
    assert processor.tokenizer.padding_side == "left"


# What trains ---------------------------------------------------------------------------------------------------------


def frozen_in_tower(drafter: Drafter) -> set[str]:
    tower = drafter.model.model.vision_tower
    return {name for name, parameter in tower.named_parameters() if not parameter.requires_grad}


def blocks_of(names: set[str]) -> set[int]:
    parts = [name.split(".") for name in names]
    return {int(part[i + 1]) for part in parts for i, word in enumerate(part) if word in ("layer", "layers")}


@pytest.mark.parametrize(
    ("tower", "behind"),
    [
        ("dinov2", {"embeddings.mask_token", "layernorm"}),
        ("registers", {"embeddings.mask_token", "layernorm"}),
        ("clip", {"post_layernorm"}),
        ("siglip", {"post_layernorm", "head"}),
    ],
)
@pytest.mark.parametrize("feature_layer", [-1, -2, -4, 1])
def test_what_lies_behind_the_projected_state_stays_frozen(join, studies, tower, behind, feature_layer) -> None:
    drafter = join(tower, feature_layer=feature_layer)
    names = choose_trainable(drafter.model, projector=True, lm="full", tower="full")
    frozen = frozen_in_tower(drafter)
    later_blocks = {-1: set(), -2: {2}, 1: {1, 2}, -4: {0, 1, 2}}[feature_layer]
    outside = {name for name in frozen if not blocks_of({name})}
    assert blocks_of(frozen) == later_blocks
    assert {next((part for part in behind if name.startswith(part)), name) for name in outside} == behind
    batch = collate(items_of(drafter, studies), 0)
    summed_loss(drafter.model, batch, torch.device("cpu")).backward()
    with_gradient = {name for name, parameter in drafter.model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(names), "DDP waits for the gradient of everything that trains"


@pytest.mark.parametrize("lm", LMS)
def test_all_of_a_language_model_gets_gradients(join, studies, lm) -> None:
    drafter = join(lm=lm)
    names = choose_trainable(drafter.model, projector=True, lm="full", tower="frozen")
    assert len(frozen_in_tower(drafter)) == len(list(drafter.model.model.vision_tower.parameters()))
    summed_loss(drafter.model, collate(items_of(drafter, studies), 0), torch.device("cpu")).backward()
    gradients = {name: parameter.grad for name, parameter in drafter.model.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is not None} == set(names)


@pytest.mark.parametrize(("feature_layer", "n_blocks", "trained"), [(-1, 1, {2}), (-2, 1, {1}), (-2, 2, {0, 1})])
def test_the_last_blocks_are_those_before_the_projected_state(join, feature_layer, n_blocks, trained) -> None:
    drafter = join("clip", feature_layer=feature_layer)
    names = choose_trainable(drafter.model, projector=False, lm="frozen", tower=n_blocks)
    assert all("vision_tower.encoder.layers" in name for name in names)
    assert {int(name.split("layers.")[1].split(".")[0]) for name in names} == trained
    assert blocks_of(frozen_in_tower(drafter)) == {0, 1, 2} - trained
    with pytest.raises(ValueError, match="3 blocks cannot train, the tower has 2 before its hidden state -2"):
        choose_trainable(join("clip", feature_layer=-2).model, projector=False, lm="frozen", tower=3)


def test_adapters_that_are_not_there_cannot_train(join) -> None:
    with pytest.raises(ValueError, match="The language model has no LoRA adapters to train"):
        choose_trainable(join().model, projector=True, lm="lora", tower="frozen")


# Prompts -------------------------------------------------------------------------------------------------------------


def question(config: PromptConfig, study: Study) -> str:
    (message,) = config.messages(study)
    image, text = message["content"]
    assert (message["role"], image, text["type"]) == ("user", {"type": "image"}, "text")
    return text["text"]


def test_the_prompt_carries_what_the_study_has(studies) -> None:
    study, config = studies[0], PromptConfig(context=["view", "indication", "comparison"])
    request = "Describe the findings of this chest X-ray."
    assert question(PromptConfig(), study) == request
    assert question(config, study) == f"View: PA\nIndication: cough and fever.\n{request}"
    study.sections |= {"indication": "  \n", "comparison": " None. "}
    study.main_image.view = None
    assert question(config, study) == f"Comparison: None.\n{request}"
    assert question(PromptConfig(instruction="What is to be seen?"), study) == "What is to be seen?"
    both = PromptConfig(targets=["findings", "impression"])
    assert question(both, study) == "Describe the findings and impression of this chest X-ray."


def test_the_answer_holds_every_section_or_nothing(studies) -> None:
    study = studies[0]
    study.sections = {"findings": " The lungs are clear. ", "impression": "Normal."}
    assert PromptConfig().answer(study) == "The lungs are clear."
    both = PromptConfig(targets=["impression", "findings"])
    assert both.answer(study) == "Impression: Normal.\nFindings: The lungs are clear."
    study.sections["impression"] = "  "
    assert both.answer(study) is None
    assert PromptConfig(targets=["note"]).answer(study) is None


def test_chat_templates_take_parts_and_strings(join) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Clear?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": "Sure?"},
    ]
    expected = {
        "GPT2-plain": "<s>USER: <image>\nClear?\nASSISTANT:Yes.</s>\nUSER: Sure?\nASSISTANT:",
        "Qwen3-chatml": "<|im_start|>user\n<image>\nClear?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
        "Llama-bos": "<s>[user] <image>\nClear?\n[assistant] Yes.\n[user] Sure?\n[model]",
    }
    for lm, text in expected.items():
        assert join(lm=lm).processor.apply_chat_template(turns, add_generation_prompt=True) == text


def test_a_language_model_with_a_sentencepiece_tokenizer(parts, studies, tmp_path) -> None:
    """As Vicuna's: tokenizer.model alone."""
    folder = tmp_path / "lm"
    shutil.copytree(parts["Llama-bos"], folder)
    for file in folder.glob("*token*"):
        file.unlink()
    with open(folder / "tokenizer.model", "wb") as file:
        options = {"vocab_size": 100, "model_type": "bpe", "hard_vocab_limit": False, "minloglevel": 2}
        SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=file, **options)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    drafter = Drafter(*build(ModelConfig(parts["dinov2"], str(folder))), PROMPT)
    tokenizer = drafter.processor.tokenizer
    for study, example in zip(studies, drafter.encode(studies, answers=True), strict=True):
        assert tokenizer.decode(example.answer) == study.sections["findings"] + "</s>"
        assert example.prompt == plain_inputs(drafter.processor, PROMPT, study)["input_ids"][0].tolist()


def test_of_several_chat_templates_the_default_is_taken(parts, tmp_path) -> None:
    folder = save_lm("Llama-plain", tmp_path)
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = {"default": TURNS, "tool_use": CHATML}
    tokenizer.save_pretrained(folder)
    _, processor = build(ModelConfig(parts["dinov2"], str(folder)))
    messages = [{"role": "user", "content": "Clear?"}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == "<s>[user] Clear?\n[model]"


@pytest.mark.parametrize("tower", ["dinov2", "registers", "siglip"])
@pytest.mark.parametrize("lm", ["Llama-bos", "Qwen3-chatml", "OPT-plain"])
def test_prompts_are_tokenised_as_plain_transformers_does(join, studies, tower, lm) -> None:
    drafter = join(tower, lm)
    tokenizer, image_id = drafter.processor.tokenizer, drafter.model.config.image_token_index
    n_image = {"dinov2": 4, "registers": 8, "siglip": 4}[tower]
    for study, example in zip(studies, drafter.encode(studies, answers=False), strict=True):
        assert example.prompt == plain_inputs(drafter.processor, PROMPT, study)["input_ids"][0].tolist()
        (message,) = PROMPT.messages(study)
        message["content"][0]["image"] = Image.open(study.main_image.path).convert("RGB")
        at_once = drafter.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert example.prompt == at_once["input_ids"][0].tolist()
        assert example.prompt.count(image_id) == n_image
        assert example.prompt.count(tokenizer.bos_token_id) == (0 if tokenizer.bos_token is None else 1)
        assert drafter.render(study).count("<image>") == 1


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lm", ["Llama-bos", "Qwen3-chatml"])
def test_answers_are_the_report_and_its_end(join, studies, lm) -> None:
    drafter = join(lm=lm)
    tokenizer = drafter.processor.tokenizer
    studies[2].sections["findings"] = "  "
    examples = drafter.encode(studies, answers=True)
    kept = [study for study in studies if study is not studies[2]]
    assert [example.study_id for example in examples] == [study.study_id for study in kept]
    for study, example in zip(kept, examples, strict=True):
        assert tokenizer.decode(example.answer) == study.sections["findings"] + tokenizer.eos_token
        assert tokenizer.decode(example.prompt).replace("<image>", "", 3) == drafter.render(study)
    assert [example.answer for example in drafter.encode(studies, answers=False)] == [[]] * 6
    assert list(drafter.encode(studies[2:3], answers=True)) == []


def item(prompt: list[int], answer: list[int], error: str | None = None) -> Item:
    return Item(Example("s", [Path("x.png")], prompt, answer), torch.full((1, 3, 2, 2), float(len(prompt))), error)


def test_a_batch_is_padded_on_the_left() -> None:
    batch = collate([item([5, 6, 7], [8, 2]), item([5], [2]), item([5, 6], [9, 9, 2], "s: broken")], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2], [0, 0, 0, 5, 2], [5, 6, 9, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [0, 0, 0, 1, 1], [1] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [0, 1, 2, 3, 4]]
    x = IGNORE
    assert batch["labels"].tolist() == [[x, x, 8, 2], [x, x, x, 2], [x, x, x, x]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [3, 1, 2]
    assert batch["errors"] == ["s: broken"]
    assert collate([item([5, 6], []), item([5], [])], pad_id=0)["labels"].tolist() == [[x], [x]]


def test_labels_are_the_reports_at_their_place(join, studies) -> None:
    drafter = join()
    tokenizer = drafter.processor.tokenizer
    batch = collate(items_of(drafter, studies), tokenizer.pad_token_id)
    n_labels = batch["labels"].shape[1]
    learnt = batch["labels"] != IGNORE
    assert torch.equal(batch["labels"][learnt], batch["input_ids"][:, -n_labels:][learnt])
    assert not learnt[:, 0].any(), "the first label of the longest report is predicted from the column before it"
    for labels, study in zip(batch["labels"], studies, strict=True):
        report = tokenizer.decode(labels[labels != IGNORE])
        assert report == study.sections["findings"] + tokenizer.eos_token


def gradients(drafter: Drafter, dataset: ExampleDataset, micro_batches: list[list[int]]) -> tuple[float, torch.Tensor]:
    choose_trainable(drafter.model, projector=True, lm="full", tower="full")
    drafter.model.zero_grad()
    total = 0.0
    for batch in load_micro_batches(dataset, micro_batches, workers=0):
        loss = summed_loss(drafter.model, batch, torch.device("cpu"))
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in drafter.model.parameters() if p.grad is not None])


def test_an_empty_micro_batch_adds_nothing(join, studies) -> None:
    drafter = join()
    dataset = drafter.dataset(drafter.encode(studies, answers=True))
    loss, gradient = gradients(drafter, dataset, [[1, 2], [3]])
    padded_loss, padded_gradient = gradients(drafter, dataset, [[1, 2], [], [3], []])
    assert loss == padded_loss > 0
    assert torch.equal(gradient, padded_gradient)
    assert gradients(drafter, dataset, [[]])[0] == 0


def test_micro_batches_come_in_order_from_workers_too(join, studies) -> None:
    drafter = join()
    dataset = drafter.dataset(drafter.encode(studies, answers=True))
    plan = [[3, 1], [], [0], [5, 4, 2]]
    alone, helped = (list(load_micro_batches(dataset, plan, workers)) for workers in (0, 2))
    for one, other, part in zip(alone, helped, plan, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert (one["labels"] != IGNORE).any(1).sum() == len(part)
        expected = sum(len(dataset.examples[i].answer) for i in part)
        assert (one["labels"] != IGNORE).sum() == expected


# Small random models -------------------------------------------------------------------------------------------------


def test_tiny_models_fit_together_and_repeat_by_seed(tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_tower(tmp_path / name / "tower", image_size=56, patch_size=14, hidden=64, layers=2, seed=seed)
        make_lm(tmp_path / name / "lm", SENTENCES, vocab_size=300, hidden=64, seed=seed)
    weights = [(tmp_path / name / "tower" / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    weights = [(tmp_path / name / "lm" / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    model, processor = build(ModelConfig(str(tmp_path / "a" / "tower"), str(tmp_path / "a" / "lm")))
    assert model.config.image_seq_length == 16
    config = json.loads((tmp_path / "a" / "lm" / "config.json").read_text())
    assert len(processor.tokenizer) == config["vocab_size"], "the image token finds its row"


def test_position_embeddings_of_a_tiny_tower_tell_offsets(tmp_path) -> None:
    """The inner product of two sine embeddings depends on the rows and columns between them alone."""
    from transformers import Dinov2Model

    make_tower(tmp_path, image_size=70, patch_size=14, hidden=64, layers=1)
    positions = Dinov2Model.from_pretrained(tmp_path).embeddings.position_embeddings[0, 1:].reshape(5, 5, 64)
    for rows, columns in ((0, 0), (1, 0), (0, 2), (2, 3)):
        products = (positions[: 5 - rows, : 5 - columns] * positions[rows:, columns:]).sum(-1)
        torch.testing.assert_close(products, products[:1, :1].expand_as(products), rtol=0, atol=1e-4)
    far = (positions[0, 0] * positions[4, 4]).sum()
    near = (positions[0, 0] * positions[0, 1]).sum()
    assert far < near < (positions[0, 0] ** 2).sum()


@pytest.mark.parametrize(
    "text", ["The heart is enlarged.", "  two  spaces\n\nand lines", "Épanchement, 心臓 – 5 µm 🙂"]
)
def test_the_tiny_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = train_tokenizer(SENTENCES, vocab_size=300)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_model_saved_by_an_earlier_version_keeps_its_gray_mapping(model_folder, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    sidecar = json.loads((folder / "raddraft.json").read_text())
    sidecar |= {"gray_mapping": "minmax"}
    (folder / "raddraft.json").write_text(json.dumps(sidecar))
    assert load(folder).gray_mapping == "minmax"
    sidecar["image_mapping"] = sidecar.pop("gray_mapping")
    (folder / "raddraft.json").write_text(json.dumps(sidecar))
    drafter = load(folder)
    assert drafter.gray_mapping == "minmax"
    save(drafter, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "raddraft.json").read_text())
    assert written["gray_mapping"] == "minmax"
    assert "image_mapping" not in written
