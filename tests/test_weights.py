"""Weights: where they are looked for, what is said when they are missing, adding them, and the action's table."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest

import raddraft.cli
from metrics.weights import WEIGHTS, MissingWeights, add, digest, fetch, locate
from raddraft.files import cache_folder, weights_folder
from tests.test_chexbert import random_state, write_checkpoint


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty weights folder and an empty hub cache, neither made yet."""
    from huggingface_hub import constants

    weights, hub = tmp_path / "weights", tmp_path / "hub"
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(weights))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    return weights, hub


def run(*arguments: object) -> tuple[int, str]:
    """Exit status of `raddraft weights …` and the sentence it leaves with."""
    with pytest.raises(SystemExit) as end:
        raddraft.cli.run("weights", [str(argument) for argument in arguments])
    code = end.value.code
    return (code, "") if isinstance(code, int) else (1, str(code))


def put_in_hub_cache(hub: Path, name: str, files: tuple[str, ...] | None = None) -> Path:
    """Files of a repository as the hub's client keeps them: links to blobs. Returns the snapshot."""
    entry = WEIGHTS[name]
    root = hub / f"models--{entry.repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    for folder in (root / "refs", root / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text("0" * 40)
    for file in entry.files if files is None else files:
        (root / "blobs" / file).write_text(f"{name} {file}")
        (snapshot / file).symlink_to(root / "blobs" / file)
    return snapshot


LABELS = ("non_padded_namespaces.txt", "radgraph__ner_labels.txt", "radgraph__relation_labels.txt")
RADGRAPH = ("config.json", "weights.th", *(f"vocabulary/{name}" for name in LABELS))


def radgraph_archive(path: Path, names: tuple[str, ...] = RADGRAPH) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"./{name}"), io.BytesIO())
    return path


# ---- where


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path) -> None:
    for variable in ("RADDRAFT_CACHE", "RADDRAFT_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "raddraft"
    assert weights_folder() == tmp_path / ".cache" / "raddraft" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/raddraft")
    monkeypatch.setenv("RADDRAFT_CACHE", "~/own")
    assert weights_folder() == tmp_path / "own" / "weights"
    assert not (tmp_path / "own").exists()


def test_a_given_path_comes_before_the_weights_folder_and_that_before_the_hub(places, tmp_path) -> None:
    weights, hub = places
    snapshot = put_in_hub_cache(hub, "chexbert")
    assert locate("chexbert") == snapshot / "chexbert.pth"
    weights.mkdir()
    (weights / "chexbert.pth").touch()
    assert locate("chexbert") == weights / "chexbert.pth"
    (tmp_path / "mine.pth").touch()
    assert locate("chexbert", tmp_path / "mine.pth") == tmp_path / "mine.pth"
    with pytest.raises(ValueError, match=r"chexbert: .*other\.pth does not exist"):
        locate("chexbert", tmp_path / "other.pth")


def test_radgraph_may_be_packed_or_unpacked(places) -> None:
    weights, _ = places
    weights.mkdir()
    (weights / "radgraph.tar.gz").touch()
    assert locate("radgraph") == weights / "radgraph.tar.gz"
    (weights / "radgraph").mkdir()
    assert locate("radgraph") == weights / "radgraph"
    with pytest.raises(MissingWeights):
        locate("radgraph-xl")


def test_a_snapshot_counts_only_if_it_is_complete(places) -> None:
    _, hub = places
    put_in_hub_cache(hub, "bertscore", files=("config.json", "tokenizer.json"))
    with pytest.raises(MissingWeights):
        locate("bertscore")
    snapshot = put_in_hub_cache(hub, "bertscore", files=("model.safetensors", "tokenizer_config.json"))
    assert locate("bertscore") == snapshot
    assert fetch("bertscore") == snapshot, "what is there is not downloaded again"


@pytest.mark.parametrize("name", WEIGHTS)
def test_missing_weights_are_explained_in_one_sentence(places, name) -> None:
    weights, hub = places
    with pytest.raises(MissingWeights) as caught:
        locate(name)
    text = str(caught.value)
    repository = hub / f"models--{WEIGHTS[name].repo.replace('/', '--')}"
    wanted = [
        name,
        str(weights),
        str(repository),
        f"raddraft weights --fetch {name}",
        f"raddraft weights --add {name} ",
    ]
    assert [part for part in wanted if part not in text] == []
    assert "\n" not in text
    assert not weights.exists()
    assert not hub.exists()


def test_unknown_names_are_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"Unknown weights 'chexpert'\. Choices: chexbert, chexbert-tokenizer, "):
        locate("chexpert")


