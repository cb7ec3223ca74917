"""Networks of transformers for learned metrics: loaded from a local folder, or refused with what is wrong with it, and
read with little padding, in 32 bits or with products in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raddraft.config_sizes import check_folder, check_numbers
from raddraft.errors import CannotRun, RadDraftError

if TYPE_CHECKING:
    from torch import Tensor


def load_network(auto: Any, folder: Path, metric: str, device: str | None, **options: Any) -> tuple[Any, str]:
    """A network of transformers in eval mode and 32 bits, and the device of torch that it is on.

    Args:
        auto: its class, or an Auto class.
        folder: with config.json and weights.
        metric: what it is for, for messages.
        device: by default a GPU if there is one.
        options: of `from_pretrained`.

    Raises:
        CannotRun: no config.json, one that asks for a larger network than the weights, or weights that are incomplete
            or of other shapes than it asks for.
    """
    import torch
    from transformers.utils import logging

    if not (folder / "config.json").is_file():
        raise CannotRun(f"{metric} needs a folder with a model of transformers, and {folder} has no config.json")
    try:
        check_numbers(folder)
        check_folder(auto, str(folder), local_files_only=True, trust_remote_code=False)
    except OSError as error:
        raise CannotRun(f"{metric}: {folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    except RadDraftError as error:
        raise CannotRun(f"{metric}: {error}") from error
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a checkpoint also has the head of a masked language model is no news
    try:
        network, report = auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below
            dtype=torch.float32,
            **options,
        )
    except OSError as error:
        raise CannotRun(f"{metric}: {folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    for name, found, asked in sorted(report["mismatched_keys"]):
        raise CannotRun(f"{metric}: {name} in {folder} has shape {list(found)}, its config.json asks for {list(asked)}")
    if report["missing_keys"]:
        raise CannotRun(f"{metric}: the weights in {folder} lack {', '.join(sorted(report['missing_keys'])[:3])} …")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return network.to(device).eval(), device


def multiply_in_bfloat16(network: Any) -> None:
    """Round the weights of linear layers to bfloat16, for `last_states`; sums, norms and the rest stay in 32 bits."""
    import torch

    for part in network.modules():
        if isinstance(part, torch.nn.Linear):
            part.to(torch.bfloat16)


def last_states(network: Any, texts: Sequence[list[int]], bfloat16: bool = False) -> list[Tensor]:
    """Last hidden state of each text, given in word pieces: [pieces, D] each, float32, on the device of the network.

    Args:
        network: an encoder of transformers.
        texts: that fit into memory together; those of similar lengths are read at once.
        bfloat16: whether the network went through `multiply_in_bfloat16`.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    device, states = network.device, [torch.empty(0)] * len(texts)
    for group in alike([len(text) for text in texts]):
        ids = pad_sequence([torch.tensor(texts[i]) for i in group], batch_first=True)  # [G, T]
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(texts[i])] for i in group])  # [G, T]
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            hidden = network(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state.float()
        for i, state in zip(group, hidden, strict=True):
            states[i] = state[: len(texts[i])]
    return states


def alike(lengths: list[int], waste: float = 0.1) -> list[list[int]]:
    """Indices in groups of similar lengths, so that less than `waste` of the length in a padded group is padding."""
    groups: list[list[int]] = []
    filled = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        filled += lengths[i]
        if groups and filled > (1 - waste) * lengths[i] * (len(groups[-1]) + 1):
            groups[-1].append(i)
        else:
            groups.append([i])
            filled = lengths[i]
    return groups
