"""Folders whose config.json contradicts their weights, at every place where models are loaded: one sentence each."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoder.towers import load_tower
from generator.api import load_model
from generator.config import ModelConfig
from generator.lm import load_lm
from generator.model import Drafter, build, load, save
from raddraft.errors import RadDraftError
from tests.test_model import save_lm
from tests.test_towers import save_network, save_tower
from tests.vlm_families import save_vlm

LOADERS: dict[str, Callable[[str], Any]] = {
    "tower": load_tower,
    "lm": lambda name: load_lm(ModelConfig("any", name))[0],
    "llava": lambda name: load(name).model,
    "llava's tower": load_tower,
    "vlm": lambda name: load_model(name, "cpu").drafter.model,
}


@pytest.fixture(scope="module")
def sources(tower_folder, lm_folder, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a kind of model, made on first use."""
    root = tmp_path_factory.mktemp("sources")

    def make(kind: str) -> Path:
        folder = root / kind
        if kind in ("dinov2", "llama"):
            return {"dinov2": tower_folder, "llama": lm_folder}[kind]
        if folder.exists():
            return folder
        if kind == "llava":
            save(Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder)))), folder)
            return folder
        if kind in ("gemma3", "qwen3_vl", "idefics3", "internvl"):
            return save_vlm(kind, folder)
        if kind in ("swin", "timm"):
            return save_network(kind, folder)
        return save_lm(kind, folder) if "-" in kind and kind[0].isupper() else save_tower(kind, folder)

    return make


