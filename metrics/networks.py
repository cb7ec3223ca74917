"""Networks of transformers for learned metrics: loaded from a local folder, or refused with what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metrics.weights import CannotRun


def load_network(auto: Any, folder: Path, metric: str, device: str | None, **options: Any) -> tuple[Any, str]:
    """A network of transformers in eval mode and 32 bits, and the device of torch that it is on.

    Args:
        auto: its class, or an Auto class.
        folder: with config.json and weights.
        metric: what it is for, for messages.
        device: by default a GPU if there is one.
        options: of `from_pretrained`.

    Raises:
        CannotRun: no config.json, or weights that are incomplete or of other shapes than it asks for.
    """
    import torch
    from transformers.utils import logging

    if not (folder / "config.json").is_file():
        raise CannotRun(f"{metric} needs a folder with a model of transformers, and {folder} has no config.json")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a checkpoint also has the head of a masked language model is no news
    try:
        network, report = auto.from_pretrained(
            folder,
            local_files_only=True,
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
