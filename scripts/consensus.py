"""Choose one of several candidates for each study: the one that agrees best with the others.

    raddraft generate --model runs/demo/model --studies runs/demo/phantom/studies.jsonl --out runs/demo/eight.jsonl \\
        --decode.candidates 8
    raddraft consensus runs/demo/eight.jsonl --utility rouge_l --out runs/demo/consensus.jsonl
    raddraft consensus runs/demo/eight.jsonl --utility rouge_l bleu_4 radgraph_er --out runs/demo/ranks.jsonl
    raddraft score runs/demo/consensus.jsonl runs/demo/eight.jsonl runs/demo/model.jsonl

Nothing is decoded again. The file that the candidates came in holds any one of them as its prediction, so it is the
control of a choice by chance.
"""

from __future__ import annotations

import json
from pathlib import Path

from metrics.models import Models
from metrics.read import json_rows
from raddraft.cli import run
from raddraft.errors import RadDraftError

POSITIONAL = ("predictions",)


def main(
    predictions: Path,
    out: Path,
    utility: list[str] = ["rouge_l"],  # noqa: B006 - the parser's default, never changed
    models: Models = Models(),  # noqa: B008 - the parser reads its fields and defaults from here
) -> None:
    """Write predictions with the chosen candidates: raddraft consensus CANDIDATES.jsonl --out CHOSEN.jsonl.

    Args:
        predictions: Predictions whose lines hold candidates.
        out: The predictions.jsonl to write, with the candidates and the score of each.
        utility: Metrics by which each candidate is scored against every other; of several the mean rank decides.
        models: Where the learned metrics find their weights, and how they run.
    """
    from generator.confidence import confidence
    from generator.consensus import check_utilities, choose
    from raddraft.files import write_whole

    check_utilities(utility)
    rows = read_candidates(predictions)
    choices = choose([row["candidates"] for row in rows], utility, models)
    with write_whole(out) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        for row, choice in zip(rows, choices, strict=True):
            row |= {"prediction": choice.text, "consensus": {"utility": utility, "scores": choice.scores}}
            if row.get("log_probs"):
                row["confidence"] = confidence(row["candidates"], row["log_probs"], choice.index)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    others = sum(choice.index != 0 for choice in choices)
    print(f"{len(rows)} drafts chosen by {', '.join(utility)} are in {out}; {others} are not the first candidate")


def read_candidates(path: Path) -> list[dict]:
    """Lines of a predictions.jsonl, each with its candidates.

    Raises:
        ValueError: there is none, or a line that `raddraft score` would not take or that has no list of candidates.
    """
    rows = list(json_rows(path, ("study_id", "prediction")))
    for row in rows:
        candidates = row.get("candidates")
        if not (isinstance(candidates, list) and candidates and all(isinstance(text, str) for text in candidates)):
            raise RadDraftError(
                f"{path}: study {row['study_id']!r} holds no candidates; `raddraft generate --decode.candidates 8` "
                "writes them"
            )
    if not rows:
        raise RadDraftError(f"{path} is empty")
    return rows


if __name__ == "__main__":
    run("consensus")
