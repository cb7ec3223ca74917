"""Choose one of several candidates for each study: the one that agrees best with the others.

    raddraft generate --model runs/demo/model --studies runs/demo/phantom/studies.jsonl --out runs/demo/eight.jsonl \\
        --decode.candidates 8
    raddraft consensus runs/demo/eight.jsonl --utility rouge_l --out runs/demo/consensus.jsonl
    raddraft consensus runs/demo/eight.jsonl --utility rouge_l bleu_4 radgraph_er --out runs/demo/ranks.jsonl
    raddraft score runs/demo/consensus.jsonl runs/demo/eight.jsonl runs/demo/model.jsonl

Or the candidate that agrees best with the reports of the training studies whose images are nearest:

    raddraft retrieve --tower runs/demo/model --studies runs/demo/phantom/studies.jsonl --k 8 \\
        --out runs/demo/similar.jsonl
    raddraft consensus runs/demo/eight.jsonl --against runs/demo/similar.jsonl --out runs/demo/best.jsonl

Nothing is decoded again. The predictions of the file with the candidates are an arbitrary candidate each, so that file
is the control of a random choice.
"""

from __future__ import annotations

from pathlib import Path

from metrics.models import Models
from raddraft.cli import run

POSITIONAL = ("predictions",)


def main(
    predictions: Path,
    out: Path,
    utility: list[str] = ["rouge_l"],  # noqa: B006 - the parser's default, never changed
    against: Path | None = None,
    models: Models = Models(),  # noqa: B008 - the parser reads its fields and defaults from here
) -> None:
    """Write predictions with the chosen candidates: raddraft consensus CANDIDATES.jsonl --out CHOSEN.jsonl.

    Args:
        predictions: Predictions with candidates.
        out: The predictions.jsonl to write, with all candidates and their scores.
        utility: Metrics by which each candidate is scored against every other one; with several the mean rank decides.
        against: Predictions whose candidates are the reports to agree with instead, as `raddraft retrieve --k 8` writes
            them.
        models: Models of learned metrics
    """
    from generator.consensus import choose_in_file

    choices = choose_in_file(predictions, out, utility, models, against)
    others = sum(choice.index != 0 for choice in choices)
    print(f"{len(choices)} drafts chosen by {', '.join(utility)} are in {out}; {others} are not the first candidate")


if __name__ == "__main__":
    run("consensus")
