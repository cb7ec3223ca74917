"""The options of an action, read from the signature of its `main`: names, types, defaults, help.

Nothing heavy is imported, so help is fast. Dataclass parameters become groups of options with dotted names; fields are
documented by the string under them, parameters by the Args section of the docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raddraft.ranges import Range

REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of the command line, and one key of a config file."""

    name: str
    """Dotted, with underscores, e.g. train.batch_size; N stands for the position in a list, e.g. train.stages.N.lr."""
    type: Any
    """Without None."""
    default: Any
    """REQUIRED if there is none."""
    help: str
    group: str = ""
    """Name of the dataclass parameter that it belongs to."""
    range: str = ""
    """Of a number, in words."""

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it needs no value."""
        return self.type is bool

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return typing.get_origin(self.type) in (list, tuple)

    @property
    def may_be_list(self) -> bool:
        """Whether it is a list, or one of its alternatives is."""
        return any(typing.get_origin(one) in (list, tuple) for one in (self.type, *typing.get_args(self.type)))

    @property
    def item(self) -> Any:
        """Type of the items of a list."""
        return typing.get_args(self.type)[0]

    @property
    def metavar(self) -> str:
        """What follows the flag in the help."""
        if self.is_switch:
            return ""
        return f"{_metavar(self.item)} …" if self.is_list else _metavar(self.type)

    @property
    def expected(self) -> str:
        """What its value must be, in words."""
        return _in_words(self.type)

    def usage(self, width: int = 100) -> str:
        """The option with its help and default, wrapped, as in `--help`."""
        text, notes = self.help, [self.range] if self.range else []
        items = self.default if isinstance(self.default, list | tuple) else [self.default]
        if self.default not in (REQUIRED, None, "", (), []) and not (self.is_switch and not self.default):
            notes.append(f"default: {' '.join(map(_shown, items))}")
        if notes:
            text += f" [{'; '.join(notes)}]"
        head = f"  {self.flag} {self.metavar}".rstrip()
        body = textwrap.wrap(text, width - 6, break_on_hyphens=False)
        return "\n".join([head, *(f"      {line}" for line in body)])


@dataclasses.dataclass(frozen=True)
class Command:
    """What an action's `main` takes."""

    function: Callable[..., Any]
    positionals: tuple[str, ...]
    """Parameters that may be given without their names; the last takes all other words if it is a list."""
    flat: tuple[str, ...]
    """Dataclass parameters whose fields are options without a prefix."""
    classes: dict[str, Any]
    """Dataclass parameter -> dataclass."""
    groups: dict[str, str]
    """Dataclass parameter -> what it is for."""
    options: dict[str, Option]

    def usage(self, prog: str) -> str:
        """One line."""
        words = []
        for name in self.positionals:
            word = name.upper() + (" …" if self.options[name].is_list else "")
            words.append(word if self.options[name].default is REQUIRED else f"[{word}]")
        return " ".join(["usage:", prog, *words, "[--config FILE.yaml] [options]"])

    def help(self, prog: str, description: str) -> str:
        """The page that `--help` prints."""
        width = min(110, max(60, shutil.get_terminal_size((100, 24)).columns))
        parts = [self.usage(prog), description]
        shown = {name: option for name, option in self.options.items() if option.name not in self.positionals}
        if self.positionals:
            lines = []
            for name in self.positionals:
                option = self.options[name]
                body = textwrap.wrap(option.help, width - 6, break_on_hyphens=False)
                lines += [f"  {name.upper()}{' …' if option.is_list else ''}", *(f"      {line}" for line in body)]
            parts.append("\n".join(["Arguments", *lines]))
        for group in ("", *self.groups):
            members = [option for option in shown.values() if option.group == group]
            required = [option for option in members if option.default is REQUIRED and ".N." not in option.name]
            others = [option for option in members if option not in required]
            for title, part in (("Required", required), (self.groups.get(group, "Options"), others)):
                if part:
                    parts.append("\n".join([title.rstrip("."), *(option.usage(width) for option in part)]))
        parts.append(
            "Options may be written with - or _, lists as plain words. Any of them may be set in a YAML file:\n"
            "--config FILE.yaml (of several files the last one wins). --print-config shows what is set."
        )
        return "\n\n".join(parts)


