"""A config.json of absurd sizes is refused by key and value, before a network of that size takes any memory."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel

from encoder.recipe import Architecture, PretrainConfig
from encoder.start import new_backbone
from encoder.towers import load_tower
from generator.config import ModelConfig
from generator.lm import load_lm
from generator.model import load
from metrics.networks import load_network
from raddraft.config_sizes import read_room
from tests.launch import SERVER
from tests.test_loading import edit

MEMORY = 3 * 2**30
"""Bytes of address space that the process may have more than it has with all its libraries."""
LOADERS: dict[str, Callable[[str], Any]] = {
    "lm": lambda name: load_lm(ModelConfig("any", name)),
    "tower": load_tower,
    "random": lambda name: load_tower(f"random:{name}"),
    "llava": load,
    "metric": lambda name: load_network(AutoModel, Path(name), "bertscore", "cpu"),
}
CASES = [
    ("lm", "hidden_size", 10**7, "its weight files hold"),
    ("lm", "num_hidden_layers", 10**6, "its weight files hold"),
    ("lm", "vocab_size", 10**10, "its weight files hold"),
    ("lm", "num_attention_heads", 2.5, "expected a whole number, 0 or more"),
    ("lm", "num_hidden_layers", -3, "expected a whole number, 0 or more"),
    ("tower", "hidden_size", 10**7, "its weight files hold"),
    ("tower", "num_hidden_layers", 10**6, "its weight files hold"),
    ("tower", "image_size", 10**6, "its weight files hold"),
    ("random", "hidden_size", 10**7, "this machine has memory for"),
    ("llava", "text_config.hidden_size", 10**7, "its weight files hold"),
    ("llava", "vision_config.num_hidden_layers", 10**6, "its weight files hold"),
    ("llava", "text_config.vocab_size", 10**10, "its weight files hold"),
    ("metric", "intermediate_size", 10**9, "its weight files hold"),
    ("metric", "num_hidden_layers", 10**6, "its weight files hold"),
]


def load_all(cases: list[tuple[str, str]], out: Path) -> None:
    """Load each folder in little memory; what that said goes to a file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    said = []
    for kind, name in cases:
        try:
            LOADERS[kind](name)
            said.append("loaded")
        except BaseException as error:
            said.append(f"{type(error).__name__}: {error}")
    try:
        new_backbone(PretrainConfig(tower=None, architecture=Architecture(width=64 * 10**6)))
    except BaseException as error:
        said.append(f"{type(error).__name__}: {error}")
    out.write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folders(tower_folder, lm_folder, random_model, bert_folder, tmp_path_factory) -> dict[str, Path]:
    from transformers import BertConfig, BertModel

    bert = Path(shutil.copytree(bert_folder, tmp_path_factory.mktemp("sizes") / "bert"))
    BertModel(BertConfig.from_pretrained(bert)).save_pretrained(bert)
    return {
        "lm": lm_folder,
        "tower": tower_folder,
        "random": tower_folder,
        "llava": random_model,
        "metric": bert,
    }


def test_absurd_sizes_are_named_and_take_no_memory(folders, tmp_path) -> None:
    copies: list[tuple[str, str]] = []
    for number, (kind, key, value, _) in enumerate(CASES):
        copy = shutil.copytree(folders[kind], tmp_path / str(number))
        edit(Path(copy), {key: value})
        copies.append((kind, str(copy)))
    process: Any = SERVER.Process(target=load_all, args=(copies, tmp_path / "said.json"))
    process.start()
    process.join()
    assert process.exitcode == 0
    *said, of_recipe = json.loads((tmp_path / "said.json").read_text())
    for (kind, key, value, told), (_, name), sentence in zip(CASES, copies, said, strict=True):
        says = "asks for" if kind == "random" else "says"
        assert f"{name}: config.json {says} {key} {value}" in sentence, (kind, key, sentence)
        assert told in sentence, (kind, key, sentence)
        assert "\n" not in sentence
    told = "RadDraftError: An architecture of width 64000000 and depth 12: too large, since this machine has memory for"
    assert of_recipe.startswith(told)


def test_what_files_hold_is_read_from_their_headers(lm_folder, tmp_path) -> None:
    room = read_room(lm_folder)
    assert room is not None
    assert room.sides[0] == 32, "the most frequent side is the width"
    assert read_room(tmp_path) is None, "no weights, no limit"
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert read_room(tmp_path) is None, "its loader says that it is damaged"


def test_a_config_that_fits_loads(folders) -> None:
    for kind, folder in folders.items():
        LOADERS[kind](str(folder))
