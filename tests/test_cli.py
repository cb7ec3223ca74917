"""The command line: help, errors, warnings and exit statuses of `raddraft ACTION`; drafting from any kind of file."""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

import raddraft.cli
from generator.generate import BANNER
from generator.model import Drafter, ModelConfig, build, save
from raddraft.cli import main
from scripts.draft import print_drafts
from tests.conftest import ROOT, make_study
from tests.test_images import chest, write_dicom

ACTIONS = sorted(path.stem for path in (ROOT / "scripts").glob("[!_]*.py"))


def run(action: str, *arguments: object) -> tuple[int, str]:
    """Exit status of `raddraft ACTION …` in this process, and the sentence it leaves with."""
    with pytest.raises(SystemExit) as end:
        raddraft.cli.run(action, [str(argument) for argument in arguments])
    code = end.value.code
    return (code, "") if isinstance(code, int) else (1, str(code))


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to one file fails, as on a full disk."""
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX matter")
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="session")
def random_model(tower_folder: Path, lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose drafts are gibberish, which takes no training."""
    folder = tmp_path_factory.mktemp("random") / "model"
    save(Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder)))), folder)
    return folder


# ---- raddraft, and raddraft ACTION --help


def test_help_lists_every_action_and_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'jsonargparse'}"
    code = f"import sys; from raddraft.cli import main; main(['--help']); print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *text, imported = done.stdout.splitlines()
    assert imported == "set()"
    for action in ACTIONS:
        docstring = ast.get_docstring(ast.parse((ROOT / "scripts" / f"{action}.py").read_text(encoding="utf-8")))
        assert docstring
        assert f"  {action} " in "\n".join(text)
        assert any(line.startswith(f"  {action} ") and line.endswith(docstring.splitlines()[0]) for line in text)


def test_no_action_unknown_action_and_version(capsys) -> None:
    main([])
    assert capsys.readouterr().out.startswith("usage: raddraft ACTION")
    main(["--version"])
    assert re.fullmatch(r"raddraft \d+\.\d+\S*\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as end:
        main(["drat", "model", "x.png"])
    assert end.value.code == f"raddraft: unknown action 'drat'. Choices: {', '.join(ACTIONS)}"


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_an_action_opens_with_its_file_and_explains_every_option(action: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([action, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    module = import_module(f"scripts.{action}")
    assert text.startswith(f"usage: raddraft {action} ")
    assert inspect.getdoc(module) in text, "the commands in it stand on lines of their own"
    for name in inspect.signature(module.main).parameters if hasattr(module, "main") else module.COMMANDS:
        assert re.search(rf"^ *(--)?{name}\b", text, re.MULTILINE), name
    unexplained = re.findall(r"^  (--\S+(?: \S+)*)(?:  +|\n {10,})\((?:required, )?type:", text, re.MULTILINE)
    assert unexplained == []


def test_module_form_is_the_same_command(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.score", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run("score", "--help") == (0, "")
    assert done.stdout == capsys.readouterr().out
    assert "--predictions PATH …" in done.stdout


def commands(text: str) -> list[str]:
    """The lines of a text that begin with raddraft, without comments and with what a backslash continues."""
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [line.partition("#")[0].strip() for line in lines if re.match(r" *raddraft [a-z]", line)]


README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCSTRINGS = [import_module(f"scripts.{action}").__doc__ or "" for action in ACTIONS]


@pytest.mark.parametrize("command", sorted({command for text in (README, *DOCSTRINGS) for command in commands(text)}))
def test_documented_commands_are_commands(command: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if example := re.search(r"```yaml\n(# my\.yaml\n.*?)```", README, re.DOTALL):
        (tmp_path / "my.yaml").write_text(example[1], encoding="utf-8")
    _, action, *words = shlex.split(command)
    assert run(action, *words, "--print_config") == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["A", "B", "C"], ["--model", "A", "--images", '["B", "C"]']),
        (["A", "B", "--out", "x"], ["--model", "A", "--images", '["B"]', "--out", "x"]),
        (["A", "--images", "B", "ö", "--out", "x"], ["--model", "A", "--images", '["B", "\\u00f6"]', "--out", "x"]),
        (["--images", "film.dcm", "--model", "A"], ["--images", '["film.dcm"]', "--model", "A"]),
        (["--model", "A", "--images", "[B, C]"], ["--model", "A", "--images", "[B, C]"]),
        (["--images", "null", "--out", "x", "y"], ["--images", "null", "--out", "x", "y"]),
        (["--images=[B]"], ["--images=[B]"]),
    ],
)  # fmt: skip
def test_words_become_named_options_and_lists(words: list[str], expected: list[str]) -> None:
    named = scripts.name_positionals(words, ("model", "images"), {"images"})
    assert scripts.gather_lists(named, {"images"}) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["A", "--out", "x"], ["--file", "A", "--out", "x"]),
        (["A", "B", "--out", "x"], ["--file", "A", "B", "--out", "x"]),
        (["--out", "x", "--file", "A"], ["--out", "x", "--file", "A"]),
    ],
)
def test_a_last_name_that_is_no_list_takes_one_word(words: list[str], expected: list[str]) -> None:
    assert scripts.name_positionals(words, ("file",), {"mean"}) == expected


# ---- errors


def test_errors_of_prepare_are_one_sentence_with_status_1(tmp_path) -> None:
    missing = tmp_path / "nowhere"
    assert run("prepare", "folder", "--root", missing) == (1, f"raddraft prepare: {missing}: no such folder")


def test_traceback_on_request(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        raddraft.cli.run("prepare", ["folder", "--root", str(tmp_path / "nowhere")])


def test_a_full_disk_leaves_no_half_written_control(random_model, studies_file) -> None:
    out = studies_file.parent / "out" / "most-frequent.jsonl"
    arguments = ("--model", random_model, "--studies", studies_file, "--control", "most-frequent", "--out", out)
    with files_no_larger_than(500):
        assert run("generate", *arguments) == (1, "raddraft generate: [Errno 27] File too large")
    assert list(out.parent.iterdir()) == []
    assert run("generate", *arguments) == (0, "")
    assert len(out.read_text().splitlines()) == 8


# ---- draft


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


def test_a_terminal_that_does_not_know_its_width_shows_the_draft(tmp_path, capsys) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a POSIX matter")
    (tmp_path / "drafts.jsonl").write_text('{"study_id": "s1", "prediction": "The lungs are clear."}\n')
    saved, (master, terminal) = os.dup(1), pty.openpty()  # a new one has no columns
    os.dup2(terminal, 1)
    try:
        print_drafts(tmp_path / "drafts.jsonl")
    finally:
        os.dup2(saved, 1)
        for descriptor in (saved, master, terminal):
            os.close(descriptor)
    assert "  The lungs are clear.\n" in capsys.readouterr().out
