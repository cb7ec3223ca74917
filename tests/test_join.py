"""`raddraft prepare join`: several manifests become one, with paths, sources and ids that still say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.five_sets import SETS, make_sets
from generator.corpora import converter
from generator.corpora.join import convert
from raddraft.errors import RadDraftError
from raddraft.studies import Study, read_studies
from tests.test_cli import run


def row(study: str, subject: str, split: str = "train", source: str | None = None, **others: Any) -> dict[str, Any]:
    image = {"path": f"films/{study}.png", "view": "PA", "masks": {"lungs": f"masks/{study}.png"}}
    given = {"study_id": study, "subject_id": subject, "split": split, "images": [image], "source": source}
    return given | others


def write(path: Path, *rows: dict[str, Any]) -> Path:
    """A manifest with the files that it names."""
    for one in rows:
        for kind in ("films", "masks"):
            file = path.parent / kind / f"{one['study_id']}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def join(folder: Path, *manifests: Path) -> dict[str, Study]:
    """Studies by the name of their film, which stays."""
    convert(list(manifests), folder / "all.jsonl")
    found = read_studies(folder / "all.jsonl", check_images=True)
    return {study.images[0].path.stem: study for study in found}


def test_paths_sources_and_all_else_are_kept(tmp_path, capsys) -> None:
    said = {"sections": {"findings": "Clear."}, "labels": {"Edema": -1}, "patient": {"age": 60}, "study_order": 2}
    one = write(tmp_path / "a" / "studies.jsonl", row("s1", "p1", "train", **said), row("s2", "p2", "val", "nih"))
    two = write(tmp_path / "b" / "c" / "mine.jsonl", row("t1", "q1", "test"))
    out = tmp_path / "deep" / "er" / "all.jsonl"
    assert run("prepare", "join", one, two, "--out", out) == (0, "")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "1", "0", "0", "1"] in printed
    assert ["all", "1", "1", "1", "3"] in printed
    studies = read_studies(out, check_images=True)
    assert [(study.study_id, study.subject_id, study.split, study.source) for study in studies] == [
        ("s1", "p1", "train", "a"),
        ("s2", "p2", "val", "nih"),
        ("t1", "q1", "test", "mine"),
    ]
    assert studies[0].images[0].path == tmp_path / "a" / "films" / "s1.png"
    assert studies[2].images[0].masks == {"lungs": tmp_path / "b" / "c" / "masks" / "t1.png"}
    assert json.loads(out.read_text().splitlines()[0])["images"][0]["path"] == "../../a/films/s1.png"
    first = studies[0]
    assert (first.sections, first.labels, first.patient) == (said["sections"], said["labels"], said["patient"])
    assert first.extra == {"study_order": 2}


def test_ids_that_two_sets_have_are_told_apart(tmp_path) -> None:
    """Patient 13 of NIH and patient 13 of another set are two people, in whichever splits."""
    nih = write(tmp_path / "nih.jsonl", row("f1", "13", "train", "nih", prior="f0"), row("f0", "13", "train", "nih"))
    alone = row("x", "x", "test", "mine", unknown_patient=True)
    mine = write(tmp_path / "mine.jsonl", row("f2", "13", "test", "mine"), alone)
    other = write(tmp_path / "other.jsonl", row("o1", "o", "val", "other", prior="o0"))
    studies = join(tmp_path, nih, mine, other)
    assert {name: (study.study_id, study.subject_id) for name, study in studies.items()} == {
        "f0": ("nih-f0", "nih-13"),
        "f1": ("nih-f1", "nih-13"),
        "f2": ("mine-f2", "mine-13"),
        "x": ("mine-x", "mine-x"),
        "o1": ("o1", "o"),
    }
    assert studies["f1"].extra["prior"] == "nih-f0"
    assert studies["o1"].extra["prior"] == "o0"
    assert "subject_id" not in studies["x"].ids, "its patient is as unknown as before"


def test_patients_of_one_set_of_films_stay_the_same(tmp_path) -> None:
    """RSNA with its mapping has NIH's patients, CheXpert Plus the names of CheXpert's studies, too."""
    nih = write(tmp_path / "nih.jsonl", row("00000013_005", "13", "train", "nih"))
    rsna = write(tmp_path / "rsna.jsonl", row("a1b2", "13", "train", "rsna"))
    assert {study.subject_id for study in join(tmp_path, nih, rsna).values()} == {"13"}
    plain, plus = (
        write(tmp_path / name / f"{name}.jsonl", row("patient1_study1", "patient1", "train", name))
        for name in ("chexpert", "chexpert-plus")
    )
    convert([plain, plus], tmp_path / "all.jsonl")
    studies = read_studies(tmp_path / "all.jsonl", check_images=True)
    assert {study.subject_id for study in studies} == {"chexpert-patient1"}
    assert [study.study_id for study in studies] == ["chexpert-patient1_study1", "chexpert-plus-patient1_study1"]


@pytest.mark.parametrize("clash", [False, True])
def test_a_patient_of_one_set_in_two_splits_is_refused(tmp_path, clash) -> None:
    nih = write(tmp_path / "nih.jsonl", row("00000013_005", "13", "train", "nih"))
    rsna = write(tmp_path / "rsna.jsonl", row("a1b2", "13", "test", "rsna"))
    third = write(tmp_path / "third.jsonl", row("t", "13" if clash else "t", "val", "third"))
    told = "subject '13' is in split 'train' .study '00000013_005'. and in 'test' .study 'a1b2'."
    told = told.replace("'13'", "'nih-13'").replace("'0", "'nih-0").replace("'a", "'rsna-a") if clash else told
    with pytest.raises(RadDraftError, match=told):
        convert([nih, rsna, third], tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_a_patient_that_an_earlier_join_renamed_is_known_again(tmp_path) -> None:
    """NIH's patient 13 became nih-13, since BRAX has one too; RSNA, which comes later, still has its plain number."""
    nih = write(tmp_path / "nih.jsonl", row("f1", "13", "train", "nih", prior="f0"), row("f0", "13", "train", "nih"))
    brax = write(tmp_path / "brax.jsonl", row("b1", "13", "test", "brax"))
    convert([nih, brax], tmp_path / "two.jsonl")
    rsna = write(tmp_path / "rsna.jsonl", row("a1b2", "13", "test", "rsna"))
    with pytest.raises(RadDraftError, match=r"subject 'nih-13' is in split 'train' .* and in 'test' .*'rsna-a1b2'"):
        convert([tmp_path / "two.jsonl", rsna], tmp_path / "all.jsonl")
    write(rsna, row("a1b2", "13", "train", "rsna"))
    studies = join(tmp_path, rsna, tmp_path / "two.jsonl")
    assert {name: (study.study_id, study.subject_id) for name, study in studies.items()} == {
        "f0": ("nih-f0", "nih-13"),
        "f1": ("nih-f1", "nih-13"),
        "b1": ("brax-b1", "brax-13"),
        "a1b2": ("rsna-a1b2", "nih-13"),
    }
    assert studies["f1"].extra["prior"] == "nih-f0"
    with pytest.raises(RadDraftError, match="duplicate study_id 'nih-f1'"):
        convert([tmp_path / "two.jsonl", nih], tmp_path / "all.jsonl")


