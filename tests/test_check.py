"""`raddraft check`: every kind of odd film, row and report is found, counted and listed, and ordinary ones are not."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from encoder import survey
from encoder.survey import border, duplicates, judge, look_at, shrink
from generator.check import KINDS, Checked, check
from raddraft.images import load_image
from raddraft.studies import read_studies
from tests.test_cli import run

SIDE = 240


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve computed frontal films of different patients, PNG."""
    from generator.corpora.phantom import convert

    root = tmp_path_factory.mktemp("phantoms")
    convert(root, count=12, size=SIDE, processes=1)
    paths = [study.main_image.path for study in read_studies(root / "studies.jsonl")]
    for path in paths:
        load_image(path).save(path.with_suffix(".png"))
    return [path.with_suffix(".png") for path in paths]


def film(phantoms: list[Path], number: int = 0) -> Image.Image:
    return Image.open(phantoms[number]).convert("L")


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "studies.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def row(number: int, image: str, split: str = "train", subject: str | None = None, **others: Any) -> dict[str, Any]:
    named = {"study_id": f"s{number}", "subject_id": subject or f"p{number}", "split": split}
    view = others.pop("view", "PA")
    return named | {"images": [{"path": image, "view": view}]} | others


def kinds(checked: Checked) -> Counter[str]:
    return Counter(one.kind for one in checked.rows)


def seen(path: Path, **settings: Any) -> list[str]:
    given = {"smallest": 200, "largest": 5000, "gray_mapping": "window"} | settings
    return [finding.kind for finding in look_at((path, False), **given).findings]


# ---- films


def negative(image: Image.Image) -> Image.Image:
    return ImageOps.invert(image)


TURNS = {
    "90 degrees clockwise": Image.Transpose.ROTATE_270,
    "180 degrees": Image.Transpose.ROTATE_180,
    "90 degrees counterclockwise": Image.Transpose.ROTATE_90,
}


def test_ordinary_films_are_not_odd(phantoms) -> None:
    assert [seen(path) for path in phantoms] == [[]] * len(phantoms)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("angle", ["", *TURNS])
def test_turned_and_inverted_films_are_told_apart(phantoms, angle: str, inverted: bool) -> None:
    for number in range(4):
        image = film(phantoms, number)
        image = negative(image) if inverted else image
        image = image.transpose(TURNS[angle]) if angle else image
        found = {finding.kind: finding.what for finding in judge(shrink(image))}
        assert ("inverted" in found) == inverted
        assert found.get("rotated") == (f"looks turned by {angle}" if angle else None)


def test_a_window_does_not_change_what_a_film_looks_like(phantoms) -> None:
    for gamma in (0.5, 1.0, 2.0):
        image = film(phantoms).point([round(255 * (level / 255) ** gamma) for level in range(256)])
        assert judge(shrink(image)) == []
        assert [one.kind for one in judge(shrink(negative(image)))] == ["inverted"]


def test_what_is_stated_to_be_no_frontal_is_not_judged(phantoms, tmp_path) -> None:
    film(phantoms).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.png")
    manifest = write(tmp_path, [row(1, "x.png", view="LATERAL")])
    assert kinds(check(manifest, processes=1)) == {}
    manifest = write(tmp_path, [row(1, "x.png", view=None)])
    assert kinds(check(manifest, processes=1)) == {"rotated": 1}


def test_images_of_anything_else_are_odd() -> None:
    generator = np.random.default_rng(0)
    squares = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((40, 40))) * 255
    for pixels in (squares, generator.integers(0, 256, (300, 300)), np.tile(np.arange(256), (256, 1))):
        assert judge(shrink(Image.fromarray(pixels.astype(np.uint8))))


def test_borders_are_found_on_any_side_and_air_is_none(phantoms) -> None:
    image = film(phantoms)
    for shade in (0, 128, 255):
        for bars in ((12, 0, 0, 0), (0, 0, 0, 12), (8, 8, 8, 8), (30, 10, 0, 4)):
            framed = ImageOps.expand(image, bars, fill=shade)
            share = 1 - image.width * image.height / (framed.width * framed.height)
            found = border(shrink(framed))
            assert found == pytest.approx(share, abs=0.04) or (found == 0 and share < 0.06)
    assert border(shrink(image)) < survey.BORDER
    ramp = np.tile(np.r_[np.zeros(40), np.linspace(0, 90, 160), np.zeros(40)], (240, 1)).astype(np.uint8)
    assert border(shrink(Image.fromarray(ramp))) == 0


