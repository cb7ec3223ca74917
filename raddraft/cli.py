"""The console command `raddraft ACTION [options]`: finds the action, reads its command line, reports its errors.

    raddraft --help
    raddraft train --help
    raddraft train --config report/tiny.yaml --studies studies.jsonl --out runs/x --train.stages.1.lr 3e-4 --dry-run

An action is a file in scripts/ with a function `main`, whose signature is its command line; or COMMANDS, sub-commands
by name. It may also have POSITIONAL, parameters that stand without their names; FLAT, dataclass parameters whose fields
need no prefix; RENAMED, old option -> new; DEFAULT_CONFIG, a YAML file that is read where no --config is given.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import inspect
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from raddraft.errors import RadDraftError
from raddraft.options import Command, Option, read_command

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
CONFIGS = ROOT / "configs"
PACKAGES = ("raddraft", "encoder", "generator", "metrics", "scripts")
RENAMED_ACTIONS = {
    "contrast": "raddraft clip",
    "views": "raddraft crops",
    "bench": "python -m benchmarks (in a clone of the repository)",
    "labeler": "python -m benchmarks.labeler (in a clone of the repository)",
}
RENAMED = {"image_mapping": "gray_mapping", "mapping": "gray_mapping", "n_gpus": "gpus", "n_resamples": "resamples"}
"""Options that had another name in every action."""
PRINT_CONFIG = {"--print-config", "--print_config"}
LITERALS = {"true", "false", "yes", "no", "null"}


class UsageError(Exception):
    """The command line or a config file is wrong; `option` is the one at fault, if it is known."""

    def __init__(self, message: str, option: Option | None = None) -> None:
        super().__init__(message)
        self.option = option


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
        hint = f"renamed to {RENAMED_ACTIONS[action]}" if action in RENAMED_ACTIONS else _did_you_mean(action, actions)
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
    return read_command(function, getattr(module, "POSITIONAL", ()), getattr(module, "FLAT", ()))


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
        lines = [f"{prog}: {error}", *([error.option.usage()] if error.option else [])]
        print("\n".join([*lines, f"All options: {prog} --help"]), file=sys.stderr)
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
            raise UsageError(f"unknown command {subcommand!r}; {_did_you_mean(subcommand, commands)}")
        prog = f"{prog} {subcommand}"
    command = read_action(module, subcommand)
    if "-h" in arguments or "--help" in arguments:
        described = command.function if subcommand else module
        print(command.help(prog, re.sub(r"\n*Args:\n(.*\n?)*", "", inspect.getdoc(described) or "")))
        return 0
    if PRINT_CONFIG & {*arguments}:
        print(dump(command, [word for word in arguments if word not in PRINT_CONFIG], module), end="")
        return 0
    status = command.function(**parse(command, arguments, module))
    return status if isinstance(status, int) else 0


def _list_commands(module: Any, prog: str) -> str:
    width = max(map(len, module.COMMANDS))
    summaries = {name: (inspect.getdoc(one) or "").partition("\n")[0] for name, one in module.COMMANDS.items()}
    rows = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
    footer = f"{prog} COMMAND --help shows the options of a command."
    return "\n".join([f"usage: {prog} COMMAND [options]", "", inspect.getdoc(module) or "", "", *rows, "", footer])


def parse(command: Command, arguments: list[str], module: Any = None) -> dict[str, Any]:
    """The arguments for an action's function, from a command line and the config files that it names.

    Raises:
        UsageError: an unknown or renamed option, a value that does not fit, a required one that is missing.
    """
    import jsonargparse

    parser, words = _make_parser(command, arguments, module)
    try:
        values = vars(parser.instantiate_classes(parser.parse_args(words)))
    except jsonargparse.ArgumentError as error:
        raise _usage_error(str(error), command) from None
    del values["config"]
    for name in command.flat:
        cls = command.classes[name]
        values[name] = cls(**{field: values.pop(field) for field in cls.__dataclass_fields__})
    return values


def dump(command: Command, arguments: list[str], module: Any = None) -> str:
    """The resolved config as YAML, which --config takes again. Raises UsageError as `parse`."""
    import jsonargparse

    parser, words = _make_parser(command, arguments, module)
    try:
        return parser.dump(parser.parse_args(words), skip_none=False)
    except jsonargparse.ArgumentError as error:
        raise _usage_error(str(error), command) from None


def _make_parser(command: Command, arguments: list[str], module: Any) -> tuple[Any, list[str]]:
    """jsonargparse's parser of a command, and the command line in the form that it reads."""
    import jsonargparse

    renamed = RENAMED | getattr(module, "RENAMED", {})
    given, changes = _gather(command, arguments, renamed)
    defaults = [str(module.DEFAULT_CONFIG)] if hasattr(module, "DEFAULT_CONFIG") else []
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_config_files=defaults)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(command.function, as_positional=False, skip=set(command.flat))
    for name in command.flat:
        parser.add_class_arguments(command.classes[name], as_positional=False)
    words = []
    for key, value in given:
        if key == "config":
            value = str(_find_config(value))
            _check_config(Path(value), command, renamed)
        words.append(f"--{key}={value}")
    try:
        return parser, words + (_change_items(parser, words, changes) if changes else [])
    except jsonargparse.ArgumentError as error:
        raise _usage_error(str(error), command) from None


