"""The manifest: faults are named by file, line and value; what is written reads back; real data can be read."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raddraft import studies
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.studies import (
    SPLITS,
    ManifestError,
    Study,
    StudyImage,
    count_splits,
    deal_folds,
    read_studies,
    skim,
    write_studies,
)


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A line of a manifest; a change to `...` takes the key out."""
    base = {"study_id": f"s{number}", "subject_id": f"p{number}", "split": "train", "images": [{"path": "a.png"}]}
    return {key: value for key, value in (base | changes).items() if value is not ...}


def write_lines(folder: Path, *lines: Any) -> Path:
    path = folder / "studies.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"study_id": "s2", }', "not valid JSON: Expecting property name enclosed in double quotes at character 20"),
        ('{"study_id": "s2"', "not valid JSON: Expecting ',' delimiter at character 19"),
        ("[1, 2]", "expected an object, got list"),
        (row(2, study_id=...), "key 'study_id' is missing"),
        (row(2, subject_id=...), "key 'subject_id' is missing"),
        (row(2, split=...), "key 'split' is missing"),
        (row(2, images=...), "key 'images' is missing"),
        (row(2, study_id=17), "study_id must be a string, got 17"),
        (row(2, subject_id=""), "subject_id must be a non-empty string, got ''"),
        (row(2, study_id="s1"), "duplicate study_id 's1', first on line 1"),
        (row(2, split="validate"), "unknown split 'validate'. Choices: train, val, test"),
        (row(2, split=["train"]), "split must be a string, got ['train']"),
        (row(2, subject_id="p1", split="val"), "subject 'p1' is in split 'val', and in 'train' on line 1"),
        (row(2, images=[]), "images must be a non-empty list, got []"),
        (row(2, images="a.png"), "images must be a non-empty list, got 'a.png'"),
        (row(2, images=["a.png"]), "an image must be an object with a path, got 'a.png'"),
        (row(2, images=[{"view": "PA"}]), "an image must be an object with a path, got {'view': 'PA'}"),
        (row(2, images=[{"path": ""}]), "an image must be an object with a path, got {'path': ''}"),
        (row(2, images=[{"path": "a.png", "view": 3}]), "view must be a string or null, got 3"),
        (row(2, images=[{"path": "a.png", "masks": ["m.png"]}]), "masks must be an object, got ['m.png']"),
        (
            row(2, images=[{"path": "a.png", "masks": {"lungs": 1}}]),
            "masks must map a structure to a path, got {'lungs': 1}",
        ),
        (row(2, sections="Clear."), "sections must be an object, got 'Clear.'"),
        (row(2, sections=[]), "sections must be an object, got []"),
        (row(2, sections={"findings": 5}), "section 'findings' must be a string, got 5"),
        (row(2, study_id="nan"), "study_id must be a non-empty string, got 'nan'"),
        (row(2, subject_id="<NA>"), "subject_id must be a non-empty string, got '<NA>'"),
        (row(2, subject_id=float("nan")), "subject_id must be a string, got None"),
        (row(2, study_id=" "), "study_id must be a non-empty string, got ' '"),
        (row(2, labels=["Edema"]), "labels must be an object, got ['Edema']"),
        (row(2, labels={"Edema": 2}), "label 'Edema' is 2. Choices: 1, 0, -1, null"),
        (row(2, labels={"Edema": True}), "label 'Edema' is True. Choices: 1, 0, -1, null"),
        (row(2, labels={"Edema": "1"}), "label 'Edema' is '1'. Choices: 1, 0, -1, null"),
        (row(2, patient="F"), "patient must be an object, got 'F'"),
        (row(2, source=5), "source must be a string or null, got 5"),
    ],
)
def test_a_fault_is_named_with_its_line_and_value(tmp_path: Path, second: Any, message: str) -> None:
    path = write_lines(tmp_path, row(1), second, row(3))
    with pytest.raises(ManifestError) as error:
        read_studies(path)
    assert str(error.value) == f"studies.jsonl line 2: {message}"


def test_a_fault_in_another_split_is_found_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path, row(1), "", row(2, split="test", labels={"Edema": 7}))
    with pytest.raises(ManifestError, match="line 3: label 'Edema' is 7"):
        read_studies(path, "train")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    line = json.dumps(row(1, sections={"findings": "Épanchement pleural."}), ensure_ascii=False)
    (tmp_path / "studies.jsonl").write_bytes(line.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"^studies\.jsonl line 1: not UTF-8: .* byte 0xc9"):
        read_studies(tmp_path / "studies.jsonl")


