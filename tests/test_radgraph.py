"""RadGraph in batches gives what the radgraph package gives one report at a time, on random weights and real text."""

from __future__ import annotations

import csv
import json
import os
import sys
import tarfile
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers

import metrics.radgraph
from benchmarks.random_models import ENTITIES, RELATIONS, radgraph_package, save_radgraph
from metrics.radgraph import RadGraph, radgraph_f1
from raddraft.errors import UnavailableError
from tests.conftest import SENTENCES
from tests.launch import SERVER

ODD_TEXTS = [
    "clear",
    ".",
    "Effusion \x00 \x01 left \x02.",  # the tokenizer drops control characters: words without a piece
    "\x00 \x01",
    "Herz vergrößert; сердце 心臓 normal /. ok",
    "Heart/lungs:normal,(no effusion)!  \n\n No   change\\n of ET tube at 50%. 'as is'",
    "x" * 300,
]
REPORTS = [
    "Frontal and lateral views demonstrate a tortuous aorta. Bibasilar opacities, likely atelectasis. No disease.",
    "Cardiomediastinal contours within normal limits; mild degenerative changes in the thoracic spine, unchanged.",
    "Low lung volumes with bronchovascular crowding. Blunted costophrenic angle suggests a trace effusion (left).",
    "Interval removal of the chest tube. No visible pneumothorax! Subcutaneous emphysema has nearly resolved.",
]
"""Made up, in a radiologist's words."""


