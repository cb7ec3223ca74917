"""Loading weights with transformers, refusing a folder whose config.json contradicts them.

By itself transformers gives what is missing random values and leaves out what it has no place for, both with a table of
names, and says of shapes that do not fit only that there is such a table.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import isqrt
from typing import Any

from raddraft.config_sizes import NO_SIZES, check_folder, replaced
from raddraft.errors import RadDraftError

Shapes = dict[str, tuple[int, ...] | None]
"""Name of a weight -> its shape; None where only the name is known."""

OPTIONAL = re.compile(r"(^|\.)(pooler|head)\.")
"""Weights behind the hidden states, which a checkpoint of another task may lack."""
TRAINING_ONLY = re.compile(r"(^|\.)mask_token$")
"""Weights that a checkpoint may have beyond its config, since nothing but pre-training uses them."""
MOST_PREFIX_TOKENS = 16
"""Class and register tokens that may share a table of positions with the patches."""


def load_pretrained(auto: Any, path: str, what: str = "model", keys: str = "", **options: Any) -> Any:
    """`auto.from_pretrained(path, **options)` of a checkpoint that has what its config asks for, and no more of it.

    Weights of parts that the model does not have (another half, another head) may be there. A config that ties the
    output to the input embeddings, where the checkpoint has two that differ, is corrected with a warning.

    Args:
        auto: a class of transformers that loads models.
        path: folder or hub id.
        what: the model's part, for messages.
        keys: where in config.json the model's own settings begin, e.g. "vision_config."
        options: of `from_pretrained`; code that comes with the checkpoint runs only with trust_remote_code=True.

    Raises:
        RadDraftError: names the folder, what config.json says and both shapes, or what the weight files hold; or as
            `check_finite`.
        Exception: as `from_pretrained`.
    """
    code = {"trust_remote_code": options.pop("trust_remote_code", False)}  # None would ask at the terminal
    if "gguf_file" not in options:  # whose config is in the file
        check_folder(auto, path, options.get("config"), keys, **code)
    with _no_table():
        model, report = auto.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **code, **options
        )
    found: Shapes = {name: tuple(shape) for name, shape, _ in report["mismatched_keys"]}
    missing = sorted(name for name in report["missing_keys"] if not OPTIONAL.search(name))
    surplus = _of_known_parts(report["unexpected_keys"], model)
    if found or missing or surplus:
        raise RadDraftError(f"{path}{_contradiction(model, found, missing, surplus, what, keys)}")
    check_finite(model.named_parameters(), path)
    _untie(model, path)
    return model


def check_finite(weights: Iterable[tuple[str, Any]], where: object) -> None:
    """Refuse weights with NaN or infinite numbers, of which a network makes blank texts and equal features in silence.

    Args:
        weights: names and tensors.
        where: a folder or a file, for the message.

    Raises:
        RadDraftError: names the first such weight.
    """
    import torch

    for name, weight in weights:
        known = weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta  # not packed, not empty
        if known and weight.numel() and not all(map(torch.isfinite, torch.aminmax(weight.detach()))):
            raise RadDraftError(f"{where}: weight {name} holds NaN or infinite numbers; save or download it again")


@contextmanager
def _no_table() -> Iterator[None]:
    """Keep transformers' report on names to itself: `load_pretrained` says in a sentence what is wrong."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _of_known_parts(names: Iterable[str], model: Any) -> list[str]:
    """Those of the weights without a place that belong to a part that the model has: to further blocks, or a bias."""
    modules = {name for name, _ in model.named_modules() if name}
    patterns = {_pattern(name) for name in model.state_dict()}
    return sorted(
        name
        for name in names
        if (name.rpartition(".")[0] in modules or _pattern(name) in patterns) and not TRAINING_ONLY.search(name)
    )


def _pattern(name: str) -> str:
    """The same for weights of all blocks."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _untie(model: Any, path: str) -> None:
    """Correct a config that ties embeddings which differ, before anything that obeys it overwrites one of them."""
    import torch

    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    made = model.get_output_embeddings()
    if made is None or not any(getattr(config, "tie_word_embeddings", False) for config in configs.values()):
        return
    given = model.get_input_embeddings()
    if made.weight is given.weight or torch.equal(made.weight, given.weight):
        return
    for config in configs.values():
        config.tie_word_embeddings = False
    shapes = f"{list(given.weight.shape)} and {list(made.weight.shape)}"
    warnings.warn(
        f"{path}: config.json says tie_word_embeddings true, but its input and output embeddings, {shapes}, differ; "
        "loaded as they are, not tied",
        stacklevel=3,
    )


def _contradiction(
    model: Any, found: Shapes, missing: Sequence[str], surplus: Sequence[str], what: str, keys: str
) -> str:
    """What a config says and the weights do not, to be put behind the folder's name."""
    import torch

    def shapes(config: Any) -> Shapes:
        with torch.device("meta"):
            return {name: tuple(one.shape) for name, one in type(model)(config).state_dict().items()}

    wanted = shapes(model.config)
    held = {name: shape for name, shape in wanted.items() if name not in missing} | found | dict.fromkeys(surplus)
    changes = _explain(model.config, held, wanted, shapes)
    if found:
        name = min(found)
        fault = f"{name} has shape {list(found[name] or ())}, the config asks for {list(wanted[name] or ())}"
    elif missing:
        shape = list(wanted[missing[0]] or ())
        fault = f"{len(missing)} weights are missing, e.g. {missing[0]} of shape {shape}"
    else:
        fault = f"{len(surplus)} weights have no place in it, e.g. {surplus[0]}"
    if changes:
        said = " and ".join(f"{keys}{key} {_plain(old)}" for key, (old, _) in changes.items())
        fit = " and ".join(_plain(new) for _, new in changes.values())
        return f": config.json says {said}, but the weights are those of {fit}: {fault}"
    if heads := _undivided(model.config):
        return f": config.json says {keys}{heads}: {fault}"
    key = "architecture" if hasattr(model.config, "architecture") else "model_type"
    kind = getattr(model.config, key)
    if missing and not found:
        return f" has no weights for {len(missing)} parts of its {kind!r} {what}, e.g. {missing[0]}"
    return f": config.json says {keys}{key} {kind!r}, but the weights are not those of such a {what}: {fault}"