def test_files_written_on_windows_are_read(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row(number)) + "\r\n" for number in (1, 2))
    (tmp_path / "studies.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())  # byte order mark
    assert [study.study_id for study in read_studies(tmp_path / "studies.jsonl")] == ["s1", "s2"]


@pytest.mark.parametrize("name", ["gone.png", "x" * 300])
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_missing_files_are_named_if_asked_for(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "a.png").touch()
    images = [{"path": "a.png"}, {"path": name}]
    if kind == "mask":
        images = [{"path": "a.png", "masks": {"lungs": name}}]
    path = write_lines(tmp_path, row(1), row(2, images=images))
    assert len(read_studies(path)) == 2
    with pytest.raises(ManifestError) as error:
        read_studies(path, check_images=True)
    assert str(error.value) == f"studies.jsonl line 2: {kind} '{tmp_path / name}' does not exist"


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"studies\.jsonl: no study$"):
        read_studies(write_lines(tmp_path, "", "  "))
    path = write_lines(tmp_path, row(1), row(2), row(3, split="test"))
    with pytest.raises(ManifestError, match=r"no study in split 'val' \(there are: train 2, val 0, test 1\)$"):
        read_studies(path, "val")
    with pytest.raises(ManifestError, match=r"Unknown split 'dev'\. Choices: train, val, test"):
        read_studies(path, "dev")
    with pytest.raises(FileNotFoundError):
        read_studies(tmp_path / "nowhere.jsonl")


def test_optional_parts_may_be_null_or_missing(tmp_path: Path) -> None:
    empty = {"sections": None, "labels": None, "patient": None, "source": None}
    path = write_lines(tmp_path, row(1), row(2, images=[{"path": "a.png", "masks": None, "view": None}], **empty))
    first, second = read_studies(path)
    image = StudyImage(tmp_path / "a.png")
    assert first == Study("s1", "p1", "train", [image])
    assert second == Study("s2", "p2", "train", [image])


def full_study(data: Path) -> Study:
    return Study(
        study_id="Fall 1 – Ärztin",
        subject_id="患者1",
        split="val",
        images=[
            StudyImage(data / "bild ä.png", "PA", {"lungs": data / "masks" / "肺.png"}, {"license": "CC0", "rows": 3}),
            StudyImage(data / "b.png", None),
        ],
        sections={"findings": "Kein Erguß; “clear” lungs.\nЛёгкие чистые."},
        labels={"Edema": 1, "Fracture": 0, "Pneumonia": -1, "Mass": None},
        patient={"sex": "F", "age": 63.5, "weight": None},
        source="made up",
        extra={"clinical": {"days": [1, 2]}, "note": None},
    )


def test_nan_is_nothing(tmp_path: Path) -> None:
    row = {"study_id": "s", "subject_id": "p", "split": "train", "images": [{"path": "x.png", "view": float("nan")}]}
    row |= {"patient": {"age": float("nan"), "sex": "F"}, "labels": {"Edema": float("nan"), "Mass": 1}}
    (tmp_path / "studies.jsonl").write_text(json.dumps(row) + "\n")
    [study] = read_studies(tmp_path / "studies.jsonl")
    assert (study.patient, study.labels) == ({"age": None, "sex": "F"}, {"Edema": None, "Mass": 1})
    assert study.main_image.view is None


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    """All fields, keys that the format does not know, letters of any language; the data lie beside the manifest."""
    studies = [full_study(tmp_path / "data"), Study("s2", "p2", "train", [StudyImage(tmp_path / "c.png", "LATERAL")])]
    path = tmp_path / "lists" / "deep" / "studies.jsonl"
    assert write_studies(path, iter(studies)) == 2
    assert read_studies(path) == studies
    assert read_studies(path, "val") == studies[:1]
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert [image["path"] for image in first["images"]] == ["../../data/bild ä.png", "../../data/b.png"]
    assert first["images"][0]["masks"] == {"lungs": "../../data/masks/肺.png"}
    assert second == {
        "study_id": "s2",
        "subject_id": "p2",
        "split": "train",
        "images": [{"path": "../../c.png", "view": "LATERAL"}],
    }
    assert "Лёгкие" in path.read_text(encoding="utf-8"), "people read these files"


def many(folder: Path, n: int = 100) -> list[Study]:
    """Studies whose lines are packed in several parts."""
    return [
        Study(f"s{i}", f"p{i // 2}", "train", [StudyImage(folder / f"{i}.png")], {"findings": f"Finding {i}."})
        for i in range(n)
    ]