@pytest.mark.parametrize(
    ("source", "told"), [("nih", "of source 'nih'"), ("folder", "of source 'folder'"), (None, "without")]
)
def test_a_set_that_is_given_twice_under_other_ids_is_refused(tmp_path, source, told) -> None:
    one = write(tmp_path / "one.jsonl", row("f1", "13", "train", source))
    two = write(tmp_path / "two.jsonl", row("g", "14", "train", source) | {"images": [{"path": "films/f1.png"}]})
    told = (
        rf"image '.*f1\.png' {told}.* is in two manifests: .*one\.jsonl \(study 'f1'\) and .*two\.jsonl \(study 'g'\)"
    )
    with pytest.raises(RadDraftError, match=told):
        convert([one, two], tmp_path / "all.jsonl")


def test_manifests_whose_source_names_no_set_are_sets_of_their_own(tmp_path) -> None:
    """Patient 1 of one hospital's folder and patient 1 of another's are two people."""
    first = write(tmp_path / "a" / "studies.jsonl", row("x", "1", "train", "folder"))
    second = write(tmp_path / "b.jsonl", row("y", "1", "test", "folder"))
    told = str(convert([first, second], tmp_path / "all.jsonl")).splitlines()
    assert "Source folder names no set, so each is one of its own: a, b" in told
    studies = read_studies(tmp_path / "all.jsonl", check_images=True)
    assert [(study.study_id, study.subject_id, study.source) for study in studies] == [
        ("folder:a-x", "folder:a-1", "folder:a"),
        ("folder:b-y", "folder:b-1", "folder:b"),
    ]
    with pytest.raises(RadDraftError, match=r"image '.*x\.png' of source 'folder' is in two manifests"):
        convert([tmp_path / "all.jsonl", first], tmp_path / "again.jsonl")
    for source, named in ((None, "without a source"), ("r2gen", "of source 'r2gen'")):
        write(first, row("x", "1", "train", source))
        same = write(tmp_path / "c" / "a.jsonl", row("z", "1", "train", source))
        with pytest.raises(RadDraftError, match=f"hold studies {named} and are both called 'a', .*; rename one"):
            convert([first, same], tmp_path / "all.jsonl")


