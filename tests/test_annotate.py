"""metrics/annotate.py: every text is read once, by whoever comes first, and what was read survives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from metrics.annotate import AnnotationCache, annotate
from raddraft.errors import RadDraftError
from tests.test_cli import files_no_larger_than


class Lengths:
    """Annotates a text with its length, and remembers what it was asked."""

    def __init__(self, key: str = "lengths:1", batch_size: int = 4, fail_at: int | None = None, wait: float = 0.0):
        self.key, self.signature, self.batch_size = key, "lengths 1", batch_size
        self.fail_at, self.wait = fail_at, wait
        self.batches: list[list[str]] = []

    def annotate(self, texts: list[str]) -> list[Any]:
        if len(self.batches) == self.fail_at:
            raise RuntimeError("out of memory")
        self.batches.append(texts)
        time.sleep(self.wait)
        return [{"length": len(text)} for text in texts]


TEXTS = ["The heart is enlarged.", "", "Clear.", "No pleural effusion.", "Clear.", " ", "No edema.", "ü\x00\x1b漢"]


def test_each_text_is_read_once_in_batches_of_like_length_and_comes_back_in_order() -> None:
    annotator = Lengths(batch_size=3)
    assert [one["length"] for one in annotate(annotator, TEXTS)] == [len(text) for text in TEXTS]
    read = [text for batch in annotator.batches for text in batch]
    assert sorted(read) == sorted(set(TEXTS))
    assert [len(text) for text in read] == sorted((len(text) for text in read), reverse=True)
    assert [len(batch) for batch in annotator.batches] == [3, 3, 1]


def test_what_is_kept_is_not_read_again_unless_the_key_differs(tmp_path) -> None:
    path = tmp_path / "new" / "annotations.sqlite"
    list(annotate(Lengths(), TEXTS[:5], AnnotationCache(path)))
    later = Lengths()
    assert [one["length"] for one in annotate(later, TEXTS, AnnotationCache(path))] == [len(text) for text in TEXTS]
    assert sorted(text for batch in later.batches for text in batch) == sorted(set(TEXTS[5:]))
    other = Lengths(key="lengths:2")
    list(annotate(other, TEXTS, AnnotationCache(path)))
    assert sum(map(len, other.batches)) == len(set(TEXTS))
    assert path.stat().st_mode & 0o077 == 0, "what is read out of reports is for their owner only"


def test_many_texts_go_through_in_parts() -> None:
    texts = [f"report {number % 2500}" for number in range(6000)]
    annotator = Lengths(batch_size=1000)
    assert [one["length"] for one in annotate(annotator, texts)] == [len(text) for text in texts]
    assert sum(map(len, annotator.batches)) == 2500


def test_batches_before_a_failure_are_kept(tmp_path) -> None:
    texts = [f"report {number}" for number in range(20)]
    path = tmp_path / "annotations.sqlite"
    with pytest.raises(RuntimeError, match="out of memory"):
        list(annotate(Lengths(fail_at=3), texts, AnnotationCache(path)))
    later = Lengths()
    list(annotate(later, texts, AnnotationCache(path)))
    assert sum(map(len, later.batches)) == 20 - 3 * 4


def test_half_a_surrogate_pair_is_replaced() -> None:
    annotator = Lengths()
    assert list(annotate(annotator, ["half \ud83d"])) == [{"length": 6}]
    assert annotator.batches == [["half ?"]]


def _annotate_slowly(path: Path, texts: list[str]) -> None:
    list(annotate(Lengths(batch_size=2, wait=0.002), texts, AnnotationCache(path)))


def test_several_processes_share_a_cache(tmp_path) -> None:
    path, texts = tmp_path / "annotations.sqlite", [f"report {number}" for number in range(200)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_annotate_slowly, args=(path, texts[start:])) for start in (0, 50)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    reader = Lengths()
    assert [one["length"] for one in annotate(reader, texts, AnnotationCache(path))] == [len(text) for text in texts]
    assert reader.batches == []


def test_a_killed_process_leaves_whole_batches(tmp_path) -> None:
    path, texts = tmp_path / "annotations.sqlite", [f"report {number}" for number in range(5000)]
    process = multiprocessing.get_context("spawn").Process(target=_annotate_slowly, args=(path, texts))
    process.start()
    while process.is_alive() and not (path.exists() and len(AnnotationCache(path).read("lengths:1", texts)) > 20):
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    kept = len(AnnotationCache(path).read("lengths:1", texts))
    assert 20 < kept < 5000
    assert kept % 2 == 0
    later = Lengths(batch_size=500)
    assert [one["length"] for one in annotate(later, texts, AnnotationCache(path))] == [len(text) for text in texts]
    assert sum(map(len, later.batches)) == 5000 - kept


def test_a_damaged_file_and_an_impossible_folder_are_named(tmp_path) -> None:
    damaged = tmp_path / "annotations.sqlite"
    damaged.write_bytes(b"this is no database" * 100)
    with pytest.raises(ValueError, match=f"{damaged}.*delete it"):
        AnnotationCache(damaged)
    with pytest.raises(ValueError, match="RADDRAFT_CACHE"):
        AnnotationCache(damaged / "below" / "annotations.sqlite")


def test_a_full_disk_and_damage_of_an_open_cache_are_named_and_the_texts_are_read_again(tmp_path) -> None:
    path = tmp_path / "annotations.sqlite"
    cache = AnnotationCache(path)
    with (
        files_no_larger_than(path.stat().st_size + 5000),
        pytest.raises(RadDraftError, match=r"annotations\.sqlite cannot be used .* Make room if the disk is full"),
    ):
        list(annotate(Lengths(batch_size=1), ["x" * n for n in range(500)], cache))
    assert [one["length"] for one in annotate(Lengths(), TEXTS, AnnotationCache(path))] == [len(text) for text in TEXTS]
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(RadDraftError, match=r"annotations\.sqlite cannot be used .* delete it if it is damaged"):
        list(annotate(Lengths(), TEXTS, AnnotationCache(path)))