def test_fields_are_made_when_they_are_asked_for_and_then_kept(tmp_path: Path) -> None:
    """What is read is a list of ordinary studies: they can be changed, and no longer need the file."""
    path = tmp_path / "studies.jsonl"
    write_studies(path, many(tmp_path))
    studies = read_studies(path)
    path.write_text("overwritten in place")
    assert not [name for study in studies for name in ("images", "sections", "extra") if name in vars(study)]
    studies[40].sections["findings"] = "Changed."
    studies[41].labels = {"Edema": 1}
    studies[41].images[0].view = "PA"
    assert studies[40].sections == {"findings": "Changed."}
    assert (studies[41].labels, studies[41].images[0].view) == ({"Edema": 1}, "PA")
    assert studies[:40] == many(tmp_path)[:40]
    assert studies[99].sections is studies[99].sections
    with pytest.raises(AttributeError, match="'Study' object has no attribute 'findings'"):
        print(studies[0].findings)  # type: ignore[attr-defined]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_study_that_was_not_read_yet_can_be_copied(tmp_path: Path, copied: Any) -> None:
    write_studies(tmp_path / "studies.jsonl", [full_study(tmp_path)])
    [study] = read_studies(tmp_path / "studies.jsonl")
    assert copied(study) == full_study(tmp_path)
    assert study.extra
    assert copied(study) == full_study(tmp_path), "also when a part of it was"


def test_skimming_keeps_nothing(tmp_path: Path) -> None:
    write_studies(tmp_path / "studies.jsonl", many(tmp_path))
    studies = read_studies(tmp_path / "studies.jsonl")
    assert [study.sections["findings"] for study in skim(studies)] == [f"Finding {i}." for i in range(100)]
    assert not [study for study in studies if "sections" in vars(study)]
    assert deal_folds(studies, 3)[1][50].images == [StudyImage(tmp_path / "50.png")]
    assert not [study for study in studies if "images" in vars(study)]


class _Refusing:
    """A decoder that leaves every line to the standard library."""

    def decode(self, line: bytes) -> None:
        raise msgspec.DecodeError


def test_broken_lines_are_judged_alike_by_both_readers(tmp_path: Path, monkeypatch) -> None:
    """msgspec accepts most lines; what it refuses is read by the standard library, which alone tells what is wrong."""
    rng = random.Random(0)
    row = json.loads('{"study_id": "s", "subject_id": "p", "split": "val", "images": [{"path": "x"}], "source": "a"}')
    row |= {"sections": {"findings": "É\n"}, "labels": {"Edema": 1, "Mass": None}, "patient": {"age": 63.5}, "new": [0]}
    line, fill = (
        json.dumps(row).encode(),
        [b'"', b"}", b"1", b"null", b"NaN", b"\xff", b"\x01", b"\\", b"true", b" ", b"{"],
    )
    accepted = 0
    for _ in range(200):
        at, end = sorted(rng.choices(range(len(line)), k=2))
        broken = line[:at] + rng.choice(fill) + line[rng.choice([at, at + 1, end]) :]
        (tmp_path / "m.jsonl").write_bytes(broken)
        found = []
        for decoder in (studies._DECODER, _Refusing()):
            with monkeypatch.context() as patched:
                patched.setattr(studies, "_DECODER", decoder)
                try:
                    found.append(repr(read_studies(tmp_path / "m.jsonl")))
                except ManifestError as error:
                    found.append(str(error))
        assert found[0] == found[1], broken
        accepted += found[0].startswith("[")
    assert 10 < accepted < 190


def test_a_manifest_may_move_with_its_data(tmp_path: Path) -> None:
    write_studies(tmp_path / "old" / "studies.jsonl", [full_study(tmp_path / "old")])
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_studies(tmp_path / "new" / "studies.jsonl") == [full_study(tmp_path / "new")]


def test_paths_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_studies("studies.jsonl", [full_study(tmp_path)])
    studies = read_studies("studies.jsonl")
    os.chdir("/")
    assert studies == [full_study(tmp_path)]


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "studies.jsonl"
    write_studies(path, [full_study(tmp_path)])
    before = path.read_bytes()

    def studies():
        yield Study("s2", "p2", "train", [StudyImage(tmp_path / "c.png")])
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_studies(path, studies())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_a_whole_file_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    with write_whole(path) as temporary:
        temporary.write_text("[]")
        assert temporary.parent == path.parent, "a rename is atomic within a file system only"
        assert not path.exists()
    assert path.read_text() == "[]"
    assert list(path.parent.iterdir()) == [path]


