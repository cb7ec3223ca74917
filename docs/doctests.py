"""A griffe extension for the API page: doctests in a docstring are shown as code, whichever section they are in."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:.*\S.*\n?)*)(?:\n(?=>>> ))?", re.MULTILINE)


class Doctests(griffe.Extension):
    """Put doctests between fences."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of every module, class and function that is read."""
        if obj.docstring and ">>> " in obj.docstring.value and "```" not in obj.docstring.value:
            obj.docstring.value = DOCTEST.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n\n", obj.docstring.value
            )