def test_films_of_one_set_whose_patients_are_not_known_are_named(tmp_path) -> None:
    nih = write(tmp_path / "nih.jsonl", row("00000013_005", "13", "train", "nih"))
    rsna = write(tmp_path / "rsna.jsonl", row("a1b2", "a1b2", "test", "rsna", unknown_patient=True))
    told = str(convert([nih, rsna], tmp_path / "all.jsonl"))
    assert "nih, rsna: films of nih, saved again; one may be in more than one split" in told.splitlines()


def test_faults_are_one_sentence(tmp_path) -> None:
    one = write(tmp_path / "a" / "studies.jsonl", row("s1", "p1"))
    two = write(tmp_path / "b" / "studies.jsonl", row("s2", "p2"))
    out = tmp_path / "all.jsonl"
    moved = write(tmp_path / "c.jsonl", row("s3", "p3", "test", "c") | {"images": [{"path": "a/films/s1.png"}]})
    cases = [
        ([one], "join needs two or more manifests, got 1"),
        ([one, two, out], f"{out} is one of the manifests that are read; choose another --out"),
        ([one, one], "duplicate study_id 's1'"),
        ([one, moved], f"image '{tmp_path / 'a' / 'films' / 's1.png'}' is in split 'train'"),
    ]
    for manifests, sentence in cases:
        status, message = run("prepare", "join", *manifests, "--out", out)
        assert status == 1
        assert sentence in message
    write(tmp_path / "b" / "studies.jsonl", row("s2", "p2"), row("s4", "p4", "training"))
    status, message = run("prepare", "join", one, two, "--out", out)
    assert status == 1
    assert f"{two}: studies.jsonl line 2: unknown split 'training'" in message


def test_the_sets_that_the_benchmark_makes_up_are_converted_and_joined(tmp_path) -> None:
    make_sets(tmp_path, 1e-4)
    options: dict[str, dict[str, Any]] = {name: {"views": "all"} for name in SETS if name != "nih"}
    options["mimic-cxr"] |= {"reports": tmp_path / "mimic-cxr" / "mimic-cxr-reports.zip", "sections": ()}
    for name in SETS:
        done = converter(name)(root=tmp_path / name, out=tmp_path / f"{name}.jsonl", **options.get(name, {}))
        assert done.n_read == len(done.studies) >= 40, "nothing is dropped"
    joined = convert([tmp_path / f"{name}.jsonl" for name in SETS], tmp_path / "all.jsonl")
    studies = read_studies(tmp_path / "all.jsonl", check_images=True)
    assert {source: count.total() for source, count in joined.counts.items()} == {
        name: sum(study.source == name for study in studies) for name in SETS
    }
