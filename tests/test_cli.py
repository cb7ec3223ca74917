"""The command line: help, errors, warnings and exit statuses of `raddraft ACTION`."""

from __future__ import annotations

import ast
import inspect
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

import raddraft.cli
from generator.config import DecodeConfig
from raddraft.cli import main, read_action
from raddraft.errors import RadDraftError
from raddraft.grammar import CONFIGS, UsageError, dump, parse
from raddraft.options import REQUIRED, read_command
from raddraft.ranges import Range
from tests.conftest import ROOT

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
from raddraft.cli import main, read_action
from raddraft.grammar import CONFIGS, UsageError, dump, parse
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
            assert option.help.endswith((".", "?", ")", "…")), (
                f"{action} {command or ''} {option.name}: {option.help!r}"
            )


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


def test_a_printed_config_says_the_same_again(tmp_path) -> None:
    for words in (["M", "a", "b", "--tower", "x"], ["M", "a", "--loop.steps.1.lr", "3e-4", "--layers", "1"]):
        (tmp_path / "printed.yaml").write_text(dump(COMMAND, words, Renames))
        assert parsed("--config", str(tmp_path / "printed.yaml")) == parsed(*words)


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
        (["M", "a", "--loop.size", "many"], "--loop.size: expected a whole number, got 'many'", "loop.size"),
        (["M", "a", "--loop.steps.0.kind", "c"], "--loop.steps.N.kind: expected a or b, got 'c'", "loop.steps.N.kind"),
        (["M", "a", "--loop.steps.7.lr", "1"], "--loop.steps.7: there are 2 of them, counted from 0", None),
        (["M", "a", "--out"], "--out needs a value", "out"),
        (["M", "a", "--layers"], "--layers needs at least one value", "layers"),
        (["M", "a", "--layers", "x"], "--layers: expected a list, each item a whole number, got", "layers"),
        (["M", "a", "--out", ""], "--out: expected a path, got ''", "out"),
        (["M", "a", "--loop.steps.0.kind", "\x1b"], "--loop.steps.0.kind: unacceptable character #x001b", None),
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
        ("loop: {size: many}", "--loop.size: expected a whole number, got 'many'"),
        ("[1]", "expected keys and values, got list"),
        ("loop: {steps: [{lr: 1.0e-3}", "not valid YAML:"),
        ("loop: {steps: &a [{lr: *a}]}", "not valid YAML: Circular reference"),
        (f"loop: {'[' * 3000}", "not valid YAML:"),
        (f"loop: {{size: {'1' * 5000}}}", "not valid YAML:"),
        ("tower: x\ntower: y", "not valid YAML: the key 'tower' stands twice in a mapping"),
        ("loop: {size: 3, names: [a], size: 4}", "not valid YAML: the key 'size' stands twice in a mapping"),
        (
            "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9)),
            "aliases make more",
        ),
        ("loop: []", "key loop: expected keys and values, got []"),
        ("loop: null", "key loop: expected keys and values, got null"),
        ("images: []", "--images needs at least one value"),
    ],
)
def test_faults_of_a_config_file_are_named(tmp_path, text, sentence) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        parsed("M", "a", "--config", str(tmp_path / "my.yaml"))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("prepare", "phantom", "--count", 2, "--processes", -2), "--processes must be at least 1, got -2"),
        (("score", "x.jsonl", "--cases", -5), "--cases must be at least 0, got -5"),
        (("read", "x", "y", "--port", 70000), "--port must be at least 0 and at most 65535, got 70000"),
        (
            ("probe", "--tower", "x", "--studies", "y", "--targets", "z", "--fractions", 0.5, -0.5),
            "--fractions must be",
        ),
        (("pretrain", "--studies", "x", "--out", "y", "--pretrain.lr", ".nan"), "pretrain.lr must be above 0, got nan"),
        (
            (
                "crops",
                "--studies",
                "x",
                "--out",
                "y.png",
                "--pretrain.tower",
                "null",
                "--pretrain.architecture.width",
                -64,
            ),
            "architecture.width must be at least 1, got -64",
        ),
        (
            ("train", "--studies", "x", "--out", "y", "--model.vlm", "z", "--model.image_size", -56),
            "model.image_size must be at least 1, got -56",
        ),
        (
            ("train", "--studies", "x", "--out", "y", "--model.vlm", "z", "--train.max_grad_norm", 0),
            "train.max_grad_norm must be above 0",
        ),
    ],
)
def test_numbers_out_of_their_range_are_refused_before_the_work(capsys, words, sentence) -> None:
    assert sentence in run(*words)[1] + capsys.readouterr().err


@pytest.mark.parametrize("value", [2**31, 10**400])
def test_numbers_that_libraries_cannot_hold_are_refused(capsys, value) -> None:
    assert run("score", "x.jsonl", "--seed", value)[0] == 2
    assert f"--seed must be at least 0 and at most 2147483647, got {value}" in capsys.readouterr().err


def test_the_limit_of_seeds_is_told() -> None:
    with pytest.raises(RadDraftError, match=r"seed must be at least 0 and at most 4294967295, got 4294967296"):
        DecodeConfig(sample=True, seed=2**32)


def test_ranges_take_any_finite_number_and_stand_in_the_help(capsys) -> None:
    assert 10**400 in Range(0), "an int that no float can hold"
    assert not any(value in Range(0) for value in (math.nan, math.inf, -1))
    assert "[at least 1; default: 2]" in run("serve", "--help")[1] + capsys.readouterr().out