@pytest.fixture(scope="session")
def model(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"), bert_folder, "radgraph")


@pytest.fixture(scope="session")
def reports(cxr: Path) -> list[str]:
    with open(cxr / "iu" / "indiana_reports.csv", newline="", encoding="utf-8") as file:
        texts = [f"{row['findings']} {row['impression']}".strip() for row in csv.DictReader(file)]
    return [text for text in texts if text][:200]


@pytest.fixture(scope="session")
def expected(model: Path, reports: list[str]) -> list[dict[str, Any]]:
    """The package's own annotations, one report after another."""
    return package_annotations(model, "radgraph", reports)


def make_model(parent: Path, bert_folder: Path, model_type: str) -> Path:
    """A folder as the official archive unpacks to, with random weights, so that many spans are entities and relate."""
    folder = parent / model_type
    save_radgraph(folder, bert_folder, REPORTS, model_type, 16, 3, entity_share=0.4, relation_share=0.4)
    return folder


def package_annotations(folder: Path, model_type: str, texts: list[str]) -> list[dict[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    with radgraph_package(Path(config["dataset_reader"]["token_indexers"]["bert"]["model_name"])):
        from radgraph import RadGraph as PackageRadGraph

        theirs = PackageRadGraph(model_type=model_type, model_cache_dir=str(folder.parent), cuda=-1)
        found = theirs(texts)
    return [found[str(number)] for number in range(len(texts))]


def in_batches(annotator: RadGraph, texts: list[str]) -> list[dict[str, Any]]:
    size = annotator.batch_size
    return [found for i in range(0, len(texts), size) for found in annotator.annotate(texts[i : i + size])]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batches_give_the_packages_annotations(
    model: Path, reports: list[str], expected: list[dict[str, Any]], batch_size: int
) -> None:
    annotator = RadGraph(model, batch_size=batch_size, device="cpu")
    relations = [sum(len(entity["relations"]) for entity in found["entities"].values()) for found in expected]
    labels = {entity["label"] for found in expected for entity in found["entities"].values()}
    names = {name for found in expected for entity in found["entities"].values() for name, _ in entity["relations"]}
    assert sum(count >= 2 for count in relations) > len(reports) / 4  # else this test could not fail
    assert labels == set(ENTITIES) - {""}
    assert names == set(RELATIONS)
    assert max(len(annotator._tokenizer(text)["input_ids"]) for text in reports) > 512
    assert in_batches(annotator, reports) == expected


@pytest.mark.parametrize("model_type", ["radgraph", "radgraph-xl", "modern-radgraph-xl"])
def test_odd_texts_as_the_package_reads_them(bert_folder: Path, tmp_path: Path, model_type: Any) -> None:
    folder = make_model(tmp_path, bert_folder, model_type)
    texts = ODD_TEXTS + SENTENCES
    annotator = RadGraph(folder, model_type=model_type, batch_size=len(texts), device="cpu")
    assert annotator.annotate(texts) == package_annotations(folder, model_type, texts)
    assert annotator.annotate(texts[::-1]) == annotator.annotate(texts)[::-1]


def test_bfloat16_is_near_and_says_so(model: Path, reports: list[str], expected: list[dict[str, Any]]) -> None:
    plain, rounded = (RadGraph(model, device="cpu", bfloat16=one) for one in (False, True))
    assert rounded.signature.removeprefix(plain.signature) == " bfloat16"
    assert rounded.key != plain.key, "graphs are kept apart"
    pairs = zip(expected, in_batches(rounded, reports), strict=True)
    f1s = [radgraph_f1(theirs, ours)[0] for theirs, ours in pairs if theirs["entities"]]
    assert 0.9 < sum(f1s) / len(f1s) < 1


def test_relations_do_not_depend_on_how_many_pairs_are_held_at_once(
    model: Path, reports: list[str], expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.radgraph, "PAIR_VALUES", 1000)
    assert RadGraph(model, device="cpu").annotate(reports[:16]) == expected[:16]


def test_thousands_of_words(model: Path) -> None:
    text = " ".join(" ".join(SENTENCES * 100).split()[:2000])
    found = RadGraph(model, device="cpu").annotate([text])[0]
    assert max(entity["end_ix"] for entity in found["entities"].values()) > 1500


def test_texts_without_words_have_no_entities(model: Path) -> None:
    annotator = RadGraph(model, device="cpu")
    blank = ["", " \n\t", "\x1f\xa0"]
    found = annotator.annotate([*blank, SENTENCES[0], " "])
    assert [len(annotation["entities"]) for annotation in found[:3]] == [0, 0, 0]
    assert found[3:] == annotator.annotate([SENTENCES[0], " "])
    assert found[3]["entities"]
    assert annotator.annotate(blank) == found[:3]
    assert radgraph_f1(found[0], found[3]) == radgraph_f1(found[3], found[0]) == (0, 0, 0)


def test_annotations_survive_json(model: Path) -> None:
    found = RadGraph(model, device="cpu").annotate(SENTENCES)
    assert json.loads(json.dumps(found)) == found


def entities(*rows: tuple[Any, ...]) -> dict[str, Any]:
    """An annotation of (tokens, label, (relation, number of the target), ...), numbered from 1."""
    return {
        "entities": {
            str(number): {"tokens": tokens, "label": label, "relations": [[name, str(target)] for name, target in rest]}
            for number, (tokens, label, *rest) in enumerate(rows, 1)
        }
    }


HYPOTHESIS = entities(
    ("acute", "OBS-DA"),
    ("cardiopulmonary", "ANAT-DP"),
    ("process", "OBS-DA", ("located_at", 2)),
    ("moderate", "OBS-DP"),
    ("hiatal", "ANAT-DP"),
    ("hernia", "OBS-DP"),
)
REFERENCE = entities(
    ("acute", "OBS-DA"),
    ("pulmonary", "ANAT-DP"),
    ("process", "OBS-DA"),
    ("moderately", "OBS-DP", ("modify", 5)),
    ("large", "OBS-DP", ("modify", 6), ("modify", 8)),
    ("size", "OBS-DP"),
    ("hiatal", "ANAT-DP"),
    ("hernia", "OBS-DP"),
)


def test_f1_of_a_pair_counted_by_hand() -> None:
    assert radgraph_f1(HYPOTHESIS, REFERENCE) == pytest.approx((4 / 7, 3 / 7, 0.4), abs=1e-6)
    assert radgraph_f1(REFERENCE, HYPOTHESIS) == pytest.approx((4 / 7, 3 / 7, 0.4), abs=1e-6)
    assert radgraph_f1(REFERENCE, REFERENCE) == (1, 1, 1)
    assert radgraph_f1(entities(), entities()) == radgraph_f1(entities(), REFERENCE) == (0, 0, 0)


def test_f1_equals_the_packages_reward(expected: list[dict[str, Any]]) -> None:
    from radgraph.rewards import compute_reward

    pairs = [*pairwise(expected), *zip(expected, expected, strict=True)]
    pairs += [(HYPOTHESIS, REFERENCE), (entities(), REFERENCE)]
    scores = [radgraph_f1(*pair) for pair in pairs]
    assert scores == [compute_reward(*pair, "all") for pair in pairs]
    assert all(score in ((1, 1, 1), (0, 0, 0)) for score in scores[len(expected) - 1 : -2])
    assert sum(0 < score < 1 for triple in scores for score in triple) > len(expected)


def test_f1_counts_an_entity_once_in_any_order() -> None:
    once = entities(("lung", "ANAT-DP"), ("clear", "OBS-DP", ("located_at", 1)))
    again = entities(
        ("clear", "OBS-DP", ("located_at", 3)), ("clear", "OBS-DP", ("located_at", 3)), ("lung", "ANAT-DP")
    )
    assert radgraph_f1(once, again) == (1, 1, 1)


def test_f1_minds_case_as_the_package_does_unless_told() -> None:
    upper = entities(("Lungs", "ANAT-DP"), ("Clear", "OBS-DP", ("located_at", 1)))
    lower = entities(("lungs", "ANAT-DP"), ("clear", "OBS-DP", ("located_at", 1)))
    assert radgraph_f1(upper, lower) == (0, 0, 0.5)
    assert radgraph_f1(upper, lower, lower=True) == (1, 1, 1)


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        for file in folder.iterdir():
            tar.add(file, arcname=file.name)
    return archive


def copy_model(model: Path, parent: Path, without: str = "") -> Path:
    import shutil

    folder = parent / model.name
    shutil.copytree(model, folder)
    lost = folder / without
    if without:
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    return folder


def test_archive_is_unpacked_once_into_the_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, cache = pack(model, tmp_path / "radgraph.tar.gz"), tmp_path / "cache"
    annotator = RadGraph(archive, device="cpu", cache=cache)
    assert annotator.key == RadGraph(model, device="cpu").key
    assert annotator.annotate(SENTENCES) == RadGraph(model, device="cpu").annotate(SENTENCES)
    (unpacked,) = cache.iterdir()
    monkeypatch.setattr(tarfile, "open", None)
    RadGraph(archive, device="cpu", cache=cache)
    monkeypatch.undo()
    (unpacked / "weights.th").unlink()  # somebody tidied up
    assert RadGraph(archive, device="cpu", cache=cache).key == annotator.key
    assert list(cache.iterdir()) == [unpacked]


@pytest.mark.parametrize("without", ["weights.th", "vocabulary", "config.json"])
def test_half_a_folder_gives_way_to_the_archive_beside_it(model: Path, tmp_path: Path, without: str) -> None:
    folder = copy_model(model, tmp_path, without)
    with pytest.raises(ValueError, match=f"{folder} is not a radgraph model: it lacks {without}"):
        RadGraph(folder, device="cpu", cache=tmp_path / "cache")
    pack(model, tmp_path / "radgraph.tar.gz")
    assert RadGraph(folder, device="cpu", cache=tmp_path / "cache").annotate(SENTENCES)[0]["entities"]


def test_empty_folder_missing_model_and_other_model_type(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks config.json, vocabulary/.*, weights.th"):
        RadGraph(tmp_path, cache=tmp_path)
    with pytest.raises(UnavailableError, match=r"No RadGraph model at .*nowhere.*StanfordAIMI"):
        RadGraph(tmp_path / "nowhere", cache=tmp_path)
    with pytest.raises(ValueError, match=r"lacks vocabulary/radgraph-xl__ner_labels.txt"):
        RadGraph(model, model_type="radgraph-xl", cache=tmp_path)


def test_broken_archives_leave_nothing_behind(model: Path, tmp_path: Path) -> None:
    whole = pack(model, tmp_path / "whole.tar.gz").read_bytes()
    cache = tmp_path / "cache"
    damaged = whole[:2000] + bytes(64) + whole[2064:]
    for content in (whole[: len(whole) // 2], whole[:-4], b"no archive", damaged):
        archive = tmp_path / "radgraph.tar.gz"
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"radgraph.tar.gz cannot be unpacked"):
            RadGraph(archive, cache=cache)
    with pytest.raises(ValueError, match=r"is not a radgraph model: it lacks weights.th"):
        RadGraph(pack(copy_model(model, tmp_path, "weights.th"), tmp_path / "less.tar.gz"), cache=cache)
    assert list(cache.iterdir()) == []


def test_archive_cannot_write_elsewhere(model: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "radgraph.tar.gz", "w:gz") as tar:
        tar.add(model / "config.json", arcname="../../escaped.json")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        RadGraph(tmp_path / "radgraph.tar.gz", cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped.json"))


def test_weights_cut_off_or_of_another_shape(model: Path, tmp_path: Path) -> None:
    import torch

    weights = copy_model(model, tmp_path) / "weights.th"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"weights.th is truncated"):
        RadGraph(weights.parent, device="cpu")
    weights.write_bytes(content)
    state = torch.load(weights, weights_only=True)
    torch.save({name: state[name] for name in list(state)[1:]}, weights)
    with pytest.raises(ValueError, match=r"(?s)does not match config.json.*Missing key"):
        RadGraph(weights.parent, device="cpu")


def test_config_cut_off_or_of_something_else(model: Path, tmp_path: Path) -> None:
    config = copy_model(model, tmp_path) / "config.json"
    for content, message in [('{"model":', "is not JSON"), ('{"model": {}}', "does not describe a RadGraph model")]:
        config.write_text(content)
        with pytest.raises(ValueError, match=f"config.json {message}"):
            RadGraph(config.parent, device="cpu")


def test_missing_tokenizer_is_named(model: Path, bert_folder: Path, tmp_path: Path) -> None:
    folder = copy_model(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["dataset_reader"]["token_indexers"]["bert"]["model_name"] = "nobody/words"
    config["model"]["embedder"]["token_embedders"]["bert"]["model_name"] = "nobody/network"
    (folder / "config.json").write_text(json.dumps(config))
    message = r"(?s)'nobody/words' \(dataset_reader.*'nobody/network' \(model.*as `tokenizer`"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    for tokenizer in (None, tmp_path / "nowhere", tmp_path / "half"):
        with pytest.raises(UnavailableError, match=message):
            RadGraph(folder, tokenizer, device="cpu")
    assert RadGraph(folder, bert_folder, device="cpu").annotate(SENTENCES)[0]["entities"]


def test_key_follows_what_changes_an_annotation(model: Path, bert_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    annotator = RadGraph(model, device="cpu")
    copy = copy_model(model, tmp_path)
    assert RadGraph(copy, device="cpu", batch_size=3).key == annotator.key
    cased = AutoTokenizer.from_pretrained(bert_folder, do_lower_case=False)
    cased.save_pretrained(tmp_path / "cased")
    (tmp_path / "cased" / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    keys = [annotator.key, RadGraph(copy, tmp_path / "cased", device="cpu").key]
    with open(copy / "vocabulary" / "radgraph__relation_labels.txt", "r+") as file:
        lines = file.read().split()
        file.seek(0)
        file.write("\n".join(lines[::-1]))
    keys.append(RadGraph(copy, device="cpu").key)
    state = torch.load(copy / "weights.th", weights_only=True)
    next(iter(state.values())).add_(1e-3)
    torch.save(state, copy / "weights.th")
    changed = RadGraph(copy, device="cpu")
    assert len({*keys, changed.key}) == 4
    assert changed.signature != annotator.signature


def test_package_is_kept_quiet(model: Path, tmp_path: Path) -> None:
    """No print, no warning filter, no folder in the user's home, nothing written beside the weights."""
    before = sorted(model.rglob("*"))
    home, output = tmp_path / "home", tmp_path / "output.txt"
    home.mkdir()
    process = SERVER.Process(target=annotate_here, args=(model, home, output))
    process.start()
    process.join()
    assert (process.exitcode, output.read_text()) == (0, "")
    assert list(home.iterdir()) == []
    assert sorted(model.rglob("*")) == before


def annotate_here(model: Path, home: Path, output: Path) -> None:
    """In a process in which the package radgraph has not been imported."""
    os.environ["HOME"] = str(home)
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "BertModel", "BertTokenizer"):
        getattr(transformers, name)  # is imported only now, and adds filters of its own
    before = set(warnings.filters)
    assert "radgraph" not in sys.modules
    assert RadGraph(str(model), device="cpu").annotate(["The heart is enlarged.", "clear"])[0]["entities"]
    assert set(warnings.filters) == before, set(warnings.filters) ^ before