def read_command(
    function: Callable[..., Any], positionals: tuple[str, ...] = (), flat: tuple[str, ...] = ()
) -> Command:
    """Read what a function takes."""
    hints, ranges = _read_hints(function)
    docs = argument_docs(inspect.getdoc(function) or "")
    classes: dict[str, Any] = {}
    groups: dict[str, str] = {}
    options: dict[str, Option] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _without_none(hints[name])
        if dataclasses.is_dataclass(kind):
            classes[name] = kind
            groups[name] = docs.get(name) or _first_line(kind)
            found = _fields(kind, "" if name in flat else f"{name}.", name, parameter.default)
        else:
            option = Option(name, kind, parameter.default, docs.get(name, ""), range=ranges[name])
            found = iter([option, *_items(option)])
        options |= {option.name: option for option in found}
    return Command(function, tuple(positionals), tuple(flat), classes, groups, options)


def argument_docs(docstring: str) -> dict[str, str]:
    """Parameter -> its text in the Args section of a docstring; one text may document several: `a, b: …`."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", textwrap.dedent(section[1]) and "\n" + section[1]) if section else []:
        names, _, text = entry.strip().partition(":")
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Field of a dataclass -> the string under it."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[statement.target.id] = " ".join(str(ast.literal_eval(after.value)).split())  # type: ignore[union-attr]
    return found


def _fields(cls: Any, prefix: str, group: str, instance: Any = REQUIRED) -> Iterator[Option]:
    (hints, ranges), docs = _read_hints(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        kind = _without_none(hints[field.name])
        default = REQUIRED
        if instance is not REQUIRED and instance is not None:
            default = getattr(instance, field.name)
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from _fields(kind, f"{name}.", group, default)
        else:
            option = Option(name, kind, default, docs.get(field.name, ""), group, ranges[field.name])
            yield option
            yield from _items(option)


def _read_hints(owner: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The types of parameters or fields, and the ranges of those that are one number."""
    ranges = {}
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        found = getattr(_without_none(hint), "__metadata__", ())
        ranges[name] = next((str(one) for one in found if isinstance(one, Range)), "")
    return typing.get_type_hints(owner), ranges


def _items(option: Option) -> Iterator[Option]:
    """The fields of a list's items, if these are dataclasses."""
    if option.is_list and dataclasses.is_dataclass(option.item):
        yield from _fields(option.item, f"{option.name}.N.", option.group)


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        others = [one for one in typing.get_args(kind) if one is not type(None)]
        return others[0] if len(others) == 1 else typing.Union[tuple(others)]  # noqa: UP007
    return kind


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return "|".join(_metavar(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) in (list, tuple):
        return f"[{', '.join(_metavar(one) for one in typing.get_args(kind) if one is not ...)}]"
    if typing.get_origin(kind) is dict:
        return "{" + ": ".join(_metavar(one) for one in typing.get_args(kind)) + ", …}"
    if dataclasses.is_dataclass(kind):
        return "{…}"
    return {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "{true,false}"}.get(
        kind, getattr(kind, "__name__", "VALUE")
    )


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        *others, last = map(str, typing.get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_in_words(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) in (list, tuple):
        return f"a list, each item {_in_words(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is dict:
        return f"a mapping, each value {_in_words(typing.get_args(kind)[1])}"
    words = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}
    return words.get(kind, _metavar(kind))


def _shown(value: Any) -> str:
    """A default as the help shows it; of a dataclass the fields that differ from the dataclass's own defaults."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    changed = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default and field.default_factory is dataclasses.MISSING
    }
    return "{" + ", ".join(f"{name}: {one}" for name, one in changed.items()) + "}"


def _first_line(cls: Any) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]