def _gather(
    command: Command, arguments: list[str], renamed: Mapping[str, str]
) -> tuple[list[tuple[str, str]], list[tuple[str, int, str, str]]]:
    """(option, value) of a command line, and changes of one item of a list: (option, position, field, value)."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
        else:
            groups[-1][1].append(word)
    given: list[tuple[str, str]] = []
    changes: list[tuple[str, int, str, str]] = []
    loose = groups[0][1]  # words that are no option's value
    for name, values in groups[1:]:
        position = re.search(r"\.(\d+)\.", name)
        option = command.options.get(re.sub(r"\.\d+\.", ".N.", name))
        if option is None and (name == "config" or any(known.startswith(f"{name}.") for known in command.options)):
            given += [(name, value) for value in values]
            continue
        if option is None:
            raise UsageError(_unknown(f"option --{name}", name, command, renamed))
        if option.is_switch and (not values or values[0].lower() not in LITERALS):
            values, rest = ["true"], values
        elif option.is_list and not position:
            if not values:
                raise UsageError(f"{option.flag} needs at least one value", option)
            values, rest = [_as_list(values)], []
        elif not values:
            raise UsageError(f"{option.flag} needs a value", option)
        else:
            values, rest = values[:1], values[1:]
        loose = [*loose, *rest]
        if position:
            base, _, field = option.name.partition(".N.")
            changes.append((base, int(position[1]), field, values[0]))
        else:
            given.append((option.name, values[0]))
    return _name_positionals(command, loose) + given, changes


def _as_list(values: list[str]) -> str:
    """Words as a JSON list; a JSON list or null as it is."""
    return values[0] if values[0].startswith("[") or values == ["null"] else json.dumps(values)


def _name_positionals(command: Command, words: list[str]) -> list[tuple[str, str]]:
    """MODEL A B -> model, ["A", "B"]: each takes one word, the last one all others if it is a list."""
    named = []
    for name in command.positionals:
        if not words:
            break
        if command.options[name].is_list:
            named.append((name, _as_list(words)))
            words = []
        else:
            named.append((name, words[0]))
            words = words[1:]
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}; options start with --")
    return named


def _change_items(parser: Any, words: list[str], changes: list[tuple[str, int, str, str]]) -> list[str]:
    """Options that replace whole lists by lists of which single fields are changed."""
    import yaml

    namespace = parser.parse_args(words)
    lists: dict[str, list[dict[str, Any]]] = {}
    for base, position, field, value in changes:
        items = lists.setdefault(base, [_as_dict(item) for item in namespace[base] or ()])
        if position >= len(items):
            raise UsageError(f"--{base}.{position}: there are {len(items)} of them, counted from 0")
        items[position][field] = yaml.safe_load(value)
    return [f"--{base}={json.dumps(items, default=str)}" for base, items in lists.items()]


def _as_dict(item: Any) -> dict[str, Any]:
    """An item of a list as the parser gives it: a dataclass if it is a default, else its own namespace."""
    return dataclasses.asdict(item) if dataclasses.is_dataclass(item) else dict(item.as_dict())  # type: ignore[arg-type]


def _find_config(name: str) -> Path:
    """A config file: as named, else among those of this project (report/tiny.yaml, configs/report/tiny.yaml)."""
    places = [Path(name), CONFIGS / name, ROOT / name]
    for path in places:
        if path.is_file():
            return path
    known = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")]
    raise UsageError(f"--config: there is no file {name}; {_did_you_mean(name.removeprefix('configs/'), known)}")


def _check_config(path: Path, command: Command, renamed: Mapping[str, str]) -> None:
    """Raise UsageError where a YAML file is broken, or has a key that is not an option (any more)."""
    import yaml

    try:
        # 3e-4 is a number to jsonargparse; here only the keys count.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(content).__name__}")

    def walk(value: Any, prefix: str) -> None:
        for key, item in value.items():
            name = f"{prefix}{key}"
            option = command.options.get(name)
            if option and option.is_list and isinstance(item, list):
                for part in item:
                    if isinstance(part, dict):
                        walk(part, f"{name}.N.")
            elif option is None and not any(known.startswith(f"{name}.") for known in command.options):
                if name not in command.groups:
                    raise UsageError(f"{path}: {_unknown(f'key {name}', name, command, renamed)}")
            elif option is None and isinstance(item, dict):
                walk(item, f"{name}.")

    walk(content, "")


def _unknown(what: str, name: str, command: Command, renamed: Mapping[str, str]) -> str:
    """What to say of an option or key that does not exist."""
    what = what.replace(".N.", ".") if what.startswith("key") else what.replace("_", "-")
    prefix, _, last = name.rpartition(".")
    new = renamed.get(name) or (renamed.get(last) and f"{prefix}.{renamed[last]}".lstrip("."))
    if new:
        return f"{what} was renamed to {new if what.startswith('key') else '--' + new.replace('_', '-')}"
    return f"unknown {what}; {_did_you_mean(name, command.options)}"


def _did_you_mean(name: str, choices: Collection[str]) -> str:
    """The choices that are spelled alike, or end alike; else all of them, if they are few."""
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, list(choices), 3, 0.75)
    close += [choice for choice in choices if choice.rpartition(".")[2] == last and choice not in close]
    if close:
        return f"did you mean {' or '.join(close[:3])}?"
    return f"choices: {', '.join(choices)}" if len(choices) <= 40 else "see --help"


def _usage_error(message: str, command: Command) -> UsageError:
    """jsonargparse's message as one sentence, with the option that it is about."""
    if required := re.search(r"arguments are required: (.+)", message):
        missing = [command.options[name] for name in required[1].split(", ")]
        named = [option.name.upper() if option.name in command.positionals else option.flag for option in missing]
        return UsageError(f"missing: {', '.join(named)}", missing[0])
    key = re.search(r'[Kk]ey "([\w.]+)"', message)
    option = command.options.get(key[1]) if key else None
    if option is None:
        return UsageError(" ".join(message.split()))
    if option.is_list and (inner := re.search(r'key "(\w+)"', message[key.end() :] if key else "")):
        option = command.options.get(f"{option.name}.N.{inner[1]}", option)
    value = re.search(r"Got value: (.*)|Given value: (.*)", message)
    item = re.search(r"Option '(\w+)' is not accepted", message)
    reason = f"unknown field {item[1]!r}" if item else f"got {value[1] or value[2]!r}" if value else ""
    expected = f"expected {option.metavar}" if option.metavar else "expected true or false"
    if not reason or item:
        return UsageError(f"{option.flag}: {reason or ' '.join(message.split())}", option)
    return UsageError(f"{option.flag}: {expected}, {reason}", option)


def _sentence(error: Exception, action: str) -> str:
    """One sentence on an error; the traceback of one that is no mistake of the user's goes to a file."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(map(str, filter(None, (error.filename, error.strerror))))
    if isinstance(error, RadDraftError | FileNotFoundError):
        return " ".join(str(error).split())
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix=f"raddraft-{action}-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"an unexpected error, not one of your input: {what[:300]}; the traceback is in {file.name}"


@contextmanager
def _warnings_in_one_line(prog: str) -> Iterator[None]:
    """Print this project's warnings as one line each, above any progress bar; those of libraries stay as they are."""
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        path = Path(filename).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            from tqdm import tqdm

            tqdm.write(f"{prog}: warning: {message}", file=file or sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
