"""Test films that are known already: from a tower's training by its card, as copies of train films by their look."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoder import looks, probe, segment
from encoder.cards import TOWERS
from encoder.config import EncoderConfig
from encoder.digests import digest_files
from encoder.encoding import _encode
from encoder.features import open_store
from encoder.leaks import LeakError, check_copies, find_copies, split_groups
from encoder.looks import LookList, find_looks
from encoder.seen import count_seen, training_of
from encoder.survey import NEAR, SAME_DETAILS, details, perceptual_hash, shrink
from generator.compare_seen import explain_marks
from raddraft.images import load_image
from raddraft.studies import Study, StudyImage, read_studies, write_studies
from tests.test_cli import run
from tests.test_compare import TASKS, studies, write_config
from tests.test_features import count_decoded

__all__ = ["studies"]

UNKNOWN = {"unknown_patient": True}


# ---- films that a tower had in training


@pytest.mark.parametrize(
    ("tower", "source", "split", "extra", "mark"),
    [
        ("rad-dino", "nih", "test", {}, "‡"),  # its list names all of NIH
        ("microsoft/rad-dino", "nih", "test", {}, "‡"),
        ("rad-dino", "rsna", "test", {}, "‡"),
        ("rad-dino", "rsna", "test", UNKNOWN, "‡"),  # whichever film of NIH it is
        ("rad-dino", "siim", "test", UNKNOWN, "‡"),
        ("rad-dino", "chexpert", "val", {}, "‡"),
        ("rad-dino", "chexpert-plus", "train", {}, "‡"),
        ("rad-dino", "chexlocalize", "val", {}, "‡"),
        ("rad-dino", "chexlocalize", "test", {}, ""),
        ("rad-dino", "mimic-cxr", "test", {}, ""),
        ("rad-dino", "ms-cxr", "train", {}, "‡"),
        ("rad-dino", "ms-cxr", "test", {}, ""),
        ("rad-dino", "ms-cxr", "test", {"own_split": True}, "(‡)"),
        ("rad-dino", "padchest-gr", "test", {}, "(‡)"),  # its split of PadChest is not known
        ("rad-dino", "vindr-cxr", "train", {}, ""),
        ("cxformer-small", "nih", "test", {}, ""),
        ("cxformer-small", "rsna", "train", {}, "‡"),  # with the mapping, NIH's split
        ("cxformer-small", "rsna", "test", UNKNOWN, "(‡)"),
        ("ark-plus:Ark6.pth.tar", "rsna", "test", {}, "(‡)"),  # trained on RSNA, with splits of its own
        ("ark-plus", "nih", "test", {}, "(‡)"),  # some of these are RSNA's
        ("ark-plus", "vindr-ribcxr", "val", UNKNOWN, "(‡)"),
        ("random:rad-dino", "nih", "test", {}, ""),
        ("pixels", "nih", "test", {}, ""),
        ("dinov2-small", "nih", "test", {}, ""),
        ("rad-dino", "mine", "test", {}, ""),
        ("rad-dino", None, "test", {}, ""),
    ],
)
def test_sets_and_splits_of_a_card_are_met_by_those_of_studies(tower, source, split, extra, mark) -> None:
    study = Study("s", "p", split, [], source=source, extra=extra)
    seen = count_seen(training_of(tower), [study])
    assert seen.mark == mark
    assert (sum(seen.had.values()), sum(seen.may.values())) == (mark == "‡", mark == "(‡)")


def test_what_is_not_known_is_none_and_a_folder_may_be_told() -> None:
    assert training_of("/models/x") is training_of("features:x.npz") is training_of("rad-dino-maira-2") is None
    assert training_of("/models/x", "rad-dino") == TOWERS["rad-dino"].trained_on
    with pytest.raises(ValueError, match=r"known_as: unknown tower 'rad-din'\. Choices: rad-dino, "):
        training_of("/models/x", "rad-din")
    for tower in ("pixels", "random:/models/x", "dinov2-small", "microsoft/rad-dino", "ark-plus:Ark6.pth.tar"):
        with pytest.raises(ValueError, match=f"known_as: 'rad-dino' is for a folder or a file, and '{tower}' is known"):
            training_of(tower, "rad-dino")


def test_films_of_an_unknown_set_are_named_since_no_mark_says_nothing_of_them() -> None:
    films = [
        Study(f"{i}", "p", "test", [], source=source) for i, source in enumerate(["rexrank", "mine", "folder:a", None])
    ]
    seen = count_seen(training_of("rad-dino"), films)
    assert (seen.mark, seen.to_dict()["unknown"]) == ("", {"rexrank": 1, "folder:a": 1, "no source": 1})
    assert seen.tell() == [
        "of 3 of 4 test studies the set is not known (rexrank; folder:a; no source): whether the encoder was trained "
        "on them cannot be told"
    ]
    assert count_seen(training_of("pixels"), films).tell() == []
    [line] = explain_marks({"seen": {"rad-dino": {"Edema": seen.to_dict()}}})
    assert line.endswith("not known, so that nothing is marked: rexrank, folder:a, no source.")


def test_counts_and_sources_are_told() -> None:
    films = [Study(f"{i}", "p", "test", [], source=source) for i, source in enumerate(["rsna", "nih", "nih", "mine"])]
    seen = count_seen(training_of("rad-dino"), films)
    assert str(seen) == "was trained on 3 of 4 test studies (rsna, films of nih; nih)"
    assert seen.to_dict() == {"mark": "‡", "studies": 4, "had": {"rsna": 1, "nih": 2}, "may": {}}


@pytest.fixture
def several(studies: Path) -> Path:
    """The 60 pictures as films of NIH, of RSNA and of a set of one's own."""
    rows = read_studies(studies)
    for study in rows:
        study.source = ("nih", "rsna", "mine")[int(study.study_id[1:]) // 4 % 3]
        study.subject_id = study.study_id
    write_studies(studies, rows)
    return studies


def test_cells_of_films_that_a_tower_had_in_training_are_marked(tmp_path, several, tower_folder, monkeypatch) -> None:
    own = shutil.copytree(tower_folder, tmp_path / "rad-dino")  # for the hub's
    monkeypatch.setitem(TOWERS, "rad-dino", replace(TOWERS["rad-dino"], source=str(own)))
    towers = [
        {"tower": "pixels"},
        {"tower": "rad-dino"},
        {"tower": str(tower_folder), "label": "folder", "known_as": "rad-dino"},
        {"tower": str(tower_folder), "label": "cxformer", "known_as": "cxformer-small"},
        {"tower": str(tower_folder), "label": "whose"},
    ]
    tasks = [TASKS[0] | {"name": source, "sources": [source]} for source in ("nih", "rsna", "mine")]
    config = write_config(tmp_path, several, towers, [*tasks, TASKS[0]])
    assert run("compare", "--config", config) == (0, "")
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    tested = {
        name: sum(study.split == "test" and study.source == name for study in read_studies(several))
        for name in ("nih", "rsna", "mine")
    }
    marked = {"mark": "‡", "may": {}}
    for row in ("rad-dino", "folder"):
        assert result["seen"][row] == {
            "nih": marked | {"studies": tested["nih"], "had": {"nih": tested["nih"]}},
            "rsna": marked | {"studies": tested["rsna"], "had": {"rsna": tested["rsna"]}},
            "Edema": marked | {"studies": 14, "had": {"nih": tested["nih"], "rsna": tested["rsna"]}},
        }
    assert set(result["seen"]) == {"rad-dino", "folder"}, "CXformer was not trained on NIH's test split"
    assert result["training_unknown"] == ["whose"]
    rows = [line.split("|")[1:] for line in (tmp_path / "out" / "table.md").read_text().splitlines() if "|" in line]
    cells = {row[0].strip().removesuffix(" (baseline)"): ["‡" in cell for cell in row[1:]] for row in rows[2:]}
    assert cells["rad-dino"] == cells["folder"] == [True, True, False, True, False]
    assert not any(cells["pixels"] + cells["cxformer"] + cells["whose"])
    told = f"‡ was trained on {tested['rsna']} of {tested['rsna']} test studies (rsna, films of nih), by what its"
    assert any(sentence.startswith(told) for sentence in result["warnings"]["rad-dino"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<sup>‡</sup>") >= 6
    assert "not known here, so that nothing is marked: whose" in page


def test_numbers_of_probe_and_segment_are_marked(tmp_path, several, tower_folder, capsys) -> None:
    common = ["--studies", several, "--tower", tower_folder, "--features", tmp_path / "features", "--workers", 0]
    probed = [*common, "--kind", "binary", "--targets", "Edema", "--probe.resamples", 50, "--out", tmp_path / "p.json"]
    masks = [*common, "--structures", "square", "--epochs", 1, "--resamples", 50, "--out", tmp_path / "s.json"]
    for action, arguments, number in (("probe", probed, r"Edema .*\]‡"), ("segment", masks, r"square .*\]‡ .*\]‡")):
        assert run(action, *arguments, "--known-as", "rad-dino") == (0, "")
        shown = capsys.readouterr().out
        assert re.search(number, shown)
        assert re.search(r"warning: ‡ was trained on \d+ of 14 test studies \(", shown)
        seen = json.loads((tmp_path / f"{action[0]}.json").read_text())["seen"]
        assert (seen["mark"], set(seen["had"])) == ("‡", {"nih", "rsna"})
        assert run(action, *arguments) == (0, "")
        assert "‡" not in capsys.readouterr().out
        assert "seen" not in json.loads((tmp_path / f"{action[0]}.json").read_text())


# ---- copies


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Six computed frontal films of different patients."""
    from generator.corpora.phantom import convert

    root = tmp_path_factory.mktemp("phantoms")
    convert(root, count=6, size=240, processes=1)
    return [load_image(study.main_image.path) for study in read_studies(root / "studies.jsonl")]


def film(folder: Path, number: int, image: Image.Image, name: str, split: str, source: str) -> Study:
    image.save(folder / name)
    return Study(f"s{number}", f"p{number}", split, [StudyImage(folder / name, "PA")], source=source)


def check(found: list[Study], refuse: bool = True, **options: Any) -> list[str]:
    return check_copies(split_groups(found), [one.main_image.path for one in found], refuse=refuse, **options)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "same.png": lambda image: image,
    "saved.jpg": lambda image: image,
    "half.png": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR),
    "double.png": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "window.png": lambda image: image.point([round(255 * (level / 255) ** 0.8) for level in range(256)]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_test_film_that_is_a_train_film_saved_again_is_refused_with_the_ids(phantoms, tmp_path, name) -> None:
    """RSNA's films are NIH's, in other files and under other names."""
    found = [film(tmp_path, i, image, f"{i}.png", "train", "nih") for i, image in enumerate(phantoms[:4])]
    other = film(tmp_path, 5, phantoms[5], "other.png", "test", "rsna")
    assert check([*found, other]) == []
    copy = film(tmp_path, 6, CHANGES[name](phantoms[2]), name, "test", "rsna")
    with pytest.raises(LeakError, match=rf"study s6 of test \({name}\) shows study s2 of train \(2\.png\)") as caught:
        check([*found, other, copy])
    assert caught.value.table.count("\n") == 0, "no other film"
    [told] = check([*found, other, copy], refuse=False)
    assert told.startswith("1 test films are also train films, e.g. study s6 of test")
    copy.split = "val"
    assert check([*found, other, copy]) == [], "val only chooses"
    folds = {"fold 1": found, "fold 2": [other, copy]}
    with pytest.raises(LeakError, match="2 test films are also train films"):
        check_copies(folds, [one.main_image.path for one in [*found, other, copy]], tested=folds, trained=folds)


def test_a_film_that_was_moved_is_told_and_phantoms_that_are_near_are_not(phantoms, tmp_path) -> None:
    moved = phantoms[0].transform((240, 240), Image.Transform.AFFINE, (1, 0, 2, 0, 1, 1))
    for source, count in (("nih", 1), ("phantom", 0)):
        pair = [
            film(tmp_path, i, one, f"{i}.png", split, source)
            for i, (one, split) in enumerate([(phantoms[0], "train"), (moved, "test")])
        ]
        [copy] = find_copies(split_groups(pair), [one.main_image.path for one in pair])
        assert 0 < copy.bits <= NEAR
        assert 0 < copy.alike < SAME_DETAILS
        told = check(pair)
        assert len(told) == count
        assert all(
            "1 test films look like train films, though not in detail, e.g. study s1 of test" in one for one in told
        )


@pytest.mark.parametrize(("side", "source"), [(240, "phantom"), (56, "nih")])
def test_phantoms_and_tiny_films_are_refused_only_as_the_same_file(phantoms, tmp_path, side, source) -> None:
    """Phantoms of different patients can agree in all details, above all after `prepare resize --size 28`."""
    image = phantoms[0].resize((side, side))
    train = film(tmp_path, 0, image, "0.png", "train", source)
    other = film(tmp_path, 1, image.point(lambda level: level * 0.9), "1.png", "test", source)
    told = [] if source == "phantom" else ["1 test films look like train films, though not in detail"]
    assert [sentence.split(", e.g.")[0] for sentence in check([train, other])] == told
    same = film(tmp_path, 2, image, "2.png", "test", source)
    with pytest.raises(
        LeakError, match=r"study s2 of test \(2\.png\) shows study s0 of train \(0\.png\): the same file"
    ):
        check([train, same])


def test_the_same_file_is_said_of_equal_files_alone(phantoms, tmp_path) -> None:
    train = film(tmp_path, 0, phantoms[0], "0.png", "train", "nih")
    phantoms[0].save(tmp_path / "1.png", compress_level=0)  # pixel by pixel the same
    other = Study("s1", "p1", "test", [StudyImage(tmp_path / "1.png", "PA")], source="nih")
    with pytest.raises(LeakError, match=r"shows study s0 of train \(0\.png\): 0 of 256 bits differ"):
        check([train, other])


def test_only_images_that_are_used_are_compared(phantoms, tmp_path) -> None:
    first, second = (
        film(tmp_path, i, phantoms[i], f"{i}.png", split, "nih") for i, split in ((0, "train"), (1, "test"))
    )
    phantoms[0].save(tmp_path / "lateral.png", compress_level=1)
    second.images.append(StudyImage(tmp_path / "lateral.png", "LATERAL"))
    assert check([first, second]) == []
    with pytest.raises(LeakError, match=r"study s1 of test \(lateral.png\) shows study s0 of train"):
        check_copies(split_groups([first, second]), [image.path for one in (first, second) for image in one.images])


def test_probe_and_segment_refuse_before_they_measure(tmp_path, studies, tower_folder, monkeypatch) -> None:
    (tmp_path / "0.png").write_bytes((tmp_path / "59.png").read_bytes())
    monkeypatch.setattr(probe, "run_probe", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(segment, "segment", lambda *_: pytest.fail("measured"))
    common = ["--studies", studies, "--tower", tower_folder, "--features", tmp_path / "features", "--workers", 0]
    for arguments in (["probe", "--kind", "binary", "--targets", "Edema"], ["segment", "--structures", "square"]):
        status, message = run(*arguments, *common, "--out", tmp_path / "out.json")
        assert status == 1
        assert "study s59 of test (59.png) shows study s0 of train (0.png): the same file" in message


def test_compare_refuses_films_of_another_name_by_look_and_by_patient(phantoms, tmp_path, capsys) -> None:
    found = [
        film(tmp_path, i, image, f"{i}.png", ("train", "train", "val", "val", "test", "test")[i], "nih")
        for i, image in enumerate(phantoms)
    ]
    for i, study in enumerate(found):
        study.labels = {"Edema": i % 2}
    copy = film(tmp_path, 7, phantoms[1].resize((200, 200)), "rsna.jpg", "test", "rsna")
    copy.labels, copy.extra = {"Edema": 1}, dict(UNKNOWN)
    write_studies(tmp_path / "studies.jsonl", [*found, copy])
    config = write_config(tmp_path, tmp_path / "studies.jsonl", [{"tower": "pixels"}], TASKS[:1])
    status, message = run("compare", "--config", config)
    assert status == 1
    assert "study s7 of test (rsna.jpg) shows study s1 of train (1.png)" in message
    assert "--leaks tell" in message
    assert not list((tmp_path / "out").rglob("*.json")), "nothing is measured"
    assert "auroc" not in capsys.readouterr().out
    write_config(
        tmp_path,
        tmp_path / "studies.jsonl",
        [{"tower": "pixels"}],
        [TASKS[0] | {"name": "one set", "sources": ["nih"]}, TASKS[0], TASKS[0] | {"name": "again"}],
    )
    assert run("compare", "--config", config, "--leaks", "tell") == (0, "")
    warnings = json.loads((tmp_path / "out" / "compare.json").read_text())["warnings"]["pixels"]
    [told] = [sentence for sentence in warnings if "1 test films are also train films" in sentence]
    assert told.endswith("; columns: Edema, again")
    one_set = [TASKS[0] | {"sources": ["nih"]}]
    write_config(tmp_path, tmp_path / "studies.jsonl", [{"tower": "pixels"}], one_set)
    assert run("compare", "--config", config) == (0, ""), "RSNA's films are not tested on"
    copy.subject_id, copy.extra = "p1", {}  # with its mapping RSNA names NIH's patients
    write_studies(tmp_path / "studies.jsonl", [*found, copy])
    status, message = run("compare", "--config", config, "--leaks", "tell")
    assert status == 1
    assert "studies.jsonl line 7: subject 'p1' is in split 'test', and in 'train' on line 2" in message


# ---- hashes are made in passing, and kept


def test_hashes_come_out_of_the_pass_that_makes_features(phantoms, tmp_path, monkeypatch) -> None:
    found = [film(tmp_path, i, image, f"{i}.png", "train", "nih") for i, image in enumerate(phantoms)]
    paths, folder = [one.main_image.path for one in found], tmp_path / "features"
    open_store(EncoderConfig(tower="pixels", features=folder, workers=0, gray_mapping="minmax"), paths, quiet=True)
    known = LookList(folder, "minmax").find([digest for digest in digest_files(paths, folder) if digest])
    expected = [perceptual_hash(shrink(load_image(path, "minmax"))) for path in paths]
    assert [known[digest].tolist() for digest in digest_files(paths, folder)] == [one.tolist() for one in expected]
    decoded = count_decoded(monkeypatch)
    monkeypatch.setattr(looks, "load_image", lambda *_: pytest.fail("decoded again"))
    assert check_copies({"train": found[:3], "test": found[3:]}, paths, folder, "minmax") == []
    assert not decoded


def test_hashes_of_an_interrupted_batch_are_not_listed_twice(phantoms, tmp_path, monkeypatch) -> None:
    paths = [film(tmp_path, i, image, f"{i}.png", "train", "nih").main_image.path for i, image in enumerate(phantoms)]
    config, encode, left = EncoderConfig(tower="pixels", features=tmp_path / "f", workers=0, batch_size=2), _encode, [1]

    def dying(*arguments: Any) -> Any:
        if not left:
            raise RuntimeError("killed")
        left.pop()
        return encode(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("encoder.encoding._encode", dying)
        with pytest.raises(RuntimeError, match="killed"):
            open_store(config, paths, quiet=True)
    hashes = tmp_path / "f" / "looks-window.bin"
    assert len(hashes.read_bytes()) == 64 * 4
    open_store(config, paths, quiet=True)
    assert len(hashes.read_bytes()) == 64 * len(paths)


def test_a_hash_that_is_cut_is_made_again(phantoms, tmp_path) -> None:
    paths = [film(tmp_path, i, image, f"{i}.png", "train", "nih").main_image.path for i, image in enumerate(phantoms)]
    digests = digest_files(paths, tmp_path)
    whole = find_looks(paths, digests, tmp_path)
    file = tmp_path / "looks-window.bin"
    content = file.read_bytes()
    assert len(content) == 64 * len(paths)
    file.write_bytes(content[:-20] + bytes(20))  # by a power cut
    assert len(LookList(tmp_path, "window").find(whole)) == len(paths) - 1
    file.write_bytes(content[:-70])  # a record and a part of another one
    assert len(LookList(tmp_path, "window").find(whole)) == len(paths) - 2
    again = find_looks(paths, digests, tmp_path)
    assert {digest: look.tolist() for digest, look in again.items()} == {
        digest: look.tolist() for digest, look in whole.items()
    }
    assert len(file.read_bytes()) == len(content)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert find_looks([broken, tmp_path / "gone.png"], [*digest_files([broken], tmp_path), None], tmp_path) == {}


# ---- real films


def test_copies_of_real_films_are_told_from_other_films(cxr) -> None:
    """On a few films of each source; docs/data.md has the rates on all of them."""
    films = [study for study in read_studies(cxr / "studies.jsonl") if study.main_image.frontal][::40]
    images = [load_image(study.main_image.path) for study in films]
    own = np.array([details(shrink(image)) for image in images])
    others = own @ own.T
    subjects = np.array([study.subject_id for study in films])
    assert others[subjects[:, None] != subjects].max() < SAME_DETAILS - 0.1
    for name in ("half.png", "double.png", "window.png"):
        for image, one in zip(images, own, strict=True):
            assert one @ details(shrink(CHANGES[name](image))) >= SAME_DETAILS
