"""The console command `raddraft ACTION [options]`: finds the action, reads its command line, reports its errors.

    raddraft --help
    raddraft train --help
    raddraft train --config report/tiny.yaml --studies studies.jsonl --out runs/x --train.stages.1.lr 3e-4 --dry-run

An action is a file in scripts/ with a function `main`, whose signature is its command line; or COMMANDS, sub-commands
by name. It may also have POSITIONAL, parameters that stand without their names; FLAT, dataclass parameters whose fields
need no prefix; RENAMED, old option -> new; DEFAULT_CONFIG, a YAML file that is read where no --config is given; SHARED,
true where several runs may write to one --out, which else is locked for as long as the action runs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from raddraft.errors import RadDraftError
from raddraft.grammar import ROOT, UsageError, did_you_mean, dump, parse
from raddraft.locks import hold
from raddraft.options import Command, read_command
from raddraft.text import printable

SCRIPTS = ROOT / "scripts"
PACKAGES = ("raddraft", "encoder", "generator", "metrics", "scripts")
RENAMED_ACTIONS = {
    "app": "raddraft read",
    "contrast": "raddraft clip",
    "views": "raddraft crops",
    "bench": "python -m benchmarks (in a clone of the repository)",
    "labeler": "python -m benchmarks.labeler (in a clone of the repository)",
}
LONGEST = 4000
"""Letters of an error's sentence."""
NO_MEMORY = re.compile("out of memory|can't allocate memory|array is too big|Maximum allowed dimension exceeded")
PRINT_CONFIG = {"--print-config", "--print_config"}


def main(arguments: list[str] | None = None) -> None:
    """Run `raddraft` with these arguments, by default those of this process, and leave with the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    actions = list_actions()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, actions))
        print("usage: raddraft ACTION [--config FILE.yaml] [options]\n")
        print("Drafts radiology reports from chest X-rays, trains the models that do it, and measures them.")
        print("Every draft is for a radiologist to check.\n")
        print("\n".join(f"  {name:{width}}  {summary}" for name, summary in actions.items()))
        print("\nraddraft ACTION --help shows the options of an action.")
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"raddraft {version('raddraft')}")
        return
    action = arguments[0].replace("-", "_")
    if action not in actions:
        hint = f"renamed to {RENAMED_ACTIONS[action]}" if action in RENAMED_ACTIONS else did_you_mean(action, actions)
        sys.exit(f"raddraft: unknown action {arguments[0]!r}; {hint}")
    run(action, arguments[1:])


def list_actions() -> dict[str, str]:
    """Name of every action and the first line of its file's docstring, read without importing it."""
    found = {}
    for path in sorted(SCRIPTS.glob("[!_]*.py")):
        summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = summary.partition("\n")[0]
    return found


def read_action(module: Any, subcommand: str | None = None) -> Command:
    """What an action, given by its module, takes; or one of its sub-commands."""
    function = module.main if subcommand is None else module.COMMANDS[subcommand]
    positionals = getattr(module, "POSITIONAL", ())
    if subcommand is not None:  # of which each has some
        positionals = [name for name in positionals if name in inspect.signature(function).parameters]
    return read_command(function, positionals, getattr(module, "FLAT", ()))


