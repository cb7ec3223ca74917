"""CheXbert (Smit et al., EMNLP 2020, arXiv 2004.09167): 14 observations of a report, read by BERT.

The authors' checkpoint is loaded into transformers' plain BertModel: the hidden state of [CLS] in the last layer goes
through one linear head for each observation, without dropout. All arithmetic is 32-bit, so that labels do not depend on
the device, unless products in bfloat16 are asked for.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metrics.networks import last_states, multiply_in_bfloat16
from metrics.rules import NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN
from raddraft.errors import RadDraftError
from raddraft.files import digest_file
from raddraft.loading import check_finite

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BertModel, PreTrainedTokenizerBase

# Classes of a head in the checkpoint's order; No Finding has the first two only.
CLASSES = (None, POSITIVE, NEGATIVE, UNCERTAIN)
N_CLASSES = {name: 2 if name == "No Finding" else 4 for name in OBSERVATIONS}


class CheXbert:
    """The labeler and its sentence embedding. Every method takes the texts of one batch.

    Args:
        checkpoint: the authors' chexbert.pth.
        tokenizer: folder with the tokenizer of bert-base-uncased.
        batch_size: texts that fit into memory together; for the caller, who makes the batches.
        device: by default a GPU, if there is one.
        bfloat16: multiply in bfloat16, where `metrics.models.Models` says what that means.

    Raises:
        RadDraftError: not a CheXbert checkpoint (the parameters at fault are named), or not its tokenizer.
    """

    key: str
    """Names everything that a label depends on: labels may be stored under (key, text)."""
    signature: str
    batch_size: int

    def __init__(
        self,
        checkpoint: Path,
        tokenizer: Path,
        batch_size: int = 16,
        device: str | None = None,
        bfloat16: bool = False,
    ) -> None:
        import torch

        self.batch_size = batch_size
        self._tokenizer = _load_tokenizer(tokenizer)
        self._bert, self._heads = load_network(checkpoint)  # the heads stay on the CPU, they are small
        on = device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.Module.to(self._bert, on)  # transformers' own `to` has no usable types
        self._bfloat16 = bfloat16
        if bfloat16:
            multiply_in_bfloat16(self._bert)
        config = self._bert.config
        if len(self._tokenizer) != config.vocab_size:
            raise RadDraftError(
                f"The tokenizer in {tokenizer} has {len(self._tokenizer)} entries, the vocabulary of {checkpoint} has "
                f"{config.vocab_size}: it is not the one that the checkpoint was trained with"
            )
        self._max_length = config.max_position_embeddings
        sha256 = digest_file(checkpoint) or ""
        self.key = f"chexbert:{sha256}:{_vocabulary_digest(self._tokenizer)}{':bfloat16' * bfloat16}"
        self.signature = f"chexbert sha256:{sha256[:12]}{' bfloat16' * bfloat16}"

    def annotate(self, texts: list[str]) -> list[dict[str, int | None]]:
        """Observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned (No Finding: 1 or None)."""
        classes = [head.argmax(dim=1).tolist() for head in self.logits(texts)]
        return [
            {name: CLASSES[i] for name, i in zip(OBSERVATIONS, row, strict=True)} for row in zip(*classes, strict=True)
        ]

    def logits(self, texts: list[str]) -> list[Tensor]:
        """One [B, 4] for each observation, in the order of CLASSES; [B, 2] for No Finding."""
        import torch

        embedded = self.embed(texts)
        with torch.inference_mode():
            return [head(embedded) for head in self._heads]

    def embed(self, texts: list[str]) -> Tensor:
        """[B, 768]: the last hidden state of [CLS], on the CPU. A text is cut after 512 word pieces."""
        import torch

        cleaned = [" ".join(text.split()) for text in texts]
        options = {"truncation": True, "max_length": self._max_length}
        pieces = self._tokenizer(cleaned, **options)["input_ids"] if cleaned else []
        embedded = torch.empty(len(texts), self._bert.config.hidden_size)
        for row, state in zip(embedded, last_states(self._bert, pieces, self._bfloat16), strict=True):
            row.copy_(state[0])
        return embedded


def load_network(checkpoint: Path) -> tuple[BertModel, nn.ModuleList]:
    """BERT, of the sizes that the checkpoint's own tensors have, and the 14 linear heads, in fp32 and eval mode.

    Raises:
        RadDraftError: not a checkpoint, or parameters are missing, unexpected or of a wrong shape.
    """
    from torch import nn
    from transformers import BertConfig, BertModel

    state = _read_state(checkpoint)
    try:
        bert = BertModel(BertConfig(**_sizes(state)), add_pooling_layer=False)
        heads = nn.ModuleList(nn.Linear(bert.config.hidden_size, count) for count in N_CLASSES.values())
        network = nn.ModuleDict({"bert": bert, "linear_heads": heads})
        network.load_state_dict(state)
    except KeyError as error:
        raise RadDraftError(f"{checkpoint} is not a CheXbert checkpoint: {error} is missing") from None
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:500]
        raise RadDraftError(f"{checkpoint} is not a CheXbert checkpoint: {reason}") from None
    check_finite(network.named_parameters(), checkpoint)
    network.eval()
    return bert, heads


def _read_state(checkpoint: Path) -> dict[str, Tensor]:
    """Parameters by name, without DataParallel's prefix, the pooler and the position numbers, which are not used."""
    import torch

    try:
        # Two thirds of the file are the optimizer's: mapped, they stay on disk. Files older than torch 1.6 are no zip.
        mapped = zipfile.is_zipfile(checkpoint)
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RadDraftError(f"{checkpoint} is not a whole PyTorch checkpoint of plain tensors: {reason}") from error
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise RadDraftError(f"{checkpoint} is not a CheXbert checkpoint: it has no model_state_dict")
    named = {key.removeprefix("module."): value for key, value in state.items()}
    unused = r"bert\.(pooler\..*|embeddings\.position_ids)"
    return {key: value for key, value in named.items() if not re.fullmatch(unused, key)}


def _sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of BertConfig from the parameters' shapes. Attention heads are 64 wide, as in every BERT.

    Raises:
        KeyError: one of these parameters is missing.
        ValueError: one of them is not a matrix.
    """
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    keys = [f"bert.embeddings.{name}.weight" for name in names] + ["bert.encoder.layer.0.intermediate.dense.weight"]
    for key in keys:
        if state[key].ndim != 2:
            raise ValueError(f"{key} is not a matrix")
    (words, hidden), (positions, _), (types, _), (inner, _) = (state[key].shape for key in keys)
    layers = {match[1] for key in state if (match := re.match(r"bert\.encoder\.layer\.(\d+)\.", key))}
    sizes = {"vocab_size": words, "max_position_embeddings": positions, "type_vocab_size": types}
    sizes |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": len(layers)}
    return sizes | {"num_attention_heads": max(1, hidden // 64), "attn_implementation": "sdpa"}


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RadDraftError(f"No tokenizer can be loaded from {folder}: {reason}") from error
    if tokenizer.tokenize("HEART") != tokenizer.tokenize("heart"):
        raise RadDraftError(f"The tokenizer in {folder} is case-sensitive, CheXbert's is not")
    return tokenizer


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the entries in order, one a line: that of the usual vocab.txt."""
    vocabulary = tokenizer.get_vocab()
    lines = "".join(f"{entry}\n" for entry in sorted(vocabulary, key=vocabulary.__getitem__))
    return hashlib.sha256(lines.encode()).hexdigest()