NOTHING = [None, float("nan"), "", "  ", "nan", "NaN", "<NA>", "null", "None", "N/A"]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_what_is_nothing_is_missing_wherever_it_stands(tmp_path: Path, nothing: object) -> None:
    images = [{"path": "a.png", "view": nothing, "masks": {"lungs": nothing}}, {"path": "b.png", "view": "PA"}]
    changes = {
        "sections": {"findings": nothing, "impression": "Normal.", "comparison": "None"},
        "labels": {"Edema": nothing, "Mass": 1},
        "patient": {"age": nothing, "sex": "F"},
        "source": nothing,
    }
    [study] = read_studies(write_lines(tmp_path, row(1, images=images, **changes)))
    assert study.sections == {"impression": "Normal.", "comparison": "None"}, "no earlier film is an answer"
    assert (study.labels, study.patient) == ({"Edema": None, "Mass": 1}, {"age": None, "sex": "F"})
    assert (study.source, study.images[0].view, study.images[0].masks) == (None, None, {})
    assert study.main_image.path.name == "b.png", "a stated frontal comes before a view that is not stated"


@pytest.mark.parametrize("name", ["NA", "null", "None", "0"])
def test_an_id_may_be_a_word_that_elsewhere_means_nothing(tmp_path: Path, name: str) -> None:
    [study] = read_studies(write_lines(tmp_path, row(1, study_id=name, subject_id=name)))
    assert (study.study_id, study.subject_id) == (name, name)


def test_real_data_can_be_read(cxr: Path) -> None:
    studies = read_studies(cxr / "studies.jsonl", check_images=True)
    assert count_splits(studies) == {"train": 1348, "val": 173, "test": 438}
    assert {study.source for study in studies} == {"nih", "covid", "hannover", "kaggle"}
    assert sum(len(study.images) for study in studies) == 875 + 191 + 183 + 727
    assert sum("lungs" in image.masks for study in studies for image in study.images) == 117 + 31
    assert not [image.view for study in studies for image in study.images if not image.frontal and not image.lateral]
    assert len(read_studies(cxr / "studies.jsonl", "val")) == 173


def test_real_data_survive_a_round_trip(cxr: Path, tmp_path: Path) -> None:
    studies = read_studies(cxr / "studies.jsonl")
    write_studies(tmp_path / "copy.jsonl", studies)
    assert read_studies(tmp_path / "copy.jsonl") == studies


def test_folds_hold_whole_subjects_and_alike_shares_of_each_source() -> None:
    studies = [
        Study(f"s{i}", f"p{i // 2}", "train", [StudyImage(Path("x.png"))], source="a" if i < 20 else "b")
        for i in range(50)
    ]
    folds = deal_folds(studies, 5)
    assert deal_folds(studies[::-1], 5)[0] == folds[0][::-1], "whatever the order of the manifest"
    for split in ("test", "val"):
        places = [[study.study_id for study in fold if study.split == split] for fold in folds]
        assert sorted(name for place in places for name in place) == sorted(study.study_id for study in studies)
    for fold in folds:
        splits = {split: {study.subject_id for study in fold if study.split == split} for split in SPLITS}
        assert [len(part) for part in splits.values()] == [15, 5, 5]
        assert not splits["test"] & splits["train"]
        assert sum(study.source == "a" for study in fold if study.split == "test") == 4
    assert {study.split for study in studies} == {"train"}, "the manifest's own stay as they are"
    with pytest.raises(ValueError, match="at least 3 folds"):
        deal_folds(studies, 2)


def test_a_label_that_stands_twice_is_refused_when_it_is_asked_for(tmp_path) -> None:
    twice = json.dumps(row(2, labels={"Edema": 1, "": 0})).replace('""', '"Edema"')
    path = write_lines(tmp_path, row(1), twice)
    found: list[str] = []
    assert len(read_studies(path, broken=found)) == 1
    assert found == ["studies.jsonl line 2: the key 'Edema' stands twice in an object"]
    with pytest.raises(ManifestError, match=r"line of study 's2': the key 'Edema' stands twice in an object"):
        _ = read_studies(path)[1].labels


@pytest.mark.parametrize(
    "there", [b"\xff\xd8\xff a film", b"path,report\n", b'{"study_id": "s1", "prediction": "x"}\n']
)
def test_what_is_no_manifest_is_not_replaced_by_one(tmp_path, there) -> None:
    path = tmp_path / "x"
    path.write_bytes(there)
    with pytest.raises(RadDraftError, match=r"x is there, and its first line is not as this command writes it"):
        write_studies(path, [Study("s1", "p1", "train", [StudyImage(tmp_path / "a.png")])])
    assert path.read_bytes() == there
    path.write_bytes(b"")
    for _ in range(2):
        assert write_studies(path, [Study("s1", "p1", "train", [StudyImage(tmp_path / "a.png")])]) == 1
