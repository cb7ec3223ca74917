"""One file per action. `raddraft ACTION …` and `python -m scripts.ACTION …` are the same command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(action: str, command: Callable[..., Any] | dict[str, Callable[..., Any]], arguments: list[str] | None = None):
    """Parse the command line by the signature of `command`, run it, and leave with its exit status.

    Errors that a user can mend (ValueError, OSError) become one sentence on stderr and exit status 1; with
    RADDRAFT_TRACEBACK=1 in the environment they keep their traceback.
    """
    from jsonargparse import auto_cli, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        status = auto_cli(command, as_positional=False, args=arguments, prog=f"raddraft {action}", fail_untyped=False)
    except (ValueError, OSError) as error:
        if os.environ.get("RADDRAFT_TRACEBACK"):
            raise
        sys.exit(f"raddraft {action}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