def _explain(config: Any, held: Shapes, wanted: Shapes, shapes: Callable[[Any], Shapes]) -> dict[str, tuple[Any, Any]]:
    """The keys of a config that contradict the weights: key -> its value, and the one that fits.

    The value that makes most faults vanish is looked for, key by key, with models on meta tensors.
    """
    changes: dict[str, tuple[Any, Any]] = {}
    faults = _count_faults(held, wanted)
    while faults:
        tried: list[tuple[Any, ...]] = []
        for key, old, new in _candidates(config, held, wanted):
            try:
                changed = replaced(config, key, new)
                made = shapes(changed)
            except Exception:  # many sizes do not go together, and every class has its own way to say so
                continue
            tried.append((_count_faults(held, made), len(tried), key, old, new, changed, made))
        best = min(tried, default=None)
        if best is None or best[0] >= faults:
            break
        faults, _, key, old, new, config, wanted = best
        changes[key] = (changes[key][0] if key in changes else old, new)
    return changes


def _count_faults(held: Shapes, wanted: Shapes) -> int:
    """Weights that only one side has, or that have two shapes."""
    both = held.keys() & wanted.keys()
    return len(held.keys() ^ wanted.keys()) + sum(held[name] not in (None, wanted[name]) for name in both)


def _candidates(config: Any, held: Shapes, wanted: Shapes) -> Iterator[tuple[str, Any, Any]]:
    """Keys with their value and one that may fit the weights better: (key, old, new)."""
    pairs = {
        pair
        for name, shape in held.items()
        if shape and len(shape) == len(wanted.get(name) or ())
        for pair in zip(wanted[name] or (), shape, strict=True)
        if pair[0] != pair[1]
    }
    # Positions of a square grid after some that are not in it; s x s patches that are merged into one.
    squares = {Fraction(b - more, a - more) for a, b in pairs for more in range(min(a, b, MOST_PREFIX_TOKENS))}
    roots = {root for one in squares if (root := Fraction(isqrt(one.numerator), isqrt(one.denominator))) ** 2 == one}
    names = held.keys() ^ wanted.keys()
    blocks = {(len(_of_pattern(name, wanted)), len(_of_pattern(name, held))) for name in names}
    for key, old in _leaves(config):
        if isinstance(old, bool):
            if names:
                yield key, old, not old
            continue
        sides = _sides(old)
        ratios = {Fraction(b, a) for a, b in pairs if all(a % one == 0 or one % a == 0 for one in sides)}
        ratios |= roots if key.endswith(("size", "factor")) else set()
        ratios |= {Fraction(b, a) for a, b in blocks if a and b and sides == [a]}
        for ratio in sorted(ratios - {Fraction(1)}):
            new = [int(one) * ratio for one in sides]
            if all(one.denominator == 1 for one in new):
                yield key, old, list(map(int, new)) if isinstance(old, list | tuple) else type(old)(new[0])


def _undivided(config: Any) -> str | None:
    """Which number of heads does not divide the width, if any; transformers rounds down."""
    leaves = dict(_leaves(config))
    for key, heads in leaves.items():
        parent, _, name = key.rpartition(".")
        width = leaves.get(f"{parent}.hidden_size" if parent else "hidden_size")
        if name.endswith("heads") and isinstance(width, int) and width % heads:
            return f"{key} {heads}, which does not divide hidden_size {width}"
    return None


def _of_pattern(name: str, shapes: Shapes) -> list[str]:
    return [one for one in shapes if _pattern(one) == _pattern(name)]


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Switches, whole numbers above 0 and short lists of them in a config, by dotted key."""
    for name, value in (config if isinstance(config, Mapping) else vars(config)).items():
        if name in NO_SIZES or name.startswith("_") or name.endswith(("token_id", "token_index")):
            continue
        if isinstance(value, Mapping) or hasattr(value, "model_type"):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, bool) or all(
            isinstance(side, int | float) and side > 0 and side == int(side) for side in _sides(value)
        ):
            yield f"{prefix}{name}", value


def _sides(value: Any) -> list[Any]:
    """A value, or both of a pair, e.g. height and width."""
    return list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value]


def _plain(value: Any) -> str:
    """A value as config.json has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
