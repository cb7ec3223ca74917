"""The grammar of the command line and of config files: words -> the arguments of an action's function.

Names with - or _; switches without a value; lists as plain words; one field of one item of a list by its position
(--train.stages.1.lr 3e-4); positionals before or after options; renamed and misspelled names are refused with the right
one. jsonargparse checks and converts the values.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from raddraft.errors import RadDraftError
from raddraft.options import REQUIRED, Command, Option
from raddraft.ranges import check_range
from raddraft.text import closest

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
RENAMED = {"image_mapping": "gray_mapping", "mapping": "gray_mapping", "n_gpus": "gpus", "n_resamples": "resamples"}
"""Options that had another name in every action."""
MOST_VALUES = 100_000
"""In a config file, with those that aliases repeat."""
LITERALS = {"true", "false", "yes", "no", "null"}


class UsageError(Exception):
    """The command line or a config file is wrong; `option` is the one at fault, if it is known."""

    def __init__(self, message: str, option: Option | None = None) -> None:
        super().__init__(message)
        self.option = option
        self.prog = ""


def parse(command: Command, arguments: list[str], module: Any = None) -> dict[str, Any]:
    """The arguments for an action's function, from a command line and the config files that it names.

    Raises:
        UsageError: an unknown or renamed option, a value that does not fit, a required one that is missing.
    """
    import jsonargparse

    parser, words = _make_parser(command, arguments, module)
    try:
        given = parser.parse_args(words)
        values = vars(parser.instantiate(given))
    except jsonargparse.ArgumentError as error:
        raise _usage_error(str(error), command) from None
    except ValueError as error:
        if isinstance(error.__cause__, RadDraftError):  # of a dataclass that may also be None
            raise error.__cause__ from None
        raise
    except TypeError as error:
        if "must be a mapping, not" not in str(error):
            raise
        raise UsageError(_no_group(command, given)) from None
    del values["config"]
    for name, hint in get_type_hints(command.function, include_extras=True).items():
        if option := command.options.get(name):
            if option.is_list and option.default is REQUIRED and not values[name]:
                raise UsageError(f"{option.flag} needs at least one value", option)
            try:
                check_range(option.flag, values[name], hint)
            except RadDraftError as error:
                raise UsageError(str(error), option) from None
    for name in command.flat:
        cls = command.classes[name]
        values[name] = cls(**{field: values.pop(field) for field in cls.__dataclass_fields__})
    return values


def _no_group(command: Command, given: Any) -> str:
    """What to say of a group of options that a config file gives a single value, as `train: []`."""
    groups = {name.rpartition(".")[0] for name in command.options if "." in name and ".N." not in name}
    found = {name: given[name] for name in sorted(groups) if not hasattr(given[name], "as_dict")}
    if name := next((name for name in found if found[name] is not None), ""):
        return f"key {name}: expected keys and values, got {found[name]!r}"
    return f"key {' or '.join(found)}: expected keys and values, got null"  # which some may be


def dump(command: Command, arguments: list[str], module: Any = None) -> str:
    """The resolved config as YAML, which --config reads. Raises UsageError as `parse`."""
    import jsonargparse

    from raddraft.runs import to_yaml

    parser, words = _make_parser(command, arguments, module)
    try:
        values = parser.parse_args(words).as_dict()
    except jsonargparse.ArgumentError as error:
        raise _usage_error(str(error), command) from None
    return to_yaml({key: value for key, value in values.items() if key not in ("config", "__default_config__")})


def _make_parser(command: Command, arguments: list[str], module: Any) -> tuple[Any, list[str]]:
    """jsonargparse's parser of a command, and the command line in the form that it reads."""
    import jsonargparse

    renamed = RENAMED | getattr(module, "RENAMED", {})
    given, changes = _gather(command, arguments, renamed)
    defaults: list[Any] = [str(module.DEFAULT_CONFIG)] if hasattr(module, "DEFAULT_CONFIG") else []
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
        elif not position and (option.is_list or (option.may_be_list and len(values) > 1)):
            if not values:
                raise UsageError(f"{option.flag} needs at least one value", option)
            values, rest = [_as_list(values)], []
        elif not values:
            raise UsageError(f"{option.flag} needs a value", option)
        else:
            values, rest = values[:1], values[1:]
        if option.type is Path and not values[0]:
            raise UsageError(f"{option.flag}: expected a path, got ''", option)
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
        try:
            items[position][field] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UsageError(f"--{base}.{position}.{field}: {' '.join(str(error).split())}") from None
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
    raise UsageError(f"--config: there is no file {name}; {did_you_mean(name.removeprefix('configs/'), known)}")


def _check_config(path: Path, command: Command, renamed: Mapping[str, str]) -> None:
    """Raise UsageError where a YAML file is broken, or has a key that is not an option (any more)."""
    import yaml

    try:
        # 3e-4 is a number to jsonargparse; here only the keys count.
        content = yaml.load(path.read_text(encoding="utf-8"), _unique_loader())
        if _size(content) > MOST_VALUES:
            raise ValueError(f"its aliases make more than {MOST_VALUES:,} values of it")
        json.dumps(content, default=str, skipkeys=True)  # fails where something contains itself
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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


def _unique_loader() -> Any:
    """A safe loader of YAML that refuses a key that stands twice in a mapping, of which PyYAML takes the last."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name in keys:
                if keys.count(name) > 1:
                    raise yaml.YAMLError(f"the key {name!r} stands twice in a mapping{node.start_mark}")
            return super().construct_mapping(node, deep)

    return Loader


def _size(content: Any, known: dict[int, int] | None = None) -> int:
    """How many values YAML stands for, with those of aliases each time."""
    known = {} if known is None else known
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = 1  # of one that contains itself, which is refused later
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(content)]


def _unknown(what: str, name: str, command: Command, renamed: Mapping[str, str]) -> str:
    """What to say of an option or key that does not exist."""
    what = what.replace(".N.", ".") if what.startswith("key") else what.replace("_", "-")
    prefix, _, last = name.rpartition(".")
    new = renamed.get(name) or (renamed.get(last) and f"{prefix}.{renamed[last]}".lstrip("."))
    if new:
        return f"{what} was renamed to {new if what.startswith('key') else '--' + new.replace('_', '-')}"
    return f"unknown {what}; {did_you_mean(name, [*command.groups, *command.options])}"


def did_you_mean(name: str, choices: Collection[str]) -> str:
    """The choices that are spelled alike, or end alike; else all of them, if they are few."""
    last = name.rpartition(".")[2]
    close = closest(name, choices)
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
    if option.is_list and (inner := re.findall(r'key "(\w+)"', message[key.end() :] if key else "")):
        option = command.options.get(".".join([option.name, "N", *inner]), option)
    value = re.search(r"Got value: (.*)|Given value: (.*)", message)
    item = re.search(r"Option '(\w+)' is not accepted", message)
    reason = f"unknown field {item[1]!r}" if item else f"got {value[1] or value[2]!r}" if value else ""
    if not reason or item:
        return UsageError(f"{option.flag}: {reason or ' '.join(message.split())}", option)
    return UsageError(f"{option.flag}: expected {option.expected}, {reason}", option)
