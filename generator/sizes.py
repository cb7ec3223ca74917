"""Sizes of public language models as their config.json states them, to plan a run where the hub is out of reach.

Only what sets shapes is kept. Vicuna is as in the paper's repository; Qwen3 and Gemma 3 were compared with copies of
the files; SmolLM2 and Phi-4-mini are from memory. All give the parameter counts that their authors state.
"""

from __future__ import annotations

from typing import Any

from encoder.sizes import read_config

_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_PHI_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 199999)
_SIZES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "lmsys/vicuna-7b-v1.5": ("llama", (32000, 4096, 11008, 32, 32, 32, 4096), {"tie_word_embeddings": False}),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", (49152, 576, 1536, 30, 9, 3, 8192), {}),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", (49152, 960, 2560, 32, 15, 5, 8192), {}),
    "Qwen/Qwen3-0.6B": ("qwen3", (151936, 1024, 3072, 28, 16, 8, 40960), {"head_dim": 128}),
    "google/gemma-3-270m-it": ("gemma3_text", (262144, 640, 2048, 18, 4, 1, 32768), {"head_dim": 256}),
    "microsoft/Phi-4-mini-instruct": (
        "phi3",
        (200064, 3072, 8192, 32, 24, 8, 131072),
        {"partial_rotary_factor": 0.75, **_PHI_TOKENS},
    ),
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    name: {"model_type": kind, "tie_word_embeddings": True, **dict(zip(_NAMES, sizes, strict=True)), **others}
    for name, (kind, sizes, others) in _SIZES.items()
}
"""Hub id -> config."""


def lm_config(name: str) -> Any:
    """Config of a language model: of a local folder, of the table, or of the hub. Raises OSError if there is none."""
    return read_config(name, LANGUAGE_MODELS.get(name))
