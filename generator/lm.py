"""The language model of a report model: any causal LM that transformers loads, with its tokenizer."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from encoder.towers import reading_checkpoint
from generator.config import ModelConfig
from raddraft.errors import RadDraftError
from raddraft.loading import load_pretrained

IMAGE_TOKEN = "<image>"


def image_token(tokenizer: Any) -> str:
    """The token that stands for an image: the tokenizer's own if it has one, which a LlavaProcessor takes before any
    other (Gemma 3's), else `IMAGE_TOKEN`."""
    return getattr(tokenizer, "image_token", None) or IMAGE_TOKEN


def load_lm(config: ModelConfig) -> tuple[Any, Any]:
    """Load the language model and its tokenizer, and add the image token to both.

    Raises:
        RadDraftError: no end token; a package that is needed is missing; the config contradicts the weights.
        OSError: the files cannot be reached or read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig

    source = {"gguf_file": config.gguf_file} if config.gguf_file else {}
    broken = f"The language model {config.lm!r} cannot be loaded"
    if (Path(config.lm) / "config.json").is_file():
        with reading_checkpoint(broken, config.lm):  # the tokenizer reads it too, and would be blamed for it
            AutoConfig.from_pretrained(config.lm, trust_remote_code=False)
    with reading_checkpoint(f"No tokenizer for the language model {config.lm!r}", config.lm):
        tokenizer = AutoTokenizer.from_pretrained(config.lm, trust_remote_code=False, **source)
    unpack: dict[str, Any] = {}
    if config.gguf_file:  # packed weights can neither train nor be saved as an ordinary model
        unpack = {"quantization_config": GgufConfig(dequantize=True)}
    if config.quantize != "no":
        if find_spec("bitsandbytes") is None:
            raise RadDraftError(
                f"model.quantize is {config.quantize!r}, which needs a package: pip install bitsandbytes, or leave it "
                "out"
            )
        packing = BitsAndBytesConfig(  # as QLoRA: scales quantized once more (Dettmers et al., arXiv 2305.14314)
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=config.dtype,
        )
        unpack = {"quantization_config": packing}
    with reading_checkpoint(broken, config.lm):
        options = {"dtype": config.dtype, **source, **unpack}
        lm = load_pretrained(AutoModelForCausalLM, config.lm, "language model", **options).eval()
    for module in lm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On some CPUs bitsandbytes repacks weights for the first pass in eval mode, and then gives no gradients.
            module.support_avx512bf16_for_cpu = False
    if config.gguf_file and hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config  # the weights are plain now
    if tokenizer.eos_token is None:
        raise RadDraftError(
            f"The tokenizer of {config.lm!r} has no eos token, so a report could not end; set eos_token in its "
            "tokenizer_config.json, or choose another language model"
        )
    if image_token(tokenizer) not in tokenizer.all_special_tokens:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [image_token(tokenizer)]}, replace_extra_special_tokens=False
        )
    if tokenizer.pad_token is None:  # padding is masked everywhere, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    if len(tokenizer) > lm.get_input_embeddings().weight.shape[0]:
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if lm.config.tie_word_embeddings and not hasattr(lm.base_model, "embed_tokens"):
        # A LLaVA model knows its embeddings by this name only; under others (GPT-2, OPT) they cannot be tied.
        lm.config.tie_word_embeddings = False
        lm.set_output_embeddings(deepcopy(lm.get_output_embeddings()))
    return lm, tokenizer
