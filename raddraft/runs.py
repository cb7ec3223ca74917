"""The run folder: config.yaml, log.jsonl and checkpoints/, from which an interrupted run resumes bit-exactly.

A checkpoint is written under a temporary name and renamed, and the one before it is removed only then, so a run that
is killed at any moment finds a whole one. The header of a file of weights holds their check sum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raddraft.errors import RadDraftError
from raddraft.files import append_jsonl, cut_log, read_object, whole_folder, write_text, write_whole
from raddraft.json_text import sealed

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

HARMLESS = re.compile(
    r"\.(workers|save_every|log_every|shard|activation_checkpointing|sample_batch_size|trackers(\.\d+)?)$"
    r"|^train\.(stages\.\d+\.reward\.)?micro_batch_size$"
)
"""What may change when a run resumes: numbers then differ by rounding at most, and by what dropout draws."""


class RunFolder:
    """Writes the log, checkpoints and the best weights of a run, and finds them again when it resumes."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self._checkpoints = folder / "checkpoints"
        if accelerator.is_main_process:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return max(self._whole(), default=None)

    def _whole(self) -> list[Path]:
        """The checkpoints, without one that was being written when the run was killed."""
        return [path for path in self._checkpoints.glob("*step-*") if not path.name.startswith(".")]

    def read_progress(self) -> dict[str, Any]:
        """What the newest checkpoint was saved with; empty without one."""
        if not self.newest:
            return {}
        return read_object(self.newest / "progress.json", f"remove {self.newest} to start the run from its beginning")

    def resume(self, done: Callable[[dict[str, Any]], bool]) -> None:
        """Cut the rows of the log that are not `done` at the newest checkpoint, since their steps run again."""
        if self.accelerator.is_main_process:
            cut_log(self.folder / "log.jsonl", done)
        if self.newest:
            self.accelerator.print(f"resuming from {self.newest}")

    def restore(self, model: nn.Module, optimizer: Any = None) -> None:
        """Load the newest checkpoint, if any: the weights, or with an optimizer its state and the random state."""
        import torch

        from raddraft.processes import load_run_state, load_tensors

        newest = self.newest
        if newest is None:
            return
        if optimizer is None:
            with _reading(newest / "weights.safetensors", f"remove {newest} to start the run anew") as path:
                load_tensors(model, _load_weights(path))
        else:
            with _reading(newest / "state.pt", f"remove {newest} to start the run anew") as path:
                with zipfile.ZipFile(path) as parts:  # torch does not look at the check sums
                    if wrong := parts.testzip():
                        raise RadDraftError(f"wrong check sum of {wrong}")
                load_run_state(torch.load(path, weights_only=True), self.accelerator, optimizer)

    def save(
        self, name: str, tensors: Iterable[tuple[str, Tensor]], progress: dict[str, Any], optimizer: Any = None
    ) -> None:
        """Write a checkpoint and remove the one before it. Every process has to take part.

        Args:
            name: sorts after the names of earlier checkpoints and holds "step-".
            tensors: names and parameters or buffers, sharded or not.
            progress: where the run is, as JSON.
            optimizer: its state is kept too; without one the checkpoint marks the beginning of a stage.
        """
        import torch

        from raddraft.processes import gather, run_state

        weights, state = gather(tensors, self.accelerator), run_state(self.accelerator, optimizer)
        if self.accelerator.is_main_process:
            old = self._whole()
            with whole_folder(self._checkpoints / name) as temporary:
                _save_weights(weights, temporary / "weights.safetensors")
                (temporary / "progress.json").write_text(json.dumps(sealed(progress)))
                with open(temporary / "state.pt", "wb") as file:  # given a name, torch does not say that a disk is full
                    torch.save(state, file)
            for checkpoint in old:
                if checkpoint.name != name:
                    shutil.rmtree(checkpoint)
        self.accelerator.wait_for_everyone()

    def save_best(self, tensors: Iterable[tuple[str, Tensor]], name: str = "best") -> None:
        """Keep these weights as the best so far, or under another name. Every process has to take part."""
        from raddraft.processes import gather

        weights = gather(tensors, self.accelerator)
        if self.accelerator.is_main_process:
            with write_whole(self._checkpoints / f"{name}.safetensors") as temporary:
                _save_weights(weights, temporary)
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module, name: str = "best") -> None:
        """Go back to what `save_best` kept."""
        from raddraft.processes import load_tensors

        way_out = f"remove {self._checkpoints} to start the run anew"
        with _reading(self._checkpoints / f"{name}.safetensors", way_out) as path:
            load_tensors(model, _load_weights(path))

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        """Append a row to log.jsonl and report its numbers to the trackers, at `step` or the row's own."""
        numbers = {name: value for name, value in row.items() if name != "step"}
        self.accelerator.log(numbers, step=row["step"] if step is None else step)
        if self.accelerator.is_main_process:
            append_jsonl(self.folder / "log.jsonl", row)


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(weights), path, {"sha256": _digest(weights)})