@pytest.mark.parametrize(
    ("size", "settings", "expected"),
    [
        ((150, 300), {}, ["tiny"]),
        ((150, 300), {"smallest": 150}, []),
        ((1200, 260), {"largest": 1100}, ["huge"]),
        ((28, 28), {}, ["tiny"]),
    ],
)
def test_sizes(phantoms, tmp_path, size, settings, expected) -> None:
    film(phantoms).resize(size).save(tmp_path / "x.png")
    assert [kind for kind in seen(tmp_path / "x.png", **settings) if kind in ("tiny", "huge")] == expected


def test_a_file_that_cannot_be_read_or_was_repaired_ends_nothing(phantoms, tmp_path) -> None:
    from generator.corpora.phantom import convert

    convert(tmp_path / "dicoms", count=1, size=SIDE, dicoms=1, processes=1)
    (dicom,) = (tmp_path / "dicoms" / "dicom").iterdir()
    import pydicom

    dataset = pydicom.dcmread(dicom)
    dataset.BodyPartExamined = "HAND"
    dataset.save_as(tmp_path / "hand.dcm")
    dataset.BodyPartExamined = "CHEST"
    dataset.WindowCenter, dataset.WindowWidth = 1, 0
    dataset.save_as(tmp_path / "window.dcm")
    whole = phantoms[1].read_bytes()  # the first is the DICOM file's
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "good.png").write_bytes(whole)
    names = ("cut.png", "empty.png", "text.jpg", "gone.png", "hand.dcm", "window.dcm", "good.png")
    manifest = write(tmp_path, [row(number, name) for number, name in enumerate(names)])
    checked = check(manifest, processes=2)
    assert checked.films == 7
    found = {(one.kind, one.path): one.what for one in checked.rows}
    unreadable = {path for kind, path in found if kind == "unreadable"}
    assert unreadable == {"cut.png", "empty.png", "text.jpg", "gone.png"}
    assert found["unreadable", "gone.png"] == "cannot be read: No such file or directory"
    assert "HAND" in found["not a chest", "hand.dcm"]
    assert "window width" in found["repaired", "window.dcm"]
    assert not [path for _, path in found if path == "good.png"]


# ---- copies


