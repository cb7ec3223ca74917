"""What a config.json asks for against what the weight files beside it hold, before any of it takes memory.

Libraries make a network of the sizes that a config states, and look afterwards whether its weights fit.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raddraft.errors import RadDraftError
from raddraft.json_text import decode_json

NO_SIZES = {"id2label", "label2id", "generation_config"}
"""Keys of a config that no weight depends on, with many numbers in them."""
WHOLE = re.compile(
    r"(hidden_size|vocab_size|intermediate_size|num_hidden_layers|num_attention_heads|num_key_value_heads|embed_dim|"
    r"depth|n_embd|n_layer|n_head)$"
)
"""Keys whose values are whole numbers, 0 or more."""
LAYERS = re.compile(r"(layers|depth|n_layer)$")
"""Of these, those that count parts with weights of their own."""
SPARE_NUMBERS, SPARE_TENSORS = 2**24, 1000
"""What a small config may ask for beyond the files: such faults are named when the model is made."""
OTHER_FILES = (".bin", ".pt", ".pth", ".th", ".ckpt", ".h5", ".msgpack", ".gguf")


@dataclass(frozen=True)
class Room:
    """How large a network may be."""

    numbers: int
    tensors: int
    sides: tuple[int, ...]
    """Most frequent sides of the tensors."""
    told: str
    """What holds them, for messages."""


class _TooLarge(BaseException):  # libraries that catch any Exception must not catch it
    pass


def read_room(folder: str | Path) -> Room | None:
    """What the weight files in a folder have room for, with spare; None where there are none, or none can be read."""
    numbers = tensors = 0
    sides = Counter[int]()
    for file in sorted(Path(folder).glob("*")) if Path(folder).is_dir() else ():
        if file.suffix == ".safetensors":
            for shape, bits in _read_header(file):
                numbers += math.prod(shape) * (2 if bits == 8 else 1)  # two of 4 bits may be packed into a byte
                tensors += 1
                sides.update(shape)
        elif file.suffix in OTHER_FILES and file.is_file():
            numbers += 2 * file.stat().st_size
            tensors += file.stat().st_size // 100  # with its name, none takes less
    if not numbers:
        return None
    common = tuple(side for side, _ in sides.most_common(4))
    told = f"its weight files hold {numbers:,} numbers in {tensors:,} tensors"
    return Room(2 * numbers + SPARE_NUMBERS, 4 * tensors + SPARE_TENSORS, (*common, 1), told)


def _read_header(file: Path) -> Iterator[tuple[list[int], int]]:
    """Shape and bits of each tensor in a safetensors file; none of one that is damaged, which its loader tells."""
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            header = json.loads(content.read(length)) if length < 100_000_000 else {}
            for name, entry in header.items():
                if name != "__metadata__":
                    yield [int(side) for side in entry["shape"]], 8 if "8" in entry["dtype"] else 16
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return


def check_numbers(folder: str | Path) -> None:
    """Raise RadDraftError, which names key and value, where a single number in a folder's config.json is no size of a
    network, or more than its weight files have room for."""
    file, room = Path(folder, "config.json"), read_room(folder)
    if room is None or not file.is_file():
        return
    try:
        config = decode_json(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError):  # its loader tells
        return
    for key, value in _numbers(config if isinstance(config, dict) else {}):
        said = f"{file.parent}: config.json says {key} {value}"
        if not WHOLE.search(key):
            continue
        if value != int(value) or value < 0:
            raise RadDraftError(f"{said}; expected a whole number, 0 or more")
        if value > (room.tensors if LAYERS.search(key) else room.numbers):
            raise RadDraftError(f"{said}, but {room.told}")


def check_config(build: Callable[[Any], Any], config: Any, path: str, room: Room | None, keys: str = "") -> None:
    """Raise RadDraftError, which names key and value, if a config asks for a larger network than there is room for.

    The network is made on meta tensors, which take no memory, and only up to the limit.

    Args:
        build: makes it of a config.
        config: of transformers.
        path: folder or name, for messages.
        room: for it; None is no limit.
        keys: where in config.json its keys begin, e.g. "vision_config."
    """
    if room is not None and _fits(build, config, room) is False:
        key = _find_key(build, config, room)
        said = f"config.json says {keys}{key}" if key else f"config.json asks for more than {room.numbers:,} numbers"
        raise RadDraftError(f"{path}: {said}, but {room.told}")


def check_folder(auto: Any, path: str, config: Any = None, keys: str = "", **code: Any) -> None:
    """`check_config` of a folder, before `auto.from_pretrained(path)` makes a network of its config.

    Args:
        auto: an Auto class of transformers, or a class of model.
        path: folder, or a name on the hub, which is not checked.
        config: takes the place of config.json.
        keys: as for `check_config`.
        code: options of `from_pretrained` of the config, and `trust_remote_code`.
    """
    room = read_room(path)
    if room is None:
        return
    from transformers import AutoConfig

    trusted = {"trust_remote_code": code.get("trust_remote_code", False)}
    config = config or (getattr(auto, "config_class", None) or AutoConfig).from_pretrained(path, **code)
    build = (lambda one: auto.from_config(one, **trusted)) if hasattr(auto, "from_config") else auto
    check_config(build, config, path, room, keys)


def check_memory(build: Callable[[Any], Any], config: Any, what: str) -> None:
    """Raise RadDraftError if a network without weights does not fit into this machine's memory in 32 bits.

    Args:
        build, config: as for `check_config`.
        what: states the config, for messages.
    """
    import torch

    if torch.get_default_device().type == "meta":  # where it takes no memory
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = Room(memory // 4, 1_000_000, (64, 1), f"this machine has memory for {memory // 4:,} numbers")
    if _fits(build, config, room) is False:
        key = _find_key(build, config, room)
        raise RadDraftError(f"{what}{f' asks for {key}' if key else ''}: too large, since {room.told}")


def _find_key(build: Callable[[Any], Any], config: Any, room: Room) -> str | None:
    """The key, with its value, without whose size a config would have room; None if it is not a single one."""
    for key, value in sorted(_numbers(config.to_dict()), key=lambda item: -item[1]):
        if any(_fits(build, replaced(config, key, side), room) for side in room.sides if side < value):
            return f"{key} {value}"
    return None


def _fits(build: Callable[[Any], Any], config: Any, room: Room) -> bool | None:
    """Whether a network of a config has room; None where it cannot be made, for other reasons."""
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    numbers = tensors = 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal numbers, tensors
        numbers, tensors = numbers + parameter.numel(), tensors + 1
        if numbers > room.numbers or tensors > room.tensors:
            raise _TooLarge

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            build(config)
    except _TooLarge:
        return False
    except Exception:  # every class has its own way to say that sizes do not go together; who loads it tells
        return None
    finally:
        hook.remove()
    return True


def _numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a config by dotted key."""
    for name, value in config.items():
        if name in NO_SIZES:
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", value


def replaced(config: Any, key: str, value: Any) -> Any:
    """A copy of a config with another value."""
    config = deepcopy(config)
    *parents, name = key.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent] if isinstance(inner, Mapping) else getattr(inner, parent)
    if isinstance(inner, dict):
        inner[name] = value
    else:
        setattr(inner, name, value)
    return config
