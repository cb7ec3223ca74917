"""One file per action. `raddraft ACTION …` and `python -m scripts.ACTION …` are the same command."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import sys
import warnings
from argparse import Action, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
PACKAGES = ("encoder", "generator", "metrics", "scripts")


def run(action: str, arguments: list[str] | None = None) -> None:
    """Parse the command line by the signature of the action's `main`, run it, and leave with its exit status.

    Instead of `main` a module may have COMMANDS, its sub-commands by name. POSITIONAL names parameters that may stand
    first without their names; the last of them takes all other words if it is a list. Parameters of `main` that are
    lists also take plain words: --metrics rouge_l bleu_4. DEFAULT_CONFIG is read where no --config is given. The
    module's docstring opens the help.

    Errors that a user can mend (ValueError, OSError, FloatingPointError) become one sentence on stderr and exit status
    1; with RADDRAFT_TRACEBACK=1 in the environment they keep their traceback. This project's warnings become one line.

    Args:
        action: name of the action, hence of its module.
        arguments: the command line after the name; by default this process's.
    """
    from jsonargparse import DefaultHelpFormatter, auto_cli, set_parsing_settings

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the commands in a description on lines of their own, and names lists of paths as they are typed."""

        def _format_args(self, action: Action, default_metavar: str) -> str:
            text = super()._format_args(action, default_metavar)
            return "PATH …" if "LIST_OF_PATHS_FILE" in text else text

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    module = importlib.import_module(f"scripts.{action}")
    function = getattr(module, "COMMANDS", None) or module.main
    lists = _list_parameters(function)
    arguments = sys.argv[1:] if arguments is None else arguments
    arguments = gather_lists(name_positionals(arguments, getattr(module, "POSITIONAL", ()), lists), lists)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a console that lacks a letter must not cost the drafts after it
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _warnings_in_one_line(action):
            status = auto_cli(
                function,
                as_positional=False,
                args=arguments,
                prog=f"raddraft {action}",
                description=inspect.getdoc(module),
                formatter_class=Formatter,
                default_config_files=[str(module.DEFAULT_CONFIG)] if hasattr(module, "DEFAULT_CONFIG") else [],
            )
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("RADDRAFT_TRACEBACK"):
            raise
        sys.exit(f"raddraft {action}: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def pick_device(name: str) -> str:
    """The device to compute on: `name`, or for auto the first accelerator, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name != "auto":
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"Device {name!r} cannot be used, try auto: {str(error).splitlines()[0]}") from None
        return name
    accelerator = torch.accelerator.current_accelerator()  # what torch was built for, whether it is there or not
    return accelerator.type if accelerator and torch.accelerator.is_available() else "cpu"


def name_positionals(arguments: list[str], names: Sequence[str], lists: Collection[str]) -> list[str]:
    """Put names before the leading arguments: MODEL A B -> --model MODEL --images ["A", "B"].

    Args:
        arguments: the command line.
        names: of the positional parameters; each takes one word, the last one all others if it is a list.
        lists: names of the parameters that are lists. Words too many are left for the parser to refuse.
    """
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    values, options = arguments[:count], arguments[count:]
    singles = [name for name in names if name not in lists]
    named = [part for name, value in zip(singles, values, strict=False) for part in (f"--{name}", value)]
    if others := values[len(singles) :]:
        named += [f"--{names[-1]}", json.dumps(others)] if len(names) > len(singles) else others
    return named + options


def gather_lists(arguments: list[str], names: Collection[str]) -> list[str]:
    """Make one list of the words after such an option: --metrics A B -> --metrics ["A", "B"]; [A, B] stays as it is."""
    groups: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(argument)
    for group in groups:
        option, *values = group
        if option.removeprefix("--") in names and values not in ([], ["null"]) and not values[0].startswith("["):
            group[1:] = [json.dumps(values)]
    return [argument for group in groups for argument in group]


def _list_parameters(function: Any) -> list[str]:
    """Names of the parameters that are lists; none where there are sub-commands."""
    parameters = {} if isinstance(function, dict) else inspect.signature(function).parameters
    return [name for name, parameter in parameters.items() if str(parameter.annotation).startswith("list[")]


@contextmanager
def _warnings_in_one_line(action: str) -> Iterator[None]:
    """Print this project's warnings as one line each, above any progress bar; those of libraries stay as they are."""
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        from tqdm import tqdm

        path = Path(filename).resolve()
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            tqdm.write(f"raddraft {action}: warning: {message}", file=file or sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