def edit(folder: Path, changes: dict[str, Any]) -> None:
    """Change keys of a folder's config.json, nested ones with dots."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *parents, name = key.split(".")
        inner = config
        for parent in parents:
            inner = inner[parent]
        inner[name] = value
    file.write_text(json.dumps(config), encoding="utf-8")


def fault(place: str, name: str) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        LOADERS[place](name)
    assert "\n" not in str(error.value)
    return str(error.value)


CASES = [
    ("tower", "dinov2", "image_size", 56, 28, [1, 5, 32], [1, 17, 32]),
    ("tower", "dinov2", "patch_size", 7, 14, [32, 3, 14, 14], [32, 3, 7, 7]),
    ("tower", "dinov2", "hidden_size", 64, 32, [1, 1, 32], [1, 1, 64]),
    ("tower", "dinov2", "mlp_ratio", 2, 4, [128], [64]),
    ("tower", "dinov2", "num_hidden_layers", 5, 2, None, [32]),
    ("tower", "dinov2", "qkv_bias", False, True, None, None),
    ("tower", "dinov2", "use_swiglu_ffn", True, False, None, [32]),
    ("tower", "registers", "num_register_tokens", 8, 4, [1, 4, 32], [1, 8, 32]),
    ("tower", "clip", "vision_config.image_size", 42, 28, [5, 32], [10, 32]),
    ("tower", "clip", "vision_config.num_hidden_layers", 2, 3, None, None),
    ("tower", "siglip", "vision_config.intermediate_size", 96, 64, [64], [96]),
    ("tower", "vit", "image_size", 70, 28, [1, 5, 32], [1, 26, 32]),
    ("tower", "vit", "num_hidden_layers", 1, 3, None, None),
    ("tower", "swin", "embed_dim", 16, 8, [8], [16]),
    ("lm", "llama", "vocab_size", 500, 381, [381, 32], [500, 32]),
    ("lm", "llama", "hidden_size", 64, 32, [381, 32], [381, 64]),
    ("lm", "llama", "intermediate_size", 96, 64, [32, 64], [32, 96]),
    ("lm", "llama", "num_hidden_layers", 4, 2, None, [32]),
    ("lm", "llama", "num_hidden_layers", 1, 2, None, None),
    ("lm", "llama", "num_attention_heads", 4, 2, [32, 32], [32, 64]),
    ("lm", "llama", "num_key_value_heads", 1, 2, [32, 32], [16, 32]),
    ("lm", "llama", "mlp_bias", True, False, None, [32]),
    ("lm", "GPT2-plain", "n_positions", 64, 256, [256, 32], [64, 32]),
    ("lm", "GPT2-plain", "n_layer", 3, 2, None, [96]),
    ("lm", "OPT-plain", "ffn_dim", 128, 64, [64], [128]),
    ("lm", "Qwen3-chatml", "head_dim", 32, 16, [16], [32]),
    ("llava", "llava", "vision_config.image_size", 56, 28, [1, 5, 32], [1, 17, 32]),
    ("llava", "llava", "text_config.vocab_size", 400, 382, [382, 32], [400, 32]),
    ("llava", "llava", "text_config.num_hidden_layers", 3, 2, None, [32]),
    ("llava", "llava", "vision_config.num_hidden_layers", 3, 2, None, [32]),
    ("llava", "llava", "multimodal_projector_bias", False, True, None, None),
    ("llava's tower", "llava", "vision_config.image_size", 56, 28, [1, 5, 32], [1, 17, 32]),
    ("vlm", "gemma3", "vision_config.image_size", 56, 28, [16, 32], [64, 32]),
    ("vlm", "gemma3", "text_config.vocab_size", 400, 386, [386, 32], [400, 32]),
    ("vlm", "qwen3_vl", "vision_config.depth", 3, 2, None, [32]),
    ("vlm", "qwen3_vl", "vision_config.spatial_merge_size", 4, 2, [128], [512]),
    ("vlm", "idefics3", "text_config.num_hidden_layers", 1, 2, None, None),
    ("vlm", "internvl", "vision_config.patch_size", [14, 14], [7, 7], [32, 3, 7, 7], [32, 3, 14, 14]),
]


@pytest.mark.parametrize(("place", "kind", "key", "stated", "real", "shape", "asked"), CASES)
def test_the_key_and_both_shapes_are_named(
    sources, tmp_path, capfd, place, kind, key, stated, real, shape, asked
) -> None:
    folder = Path(shutil.copytree(sources(kind), tmp_path / "folder"))
    edit(folder, {key: stated})
    sentence = fault(place, str(folder))
    said, fits = (str(value).lower() for value in (stated, real))
    assert sentence.startswith(f"{folder}: config.json says {key} {said}, but the weights are those of {fits}: ")
    if shape:
        assert sentence.endswith(f"has shape {shape}, the config asks for {asked}")
    elif asked:
        assert re.search(rf": \d+ weights are missing, e\.g\. \S+ of shape {re.escape(str(asked))}$", sentence)
    else:
        assert re.search(r": \d+ weights have no place in it, e\.g\. \S+$", sentence)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_several_keys_are_all_named(sources, tmp_path) -> None:
    folder = Path(shutil.copytree(sources("llama"), tmp_path / "folder"))
    edit(folder, {"num_hidden_layers": 3, "vocab_size": 500})
    sentence = fault("lm", str(folder))
    for part in ("num_hidden_layers 3", "vocab_size 500", "lm_head.weight has shape [381, 32]"):
        assert part in sentence


def test_the_weights_of_another_model_are_no_riddle(sources, tmp_path) -> None:
    """Where no key of the config explains it, and where there is no config that could."""
    folder = Path(shutil.copytree(sources("llama"), tmp_path / "folder"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert fault("lm", str(folder)) == (
        f"{folder}: config.json says model_type 'llama', but the weights are not those of such a language model: "
        "model.norm.weight has shape [7], the config asks for [32]"
    )
    del weights["model.norm.weight"], weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"{folder} has no weights for 2 parts of its 'llama' language model, e.g. lm_head.w" in fault(
        "lm", str(folder)
    )
    timm = Path(shutil.copytree(sources("timm"), tmp_path / "timm"))
    edit(timm, {"architecture": "resnet14t"})
    assert fault("tower", str(timm)).startswith(f"{timm}: config.json says architecture 'resnet14t', but ")


@pytest.mark.parametrize(
    ("place", "kind", "changes", "part"),
    [
        ("tower", "dinov2", {"num_attention_heads": 3}, "config.json says num_attention_heads 3, which does not div"),
        ("tower", "dinov2", {"num_hidden_layers": 1}, "num_hidden_layers in config.json does not go with its out_feat"),
        ("lm", "llama", {"hidden_size": 33}, "The hidden size (33) is not a multiple of the number of attention heads"),
        ("lm", "llama", {"vocab_size": "many"}, "Field 'vocab_size' expected int, got str (value: 'many')"),
        ("llava", "llava", {"text_config.head_dim": 17}, "got `head_dim`=17"),
        ("llava", "llava", {"vision_feature_layer": 0}, "vision_feature_layer is 0. Choices for"),
        ("llava", "llava", {"vision_feature_layer": -4}, "vision_feature_layer is -4. Choices for"),
        ("vlm", "gemma3", {"text_config.num_hidden_layers": 3}, "`num_hidden_layers` (3) must be equal to the number"),
        ("vlm", "internvl", {"vision_config.num_attention_heads": 3}, "`embed_dim`: 32 and `num_heads`: 3"),
    ],
)
def test_a_config_that_contradicts_itself_is_named(sources, tmp_path, place, kind, changes, part) -> None:
    folder = Path(shutil.copytree(sources(kind), tmp_path / "folder"))
    edit(folder, changes)
    sentence = fault(place, str(folder))
    assert part in sentence
    assert str(folder) in sentence


@pytest.mark.parametrize(("place", "kind"), [("lm", "llama"), ("llava", "llava"), ("vlm", "gemma3")])
def test_embeddings_that_differ_are_not_tied(sources, tmp_path, place, kind) -> None:
    """Adding the image token resizes them, which would overwrite the output's by the input's."""
    folder = Path(shutil.copytree(sources(kind), tmp_path / "folder"))
    key = "tie_word_embeddings" if kind == "llama" else "text_config.tie_word_embeddings"
    edit(folder, {key: True, "tie_word_embeddings": True})
    with pytest.warns(UserWarning, match=r"says tie_word_embeddings true, but .* \[\d+, 32\] and \[\d+, 32\], differ"):
        model = LOADERS[place](str(folder))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        known = slice(381)  # not the image token, whose row is random
        assert torch.equal(
            model(tokens).logits[..., known], LOADERS[place](str(sources(kind)))(tokens).logits[..., known]
        )
    if place == "lm":
        built, _ = build(ModelConfig(str(sources("dinov2")), str(folder)))
        assert not built.config.tie_word_embeddings


def test_heads_and_halves_of_other_tasks_may_be_there(sources, tmp_path) -> None:
    """A classifier, a text half, a mask token, buffers of old versions."""
    for kind, names in [
        ("vit", ["classifier.weight", "text_model.encoder.layers.0.mlp.fc1.weight", "decoder.0.weight"]),
        ("dinov2", ["head.weight"]),
    ]:
        folder = Path(shutil.copytree(sources(kind), tmp_path / kind))
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.ones(3) for name in names}, folder / "model.safetensors", {"format": "pt"})
        load_tower(str(folder))
    edit(folder, {"use_mask_token": False})
    load_tower(str(folder))


@pytest.mark.parametrize("place", ["tower", "lm", "vlm"])
@pytest.mark.parametrize("name", ["runs/nope", "runs/nope/model", "runs/nope/", "./nope", "/nowhere/nope", "~/nope"])
def test_a_folder_that_is_not_there_is_said_first(place, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = fault(place, name)
    absent = re.search(rf"[Tt]here is no folder {name} here|folder {name} does not exist", sentence)
    assert absent
    assert "hub" not in sentence[: absent.start()]


def test_a_file_is_no_folder(sources, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"")
    for place in ("lm", "vlm"):
        assert "weights is a file; name the folder that holds it" in fault(place, "weights")


@pytest.mark.parametrize(
    ("place", "kind", "file"),
    [
        ("tower", "dinov2", "config.json"),
        ("tower", "dinov2", "preprocessor_config.json"),
        ("lm", "llama", "config.json"),
        ("lm", "llama", "tokenizer_config.json"),
        ("llava", "llava", "config.json"),
        ("llava", "llava", "processor_config.json"),
        ("vlm", "gemma3", "config.json"),
    ],
)
def test_code_of_a_checkpoint_does_not_run_though_a_user_would_agree(
    sources, tmp_path, monkeypatch, place, kind, file
) -> None:
    folder = Path(shutil.copytree(sources(kind), tmp_path / "folder"))
    autos = ("Config", "Model", "ModelForCausalLM", "ModelForImageTextToText", "ImageProcessor", "Processor")
    names = {f"Auto{name}": "own.Own" for name in autos} | {"AutoTokenizer": ["own.Own", "own.Own"]}
    changed = json.loads((folder / file).read_text()) | {"auto_map": names}
    types = {"model_type", "image_processor_type", "processor_class", "tokenizer_class", "image_processor"}
    changed |= dict.fromkeys(types & changed.keys(), "own")
    (folder / file).write_text(json.dumps(changed))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(RadDraftError):
        LOADERS[place](str(folder))
    assert not (tmp_path / "ran").exists()
    if file == "config.json":
        with pytest.raises(RadDraftError, match=r"code of its own, which is not run|comes with its own code"):
            LOADERS[place](str(folder))


# ---- weights that are no numbers, tokenizers and templates of another model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("place", "kind"), [("tower", "dinov2"), ("lm", "llama"), ("llava", "llava")])
def test_weights_that_are_no_numbers_are_refused(place, kind, value, sources, tmp_path) -> None:
    """A draft of such a model is blank, and nothing says why."""
    folder = tmp_path / "copy"
    shutil.copytree(sources(kind), folder)
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda one: weights[one].numel())
    weights[name].view(-1)[7] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert re.search(r"copy: weight \S+ holds NaN or infinite numbers", fault(place, str(folder)))


def damage_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["zzz"] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def use_template(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (
            lambda folder: edit(folder, {"image_token_index": 5}),
            "config.json says image_token_index 5, and the processor writes ",
        ),
        (damage_tokenizer, "the tokenizer has a token 1000000, and the language model"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "the tokenizer has no end token"),
        (use_template("{% for"), "its chat template cannot be used: "),
        (use_template(""), "its chat template cannot be used: "),
        (use_template("{{ raise_exception('no') }}"), "its chat template cannot be used: no"),
        (use_template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "its chat template cannot be used: maximum"),
        (use_template("Report."), "its chat template writes 0 image tokens for a prompt with 1 images"),
    ],
)
def test_a_tokenizer_or_a_template_that_is_damaged_is_named_when_it_is_loaded(
    damage, culprit, sources, tmp_path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sources("llava"), folder)
    load(folder)
    damage(folder)
    assert f"copy: {culprit}" in fault("llava", str(folder))
