"""`raddraft draft`: any kind of file, drafts as they are decoded, options that a model cannot use."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from generator.api import report_drafts
from generator.generate import BANNER, Draft
from scripts.draft import print_draft
from tests.conftest import make_study
from tests.test_cli import run
from tests.test_images import chest, write_dicom


def save_pages(path: Path) -> None:
    Image.fromarray(chest()).save(path, save_all=True, append_images=[Image.fromarray(chest()[::-1])])


def cut(path: Path, suffix: str) -> None:
    whole = path.with_name(f"whole{suffix}")
    if suffix == ".dcm":
        write_dicom(whole, chest())
    else:
        Image.fromarray(chest()).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


FAULTS = {
    "cut.png": (lambda path: cut(path, ".png"), "truncated"),
    "cut.dcm": (lambda path: cut(path, ".dcm"), "truncated"),
    "empty.png": (lambda path: path.touch(), "empty"),
    "zero.dcm": (lambda path: write_dicom(path, chest(), Rows=0), "64 x 0 pixels"),
    "constant.png": (lambda path: Image.fromarray(chest() * 0 + 9).save(path), "same value, 9"),
    "pixel.png": (lambda path: Image.fromarray(chest()[:1, :1]).save(path), "1 x 1 pixels"),
    "volume.dcm": (lambda path: write_dicom(path, np.tile(chest(), (5, 1)), Rows=64, NumberOfFrames=5), "5 frames"),
    "pages.tif": (save_pages, "2 frames"),
    "text.jpg": (lambda path: path.write_text("Lungs are clear."), "not an image"),
    "dangling.png": (lambda path: path.symlink_to("/nowhere/x.png"), "No such file"),
}


def test_every_faulty_file_is_named_and_the_others_get_their_drafts(random_model, tmp_path, capsys) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for name, (make, _) in FAULTS.items():
        make(folder / name)
    for name in ("a.png", "z.png"):
        Image.fromarray(chest()).save(folder / name)
    write_dicom(folder / "m.dcm", chest())
    np.save(tmp_path / "volume.npy", np.zeros((4, 5, 6)))
    missing, out = tmp_path / "missing.dcm", tmp_path / "drafts.jsonl"
    arguments = (random_model, folder, tmp_path / "volume.npy", missing, "--decode.max_new_tokens", 4, "--out", out)
    assert run("draft", *arguments) == (1, "")
    text = capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["study_id"] for row in rows] == [str(folder / name) for name in ("a.png", "m.dcm", "z.png")]
    assert "subject_id" not in rows[0], "a picture does not tell whose it is"
    assert text.count(BANNER) == 3
    assert f"3 of {len(FAULTS) + 5} drafts are in {out}" in text
    errors = [line for line in text.splitlines() if line.startswith("no draft: ")]
    expected = [(str(folder / name), culprit) for name, (_, culprit) in sorted(FAULTS.items())]
    expected += [(str(tmp_path / "volume.npy"), "not an image"), (str(missing), "No such file")]
    for error, (path, culprit) in zip(errors, expected, strict=True):
        assert error.startswith(f"no draft: {path}: ")
        assert culprit in error


@pytest.mark.parametrize(
    ("tags", "culprit"), [({"Modality": "MG"}, "modality 'MG'"), ({"BodyPartExamined": "KNEE"}, "body part 'KNEE'")]
)
def test_what_may_be_no_chest_is_named_in_one_line_and_drafted(random_model, tmp_path, capsys, tags, culprit) -> None:
    film = write_dicom(tmp_path / "film.dcm", chest(), **tags)
    Image.fromarray(chest()).save(tmp_path / "other.png")
    assert run("draft", random_model, film, tmp_path / "other.png", "--decode.max_new_tokens", 4) == (0, "")
    shown = capsys.readouterr()
    assert shown.out.count(BANNER) == 2
    # A line ends at a carriage return, too: with that, a progress bar begins anew.
    lines = [line for line in re.split(r"[\r\n]", shown.err) if "warning" in line.lower()]
    assert len(lines) == 1
    assert lines[0].startswith(f"raddraft draft: warning: {film}: {culprit} is not ")
    assert "Invented^Nobody" not in shown.out + shown.err


def test_warnings_of_libraries_are_not_hidden(random_model, tmp_path, capsys) -> None:
    dataset = dcmread(write_dicom(tmp_path / "film.dcm", chest()))
    dataset.PixelData += bytes(100)
    dataset.save_as(tmp_path / "film.dcm")
    with pytest.warns(UserWarning, match="excess padding"):  # pydicom's
        assert run("draft", random_model, tmp_path / "film.dcm", "--decode.max_new_tokens", 4) == (0, "")
    assert "raddraft draft: warning" not in capsys.readouterr().err


def test_a_model_without_sidecar_is_said_in_one_line(random_model, tmp_path, capsys) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    (tmp_path / "model" / "raddraft.json").unlink()
    make_study(tmp_path, 1, "test")
    assert run("draft", tmp_path / "model", tmp_path / "1.png", "--decode.max_new_tokens", 4) == (0, "")
    expected = f"raddraft draft: warning: {tmp_path / 'model'} has no raddraft.json: the default prompt is used"
    assert expected in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("lost", ["config.json", "processor_config.json", "model.safetensors", "tokenizer.json"])
def test_model_folders_that_lack_a_file_are_refused_in_one_sentence(random_model, tmp_path, lost) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    make_study(tmp_path, 1, "test")
    status, sentence = run("draft", tmp_path / "model", tmp_path / "1.png")
    assert status == 1
    assert sentence.startswith("raddraft draft: ")
    assert "\n" not in sentence
    if lost != "tokenizer.json":  # that one only transformers knows of
        assert lost in sentence


def test_a_folder_without_images_is_named(random_model, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert run("draft", random_model, tmp_path) == (1, f"raddraft draft: No image in {tmp_path}")


def test_a_single_file_by_option_name_is_an_image_not_a_list_of_paths(random_model, tmp_path, capsys) -> None:
    make_study(tmp_path, 1, "test")
    assert run("draft", "--images", tmp_path / "1.png", "--model", random_model, "--decode.max_new_tokens", 4) == (
        0,
        "",
    )
    assert capsys.readouterr().out.count(BANNER) == 1


def test_file_names_may_hold_any_letters_and_bytes(random_model, tmp_path, capsys) -> None:
    folder = tmp_path / "Röntgen: [胸]"
    folder.mkdir()
    make_study(folder, 1, "test")
    try:
        os.rename(os.fsencode(folder / "1.png"), os.fsencode(folder) + b"/\xf6.png")  # ö in Latin-1
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfc.png")).touch()
    make_study(folder, 2, "test")
    (folder / "2.png").rename(folder / "line\u2028end.png")  # str.splitlines would break its row in two
    out = tmp_path / "drafts.jsonl"
    assert run("draft", random_model, folder, "--decode.max_new_tokens", 4, "--out", out) == (1, "")
    with open(out, encoding="utf-8") as lines:
        names = [json.loads(line)["study_id"] for line in lines]
    assert names == [f"{folder}/line\u2028end.png", f"{folder}/\N{REPLACEMENT CHARACTER}.png"]
    text = capsys.readouterr().out
    assert text.count(BANNER) == 2
    assert f"no draft: {folder}/\N{REPLACEMENT CHARACTER}.png: {folder}/\\udcfc.png: the file is empty" in text


def test_a_console_without_the_letters_still_shows_the_draft(random_model, tmp_path, monkeypatch) -> None:
    make_study(tmp_path, 1, "test")
    film = (tmp_path / "1.png").rename(tmp_path / "Füße.png")
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert run("draft", random_model, film, "--decode.max_new_tokens", 4) == (0, "")
    console.flush()
    shown = console.buffer.getvalue().decode("ascii")
    assert "F\\xfc\\xdfe.png" in shown
    assert BANNER in shown


def test_a_terminal_that_does_not_know_its_width_shows_the_draft(capsys) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a POSIX matter")
    saved, (master, terminal) = os.dup(1), pty.openpty()  # a new one has no columns
    os.dup2(terminal, 1)
    try:
        print_draft(Draft(["The lungs are clear."], study_id="s1"))
    finally:
        os.dup2(saved, 1)
        for descriptor in (saved, master, terminal):
            os.close(descriptor)
    assert "  The lungs are clear.\n" in capsys.readouterr().out


CONTROLS = "\x00\x07\x08\x0b\x0c\r\x1b[2J\x1b]0;title\x07\x7f\x9b31m"


def test_control_characters_of_a_draft_do_not_reach_the_terminal(capsys) -> None:
    draft = Draft(
        [f"No {CONTROLS} edema.\tClear.\nNormal."], observations=f"Edema{CONTROLS}", study_id=f"x{CONTROLS}.png"
    )
    print_draft(draft)
    print(draft)
    print(report_drafts([draft], [f"{CONTROLS}: gone"], "here"))
    shown = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert str(draft) == (r"No \x00\x07\x08\x0b\x0c\x0d\x1b[2J\x1b]0;title\x07\x7f\x9b31m edema." + "\tClear.\nNormal.")
    assert draft.text == draft.candidates[0] != str(draft), "files keep it as it is"


def test_each_draft_is_printed_under_the_banner(model_folder, tmp_path, capsys) -> None:
    for number in range(3):
        make_study(tmp_path, number, "test")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "black.png")
    assert run("draft", model_folder, tmp_path, "--decode.max_new_tokens", 12) == (1, "")
    text = capsys.readouterr().out
    assert text.count(BANNER) == 3
    assert "3 of 4 drafts are in the text above" in text
    assert "black.png" in text.split("no draft: ")[1]


@pytest.mark.parametrize("to_file", [False, True])
def test_a_draft_is_printed_as_soon_as_it_is_decoded(model_folder, tmp_path, capsys, monkeypatch, to_file) -> None:
    for number in range(3):
        make_study(tmp_path, number, "test")
    shown: list[int] = []

    def decode_batch(*arguments):
        shown.append(capsys.readouterr().out.count(BANNER))
        return decode(*arguments)

    import generator.generate

    decode = generator.generate.decode_batch
    monkeypatch.setattr(generator.generate, "decode_batch", decode_batch)
    out = tmp_path / "out.jsonl"
    options = ["--decode.batch_size", 1, "--decode.max_new_tokens", 5, *(["--out", out] if to_file else [])]
    assert run("draft", model_folder, tmp_path, *options) == (0, "")
    assert shown == [0, 1, 1]
    assert capsys.readouterr().out.count(BANNER) == 1
    if to_file:  # the same command again decodes nothing, and shows the same drafts
        assert run("draft", model_folder, tmp_path, *options) == (0, "")
        text = capsys.readouterr().out
        assert len(shown) == 3
        assert [row["study_id"] in text for row in map(json.loads, out.read_text().splitlines())] == [True] * 3
        assert "3 of 3 drafts are in" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--indication", "Fever."], "does not read the indication (it reads: frontal images); leave it out"),
        (["--view", "PA"], "does not read the view"),
        (["--prompt.context", "view"], "was trained with its own prompt"),
        (["--decode.temperature", "0.7"], "decode: temperature, top_p and seed need sampling"),
        (["--decode.seed", "1"], "decode: temperature, top_p and seed need sampling"),
    ],
)
def test_options_that_the_model_cannot_use_are_refused(random_model, tmp_path, options, sentence) -> None:
    make_study(tmp_path, 1, "test")
    status, said = run("draft", random_model, tmp_path / "1.png", *options)
    assert status == 1
    assert sentence in said
