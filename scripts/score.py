"""Score drafts against reports: a table with intervals and p-values, files for further use, and a page to read.

    raddraft score drafts.csv
    raddraft score runs/demo/model.jsonl runs/demo/shuffled-images.jsonl --studies runs/demo/phantom/studies.jsonl
    raddraft score other_system.jsonl --metrics rouge_l bleu_4 radgraph --out scores/other
    raddraft score drafts.txt --references reports.txt
    raddraft score runs/x/model.jsonl runs/x/shuffled-images.jsonl --model-card runs/x/model
    raddraft score model.jsonl --studies studies.jsonl --by view sex age normal Pneumothorax
    raddraft score reads.jsonl --studies studies.jsonl    # what readers changed in drafts
    raddraft score submission.json --references ReXRank_MIMICCXR_test.json --metrics rexrank    # before you submit

The first file is the system under test; the others, such as its controls, are compared with it on the same studies.
Any system can be scored: a CSV with the columns study_id, prediction, reference; JSON Lines with these keys; or, with
--references, drafts and reports in two files. A .json is a submission to ReXrank, or its list of studies.

Writes scores.json, per_study.csv, per_observation.csv and report.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from metrics.models import Models
from raddraft.cli import run
from raddraft.ranges import Count, Whole

POSITIONAL = ("predictions",)


def main(
    predictions: list[Path],
    out: Path | None = None,
    references: Path | None = None,
    studies: Path | None = None,
    metrics: list[str] | None = None,
    extra: Path | None = None,
    by: list[str] | None = None,
    rank_by: str | None = None,
    models: Models = Models(),  # noqa: B008 - the parser reads its fields and defaults from here
    resamples: Count = 500,
    seed: Whole = 0,
    unit: Literal["subject", "study"] = "subject",
    intervals: Literal["jackknife", "percentile"] = "jackknife",
    cases: Whole = 36,
    title: str | None = None,
    model_card: Path | None = None,
) -> None:
    """Score one or more systems on the same studies.

    Args:
        predictions: Files of drafts, the first is the system under test; or of reads, which are scored together.
        out: Output folder. By default `scores` beside the first file.
        references: The reports, if the files of drafts lack them: .jsonl, .csv, .tsv, ReXrank's .json, or text with a
            report a line; joined by study_id, or by line. Those without a draft are named.
        studies: The manifest: adds subjects to the intervals, images to the page, and view, sex and age to --by, and
            names the studies of the same split that have no draft.
        metrics: Metrics or families of metrics (rouge, bleu, radgraph, chexbert, rule, coco …), or all. By default the
            first five of these, except those whose weights are missing. Of languages other than English: unicode, char.
        extra: Per-study scores that were made elsewhere, such as by a large language model: a CSV with the columns
            study_id, system (the name of a file of drafts, without suffix) and one for each metric.
        by: Also score strata of the first system: view, sex, age, normal (against abnormal), an observation such as
            Edema, or of reads reader or model (which are added where there are several).
        rank_by: Metric that ranks the studies on the page. By default radgraph_er, else rouge_l; of reads read_edits.
        models: Learned metrics
        resamples: Bootstrap resamples.
        seed: Seed of the resamples and swaps.
        unit: What intervals and p-values draw: subjects, as far as the manifest or a subject_id in the predictions
            names them, because studies of one patient are alike; or single studies.
        intervals: 95 % intervals that hold for few studies, or the percentile intervals of papers.
        cases: Number of studies on the page: worst, best, and some between.
        title: Heading of the page.
        model_card: Folder of the trained model that is the first system; its README.md gets the scores.
    """
    from generator.card import add_scores, check_card
    from metrics.given import read_given
    from metrics.read import compare_manifest
    from metrics.reads import read_drafts
    from metrics.systems import score_systems
    from raddraft.studies import read_studies

    if model_card:
        check_card(model_card)
    systems, notes, cut = read_drafts(predictions, references)
    known = read_studies(studies) if studies else []
    notes += compare_manifest(systems, known, studies) if studies else []
    print("".join(f"{note}\n" for note in notes), end="")
    given = read_given(extra, systems) if extra else None
    scored = score_systems(
        systems, metrics, by or (), known, models, resamples, seed, rank_by, cut, unit, intervals, given
    )
    title = title or scored.title()
    written = scored.write(out or predictions[0].parent / "scores", title, cases)
    if model_card:
        add_scores(model_card, title, scored.by_system())
    print(scored.tables(), "", *written, sep="\n")


if __name__ == "__main__":
    run("score")
