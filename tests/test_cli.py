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
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

import raddraft.cli
from generator.config import ModelConfig
from generator.generate import BANNER
from generator.model import Drafter, build, save
from raddraft.cli import CONFIGS, UsageError, main, parse, read_action
from raddraft.options import REQUIRED, read_command
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

HEAVY = "{'torch', 'transformers', 'numpy', 'jsonargparse', 'PIL', 'pydicom', 'sklearn', 'scipy'}"


def test_help_lists_every_action_and_imports_nothing_heavy() -> None:
    code = f"import sys; from raddraft.cli import main; main(['--help']); print({HEAVY} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *text, imported = done.stdout.splitlines()
    assert imported == "set()"
    for action in ACTIONS:
        docstring = ast.get_docstring(ast.parse((ROOT / "scripts" / f"{action}.py").read_text(encoding="utf-8")))
        assert docstring
        assert any(line.startswith(f"  {action} ") and line.endswith(docstring.splitlines()[0]) for line in text)


def test_help_of_no_action_imports_anything_heavy() -> None:
    code = f"""
import sys
from raddraft.cli import CONFIGS, UsageError, main, parse, read_action
from raddraft.options import REQUIRED, read_command
late = {{}}
for action in {ACTIONS}:
    try:
        main([action, "--help"])
    except SystemExit as end:
        assert end.code == 0
    late |= {{name: action for name in {HEAVY} & {{*sys.modules}} if name not in late}}
print(late)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "{}"


def test_no_action_unknown_action_and_version(capsys) -> None:
    main([])
    assert capsys.readouterr().out.startswith("usage: raddraft ACTION")
    main(["--version"])
    assert re.fullmatch(r"raddraft \d+\.\d+\S*\n", capsys.readouterr().out)
    for typed, hint in [("drat", "did you mean draft?"), ("contrast", "renamed to raddraft clip")]:
        with pytest.raises(SystemExit) as end:
            main([typed, "model", "x.png"])
        assert end.value.code == f"raddraft: unknown action {typed!r}; {hint}"


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_an_action_opens_with_its_file_and_explains_every_option(action: str, capsys) -> None:
    assert run(action, "--help") == (0, "")
    text = capsys.readouterr().out
    module = import_module(f"scripts.{action}")
    assert text.startswith(f"usage: raddraft {action}")
    assert inspect.getdoc(module) in text, "the commands in it are on lines of their own"
    for command in getattr(module, "COMMANDS", {}):
        assert run(action, command, "--help") == (0, "")
    for command in getattr(module, "COMMANDS", [None]):
        for option in read_action(module, command).options.values():
            assert option.help.endswith((".", "?", ")")), f"{action} {command or ''} {option.name}: {option.help!r}"


def test_positionals_are_shown_as_such(capsys) -> None:
    assert run("draft", "--help") == (0, "")
    text = capsys.readouterr().out
    assert text.startswith("usage: raddraft draft MODEL IMAGES … [--config FILE.yaml] [options]\n")
    assert "\n  MODEL\n" in text
    assert "--model" not in text


def test_module_form_is_the_same_command(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for module in ("scripts.score", "raddraft", "raddraft.cli"):
        words = [module, *([] if module == "scripts.score" else ["score"]), "--help"]
        if module == "raddraft.cli":
            continue
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        assert run("score", "--help") == (0, "")
        assert done.stdout == capsys.readouterr().out


def commands(text: str) -> list[str]:
    """The lines of a text that begin with raddraft, without comments and with what a backslash continues."""
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [line.partition("#")[0].strip() for line in lines if re.match(r" *raddraft [a-z]", line)]


DOCSTRINGS = [import_module(f"scripts.{action}").__doc__ or "" for action in ACTIONS]


@pytest.mark.parametrize("command", sorted({command for text in DOCSTRINGS for command in commands(text)}))
def test_documented_commands_are_commands(command: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("model: {tower: rad-dino, lm: lmsys/vicuna-7b-v1.5}\n")
    _, action, *words = shlex.split(command)
    assert run(action, *words, "--print-config") == (0, "")


# ---- the grammar


@dataclass
class Step:
    """A step."""

    lr: float = 1e-3
    """Learning rate."""
    kind: Literal["a", "b"] = "a"
    """Kind."""


@dataclass
class Loop:
    """Loop"""

    steps: tuple[Step, ...] = (Step(), Step(kind="b"))
    """Steps."""
    size: int = 3
    """Size."""
    names: list[str] = field(default_factory=list)
    """Names."""


@dataclass
class Flat:
    """Flat"""

    tower: str = ""
    """Tower."""
    image_size: int | None = None
    """Size."""


def action(
    model: str,
    images: list[Path],
    out: Path | None = None,
    dry_run: bool = False,
    layers: list[int] | None = None,
    loop: Loop = Loop(),  # noqa: B008
    encoder: Flat = Flat(),  # noqa: B008
) -> None:
    """Do nothing.

    Args:
        model: The model.
        images: Images, or
            folders.
        out, dry_run: Where, and whether.
        layers: Layers.
        loop: The loop.
        encoder: Encoder.
    """


COMMAND = read_command(action, ("model", "images"), ("encoder",))


class Renames:
    RENAMED: ClassVar = {"loop.count": "loop.size", "folder": "out"}


def parsed(*words: str) -> dict[str, object]:
    return parse(COMMAND, list(words), Renames)


def test_options_are_read_with_their_help() -> None:
    assert COMMAND.options["images"].help == "Images, or folders."
    assert COMMAND.options["dry_run"].help == COMMAND.options["out"].help == "Where, and whether."
    assert COMMAND.options["loop.steps.N.kind"].metavar == "{a,b}"
    assert COMMAND.options["image_size"].group == "encoder"
    assert [option.flag for option in COMMAND.options.values() if option.default is REQUIRED] == ["--model", "--images"]


@pytest.mark.parametrize(
    "words",
    [
        ["M", "a.dcm", "b.dcm", "--dry-run", "--layers", "-1", "-4", "--tower", "x"],
        ["--dry_run", "M", "a.dcm", "b.dcm", "--layers", "-1", "-4", "--tower=x"],
        ["--model", "M", "--images", "a.dcm", "b.dcm", "--dry-run", "true", "--layers", "[-1, -4]", "--tower", "x"],
        ["--layers", "-1", "-4", "--tower", "x", "M", "a.dcm", "b.dcm", "--dry-run"],
    ],
)
def test_ways_to_say_the_same(words: list[str]) -> None:
    values = parsed(*words)
    assert values["model"] == "M"
    assert values["images"] == [Path("a.dcm"), Path("b.dcm")]
    assert values["dry_run"] is True
    assert values["layers"] == [-1, -4]
    assert values["encoder"] == Flat("x")
    assert values["loop"] == Loop()


def test_lists_at_any_depth_and_one_field_of_one_item() -> None:
    values = parsed("M", "a", "--loop.names", "one", "two", "--loop.steps.1.lr", "3e-4", "--loop.steps.0.kind", "b")
    assert values["loop"] == Loop((Step(kind="b"), Step(3e-4, "b")), names=["one", "two"])
    whole = parsed("M", "a", "--loop.steps", '[{"lr": 1}]', "--loop.steps.0.kind", "b", "--loop.size", "4")
    assert whole["loop"] == Loop((Step(1.0, "b"),), 4)


def test_config_files_of_the_project_are_found_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("report/tiny.yaml", "configs/report/tiny.yaml", str(CONFIGS / "report" / "tiny.yaml")):
        assert run("train", "--config", name, "--studies", "s", "--out", "o", "--print-config") == (0, "")


@pytest.mark.parametrize(
    ("words", "sentence", "option"),
    [
        (["M"], "missing: IMAGES", "images"),
        (["M", "a", "--ot", "x"], "unknown option --ot; did you mean out?", None),
        (["M", "a", "--names", "x"], "unknown option --names; did you mean loop.names?", None),
        (["M", "a", "--folder", "x"], "option --folder was renamed to --out", None),
        (["M", "a", "--loop.count", "3"], "option --loop.count was renamed to --loop.size", None),
        (["M", "a", "--loop.size", "many"], "--loop.size: expected N, got 'many'", "loop.size"),
        (["M", "a", "--loop.steps.0.kind", "c"], "--loop.steps.N.kind: expected {a,b}, got 'c'", "loop.steps.N.kind"),
        (["M", "a", "--loop.steps.7.lr", "1"], "--loop.steps.7: there are 2 of them, counted from 0", None),
        (["M", "a", "--out"], "--out needs a value", "out"),
        (["M", "a", "--layers"], "--layers needs at least one value", "layers"),
        (["M", "a", "--layers", "x"], "--layers: expected N …, got", "layers"),
        (["M", "a", "--dry-run", "false", "b"], "unexpected argument", None),
        (["M", "a", "--config", "nowhere.yaml"], "--config: there is no file nowhere.yaml", None),
    ],
)  # fmt: skip
def test_usage_errors_are_a_sentence_and_the_help_of_the_option(words, sentence, option) -> None:
    if words[-1] == "b":
        assert parsed(*words)["images"] == [Path("a"), Path("b")]
        return
    with pytest.raises(UsageError) as error:
        parsed(*words)
    assert str(error.value).startswith(sentence)
    assert (error.value.option and error.value.option.name) == option


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loop: {count: 3}", "key loop.count was renamed to loop.size"),
        ("loop: {sizes: 3}", "unknown key loop.sizes; did you mean loop.size"),
        ("loop: {steps: [{lrr: 3}]}", "unknown key loop.steps.lrr; did you mean loop.steps.N.lr"),
        ("towr: x", "unknown key towr; did you mean tower?"),
        ("loop: {size: many}", "--loop.size: expected N, got 'many'"),
        ("[1]", "expected keys and values, got list"),
        ("loop: {steps: [{lr: 1.0e-3}", "not valid YAML:"),
    ],
)
def test_faults_of_a_config_file_are_named(tmp_path, text, sentence) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        parsed("M", "a", "--config", str(tmp_path / "my.yaml"))
    assert sentence in str(error.value)


def test_a_usage_error_leaves_with_status_2_and_no_wall_of_text(capsys) -> None:
    assert run("draft", "model", "--decode.max_new_tokens", "many") == (2, "")
    assert capsys.readouterr().err.splitlines() == [
        "raddraft draft: --decode.max-new-tokens: expected N, got 'many'",
        *read_action(import_module("scripts.draft")).options["decode.max_new_tokens"].usage().splitlines(),
        "All options: raddraft draft --help",
    ]


# ---- rooms hidden by somebody else's modules


def test_a_module_that_hides_a_room_is_named(tmp_path) -> None:
    (tmp_path / "metrics.py").write_text("")
    code = "import raddraft\ntry:\n    raddraft.score(['a'], ['b'])\nexcept raddraft.RadDraftError as e: print(e)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(
        f"{tmp_path / 'metrics.py'} has the name of RadDraft's package 'metrics' and hides it"
    )


def test_the_command_line_works_beside_modules_of_the_same_names(tmp_path) -> None:
    for name in ("metrics.py", "encoder.py"):
        (tmp_path / name).write_text("raise RuntimeError('not RadDraft')")
    for name in ("scripts", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "drafts.txt").write_text("Clear lungs.\n")
    words = ["score", "drafts.txt", "--references", "drafts.txt", "--metrics", "rouge"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "raddraft", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "rouge_l" in done.stdout, done.stderr


# ---- errors


def test_errors_of_prepare_are_one_sentence_with_status_1(tmp_path) -> None:
    missing = tmp_path / "nowhere"
    assert run("prepare", "folder", "--root", missing) == (1, f"raddraft prepare: {missing}: no such folder")


def test_traceback_on_request(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        raddraft.cli.run("prepare", ["folder", "--root", str(tmp_path / "nowhere")])


def test_a_foreign_exception_is_said_to_be_one_and_its_traceback_kept(tmp_path, monkeypatch) -> None:
    def fail() -> None:
        raise KeyError("somebody's bug")

    monkeypatch.setattr("scripts.towers.main", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, sentence = run("towers")
    (file,) = tmp_path.iterdir()
    assert status == 1
    assert sentence.startswith("raddraft towers: an unexpected error, not one of your input: KeyError: ")
    assert sentence.endswith(f"the traceback is in {file}")
    assert "in fail" in file.read_text()


def test_a_full_disk_leaves_no_half_written_control(random_model, studies_file) -> None:
    out = studies_file.parent / "out" / "most-frequent.jsonl"
    arguments = ("--model", random_model, "--studies", studies_file, "--control", "most-frequent", "--out", out)
    with files_no_larger_than(500):
        assert run("generate", *arguments) == (1, "raddraft generate: File too large")
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
