"""Write the command reference, docs/commands/, from the code: a page for every action, with all of its options.

    python docs/reference.py            # as `make docs` does before it builds the site

Nothing of it is committed. A test holds that the navigation in mkdocs.yml names every page.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "commands"
sys.path.insert(0, str(ROOT))

from raddraft.cli import list_actions, read_action  # noqa: E402
from raddraft.options import REQUIRED, Command, Option  # noqa: E402


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    actions = list_actions()
    for old in FOLDER.glob("*.md"):
        if old.stem not in actions:
            old.unlink()
    (FOLDER / "index.md").write_text(index(actions), encoding="utf-8")
    for action in actions:
        (FOLDER / f"{action}.md").write_text(page(action), encoding="utf-8")


def index(actions: dict[str, str]) -> str:
    """The page that lists all actions."""
    rows = [f"| [`raddraft {name}`]({name}.md) | {escape(summary)} |" for name, summary in actions.items()]
    return "\n".join(["# Commands", "", INTRODUCTION, "", "| Action | What it does |", "|---|---|", *rows, ""])


INTRODUCTION = """\
One console command, `raddraft ACTION`. These pages are generated from the code and say the same as
`raddraft ACTION --help`.

- Options may be written with `-` or `_`: `--dry-run` is `--dry_run`.
- A switch needs no value: `--dry-run`; `--dry-run false` turns it off.
- Lists are plain words: `--metrics rouge_l bleu_4`, `--prompt.context view indication`.
- One field of a list of settings: `--train.stages.1.lr 3e-4`, counted from 0.
- Any option may stand in a YAML file: `--config my.yaml`. With several files the later one wins, and the command line
  wins over all of them. `--config report/tiny.yaml` finds the recipes that come with RadDraft from any folder.
- An unknown option or key is refused, with the closest name that exists; a renamed one is refused with its new name.
- A mistake in the input ends in one sentence and exit status 1 (status 2 for the command line). An unexpected error
  says so and names a file with the traceback; `RADDRAFT_TRACEBACK=1` prints it instead.

`python -m raddraft ACTION` is the same command. `train`, `pretrain`, `features` and `generate` share their work among
processes under `accelerate launch --num_processes 8 -m raddraft train …`, from any folder."""


def page(action: str) -> str:
    """The page of one action."""
    module = importlib.import_module(f"scripts.{action}")
    parts = [f"# raddraft {action}", prose(inspect.getdoc(module) or "")]
    commands = getattr(module, "COMMANDS", None)
    if commands is None:
        parts += options(read_action(module), f"raddraft {action}", "##")
    for name, function in (commands or {}).items():
        description = re.sub(r"\n*Args:\n(.*\n?)*", "", inspect.getdoc(function) or "")
        parts += [f"## raddraft {action} {name}", prose(description)]
        parts += options(read_action(module, name), f"raddraft {action} {name}", "###")
    return "\n\n".join(parts) + "\n"


def options(command: Command, prog: str, level: str) -> Iterator[str]:
    """Usage, arguments, and options in their groups, as Markdown."""
    yield f"```text\n{command.usage(prog).removeprefix('usage: ')}\n```"
    if command.positionals:
        yield f"{level} Arguments"
        yield from (entry(command.options[name], name.upper()) for name in command.positionals)
    others = [option for option in command.options.values() if option.name not in command.positionals]
    for group in ("", *command.groups):
        members = [option for option in others if option.group == group]
        if members:
            yield f"{level} {escape(command.groups.get(group, 'Options').partition('. ')[0].rstrip('.'))}"
            members.sort(key=lambda option: option.default is not REQUIRED or ".N." in option.name)
            yield from (entry(option) for option in members)


def entry(option: Option, name: str | None = None) -> str:
    """One option as an item of a definition list."""
    head = " ".join(filter(None, [name or option.flag, "" if name else option.metavar]))
    return f"`{head}`{{ .option }}{note(option)}\n:   {escape(option.help)}"


def note(option: Option) -> str:
    """Whether an option is required, or its default."""
    default: Any = option.default
    if default is REQUIRED:
        return "" if ".N." in option.name else " required"
    if default is None or default == "" or (option.is_switch and not default):
        return ""
    values = list(default) if isinstance(default, list | tuple) else [default]
    if not values or not all(isinstance(value, str | int | float | Path) for value in values):
        return ""
    return f" default `{' '.join(map(str, values))}`"


def prose(docstring: str) -> str:
    """A docstring as Markdown: indented lines become blocks of code."""
    parts = []
    for part in re.split(r"\n\n(?=    \S)|(?<=\n)\n(?=\S)", docstring):
        if part.startswith("    "):
            language = "sh" if re.match(r" *(raddraft|accelerate|pip|python) |.*=\S* raddraft ", part) else "text"
            parts.append(f"```{language}\n{inspect.cleandoc(part)}\n```")
        else:
            parts.append(escape(part))
    return "\n\n".join(parts)


def escape(text: str) -> str:
    """Text as Markdown, except for `code`, which stays."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else part.replace("*", "\\*").replace("<", "&lt;") for part in parts)


if __name__ == "__main__":
    main()