def copies(image: Image.Image, folder: Path) -> dict[str, Path]:
    brighter = image.point([min(255, round(1.1 * level)) for level in range(256)])
    paths = {name: folder / name for name in ("again.png", "saved.jpg", "small.png", "large.png", "window.png")}
    image.save(paths["again.png"], compress_level=1)
    image.save(paths["saved.jpg"], quality=60)
    image.resize((SIDE // 2 + 90, SIDE // 2 + 90)).save(paths["small.png"])
    image.resize((2 * SIDE, 2 * SIDE)).save(paths["large.png"])
    brighter.save(paths["window.png"])
    return paths


def test_copies_are_found_by_content_and_by_look(phantoms, tmp_path) -> None:
    paths = copies(film(phantoms), tmp_path)
    films = survey.survey([*phantoms, *paths.values()], processes=1)
    assert duplicates(films[: len(phantoms)]) == {}, "films of different patients are not alike"
    found = duplicates(films)
    assert set(found) == set(range(len(phantoms), len(films)))
    assert {first for first, _ in found.values()} == {0}
    bits = dict(zip(paths, (found[number][1] for number in sorted(found)), strict=True))
    assert bits.pop("again.png") == 0
    assert all(0 < count <= survey.NEAR for count in bits.values())


@pytest.mark.parametrize(("rows", "columns"), [(survey.ROWS, survey.COLUMNS), (7, 30)])
def test_pairs_are_those_of_all_comparisons(monkeypatch, rows, columns) -> None:
    monkeypatch.setattr(survey, "ROWS", rows)
    monkeypatch.setattr(survey, "COLUMNS", columns)
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**63, (400, 4)).astype(np.uint64)
    for number in range(0, 400, 7):
        flipped = np.uint64(
            sum(1 << int(bit) for bit in generator.choice(60, generator.integers(0, 45), replace=False))
        )
        hashes[(3 * number + 1) % 400] = hashes[number] ^ np.array([flipped, 0, 0, 0], np.uint64)
    plain = [
        (row, column, bits)
        for row in range(400)
        for column in range(row + 1, 400)
        if (bits := int(np.bitwise_count(hashes[row] ^ hashes[column]).sum())) <= survey.NEAR
    ]
    assert plain
    assert list(survey.near_pairs(hashes)) == plain
    crossed = [(row, column - 150, bits) for row, column, bits in plain if row < 150 <= column]
    assert crossed
    assert list(survey.near_pairs(hashes[:150], hashes[150:])) == crossed


def test_copies_name_the_other_film_and_its_split(phantoms, tmp_path) -> None:
    for number in (0, 1):
        film(phantoms, number).save(tmp_path / f"{number}.png")
    film(phantoms).save(tmp_path / "copy.jpg", quality=70)
    film(phantoms).save(tmp_path / "copy.png", compress_level=0)
    rows = [row(0, "0.png"), row(1, "1.png"), row(2, "copy.png", "test"), row(3, "copy.jpg"), row(4, "1.png")]
    checked = check(write(tmp_path, rows), processes=1)
    found = {one.study_id: one for one in checked.rows if one.kind != "leaking film"}
    assert kinds(checked) == {"duplicate": 2, "near-duplicate": 1, "leaking film": 1}
    assert (found["s2"].kind, found["s2"].path, found["s2"].like) == ("duplicate", "copy.png", "0.png")
    assert found["s2"].what == "shows the film of study s0, which is in split train"
    assert found["s3"].kind == "near-duplicate"
    assert found["s4"].what == "is the film of study s1"


@pytest.mark.parametrize("name", ["same.png", "copy.jpg", "small.png"])
def test_films_of_one_split_that_another_has_are_leaks(phantoms, tmp_path, name) -> None:
    film(phantoms).save(tmp_path / "same.png")
    film(phantoms).save(tmp_path / "copy.jpg", quality=60)
    film(phantoms).resize((SIDE * 3 // 4,) * 2).save(tmp_path / "small.png")
    film(phantoms, 1).save(tmp_path / "other.png")
    rows = [row(0, "same.png"), row(1, "other.png"), row(2, name, "test")]
    checked = check(write(tmp_path, rows), smallest=100, processes=1)
    [leak] = [one for one in checked.rows if one.kind == "leaking film"]
    assert (leak.study_id, leak.path, leak.like) == ("s2", name, "same.png")
    assert leak.what.endswith("the film of study s0, which is in split train")


# ---- reports, sections, subjects


@pytest.fixture
def folder(phantoms, tmp_path) -> Path:
    for number in range(6):
        film(phantoms, number).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    "blank",
    [{}, {"findings": ""}, {"findings": " \n"}, {"findings": "nan"}, {"impression": "___ ."}, {"history": "cough"}],
)
def test_blank_reports_are_odd_where_others_have_one(folder, blank) -> None:
    one, other = row(0, "0.png", sections={"findings": "Clear lungs."}), row(1, "1.png", sections=blank)
    assert kinds(check(write(folder, [one, other]), processes=1)) == {"blank report": 1}
    other["source"] = "nih"
    assert kinds(check(write(folder, [one, other]), processes=1)) == {}, "a set without reports"
    assert kinds(check(write(folder, [other]), processes=1)) == {}


def test_equal_reports_are_counted_once_each(folder) -> None:
    texts = [("Clear lungs.", ""), ("clear  LUNGS.", ""), ("Clear lungs.", "Normal."), ("Clear lungs.", "Normal.")]
    rows = [row(i, f"{i}.png", sections={"findings": a, "impression": b}) for i, (a, b) in enumerate(texts)]
    rows.append(row(4, "4.png", sections={"note": "Clear lungs."}))
    checked = check(write(folder, rows), processes=1)
    assert [(one.study_id, one.what) for one in checked.rows] == [
        ("s1", "has the report of study s0: clear lungs."),
        ("s3", "has the report of study s2: clear lungs. normal."),
        ("s4", "has the report of study s0: clear lungs."),
    ]


def test_an_equal_report_in_another_split_says_so(folder) -> None:
    rows = [row(i, f"{i}.png", split, sections={"findings": "Clear."}) for i, split in enumerate(("train", "test"))]
    [found] = check(write(folder, rows), processes=1).rows
    assert found.what == "has the report of study s0, which is in split train: clear."


@pytest.mark.parametrize(
    ("section", "text", "header"),
    [
        ("findings", "Lungs are clear. IMPRESSION: Normal.", "IMPRESSION:"),
        ("findings", "Lungs are clear.\nImpression: Normal.", "Impression:"),
        ("impression", "Comparison: none. No change.", "Comparison:"),
        ("indication", "Cough. FINDINGS: Lungs are clear.", "FINDINGS:"),
        ("comparison", "None.\n\nFINDINGS\nLungs are clear.", "FINDINGS"),
        ("impression", "No acute process.\nRECOMMENDATION: Follow-up.", "RECOMMENDATION:"),
        (
            "findings",
            "The lungs are clear. Findings suggest no pneumonia; in comparison with last year no change.",
            None,
        ),
        ("findings", "FINDINGS: Lungs are clear.", None),
        ("findings", "LUNGS: clear. HEART: normal in size.", None),
        ("indication", "History: cough.", None),
        ("note", "Findings: clear. Impression: normal.", None),
    ],
)
def test_headers_of_other_sections_are_leaks(folder, section, text, header) -> None:
    checked = check(write(folder, [row(0, "0.png", sections={section: text})]), processes=1)
    leaks = [one.what for one in checked.rows if one.kind == "leaking section"]
    assert leaks == ([f"{section} holds the header {header!r}"] if header else [])


def test_subjects_in_two_splits_are_counted_and_named(folder) -> None:
    rows = [
        row(0, "0.png", "train", "ann"),
        row(1, "1.png", "test", "ann"),
        row(2, "2.png", "val", "bob"),
        row(3, "3.png", "train", "bob"),
        row(4, "4.png", "train", "bob"),
        row(5, "5.png", "test", "eve"),
    ]
    manifest = write(folder, rows)
    with pytest.raises(ValueError, match="subject 'ann' is in split 'test', and in 'train'"):
        read_studies(manifest)
    checked = check(manifest, processes=1)
    named = [
        "subject ann has studies in train (1), test (1)",
        "subject bob has studies in train (2), val (1)",
    ]
    assert [one.what for one in checked.rows] == named
    assert all(line in checked.summary().splitlines() for line in named)


def test_broken_rows_are_counted_and_the_others_checked(folder) -> None:
    good = json.dumps(row(0, "0.png"))
    unknown = json.dumps(row(1, "1.png", "training"))
    pathless = json.dumps(row(2, "2.png") | {"images": []})
    lines = [good, "{", unknown, pathless, "[1]", json.dumps({"study_id": "s9"}), good, "", json.dumps(row(3, "3.png"))]
    manifest = folder / "studies.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    checked = check(manifest, processes=1)
    assert (checked.studies, checked.films) == (2, 2)
    assert [one.what.partition(":")[0] for one in checked.rows] == [
        f"studies.jsonl line {n}" for n in (2, 3, 4, 5, 6, 7)
    ]
    manifest.write_text("{\n")
    with pytest.raises(ValueError, match=r"studies\.jsonl: no study; studies\.jsonl line 1: not valid JSON"):
        check(manifest)


# ---- the command


def test_the_command_prints_counts_and_writes_a_table_and_a_sheet(phantoms, tmp_path, capsys) -> None:
    collection = tmp_path / "films"
    (collection / "deeper").mkdir(parents=True)
    for number in range(3):
        film(phantoms, number).save(collection / f"{number}.png")
    negative(film(phantoms, 3)).save(collection / "deeper" / "negative.png")
    film(phantoms).save(collection / "deeper" / "copy.jpg", quality=60)
    (collection / "broken.png").write_bytes(b"")
    (collection / "0.txt").write_text("FINDINGS: Clear lungs.")
    before = sorted(path.name for path in collection.rglob("*"))
    assert run("check", collection, "--out", tmp_path / "out", "--processes", 1) == (0, "")
    printed = capsys.readouterr().out
    assert "6 studies, 6 films" in printed
    counts = {
        kind: int(line.split()[-1]) for kind in KINDS for line in printed.splitlines() if line.startswith(f"{kind}:")
    }
    some = {"inverted": 1, "near-duplicate": 1, "unreadable": 1, "blank report": 5}
    assert counts == dict.fromkeys(KINDS, 0) | some
    assert sorted(path.name for path in collection.rglob("*")) == before, "nothing is changed"
    with open(tmp_path / "out" / "findings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["kind", "path", "study_id", "what", "like"]
    assert Counter(one["kind"] for one in rows) == some
    (copy,) = (one for one in rows if one["kind"] == "near-duplicate")
    assert {copy["path"], copy["like"]} == {"deeper/copy.jpg", "0.png"}
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * 200


def test_the_command_on_a_manifest_and_on_nothing(folder, tmp_path, capsys) -> None:
    manifest = write(folder, [row(0, "0.png"), row(1, "1.png")])
    assert run("check", manifest, "--out", tmp_path / "out") == (0, "")
    assert not (tmp_path / "out" / "sheet.png").exists()
    assert (tmp_path / "out" / "findings.csv").read_text().splitlines() == ["kind,path,study_id,what,like"]
    (tmp_path / "nothing").mkdir()
    assert run("check", tmp_path / "nothing") == (
        1,
        f"raddraft check: {tmp_path / 'nothing'}: no film in this folder",
    )
    status, sentence = run("check", tmp_path / "nowhere.jsonl")
    assert status == 1
    assert "nowhere.jsonl" in sentence


def test_the_sheet_shows_some_films_of_every_kind(phantoms, tmp_path) -> None:
    rows = []
    for number in range(11):
        negative(film(phantoms, number)).save(tmp_path / f"{number}.png")
        rows.append(row(number, f"{number}.png"))
    film(phantoms, 11).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "11.png")
    tiles = check(write(tmp_path, [*rows, row(11, "11.png")]), processes=1)._tiles()
    assert Counter(tile.title for tile in tiles) == {"inverted": 8, "rotated": 1}
    assert len({tile.name for tile in tiles}) == len(tiles)


# ---- real films


def test_error_rates_on_real_films_are_as_documented(cxr) -> None:
    """On a few films of each source; docs/data.md has the rates on all of them."""
    studies = [study for study in read_studies(cxr / "studies.jsonl") if study.main_image.frontal][::20]
    small = [shrink(load_image(study.main_image.path)) for study in studies]
    assert len(small) > 90
    assert sum(bool(judge(one)) for one in small) <= 0.04 * len(small)
    for change, kind in (
        (lambda one: 255 - one, {"inverted"}),
        (np.rot90, {"rotated"}),
        (lambda one: one[::-1, ::-1], {"rotated"}),
    ):
        named = sum({finding.kind for finding in judge(change(one))} == kind for one in small)
        assert named >= 0.94 * len(small)
    laterals = [image.path for study in read_studies(cxr / "studies.jsonl") for image in study.images if image.lateral]
    assert len(laterals) == 30
    assert sum(bool(judge(shrink(load_image(path)))) for path in laterals) >= 25


def test_the_benchmark_fits_weights_and_measures(phantoms, tmp_path, capsys) -> None:
    from benchmarks.check import main

    rows = []
    for number in range(9):
        image = film(phantoms, number)
        view = ("PA", "LATERAL", None)[number % 3]
        if view == "LATERAL":
            image = image.transform(image.size, Image.Transform.AFFINE, (1, 0.4, -60, 0, 1, 0))
        image.save(tmp_path / f"{number}.png")
        rows.append(row(number, f"{number}.png", view=view, source="ab"[number % 2]))
    weights = (survey.UPRIGHT, survey.LATERAL_MEAN, survey.LATERAL_DIFFERENCE, survey.LATERAL_BIAS)
    try:
        main([write(tmp_path, rows)], others=tmp_path, films=5)
    finally:
        survey.UPRIGHT, survey.LATERAL_MEAN, survey.LATERAL_DIFFERENCE, survey.LATERAL_BIAS = weights
    lines = capsys.readouterr().out.splitlines()
    for start in (
        "a, frontal: ",
        "upright: 3 films",
        "turned by 270, inverted: 3 films",
        "lateral: 3 films",
        "UPRIGHT = [",
    ):
        assert any(line.startswith(start) for line in lines)
    assert lines[-1].startswith("5 synthetic films of 300 x 300 pixels")
