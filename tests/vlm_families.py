"""Tiny vision-language models of families that were not built here: real classes, random weights, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from generator.tiny import train_tokenizer
from tests.conftest import SENTENCES

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "<start_of_turn>{{ role }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
UTTERANCES = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
SQUARE = {"height": 28, "width": 28}


def make_tokenizer(special: list[str], eos: str | None = None, **named: str) -> Any:
    """A tokenizer with these special tokens; `named` ones are attributes of it, too."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size=400)
    tokenizer.add_special_tokens({"extra_special_tokens": [*special, *named.values()]})
    tokenizer.init_kwargs["extra_special_tokens"] = named
    for name, token in named.items():
        tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, name]
        setattr(tokenizer, name, token)
    if eos:
        tokenizer.eos_token = eos
    return tokenizer


def _ids(tokenizer: Any) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}


def gemma3() -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = make_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    processor = hf.Gemma3Processor(hf.Gemma3ImageProcessor(size=SQUARE), tokenizer, TURNS, image_seq_length=4)
    config = hf.Gemma3Config(
        text_config=TEXT
        | _ids(tokenizer)
        | {"sliding_window": 16, "query_pre_attn_scalar": 1, "initializer_range": 0.05},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        tie_word_embeddings=False,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    import transformers as hf

    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = make_tokenizer(special, "<|im_end|>")
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    image_processor = hf.Qwen2VLImageProcessor(size=size, patch_size=8, merge_size=2)
    video_processor = hf.Qwen3VLVideoProcessor(size=size, patch_size=8, merge_size=2)
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = hf.Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=template)
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = hf.Qwen3VLConfig(
        text_config=TEXT | _ids(tokenizer) | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """The family of SmolVLM; a picture becomes several tiles and a small copy of the whole."""
    import transformers as hf

    special = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    special += [f"<row_{row + 1}_col_{column + 1}>" for row in range(2) for column in range(2)]
    tokenizer = make_tokenizer(special, "<end_of_utterance>")
    image_processor = hf.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = hf.Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=UTTERANCES)
    config = hf.Idefics3Config(
        text_config=TEXT | _ids(tokenizer) | {"model_type": "llama"},
        vision_config=VISION,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    config.pad_token_id = tokenizer.pad_token_id  # of its own; 128002 by default
    return hf.Idefics3ForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    import transformers as hf

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], "<|im_end|>", **named)
    image_processor = hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=False)
    processor = hf.InternVLProcessor(
        image_processor,
        tokenizer,
        hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        text_config=TEXT | _ids(tokenizer) | {"model_type": "qwen2"},
        vision_config=VISION | {"image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """It has no chat template."""
    import transformers as hf

    tokenizer = make_tokenizer([], image_token="<image>")
    processor = hf.PaliGemmaProcessor(hf.SiglipImageProcessor(size=SQUARE, image_seq_length=16), tokenizer)
    config = hf.PaliGemmaConfig(
        text_config=TEXT | _ids(tokenizer) | {"model_type": "gemma"},
        vision_config=VISION | {"model_type": "siglip_vision_model", "projection_dim": 32},
        projection_dim=32,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "gemma3": gemma3,
    "qwen3_vl": qwen3_vl,
    "idefics3": idefics3,
    "internvl": internvl,
    "paligemma": paligemma,
}


def save_vlm(family: str, folder: Path) -> Path:
    """Save a tiny model of a family as an ordinary Hub folder."""
    import torch

    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.update(do_sample=True, temperature=0.1, top_k=1, repetition_penalty=1.05)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
