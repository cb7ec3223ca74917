"""Weights of the learned metrics: what is here, what is missing, and how to get it.

    raddraft weights
    raddraft weights --fetch chexbert chexbert-tokenizer
    raddraft weights --add chexbert --file ~/chexbert.pth

Nothing is downloaded unless it is named after --fetch. Downloads go to the Hugging Face hub's cache, added files to
$RADDRAFT_WEIGHTS, by default ~/.cache/raddraft/weights; use --add on a machine without a network.
"""

from __future__ import annotations

from pathlib import Path

from metrics import weights
from raddraft.cli import run
from raddraft.errors import RadDraftError


def main(fetch: list[str] | None = None, add: str | None = None, file: Path | None = None) -> None:
    """Show the weights of the learned metrics, or get some.

    Args:
        fetch: Names of weights to download from the Hugging Face hub.
        add: Name of weights that you have as a file or folder, given with --file.
        file: The file or folder to copy.
    """
    if (add is None) != (file is None):
        raise RadDraftError("--add and --file belong together: --add NAME --file PATH")
    for name in fetch or []:
        report(name, weights.fetch(name))
    if add is not None and file is not None:
        report(add, weights.add(add, file))
    if not fetch and add is None:
        print(weights.format_list())


def report(name: str, path: Path) -> None:
    """Print where weights are now, and their digest."""
    sha256 = weights.digest(path)
    print(f"{name}: {path}\n  sha256 {sha256}{weights.compare_digest(name, path, sha256)}")


if __name__ == "__main__":
    run("weights")
