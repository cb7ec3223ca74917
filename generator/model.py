"""Vision tower + language model -> one LLaVA model: build it, choose what trains, save it, load it.

The result is transformers' own `LlavaForConditionalGeneration` with its `LlavaProcessor`, used as they are, so that a
saved folder loads with `AutoModelForImageTextToText` and `AutoProcessor` where this project is not installed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from encoder.features import FeatureConfig, FeatureStore
from encoder.tower import NotPlainError, Tower, patch_size
from encoder.towers import load_tower
from generator.config import LoraConfig, ModelConfig
from generator.data import Example, ExampleDataset, blank_pixels, count_image_tokens, encode
from generator.foreign import ForeignTower
from generator.lm import IMAGE_TOKEN, load_lm
from generator.prompts import PromptConfig, chat_template
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.studies import GrayMapping, Study

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

SIDECAR = "raddraft.json"

# Names that transformers' vision-language models give to what lies between tower and language model, and to towers. A
# projector may stand inside the tower (Qwen-VL).
PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|multimodal_projector|mm_projector|connector|aligner|merger|deepstack_merger_list)\."
)
TOWER = re.compile(r"(^|\.)(vision_tower|visual|vision_model|vision_encoder|image_tower)\.")


@dataclass
class Drafter:
    """A model with all that is needed to draft with it."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    prompt: PromptConfig = field(default_factory=PromptConfig)
    gray_mapping: GrayMapping = "window"
    """How grey values of image files are mapped to 8 bits; see `raddraft.images.load_image`."""
    kind: ClassVar[str] = "llava"
    """Kept in a saved model's folder, to tell how it is to be read; see `generator.vlm` for the other kind."""

    @property
    def feature_layer(self) -> int:
        """Which hidden state of the tower is projected."""
        layer = self.model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise RadDraftError(f"Models that project several layers of the tower are not known here: {layer}")
        return layer

    @property
    def tower(self) -> Tower:
        """Its vision tower with the image processor."""
        tower = self.model.model.vision_tower
        if isinstance(tower, ForeignTower):
            return tower.tower
        return Tower("the model's tower", tower, self.processor.image_processor)

    @property
    def features(self) -> FeatureConfig:
        """What has to be stored of an image so that the tower need not run."""
        if isinstance(self.model.model.vision_tower, ForeignTower):
            return FeatureConfig("grid", gray_mapping=self.gray_mapping)
        return FeatureConfig("hidden", (self.feature_layer,), gray_mapping=self.gray_mapping)

    @property
    def context_length(self) -> int | None:
        """Most tokens the language model can read, or None if it states no limit."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def encode(self, studies: Sequence[Study], answers: bool, reserve: int = 0) -> Sequence[Example]:
        """Studies as token ids; see `generator.data.encode`."""
        return encode(self, studies, answers, reserve)

    def dataset(self, examples: Sequence[Example], features: FeatureStore | None = None) -> ExampleDataset:
        """What `encode` gave, with pictures, or with features stored before, in batches for this model."""
        return ExampleDataset(examples, self, features)


def build(config: ModelConfig) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Join a pretrained tower and a pretrained language model by a new two-layer projector.

    A tower that a LLaVA model cannot hold runs in the place of a placeholder: see `generator.foreign`.

    Raises:
        ValueError: unknown tower, a layer that it lacks, or parts that a LLaVA model cannot hold.
        OSError: a checkpoint or the language model's tokenizer cannot be reached or read.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    loaded = load_tower(config.tower, config.image_size)
    tower, image_processor, foreign = loaded.model, loaded.processor, None
    try:
        n_prefix, patch = loaded.n_prefix, patch_size(tower)
    except NotPlainError:
        foreign = ForeignTower(loaded)
        tower, image_processor = foreign.placeholder(), foreign.tower.processor
        n_prefix, patch = 1, foreign.patch_size
    _check_layer(config, None if foreign else tower.config.num_hidden_layers + 1)
    strategy: Literal["default", "full"] = "default" if n_prefix > 0 else "full"
    lm, tokenizer = load_lm(config)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=tower.config,
                text_config=lm.config,
                image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
                vision_feature_layer=config.feature_layer,
                vision_feature_select_strategy=strategy,
                tie_word_embeddings=lm.config.tie_word_embeddings,
            )
        )
    saved = _shapes(model)
    projector = type(model.model.multi_modal_projector)(model.config)
    model.model.vision_tower, model.model.multi_modal_projector = tower, projector
    model.model.language_model, model.lm_head = lm.base_model, lm.get_output_embeddings()
    _check_joined(model, lm, saved, names_only=config.quantize != "no")
    if foreign:
        model.model.vision_tower = foreign.to(getattr(torch, config.dtype))
    model.generation_config = _greedy(lm.generation_config, tokenizer)
    for parameter in model.parameters():  # not the buffers: transformers keeps rotary frequencies in float32
        if parameter.is_floating_point():  # not weights packed into 4 bits
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
    if config.quantize != "no":
        model.is_loaded_in_4bit = True  # type: ignore[assignment] # PEFT chooses its adapters by this
    model.eval()
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=n_prefix,
        image_token=IMAGE_TOKEN,
        chat_template=chat_template(tokenizer.get_chat_template() if tokenizer.chat_template else None, IMAGE_TOKEN),
    )
    model.config.image_seq_length = check_image_tokens(model, processor)
    return model, processor


def _check_layer(config: ModelConfig, n_states: int | None) -> None:
    """Raise ValueError if the tower has no such hidden state to project; None: it has its final output only."""
    layer, choices = config.feature_layer, "-1, its final output"
    if n_states is None and layer == -1:
        return
    if n_states is not None:
        if layer != 0 and -n_states <= layer < n_states:  # LlavaModel takes 0 for none
            return
        choices = f"{-n_states} to -1, or 1 to {n_states - 1}"
    raise RadDraftError(f"model.feature_layer is {layer}. Choices for {config.tower}: {choices}")


def _shapes(model: nn.Module) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def _check_joined(
    model: LlavaForConditionalGeneration, lm: PreTrainedModel, saved: set[tuple[str, torch.Size]], names_only: bool
) -> None:
    """Make sure that the joined model is what a saved one will be, and writes text as the language model by itself.

    With `names_only` the shapes of packed weights, and what is kept to unpack them, are passed over.

    Raises:
        ValueError: a weight has no place among the names and shapes `saved`, or the logits differ.
    """
    kind = f"Language models of type {lm.config.model_type!r} do not fit into a LLaVA model"
    joined = _shapes(model)
    if names_only:
        joined, saved = (
            {(name, torch.Size()) for name, _ in part if ".weight." not in name} for part in (joined, saved)
        )
    if misfits := sorted(name for name, _ in joined ^ saved):
        raise RadDraftError(f"{kind}, which has no place for {misfits[0]} as it is")
    tokens = torch.arange(8, device=lm.device)[None]
    if not torch.allclose(lm(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5):
        raise RadDraftError(f"{kind}, which would leave out what they do to the logits of the last layer (scale, cap)")


def _greedy(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy decoding that ends at any of the language model's own end tokens."""
    from transformers import GenerationConfig

    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted({tokenizer.eos_token_id, *ends} - {None}),
        pad_token_id=tokenizer.pad_token_id,
    )


