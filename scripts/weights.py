"""The weights that learned metrics need: what is here, what is missing, and how to get it.

    raddraft weights
    raddraft weights --fetch chexbert chexbert-tokenizer
    raddraft weights --add chexbert --file ~/chexbert.pth

Nothing is downloaded unless it is named after --fetch. Fetched files lie in the Hugging Face hub's cache, added ones in
$RADDRAFT_WEIGHTS, by default ~/.cache/raddraft/weights; a machine without a network gets them by --add.
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
        add: Name of weights that are on this machine already; --file says where.
        file: The file or folder to copy.
    """
    if (add is None) != (file is None):
        raise RadDraftError("--add and --file belong together: --add NAME --file PATH")
    for name in fetch or []:
        report(name, weights.fetch(name))
    if add is not None and file is not None:
        report(add, weights.add(add, file))
    if not fetch and add is None:
        show()


def report(name: str, path: Path) -> None:
    """Print where weights are now, and their whole digest."""
    sha256 = weights.digest(path)
    print(f"{name}: {path}\n  sha256 {sha256}{_compared(name, path, sha256)}")


def show() -> None:
    """Print every entry: state, size, digest, use, place and terms."""
    width = max(map(len, weights.WEIGHTS))
    print(f"{'name':{width}}  {'state':7}  {'size':10}  {'sha256':12}  used by")
    for name, entry in weights.WEIGHTS.items():
        try:
            path = weights.locate(name)
            sha256 = weights.digest(path)
            state, where, compared = "found", [path], _compared(name, path, sha256)
        except weights.MissingWeights:
            state, where, sha256, compared = "missing", weights.places_looked_in(name), "-", ""
        print(f"\n{name:{width}}  {state:7}  {entry.size or 'unknown':10}  {sha256[:12]:12}  {entry.used_by}")
        print(f"  {entry.what}")
        print(f"  {'at' if state == 'found' else 'looked for'} {', '.join(map(str, where))}{compared}")
        print(f"  terms: {entry.terms}; see huggingface.co/{entry.repo}")
    print(f"\nWeights folder: {weights.weights_folder()} ($RADDRAFT_WEIGHTS). To get what is missing:")
    print("  raddraft weights --fetch NAME …           from the Hugging Face hub")
    print("  raddraft weights --add NAME --file PATH   from this machine")


def _compared(name: str, path: Path, sha256: str) -> str:
    """Whether this is the file that the repository showed when this list was made."""
    published = weights.WEIGHTS[name].sha256
    if published is None or path.is_dir():
        return ""
    if sha256 == published:
        return " (the published file)"
    return f" (not the published file, {published[:12]}…: scores may differ from others')"


if __name__ == "__main__":
    run("weights")
