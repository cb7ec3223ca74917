"""What makes a model folder mean elsewhere what it means here: in vLLM, SGLang, llama.cpp, other transformers.

transformers 5 writes towers, rotary bases and tokenizers in forms of its own. Weights and config are saved in the form
that all readers know; the tokenizer in the form of version 5, by which earlier versions refuse the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.config import DecodeConfig
from raddraft.files import write_json

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerBase

LOWEST_VERSION = "5.23"
"""The lowest version of transformers that reads a folder rightly; 5.0 also scales the image features of a Gemma 1."""

# Before version 5 their weights were one level deeper, and other readers still look for them there.
_DEEPER = ("clip_vision_model", "siglip_vision_model")

# The one class of tokenizers that no version before 5 knows. They then say: Tokenizer class TokenizersBackend does not
# exist or is not currently imported. Nothing else in a folder can refuse a version: `transformers_version` is not read.
_GATE = "TokenizersBackend"

GREEDY = {"temperature": 0.0, "max_new_tokens": DecodeConfig.max_new_tokens}
"""What a saved folder says of decoding: greedy, also where that is not the default, and as long as a draft is here.

vLLM and SGLang sample at temperature 1 unless the client or the folder says otherwise. `top_k` 1 would hold them to
greedy decoding too, but in silence also those who ask for a temperature. transformers samples only where it is told to,
and then refuses temperature 0."""


def greedy_config(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy decoding that ends at any of the language model's own end tokens."""
    from transformers import GenerationConfig

    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *ends} - {None}),
        pad_token_id=tokenizer.pad_token_id,
    )


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a model, those of a LLaVA model's CLIP or SigLIP tower under the names that all readers know."""
    weights = model.state_dict()
    if model.config.model_type != "llava" or model.config.vision_config.model_type not in _DEEPER:
        return weights
    prefix = "model.vision_tower."
    return {name.replace(prefix, f"{prefix}vision_model.", 1): value for name, value in weights.items()}


def rewrite(folder: Path) -> None:
    """Put what other readers need into the files that transformers has saved.

    The rotary settings of config.json also in the form before version 5, no local paths, the tokenizer's class by which
    versions before 5 refuse the folder.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("_name_or_path", None)
        part.update(_rotary(part.get("rope_parameters")))
    write_json(path, config)
    if (folder / "tokenizer.json").is_file():
        change_json(folder / "tokenizer_config.json", tokenizer_class=_GATE)


def change_json(path: Path, **values: Any) -> None:
    """Set some values of an object in a JSON file."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _rotary(parameters: Any) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of rotary parameters that are the same in all layers."""
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return {}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    return {"rope_theta": parameters["rope_theta"]} | (
        {} if scaling.get("rope_type", "default") == "default" else {"rope_scaling": scaling}
    )
