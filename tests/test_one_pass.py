"""Each film is read once: counted over a whole comparison with probes, masks, retrieval and reports, and training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import encoder.tower
from encoder import digests, encoding
from tests.test_cli import run
from tests.test_compare import studies, write_config  # noqa: F401 - a fixture
from tests.test_compare_report import PIXELS, RANDOM, recipe, task  # noqa: F401 - a fixture
from tests.test_features import count_decoded


def spy(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, note: Callable[..., None]) -> None:
    """Note the arguments of each call of a function."""
    function = getattr(module, name)

    def noted(*arguments: Any, **options: Any) -> Any:
        note(*arguments, **options)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, noted)


def test_every_image_is_read_once_for_each_tower(tmp_path, studies, recipe, tower_folder, monkeypatch) -> None:  # noqa: F811
    decoded, read, hashed = count_decoded(monkeypatch), Counter(), Counter()
    spy(monkeypatch, encoding, "read_file", lambda path, digest=None: read.update([(path.name, digest is None)]))
    spy(monkeypatch, digests, "digest_file", lambda path: read.update([(path.name, "again")]))
    spy(monkeypatch, encoder.tower, "weights_digest", lambda model, first=None: hashed.update([first is None]))
    tasks = [
        {"name": "Edema", "kind": "binary", "targets": ["Edema"]},
        {"name": "Square", "kind": "segmentation", "targets": ["square"]},
        {"name": "Note", "kind": "retrieval", "targets": ["note"]},
        task(recipe, seeds=2),
    ]
    config = write_config(tmp_path, studies, [PIXELS, RANDOM], tasks)
    assert run("compare", "--config", config) == (0, "")
    assert decoded == {str(tmp_path / f"{i}.png"): 2 for i in range(60)}
    assert hashed == {True: 2}, "the weights of each tower"
    images = {key: count for key, count in read.items() if "mask" not in key[0]}
    assert images == {(f"{i}.png", is_new): 1 for i in range(60) for is_new in (True, False)}, (
        "digested once, in passing"
    )
    decoded.clear()
    hashed.clear()
    options = ["--model.tower", tower_folder, "--train.cached", "--features", tmp_path / "features"]
    training = ["--config", recipe, "--studies", studies, "--prompt.targets", "note", "--out", tmp_path / "run"]
    assert run("train", *training, *options) == (0, "")
    assert (decoded, hashed) == ({}, {True: 1}), "training computes nothing"