# ---- adding


def test_add_copies_a_file_and_replaces_it(places, tmp_path) -> None:
    weights, _ = places
    for seed in (0, 1):
        source = write_checkpoint(tmp_path / "download.bin", random_state(40, seed))
        assert add("chexbert", source) == weights / "chexbert.pth"
        assert (weights / "chexbert.pth").read_bytes() == source.read_bytes()
    assert add("chexbert", weights / "chexbert.pth") == weights / "chexbert.pth"
    assert [path.name for path in weights.iterdir()] == ["chexbert.pth"]
    assert locate("chexbert") == weights / "chexbert.pth"


def test_add_copies_a_folder_of_links_and_replaces_it(places, bert_folder, tmp_path) -> None:
    weights, _ = places
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in bert_folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert add("chexbert-tokenizer", linked) == weights / "chexbert-tokenizer"
    (linked / "vocab.txt").write_text("more")
    assert add("chexbert-tokenizer", linked) == weights / "chexbert-tokenizer"
    assert [path.name for path in weights.iterdir()] == ["chexbert-tokenizer"]
    shutil.rmtree(linked)
    copied = {path.name for path in (weights / "chexbert-tokenizer").iterdir() if not path.is_symlink()}
    assert copied == {path.name for path in bert_folder.iterdir()} | {"vocab.txt"}


def test_add_takes_radgraph_in_both_forms_but_hides_neither(places, tmp_path) -> None:
    weights, _ = places
    archive = radgraph_archive(tmp_path / "model.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    assert add("radgraph", archive) == weights / "radgraph.tar.gz"
    assert add("radgraph", tmp_path / "unpacked") == weights / "radgraph"
    with pytest.raises(ValueError, match=r"weights/radgraph would be found before radgraph\.tar\.gz; remove it first"):
        add("radgraph", archive)


def test_add_refuses_what_it_is_not(places, bert_folder, tmp_path) -> None:
    weights, _ = places
    page = tmp_path / "page"
    page.write_text("<html>Not found</html>")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(radgraph_archive(tmp_path / "whole.tar.gz").read_bytes()[:60])
    poor = radgraph_archive(tmp_path / "poor.tar.gz", tuple(name for name in RADGRAPH if name != "weights.th"))
    empty = tmp_path / "empty"
    empty.mkdir()
    headless = {key: value for key, value in random_state(40).items() if key != "linear_heads.3.weight"}
    broken = tmp_path / "broken"
    shutil.copytree(bert_folder, broken)
    (broken / "tokenizer.json").write_text("{")
    for name, source, message in [
        ("chexbert", tmp_path / "nowhere", "nowhere does not exist"),
        ("chexbert", page, "not a whole PyTorch checkpoint"),
        ("chexbert", bert_folder, "is a folder"),
        (
            "chexbert",
            write_checkpoint(tmp_path / "headless.pth", headless),
            r"Missing key\(s\) in state_dict: .linear_heads\.3\.weight",
        ),
        ("radgraph", page, "not a complete archive"),
        ("radgraph", cut, "not a complete archive"),
        ("radgraph", poor, r"it lacks weights\.th"),
        ("radgraph-xl", empty, r"it lacks config\.json, vocabulary/.*, weights\.th"),
        ("radgraph-tokenizer", page, "is a file"),
        ("radgraph-tokenizer", empty, r"lacks config\.json"),
        ("chexbert-tokenizer", broken, "has no tokenizer that loads"),
        ("bertscore", bert_folder, r"lacks model\.safetensors"),
        ("chexpert", page, "Unknown weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            add(name, source)
    assert not weights.exists()


def test_an_interrupted_add_leaves_what_was_there(places, bert_folder, tmp_path, monkeypatch) -> None:
    def copy_half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:1000])
        raise KeyboardInterrupt

    weights, _ = places
    source = write_checkpoint(tmp_path / "chexbert.pth", random_state(40))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copy_half)
        with pytest.raises(KeyboardInterrupt):
            add("chexbert", source)
    assert list(weights.iterdir()) == []
    add("chexbert-tokenizer", bert_folder)
    before = digest(weights / "chexbert-tokenizer")
    torn = tmp_path / "torn"
    shutil.copytree(bert_folder, torn)
    (torn / "lost.txt").symlink_to("/nowhere/lost.txt")
    with pytest.raises(OSError, match=r"lost\.txt"):
        add("chexbert-tokenizer", torn)
    assert [path.name for path in weights.iterdir()] == ["chexbert-tokenizer"]
    assert digest(weights / "chexbert-tokenizer") == before


