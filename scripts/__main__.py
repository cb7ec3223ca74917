"""The console command `raddraft`: lists the actions, and hands over to the one that is asked for.

raddraft --help
raddraft train --help
"""

from __future__ import annotations

import ast
import sys
from importlib.metadata import version
from pathlib import Path

from scripts import run


def actions() -> dict[str, str]:
    """Name of every action and the first line of its file's docstring, read without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = summary.partition("\n")[0]
    return found


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    known = actions()
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, known))
        print("usage: raddraft ACTION [--config FILE.yaml] [--option value …]\n")
        print("Drafts radiology reports from chest X-rays, trains the models that do it, and measures them.")
        print("Every draft is for a radiologist to check.\n")
        print("\n".join(f"  {name:{width}}  {summary}" for name, summary in known.items()))
        print("\nraddraft ACTION --help tells the options of one action.")
        return
    if arguments[0] == "--version":
        print(f"raddraft {version('raddraft')}")
        return
    action = arguments[0]
    if action not in known:
        sys.exit(f"raddraft: unknown action {action!r}. Choices: {', '.join(known)}")
    run(action, arguments[1:])


if __name__ == "__main__":
    main()
