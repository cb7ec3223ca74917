"""One file per action. `raddraft ACTION …` and `python -m scripts.ACTION …` are the same command."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(action: str, arguments: list[str] | None = None) -> None:
    """Parse the command line by the signature of the action's `main`, run it, and leave with its exit status.

    Instead of `main` a module may have COMMANDS, its sub-commands by name. POSITIONAL names parameters that may stand
    first without their names; the last of them takes the rest as a list. DEFAULT_CONFIG is read where no --config is
    given. The module's docstring opens the help.

    Errors that a user can mend (ValueError, OSError, FloatingPointError) become one sentence on stderr and exit status
    1; with RADDRAFT_TRACEBACK=1 in the environment they keep their traceback.

    Args:
        action: name of the action, hence of its module.
        arguments: the command line after the name; by default this process's.
    """
    from jsonargparse import DefaultHelpFormatter, auto_cli, set_parsing_settings

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the commands in a description on lines of their own."""

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    module = importlib.import_module(f"scripts.{action}")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = auto_cli(
            getattr(module, "COMMANDS", None) or module.main,
            as_positional=False,
            args=name_positionals(arguments, getattr(module, "POSITIONAL", ())),
            prog=f"raddraft {action}",
            description=inspect.getdoc(module),
            formatter_class=Formatter,
            default_config_files=[str(module.DEFAULT_CONFIG)] if hasattr(module, "DEFAULT_CONFIG") else [],
        )
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("RADDRAFT_TRACEBACK"):
            raise
        sys.exit(f"raddraft {action}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def name_positionals(arguments: list[str], names: Sequence[str]) -> list[str]:
    """Put names before the leading arguments: MODEL A B -> --model MODEL --images ["A", "B"]."""
    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    values, options = arguments[:count], arguments[count:]
    if not names or not values:
        return arguments
    *singles, rest = names
    named = [part for name, value in zip(singles, values, strict=False) for part in (f"--{name}", value)]
    if len(values) > len(singles):
        named += [f"--{rest}", json.dumps(values[len(singles) :])]
    return named + options