def _load_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        stated = (file.metadata() or {}).get("sha256")  # earlier versions wrote none
    if stated and stated != _digest(weights):
        raise RadDraftError("wrong check sum")
    return weights


def _digest(weights: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _reading(path: Path, way_out: str) -> Iterator[Path]:
    """Where a file of a checkpoint is loaded: a RadDraftError says that it is damaged, and the way out."""
    import torch

    try:
        yield path
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise RadDraftError(f"{path} is damaged ({error}); {way_out}") from error


def keep_config(path: Path, config: dict[str, Any], result: str = "model") -> None:
    """Write the config of a run, or check that the run there was started with the same one, but for HARMLESS.

    A folder without another file holds nothing made with that config yet, so the config may be replaced.

    Args:
        path: of the config.
        config: the run's.
        result: what the run will write beside it.

    Raises:
        RadDraftError: another config; names the first key that differs. Or there is a result that no run has left, be
            it the one to start from, which would be lost.
    """
    text = to_yaml(config)
    if path.with_name(result).exists() and not (path.is_file() or path.with_name("log.jsonl").is_file()):
        raise RadDraftError(
            f"{path.with_name(result)} is there, without the {path.name} of the run that wrote it, so it is not "
            "replaced; choose another --out, or move it away"
        )
    started = any(file.is_file() and file != path and not file.name.startswith(".") for file in path.parent.rglob("*"))
    if not path.is_file() or not started:
        write_text(path, text)
        return
    try:
        old, new = flatten(yaml.safe_load(path.read_text(encoding="utf-8"))), flatten(yaml.safe_load(text))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RadDraftError(
            f"{path} is damaged ({' '.join(str(error).split())}); choose another --out, or remove the file if that run "
            "had this config"
        ) from None
    unknown, missing = _only_in(old, new), [key for key in _only_in(new, old) if new[key] is not None]
    if missing and not unknown:
        raise RadDraftError(
            f"{path} lacks {missing[0]}: it is damaged, or of an earlier version of RadDraft; choose another --out, or "
            "remove the file if that run had this config"
        )
    if unknown:
        raise RadDraftError(
            f"{path.parent} holds a run of another version of RadDraft ({path.name} has {unknown[0]}, which is not an "
            "option any more); choose another --out, or finish the run with the version that started it"
        )
    changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not HARMLESS.search(key)]
    if changed:
        key = min(changed)
        raise RadDraftError(
            f"{path.parent} holds a run with another config: {key} was {old.get(key)!r}, now {new.get(key)!r}; "
            "choose another --out, or the old value to resume that run"
        )


def _only_in(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys of a flat config that another one lacks, but for those of lists, and of parts that it has as a whole."""
    return sorted(
        key
        for key in one.keys() - other.keys()
        if not re.search(r"\.\d+(\.|$)", key)
        and not any(name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in other)
    )


def to_yaml(config: Any) -> str:
    """A config as YAML: dataclasses and tuples as mappings and lists, paths as strings, keys in their order."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    elif hasattr(value, "as_dict"):  # an item of a list as jsonargparse parses it
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping of dotted keys."""
    if not isinstance(value, dict | list):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