def _blank_square(tower: PreTrainedModel) -> torch.Tensor:
    """A black picture [1, 3, S, S] of the tower's own size."""
    size = tower.config.image_size
    side = size if isinstance(size, int) else size[0]
    return torch.zeros(1, 3, side, side, device=tower.device, dtype=tower.dtype)


def check_image_tokens(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> int:
    """Number of image tokens in a prompt, after making sure that the tower gives as many features.

    Raises:
        ValueError: the processor and the tower disagree.
    """
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
    """Set `requires_grad` of every parameter and hold what trains in float32; return the names of what trains.

    Args:
        model: the LLaVA model, or one of another kind, whose tower can only stay frozen; wrapped by PEFT or not.
        projector: whether the projector trains.
        lm: frozen, its LoRA adapters, or all of it.
        tower: frozen, full, or the number of last blocks that train. Parameters that do not reach the projected
            hidden state (final LayerNorm, mask token, later blocks) stay frozen: they would get no gradient. The last
            blocks are those before that state.

    Raises:
        ValueError: nothing trains, there are no adapters for `lora`, no projector is found, or the tower has fewer
            blocks or is not a LLaVA model's.
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
    # A trial run tells which parameters the projected hidden state depends on, whatever the architecture.
    tower(_blank_square(tower), output_hidden_states=True).hidden_states[layer].sum().backward()
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


def save(drafter: Drafter, folder: str | Path) -> None:
    """Save an ordinary Hub folder, with a sidecar that keeps the prompt and the grey-value mapping."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sidecar: dict[str, Any] = {"kind": drafter.kind, "prompt": asdict(drafter.prompt)}
    sidecar["gray_mapping"] = drafter.gray_mapping
    tower: Any = drafter.model.get_encoder(modality="image")
    if isinstance(tower, ForeignTower):
        sidecar["tower"] = tower.save(folder)
        drafter.model.model.vision_tower = tower.placeholder().to(drafter.model.dtype)
    drafter.model.save_pretrained(folder)
    if isinstance(tower, ForeignTower):
        drafter.model.model.vision_tower = tower
    drafter.processor.save_pretrained(folder)
    with write_whole(folder / SIDECAR) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, dtype: str = "auto", device: str = "cpu") -> Drafter:
    """Load what `save` wrote, in the type it was saved in unless told otherwise.

    Raises:
        ValueError: no such folder, no processor in it, a model of another kind, or image tokens that do not match.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise RadDraftError(f"{folder} is not a model folder: it has no config.json")
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise RadDraftError(
            f"{folder} has no processor: processor_config.json is missing; save the processor there too"
        )
    processor = AutoProcessor.from_pretrained(folder)
    if not isinstance(processor, LlavaProcessor):
        raise RadDraftError(f"{folder} has a {type(processor).__name__}; expected a LlavaProcessor")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()  # type: ignore
    if not isinstance(model, LlavaForConditionalGeneration):
        raise RadDraftError(f"{folder} holds a {type(model).__name__}; expected a LlavaForConditionalGeneration")
    sidecar = read_sidecar(folder)
    if sidecar is None:
        warnings.warn(f"{folder} has no {SIDECAR}: the default prompt is used", stacklevel=2)
        sidecar = {}
    if "tower" in sidecar:
        tower = Tower(sidecar["tower"], load_tower(str(folder)).model, processor.image_processor)
        model.model.vision_tower = ForeignTower(tower).to(model.device, model.dtype)
    check_image_tokens(model, processor)
    prompt = PromptConfig(**sidecar.get("prompt", {}))
    return Drafter(model, processor, prompt, sidecar.get("gray_mapping", "window"))


def read_sidecar(folder: str | Path) -> dict[str, Any] | None:
    """What `save` keeps beside a model: kind, prompt, gray_mapping; None for a model that was not saved here."""
    path = Path(folder) / SIDECAR
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