def test_digests_of_files_and_folders(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert digest(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    seen = set()
    for i, files in enumerate([("a", "b/c"), ("b/c", "a"), ("a", "b/d"), ("a",)]):
        for file in files:
            (tmp_path / f"{i}" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{i}" / file).write_text(file[-1:])
        seen.add(digest(tmp_path / f"{i}"))
    assert digest(tmp_path / "0") == digest(tmp_path / "1")
    assert len(seen) == 3
    (tmp_path / "1" / "a").write_text("other")
    assert digest(tmp_path / "1") not in seen


# ---- the action


def test_the_table_names_everything_and_tells_what_is_missing(places, capsys) -> None:
    weights, hub = places
    assert run() == (0, "")
    text = capsys.readouterr().out
    for name, entry in WEIGHTS.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert row.split()[1] == "missing"
        assert entry.used_by in row
        assert entry.terms in text
        assert all(str(weights / place) in text for place in entry.places(name))
    assert str(hub) in text
    assert not weights.exists()


def test_the_table_shows_what_is_found(places, tmp_path, capsys) -> None:
    weights, _ = places
    source = write_checkpoint(tmp_path / "chexbert.pth", random_state(40))
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert run("--add", "chexbert", "--file", source) == (0, "")
    text = capsys.readouterr().out
    assert str(weights / "chexbert.pth") in text
    assert sha256 in text
    assert "not the published file" in text
    assert run() == (0, "")
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["chexbert"][1] == "found"
    assert sha256[:12] in rows["chexbert"]
    assert rows["radgraph"][1] == "missing"
    assert rows["at"][1] == str(weights / "chexbert.pth")


def test_fetching_offline_is_refused_in_one_line(places, capsys) -> None:
    _, hub = places
    put_in_hub_cache(hub, "bertscore")
    for name in ("chexbert", "radgraph-tokenizer"):
        status, sentence = run("--fetch", "bertscore", name)
        assert status == 1
        assert sentence.startswith(f"raddraft weights: {name} could not be fetched from huggingface.co/")
        assert "HF_HUB_OFFLINE is set" in sentence
        assert "\n" not in sentence
        assert capsys.readouterr().out.startswith("bertscore: "), "what could be had was had"


@pytest.mark.parametrize("arguments", [("--add", "chexbert"), ("--file", "chexbert.pth")])
def test_add_and_file_belong_together(arguments) -> None:
    sentence = "raddraft weights: --add and --file belong together: --add NAME --file PATH"
    assert run(*arguments) == (1, sentence)