SIGNED = {"layers", "feature_layer", "mean", "std", "point", "split", "overrides", "metrics", "settle"}
"""Numbers that may be negative, or whose range depends on others; those of `CHECKED` are checked together."""
CHECKED = {"global_scale", "local_scale", "aspect_ratio", "brightness", "contrast", "gamma", "blur_sigma"} | {
    "mask_ratio", "beta2", "clip", "group", "folds",
}  # fmt: skip


def test_every_number_of_the_command_line_has_a_range() -> None:
    def bare(hint: object, name: str) -> Iterator[str]:
        if is_dataclass(hint):
            for field_name, inner in get_type_hints(hint, include_extras=True).items():
                yield from bare(inner, field_name)
        elif hint in (int, float):
            yield name
        elif get_origin(hint) not in (Annotated, Literal, ClassVar):
            for inner in get_args(hint):
                yield from bare(inner, name)

    found = set()
    for action in ACTIONS:
        module = import_module(f"scripts.{action}")
        for function in getattr(module, "COMMANDS", {"": getattr(module, "main", None)}).values():
            hints = get_type_hints(function, include_extras=True)
            found |= {name for key, hint in hints.items() if key != "return" for name in bare(hint, key)}
    assert found <= SIGNED | CHECKED


def test_a_list_may_be_one_of_several_forms_of_an_option(tmp_path, capsys) -> None:
    for words in (["0.8", "0.1", "0.1"], ["[0.8, 0.1, 0.1]"]):
        assert run("prepare", "folder", "--root", "x", "--split", *words, "--print-config") == (0, "")
        assert yaml.safe_load(capsys.readouterr().out)["split"] == [0.8, 0.1, 0.1]
    assert run("prepare", "folder", "--rot", "x") == (2, "")
    assert capsys.readouterr().err.endswith("All options: raddraft prepare folder --help\n")


def test_a_usage_error_leaves_with_status_2_and_no_wall_of_text(capsys) -> None:
    assert run("draft", "model", "--decode.max_new_tokens", "many") == (2, "")
    assert capsys.readouterr().err.splitlines() == [
        "raddraft draft: --decode.max-new-tokens: expected a whole number, got 'many'",
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


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["consensus", "{file}", "--out", "{file}"], "--predictions"),
        (["prepare", "folder", "--root", "{folder}", "--table", "{file}", "--out", "{file}"], "--table"),
        (
            ["prepare", "reads", "--studies", "{folder}/s", "--reads", "{folder}/r", "{file}", "--out", "{file}"],
            "--reads",
        ),
        (["figures", "{folder}/../file.png", "--towers", "pixels", "--out", "{file}"], "--images"),
        (["probe", "--studies", "{file}", "--targets", "patient.sex", "--out", "{file}"], "--studies"),
    ],
)
def test_an_output_that_is_read_is_not_replaced(tmp_path, words, option) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "file.png"
    file.write_bytes(b"all there is")
    status, message = run(*(word.format(file=file, folder=tmp_path / "folder") for word in words))
    assert (status, f"--out {file}: this would replace the" in message) == (1, True)
    assert f"which {option} names; choose another name" in message
    assert file.read_bytes() == b"all there is"


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


@pytest.mark.parametrize("size", [10**8, 2**31 - 1])
def test_too_little_memory_is_one_sentence(tmp_path, size) -> None:
    status, sentence = run("prepare", "phantom", "--root", tmp_path, "--count", 1, "--processes", 1, "--size", size)
    assert (status, "this takes more memory than there is (" in sentence) == (1, True)


def test_what_a_file_holds_is_not_obeyed_by_the_terminal(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"PK\x03\x04\x1b[2J" + b"\x08" * 100_000)
    status, sentence = run("score", tmp_path / "a.csv")
    assert (status, "Columns: PK\\x03\\x04\\x1b[2J\\x08" in sentence) == (1, True)
    assert len(sentence) < 20_000
    assert sentence.isprintable()
    assert run("score", tmp_path / "\x1b[2J.jsonl")[1].endswith("\\x1b[2J.jsonl: No such file or directory")


def test_a_name_with_nul_is_one_sentence(tmp_path) -> None:
    (tmp_path / "my.yaml").write_text('out: "a\\0b"\n')
    status, sentence = run("score", tmp_path / "a.jsonl", "--config", tmp_path / "my.yaml")
    assert (status, sentence) == (1, "raddraft score: a name holds NUL (\\0), which the name of a file cannot")


def test_a_full_disk_leaves_no_half_written_control(random_model, studies_file) -> None:
    out = studies_file.parent / "out" / "most-frequent.jsonl"
    arguments = ("--model", random_model, "--studies", studies_file, "--control", "most-frequent", "--out", out)
    with files_no_larger_than(500):
        assert run("generate", *arguments) == (1, f"raddraft generate: {out}: File too large")
    assert list(out.parent.iterdir()) == []
    assert run("generate", *arguments) == (0, "")
    assert len(out.read_text().splitlines()) == 8


def test_a_control_does_not_replace_the_drafts_of_a_model(random_model, studies_file) -> None:
    out = studies_file.parent / "drafts.jsonl"
    arguments = ("--model", random_model, "--studies", studies_file, "--device", "cpu", "--out", out)
    assert run("generate", *arguments, "--decode.max_new_tokens", 1)[0] == 0
    drafts = out.read_bytes()
    status, message = run("generate", *arguments, "--control", "most-frequent")
    assert (status, message.startswith(f"raddraft generate: {out} is there, and its first line is not")) == (1, True)
    assert out.read_bytes() == drafts
