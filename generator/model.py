"""Vision tower + language model -> one LLaVA model: build it, choose what trains, save it, load it.

The model is transformers' own `LlavaForConditionalGeneration` with its `LlavaProcessor`, unchanged, so a saved folder
loads with `AutoModelForImageTextToText` and `AutoProcessor` where this project is not installed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from encoder.tower import NotPlainError, Tower, patch_size
from encoder.towers import load_tower, reading_checkpoint
from generator.config import LoraConfig, ModelConfig
from generator.data import blank_pixels, count_image_tokens
from generator.drafter import Drafter
from generator.foreign import ForeignTower
from generator.lm import image_token, load_lm
from generator.portable import GREEDY, change_json, greedy_config, rewrite, weights_of
from generator.prompts import PromptConfig
from generator.templates import chat_template, pin_date
from raddraft.errors import RadDraftError
from raddraft.files import read_object, write_json, write_text
from raddraft.loading import load_pretrained
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel

SIDECAR = "raddraft.json"

ADAPTER_CARD = """\
---
base_model: {base}
library_name: peft
tags: [radiology, chest-x-ray, report-generation, raddraft]
---

# Adapter for drafts of chest X-ray reports

**Every text that this model writes is a draft for a radiologist to check. Nothing about it is clinically validated; it
is not a medical device.** This folder holds what was trained on top of `{base}`: LoRA, and the projector where it
trained. The folder `model` beside it is the same with the adapter merged; its card has recipe, data and prompt.

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = "{base}"
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), "path/to/this/folder")
processor = AutoProcessor.from_pretrained(base)
```
"""

# Names of projectors and towers in transformers' vision-language models. A projector may be inside the tower (Qwen-VL).
PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|multimodal_projector|mm_projector|connector|aligner|merger|deepstack_merger_list)\."
)
TOWER = re.compile(r"(^|\.)(vision_tower|visual|vision_model|vision_encoder|image_tower)\.")


def build(config: ModelConfig) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Join a pretrained tower and a pretrained language model by a new two-layer projector.

    A tower that a LLaVA model cannot hold runs in place of a placeholder, see `generator.foreign`.

    Raises:
        RadDraftError: unknown tower, a layer that it lacks, or parts that a LLaVA model cannot hold.
        OSError: a checkpoint or a tokenizer cannot be reached or read.
    """
    from transformers import LlavaProcessor

    loaded = load_tower(config.tower, config.image_size)
    tower, image_processor, foreign = loaded.model, loaded.processor, None
    try:
        n_prefix, patch = loaded.n_prefix, patch_size(tower)
    except NotPlainError:
        foreign = ForeignTower(loaded)
        tower, image_processor = foreign.placeholder(), foreign.tower.processor
        n_prefix, patch = 1, foreign.patch_size
    n_states = None if foreign else tower.config.num_hidden_layers + 1
    _check_layer(config.feature_layer, n_states, "model.feature_layer", config.tower)
    strategy: Literal["default", "full"] = "default" if n_prefix > 0 else "full"
    lm, tokenizer = load_lm(config)
    model = meta_llava(
        tower.config,
        lm.config,
        config.feature_layer,
        image_token_index=tokenizer.convert_tokens_to_ids(image_token(tokenizer)),
        vision_feature_select_strategy=strategy,
    )
    packed = config.quantize != "no"
    saved = _shapes(model, names_only=packed)
    projector = type(model.model.multi_modal_projector)(model.config)
    model.model.vision_tower, model.model.multi_modal_projector = tower, projector
    model.model.language_model, model.lm_head = lm.base_model, lm.get_output_embeddings()
    _check_joined(model, lm, saved, names_only=packed)
    if foreign:
        model.model.vision_tower = foreign.to(getattr(torch, config.dtype))
    model.generation_config = greedy_config(lm.generation_config, tokenizer)
    for parameter in model.parameters():  # not the buffers: transformers keeps rotary frequencies in float32
        if parameter.is_floating_point():  # not weights packed into 4 bits
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
    if packed:
        model.is_loaded_in_4bit = True  # type: ignore[assignment] # PEFT chooses its adapters by this
    model.eval()
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=n_prefix,
        image_token=image_token(tokenizer),
        chat_template=chat_template(tokenizer, image_token(tokenizer)),
    )
    model.config.image_seq_length = check_image_tokens(model, processor)
    return model, processor


def meta_llava(tower: Any, lm: Any, feature_layer: int, **settings: Any) -> LlavaForConditionalGeneration:
    """A LLaVA model without values, on meta tensors, from the configs of its tower and language model."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    settings |= {"vision_feature_layer": feature_layer, "tie_word_embeddings": lm.tie_word_embeddings}
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=lm, **settings))


def _check_layer(layer: int, n_states: int | None, key: str, name: str) -> None:
    """Raise RadDraftError if the tower has no such hidden state; `n_states` None: it has only its final output."""
    valid, choices = layer == -1, "-1, its final output"
    if n_states is not None:  # LlavaModel takes 0 for none
        valid, choices = layer != 0 and -n_states <= layer < n_states, f"{-n_states} to -1, or 1 to {n_states - 1}"
    if not valid:
        raise RadDraftError(f"{key} is {layer}. Choices for {name}: {choices}")


def _shapes(model: nn.Module, names_only: bool) -> set[tuple[str, torch.Size]]:
    """Names and shapes of the weights; with `names_only` no shapes, and not what unpacks 4-bit weights."""
    tensors = model.state_dict().items()
    if names_only:
        return {(name, torch.Size()) for name, _ in tensors if ".weight." not in name}
    return {(name, tensor.shape) for name, tensor in tensors}


@torch.no_grad()
def _check_joined(
    model: LlavaForConditionalGeneration, lm: PreTrainedModel, saved: set[tuple[str, torch.Size]], names_only: bool
) -> None:
    """Raise RadDraftError if a weight has no place among those `saved`, or the logits are not the language model's."""
    kind = f"Language models of type {lm.config.model_type!r} do not fit into a LLaVA model"
    if misfits := sorted(name for name, _ in _shapes(model, names_only) ^ saved):
        raise RadDraftError(f"{kind}, which has no place for {misfits[0]} as it is")
    tokens = torch.arange(8, device=lm.device)[None]
    if not torch.allclose(lm(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5):
        raise RadDraftError(f"{kind}, which would leave out what they do to the logits of the last layer (scale, cap)")


def check_image_tokens(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> int:
    """The number of image tokens that the processor writes; raises RadDraftError if the tower gives another."""
    pixels = blank_pixels(processor).to(model.device, model.dtype)
    wanted = count_image_tokens(processor)
    with torch.no_grad():
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output
    given = features[0].shape[0]
    if wanted != given:
        height, width = pixels.shape[-2:]
        tower = model.model.vision_tower
        raise RadDraftError(
            f"Image tokens do not match the tower: for {height} x {width} pixels the processor writes {wanted} image "
            f"tokens, the tower gives {given} features (processor: patch_size {processor.patch_size}, "
            f"num_additional_image_tokens {processor.num_additional_image_tokens}; "
            f"tower: patch_size {tower.patch_size if isinstance(tower, ForeignTower) else patch_size(tower)})"
        )
    return wanted


def choose_trainable(
    model: Any, projector: bool, lm: Literal["frozen", "lora", "full"], tower: Literal["frozen", "full"] | int
) -> list[str]:
    """Set `requires_grad` of every parameter, hold trainable ones in float32, and return the names of these.

    Args:
        model: a LLaVA model, or one of another kind, whose tower must stay frozen; wrapped by PEFT or not.
        projector: whether the projector trains.
        lm: frozen, its LoRA adapters, or all of it.
        tower: frozen, full, or the number of blocks that train, counted back from the projected hidden state.
            Parameters that this state does not depend on (final LayerNorm, mask token, later blocks) stay frozen.

    Raises:
        RadDraftError: nothing trains, there are no adapters for `lora`, no projector is known, or the tower has fewer
            blocks or cannot train.
    """
    if lm == "lora" and not any("lora_" in name for name, _ in model.named_parameters()):
        raise RadDraftError("The language model has no LoRA adapters to train")
    reached: set[str] = set()
    if tower != "frozen" and tower != 0:
        if model.config.model_type != "llava":
            raise RadDraftError(
                f"The tower of a model of type {model.config.model_type!r} cannot train; use tower: frozen"
            )
        vision_tower = next(module for name, module in model.named_modules() if name.endswith("vision_tower"))
        reached = _tower_parameters(vision_tower, tower, model.config.vision_feature_layer)
    if projector and not any(PROJECTOR.search(name) for name, _ in model.named_parameters()):
        raise RadDraftError(
            f"No projector is known in a model of type {model.config.model_type!r}; use projector: false"
        )
    names = []
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            trains = lm == "lora"
        elif PROJECTOR.search(name):
            trains = projector
        elif TOWER.search(name):
            trains = name.split("vision_tower.", 1)[-1] in reached
            if reached:  # all of it in one type: on a CPU autocast leaves the LayerNorms as they are
                parameter.data = parameter.data.float()
        else:
            trains = lm == "full"
        parameter.requires_grad_(trains)
        if trains:
            parameter.data = parameter.data.float()
            names.append(name)
    if not names:
        raise RadDraftError("Nothing to train: projector, language model and tower are all frozen")
    return names


def _tower_parameters(tower: Any, choice: Literal["full"] | int, layer: int) -> set[str]:
    """Names of the tower's parameters that train, relative to the tower; `layer` is the projected hidden state."""
    tower.requires_grad_(True)
    size = tower.config.image_size
    side = size if isinstance(size, int) else size[0]
    blank = torch.zeros(1, 3, side, side, device=tower.device, dtype=tower.dtype)
    tower.train().eval()  # else LeViT goes back through what it has kept of an earlier pass
    # A backward pass tells which parameters the projected hidden state depends on, whatever the architecture.
    tower(blank, output_hidden_states=True).hidden_states[layer].sum().backward()
    reached = {name: parameter for name, parameter in tower.named_parameters() if parameter.grad is not None}
    tower.zero_grad(set_to_none=True)
    if choice == "full":
        return set(reached)
    stack = max((module for module in tower.modules() if isinstance(module, nn.ModuleList)), key=len)
    ids = [{id(parameter) for parameter in block.parameters()} for block in stack]
    blocks = [block for block in ids if any(id(parameter) in block for parameter in reached.values())]
    if not 0 < choice <= len(blocks):
        raise RadDraftError(
            f"tower: {choice} blocks cannot train, the tower has {len(blocks)} before its hidden state {layer}"
        )
    last = set().union(*blocks[-choice:])
    return {name for name, parameter in reached.items() if id(parameter) in last}


def add_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Wrap the linear layers of the language model's blocks, and only those, with LoRA adapters."""
    import peft

    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=_lora_targets(model)
    )
    with warnings.catch_warnings():  # PEFT 0.21 asks for an attribute by the name it had before transformers 5.24
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(model, lora)


def _lora_targets(model: Any) -> list[str]:
    """Every linear layer inside the language model's blocks, by full name."""
    from transformers.pytorch_utils import Conv1D

    decoder = model.get_decoder()
    prefix = next(f"{name}." for name, module in model.named_modules() if module is decoder)
    if decoder is model or decoder is model.base_model:
        raise RadDraftError(f"The language model inside a model of type {model.config.model_type!r} is not known here")
    blocks = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and name.startswith(prefix)
        and any(name.startswith(f"{block}.") for block in blocks)
    ]


def save_adapter(model: Any, folder: Path, trained: Iterable[str], base: str) -> None:
    """Save LoRA adapters, and whatever else trained, in PEFT's form: `PeftModel.from_pretrained(base_model, folder)`.

    Args:
        model: what `add_lora` returned.
        folder: to write to.
        trained: names of the parameters that trained, LoRA's own among them or not.
        base: hub id or folder of the model that was wrapped, from which transformers loads it.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import load_file, save_file

    prefix = "base_model.model."
    parts = {name.rpartition(".")[0] for name in trained if "lora_" not in name}
    outer = sorted(part for part in parts if not any(part.startswith(f"{other}.") for other in parts))
    config = model.peft_config["default"]
    config.base_model_name_or_path = str(Path(base).absolute()) if Path(base).is_dir() else base
    config.modules_to_save = [part.removeprefix(prefix) for part in outer] or None
    model.save_pretrained(folder, save_embedding_layers=False)
    # PEFT itself would train a copy of each of these parts. A file that has them under their own names is the same.
    whole = {f"{part}.{name}": one for part in outer for name, one in model.get_submodule(part).state_dict().items()}
    file = folder / SAFETENSORS_WEIGHTS_NAME
    save_file(load_file(file) | {name: one.contiguous() for name, one in whole.items()}, file, {"format": "pt"})
    write_text(folder / "README.md", ADAPTER_CARD.format(base=config.base_model_name_or_path))


def save(drafter: Drafter, folder: str | Path) -> None:
    """Save an ordinary Hub folder, with the prompt and the gray-value mapping in a sidecar, raddraft.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sidecar: dict[str, Any] = {
        "kind": drafter.kind,
        "prompt": asdict(drafter.prompt),
        "gray_mapping": drafter.gray_mapping,
    }
    sidecar |= {"synthetic": True} if drafter.is_synthetic else {}
    tower: Any = drafter.model.get_encoder(modality="image")
    if isinstance(tower, ForeignTower):
        sidecar["tower"] = tower.save(folder)
        drafter.model.model.vision_tower = tower.placeholder().to(drafter.model.dtype)
    drafter.model.save_pretrained(folder, state_dict=weights_of(drafter.model))
    if isinstance(tower, ForeignTower):
        drafter.model.model.vision_tower = tower
    drafter.processor.save_pretrained(folder)
    change_json(folder / "generation_config.json", **GREEDY)
    if drafter.kind == Drafter.kind:
        rewrite(folder)
    write_json(folder / SIDECAR, sidecar)


def load(folder: str | Path, dtype: str = "auto", device: str = "cpu") -> Drafter:
    """Load what `save` wrote; `dtype` "auto" is the type it was saved in.

    Raises:
        RadDraftError: no such folder, no processor in it, a model of another kind, a config that contradicts the
            weights, image tokens that do not match, or as `Drafter.check`.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise RadDraftError(f"{folder} is not a model folder: it has no config.json")
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise RadDraftError(f"{folder} has no processor_config.json; save the processor into the model folder")
    with reading_checkpoint(f"The model {folder} cannot be loaded", str(folder)):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        if not isinstance(processor, LlavaProcessor):
            raise RadDraftError(f"{folder} has a {type(processor).__name__}; expected a LlavaProcessor")
        processor.chat_template = pin_date(processor.chat_template)  # of folders that were saved before it was pinned
        model = load_pretrained(AutoModelForImageTextToText, str(folder), dtype=dtype).to(device).eval()
    model.generation_config.update(**dict.fromkeys(GREEDY))  # `DecodeConfig` decides; transformers would not save them
    if not isinstance(model, LlavaForConditionalGeneration):
        raise RadDraftError(f"{folder} holds a {type(model).__name__}; expected a LlavaForConditionalGeneration")
    sidecar = read_sidecar(folder)
    if isinstance(layer := model.config.vision_feature_layer, int) and "tower" not in (sidecar or {}):
        vision: Any = model.config.vision_config
        n_states = vision.num_hidden_layers + 1
        _check_layer(layer, n_states, "config.json: vision_feature_layer", str(folder))
    if sidecar is None:
        warnings.warn(f"{folder} has no {SIDECAR}: the default prompt is used", stacklevel=2)
        sidecar = {}
    if "tower" in sidecar:
        tower = Tower(sidecar["tower"], load_tower(str(folder)).model, processor.image_processor)
        model.model.vision_tower = ForeignTower(tower).to(model.device, model.dtype)
    with reading_checkpoint(f"The processor and the tower in {folder} do not read an image", str(folder)):
        check_image_tokens(model, processor)
    prompt = PromptConfig.read(sidecar.get("prompt", {}), folder)
    synthetic = sidecar.get("synthetic", False)
    drafter = Drafter(model, processor, prompt, sidecar.get("gray_mapping", "window"), synthetic)
    replace(drafter).check(folder)  # a drafter keeps what it has learned of the tokenizer; tokens may be added
    return drafter


def read_sidecar(folder: str | Path) -> dict[str, Any] | None:
    """What `save` keeps beside a model: kind, prompt, gray_mapping; None for a model that was not saved here."""
    path = Path(folder) / SIDECAR
    if not path.is_file():
        return None
    way_out = "save the model again, or remove it to go on with the default prompt"
    sidecar = read_object(path, way_out, ("prompt",))
    if "image_mapping" in sidecar:  # the name of gray_mapping in models saved by earlier versions
        sidecar["gray_mapping"] = sidecar.pop("image_mapping")
    if sidecar.setdefault("gray_mapping", "window") not in get_args(GrayMapping):
        raise RadDraftError(f"{path}: unknown gray_mapping {sidecar['gray_mapping']!r}; {way_out}")
    return sidecar