def run(action: str, arguments: list[str] | None = None, package: str = "scripts") -> NoReturn:
    """Parse the command line by the signature of the action's `main`, run it, and leave with its exit status.

    A mistake of the user's (RadDraftError, a file that cannot be read or written, a wrong command line) becomes one
    sentence on stderr and exit status 1, of the command line 2. Any other exception is written with its traceback to a
    file that the message names. RADDRAFT_TRACEBACK=1 in the environment shows every traceback. Warnings of this project
    become one line.

    Args:
        action: name of the action, hence of its module.
        arguments: the command line after the name; by default that of this process.
        package: where its module is.
    """
    if str(ROOT) in sys.path:
        sys.path.remove(str(ROOT))
    sys.path.insert(0, str(ROOT))  # a metrics.py or scripts/ in the working directory must not hide ours
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a console that lacks a letter must not cost the drafts after it
        sys.stdout.reconfigure(errors="backslashreplace")
    prog = f"raddraft {action}" if package == "scripts" else f"python -m {package}.{action}".removesuffix(".__main__")
    try:
        with _warnings_in_one_line(prog):
            sys.exit(_run(importlib.import_module(f"{package}.{action}"), prog, list(arguments)))
    except UsageError as error:
        lines = [f"{prog}: {_shortened(str(error))}", *([error.option.usage()] if error.option else [])]
        print("\n".join([*lines, f"All options: {error.prog or prog} --help"]), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone, as in `raddraft … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("RADDRAFT_TRACEBACK"):
            raise
        sys.exit(f"{prog}: {_sentence(error, action)}")


def _run(module: Any, prog: str, arguments: list[str]) -> int:
    subcommand = None
    if commands := getattr(module, "COMMANDS", None):
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_list_commands(module, prog))
            return 0 if arguments else 2
        subcommand = arguments.pop(0)
        if subcommand not in commands:
            raise UsageError(f"unknown command {subcommand!r}; {did_you_mean(subcommand, commands)}")
        prog = f"{prog} {subcommand}"
    command = read_action(module, subcommand)
    if "-h" in arguments or "--help" in arguments:
        described = command.function if subcommand else module
        print(command.help(prog, re.sub(r"\n*Args:\n(.*\n?)*", "", inspect.getdoc(described) or "")))
        return 0
    if PRINT_CONFIG & {*arguments}:
        print(dump(command, [word for word in arguments if word not in PRINT_CONFIG], module), end="")
        return 0
    try:
        values = parse(command, arguments, module)
    except UsageError as error:
        error.prog = prog
        raise
    _check_out(command, values)
    with _held(module, values):
        status = command.function(**values)
    return status if isinstance(status, int) else 0


def _check_out(command: Command, values: dict[str, Any]) -> None:
    """Raise RadDraftError where `out` is a file that another option names: what is read would be lost."""
    out = values.get("out")
    if out is None or not os.path.isfile(out):
        return
    for name in values.keys() & command.options.keys() - {"out"}:
        value = values[name]
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, str | Path) and os.path.isfile(one) and os.path.samefile(one, out):
                what = "manifest" if name == "studies" else "file"
                raise RadDraftError(
                    f"--out {out}: this would replace the {what} {one}, which {command.options[name].flag} names; "
                    "choose another name"
                )


def _held(module: Any, values: dict[str, Any]) -> AbstractContextManager[None]:
    """Keeps other runs from writing to `out`, if the action writes to it alone."""
    if values.get("out") is None or values.get("dry_run") or getattr(module, "SHARED", False):
        return nullcontext()
    return hold(values["out"])


def _list_commands(module: Any, prog: str) -> str:
    width = max(map(len, module.COMMANDS))
    summaries = {name: (inspect.getdoc(one) or "").partition("\n")[0] for name, one in module.COMMANDS.items()}
    rows = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
    footer = f"{prog} COMMAND --help shows the options of a command."
    return "\n".join([f"usage: {prog} COMMAND [options]", "", inspect.getdoc(module) or "", "", *rows, "", footer])


def _sentence(error: Exception, action: str) -> str:
    """One sentence on an error; the traceback of one that is no mistake of the user's goes to a file."""
    if isinstance(error, OSError) and error.strerror:
        return _shortened(": ".join(map(str, filter(None, (error.filename, error.strerror)))))
    what = " ".join(str(error).split())
    if isinstance(error, RadDraftError | FileNotFoundError):
        table = getattr(error, "table", "")
        return f"{_shortened(what)}\n{table}" if table else _shortened(what)
    if isinstance(error, MemoryError) or NO_MEMORY.search(what):  # torch and NumPy have no class for some
        return (
            f"this takes more memory than there is ({what[:300]}); lower the batch size or the size of images or texts"
        )
    if isinstance(error, ValueError) and what == "embedded null byte":
        return "a name holds NUL (\\0), which the name of a file cannot"
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix=f"raddraft-{action}-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    told = f"{type(error).__name__}: {what}"[:300]
    return f"an unexpected error, not one of your input: {told}; the traceback is in {file.name}"


def _shortened(sentence: str) -> str:
    """A sentence that a terminal can show: what a damaged file holds may be long, and obeyed as commands."""
    return printable(sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]} …")


@contextmanager
def _warnings_in_one_line(prog: str) -> Iterator[None]:
    """Print this project's warnings as one line each, above any progress bar; those of libraries stay as they are."""
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        path = Path(filename).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            from tqdm import tqdm

            tqdm.write(f"{prog}: warning: {printable(str(message))}", file=file or sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
