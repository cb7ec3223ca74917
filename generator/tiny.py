"""Small random models in Hub folders, to train from scratch: two kinds of tower, and a Llama with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raddraft.files import whole_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def make_tower(
    folder: Path, image_size: int = 112, patch_size: int = 28, hidden: int = 128, layers: int = 4, seed: int = 0
) -> None:
    """Save a Dinov2 with random weights and its image processor (shorter side to `image_size`, center square).

    To learn in minutes at this width, weights start with a standard deviation of width^-0.5 instead of 0.02, and
    position embeddings as two-dimensional sines instead of nearly zero.
    """
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        image_size=image_size,
        patch_size=patch_size,
        layerscale_value=1.0,
        initializer_range=hidden**-0.5,
    )
    tower = Dinov2Model(config)
    with torch.no_grad():
        tower.embeddings.position_embeddings[0, 1:] = _sine_positions(image_size // patch_size, hidden)
    _save(tower, folder, image_size)


def make_levit(folder: Path, image_size: int = 112, hidden: int = 256, layers: int = 2, seed: int = 0) -> None:
    """Save a LeViT of one stage with random weights and its image processor (as of `make_tower`).

    Four convolutions make its patches (Graham et al., arXiv 2104.01136). From a few thousand images such a stem learns
    what a linear embedding of patches does not. With strides of 3 instead of 2 few tokens are left (2 x 2 of 112
    pixels), in which a small decoder finds what they say sooner than in many.
    """
    import torch
    from transformers import LevitConfig, LevitModel

    torch.manual_seed(seed)
    more: dict[str, Any] = {
        "down_ops": [[""]],  # the stage does not merge patches at its end
        "hidden_size": hidden,  # the names by which a LLaVA model asks for width and hidden states
        "num_hidden_layers": 1,
    }
    config = LevitConfig(
        image_size=image_size,
        patch_size=56,
        kernel_size=5,
        stride=3,
        padding=2,
        hidden_sizes=[hidden, hidden],  # its config wants that of a second stage too
        num_attention_heads=[hidden // 32],
        depths=[layers],
        key_dim=[16],
        attention_ratio=[2],
        mlp_ratio=[2],
        **more,
    )
    _save(LevitModel(config), folder, image_size)


def _save(tower: PreTrainedModel, folder: Path, image_size: int) -> None:
    """Save a tower and its image processor: shorter side to `image_size`, center square."""
    from transformers import BitImageProcessor

    # Mean and standard deviation of the public RAD-DINO processor, the same for all three channels.
    processor = BitImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
    )
    with whole_folder(folder) as temporary:
        tower.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def _sine_positions(grid: int, width: int) -> torch.Tensor:
    """Two-dimensional sine-cosine position embeddings [grid * grid, width], row by row (as in MAE)."""
    import torch

    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], 1)  # [grid, width / 2]
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1)


def make_lm(
    folder: Path, texts: Iterable[str], vocab_size: int = 1000, hidden: int = 128, layers: int = 2, seed: int = 0
) -> None:
    """Save a Llama with random weights, and a tokenizer trained on `texts`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(texts, vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1,  # one for the image token, so that nothing needs to be resized later
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=hidden**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with whole_folder(folder) as temporary:
        tokenizer.save_pretrained(temporary)
        LlamaForCausalLM(config).save_pretrained(temporary)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (lossless on any text) with <s>, </s> and <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
