"""The folder of stored features of one tower with its settings: what is in it, and what of it serves a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch.nn import functional

from encoder.config import ComputeConfig, EncoderConfig, FeatureConfig
from encoder.rows import Form, Place, find_rows
from encoder.tower import Tower
from raddraft.errors import RadDraftError
from raddraft.files import digest_json, read_object, remove_left, write_json, write_whole
from raddraft.json_text import sealed

VERSION = 2
"""Of the form on disk; 1 kept every combination of layers in a folder of its own."""


class Content(NamedTuple):
    """What is kept of an image after one layer."""

    layer: int | None
    """Index of a hidden state; None: the final output."""
    tokens: bool
    """Whether the two vectors are followed by tokens."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return ("tokens" if self.tokens else "pooled") + ("" if self.layer is None else f"-{self.layer}")


class Norm(NamedTuple):
    """A LayerNorm over the width."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of tokens [T, D], computed in the type of the tower."""
        tokens = tokens.float() if self.weight is None else tokens.to(self.weight.dtype)
        return functional.layer_norm(tokens, tokens.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class StoreFolder:
    """Features of one tower with one image processor, gray mapping and data types."""

    path: Path
    meta: dict[str, Any]
    """As `describe_store` makes it."""

    def sources(self, layer: int | None, tokens: bool) -> list[Content]:
        """Contents that serve a request for one layer. What is missing is written to the first.

        Raises:
            RadDraftError: the tower has no such hidden state.
        """
        n_states, name = self.meta["n_states"], self.meta["model"][0]
        if layer is not None:
            if not n_states:
                raise RadDraftError(f"A {name} has no hidden states of tokens, only its final output")
            if not -n_states <= layer < n_states:
                raise RadDraftError(
                    f"Layer {layer} does not exist. The tower has hidden states {-n_states} to {n_states - 1}"
                )
            layer %= n_states
        whole = Content(None if layer == n_states - 1 and self.holds_last_state else layer, True)
        return [whole] if tokens else [Content(layer, False), whole]

    def asked(self, kept: FeatureConfig) -> list[list[Content]]:
        """For each layer of a request its sources. Raises as `sources`."""
        return [self.sources(layer, kept.keep == "tokens") for layer in kept.layers or (None,)]

    @property
    def holds_last_state(self) -> bool:
        """Whether tokens of the final output are the last hidden state, before the tower's last LayerNorm, if any."""
        return self.meta["last_norm"] is not None

    def norm(self) -> Norm | None:
        """What makes the final patches of stored tokens; None where these are the patches."""
        file = self.path / "norm.safetensors"
        if not file.is_file():
            return None
        held = load_file(file)
        return Norm(held.get("weight"), held.get("bias"), self.meta["last_norm"])

    def form(self, content: Content) -> tuple[Form, tuple[int, int]] | None:
        """The form of its rows, and rows and columns of patches; None if nothing of it is stored."""
        file = self.path / content.name / "meta.json"
        if not file.is_file():
            return None
        way_out = f"remove {file.parent}, and `raddraft features` stores them again"
        meta = read_object(file, way_out, ("n_tokens", "width", "grid"))
        return Form(meta["n_tokens"], meta["width"], self.meta["dtype"]), tuple(meta["grid"])

    def rows(self, content: Content) -> dict[str, Place]:
        """Digest of an image -> name of its part, beginning with that of the content, and row."""
        if not (found := self.form(content)):
            return {}
        rows = find_rows(self.path / content.name, found[0])
        return {digest: (f"{content.name}/{part}", row) for digest, (part, row) in rows.items()}

    def make(self, tower: Tower, contents: Sequence[Content]) -> None:
        """Folders of contents that are not there yet; a black image tells their form."""
        if missing := [content for content in contents if self.form(content) is None]:
            layers = tower.encode_layers(tower.black_pixels, [content.layer for content in missing])
            for content, layer in zip(missing, layers, strict=True):
                _, height, width, features = layer.encoded.patches.shape
                n_tokens = layer.tokens.shape[1] if content.tokens and layer.tokens is not None else 0
                meta = {"n_tokens": n_tokens, "width": features, "grid": [height, width]}
                with FileLock(self.path / "meta.lock"):
                    remove_left(self.path / content.name / "meta.json")
                    write_json(self.path / content.name / "meta.json", sealed(meta))


def make_folder(tower: Tower, compute: ComputeConfig) -> StoreFolder:
    """The folder of a tower, which is made if it is not there."""
    meta = describe_store(tower, compute)
    folder = StoreFolder(compute.features / digest_json(meta)[:16], meta)
    folder.path.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.path / "meta.lock"):
        for name in ("norm.safetensors", "meta.json"):
            remove_left(folder.path / name)
        norm: Any = tower.last_norm
        if meta["last_norm"]:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in norm.named_parameters()}
            with write_whole(folder.path / "norm.safetensors") as temporary:
                save_file(held, temporary)
        write_json(folder.path / "meta.json", meta)
    return folder


def read_folder(path: Path) -> StoreFolder:
    """A folder that is there.

    Raises:
        RadDraftError: it is not a feature store, or one of an earlier version.
    """
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta.get("version") != VERSION:
            raise RadDraftError(
                f"{path} holds features in the form of an earlier version, which is not read any more; run `raddraft "
                "features` again, and delete it"
            )
        if missing := {"weights", "dtype", "n_states", "last_norm"} - meta.keys():
            raise ValueError(f"meta.json lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, RadDraftError):
            raise
        raise RadDraftError(
            f"{path} is not a feature store, the folder that `raddraft features` prints at its end: {error}"
        ) from error
    return StoreFolder(path, meta)


def describe_store(tower: Tower, compute: ComputeConfig) -> dict[str, Any]:
    """All that features depend on except images and layers, for JSON."""
    norm, processor = tower.last_norm, tower.processor
    return {
        "version": VERSION,
        "weights": tower.digest,
        "model": [type(tower.model).__name__, _settings(tower.model.config)],
        "processor": [type(processor).__name__, json.loads(processor.to_json_string())],  # type: ignore[attr-defined]
        "gray_mapping": compute.gray_mapping if isinstance(compute, EncoderConfig) else "window",
        "precision": str(next(tower.model.parameters()).dtype).removeprefix("torch."),
        "dtype": compute.dtype,
        "n_states": tower.n_states,
        # Of Identity 0: nothing to be done. None: the tokens are the patches.
        "last_norm": None if norm is None else getattr(norm, "eps", 0.0),
    }


def _settings(config: Any) -> dict[str, Any]:
    """A model's config without what does not change its output."""
    settings = asdict(config) if is_dataclass(config) else config.to_dict()  # type: ignore[arg-type]
    unrelated = ("_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id")
    return {key: value for key, value in settings.items() if key not in unrelated}
