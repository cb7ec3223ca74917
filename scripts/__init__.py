"""One file per action. `raddraft ACTION …` and `python -m scripts.ACTION …` are the same command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(
    action: str,
    command: Callable[..., Any] | dict[str, Callable[..., Any]],
    arguments: list[str] | None = None,
    positional: Sequence[str] = (),
) -> None:
    """Parse the command line by the signature of `command`, run it, and leave with its exit status.

    Errors that a user can mend (ValueError, OSError) become one sentence on stderr and exit status 1; with
    RADDRAFT_TRACEBACK=1 in the environment they keep their traceback.

    Args:
        action: name of the action.
        command: its `main`, or its sub-commands by name.
        arguments: the command line after the name; by default this process's.
        positional: parameters that may stand first without their names; the last of them takes the rest as a list.
    """
    from jsonargparse import auto_cli, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    arguments = name_positionals(sys.argv[1:] if arguments is None else arguments, positional)
    try:
        status = auto_cli(command, as_positional=False, args=arguments, prog=f"raddraft {action}")
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
