"""Metrics, as part of `python -m benchmarks`: BERT-base-size models with random weights, on the reports given."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.random_models import radgraph_package, save_bert, save_chexbert, save_radgraph
from metrics.annotate import AnnotationCache, Annotator, annotate
from metrics.chexbert import CLASSES, CheXbert, load_network
from metrics.labels import f1_measures
from metrics.radgraph import RadGraph
from metrics.read import Prediction
from metrics.rules import OBSERVATIONS, label
from metrics.scoring import score
from metrics.systems import score_systems
from raddraft.studies import Study, StudyImage


def bench_metrics(reports: list[str], n: int) -> bool:
    """Print every ratio; return whether all results are equal."""
    bench_table(reports)
    reports = list(dict.fromkeys(report for report in reports if report.strip()))
    if len(reports) < 3 * n:
        n = len(reports) // 3
    dealt = sorted(reports[: 3 * n], key=len)  # so that all three hold as much text
    drafts, others, references = (dealt[start::3] for start in range(3))
    equal = [bench_intervals(), bench_lexical(reports)]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_bert(folder / "bert", reports)
        save_chexbert(folder / "chexbert.pth", folder / "bert")
        chexbert, rounded = (
            CheXbert(folder / "chexbert.pth", folder / "bert", device="cpu", bfloat16=one) for one in (False, True)
        )
        equal.append(bench_chexbert(folder, chexbert, rounded, references))
        with redirect_stdout(StringIO()):
            save_radgraph(folder / "radgraph", folder / "bert", references[:8])
        radgraph = RadGraph(folder / "radgraph", folder / "bert", device="cpu")
        bench_cache([chexbert, radgraph], *(part[::4] for part in (drafts, others, references)))
        in_bfloat16 = RadGraph(folder / "radgraph", folder / "bert", device="cpu", bfloat16=True)
        equal.append(bench_radgraph(folder, radgraph, in_bfloat16, references))
    return all(equal)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of all processors, which other jobs change little, and what the function returns."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def bench_intervals(n: int = 2461, resamples: int = 500) -> bool:
    """All four F1s of n studies x 14 labels with intervals, against scikit-learn in a loop."""
    from sklearn.metrics import f1_score

    from metrics.labels import FIVE
    from raddraft.stats import interval, resample

    generator = np.random.default_rng(0)
    ours, theirs = generator.random((2, n, len(OBSERVATIONS))) < 0.2
    rows = [[dict(zip(OBSERVATIONS, map(int, row), strict=True)) for row in part] for part in (ours, theirs)]
    measures = list(f1_measures(rows[0], rows[1], OBSERVATIONS, "x", "x").values())
    seconds, values = timed(lambda: resample(measures, resamples))
    columns_of = [list(range(len(OBSERVATIONS))), [OBSERVATIONS.index(name) for name in FIVE]]

    def loop() -> list[list[float]]:
        random = np.random.default_rng(0)
        return [
            [
                f1_score(theirs[drawn][:, columns], ours[drawn][:, columns], average=average, zero_division=0)
                for columns in columns_of
                for average in ("macro", "micro")
            ]
            for drawn in (random.integers(0, n, n) for _ in range(resamples))
        ]

    loop_seconds, loop_values = timed(loop)
    print(f"{resamples} resamples of four F1s on {n:,} x 14: scikit-learn {loop_seconds:.1f} s, here {seconds:.2f} s")
    equal = np.allclose(values, np.array(loop_values).T)
    print(f"  {loop_seconds / seconds:.0f} times as fast; the resampled values are {'' if equal else 'NOT '}equal")
    bounds = interval(values[0])
    return equal and bounds is not None and bounds.low < bounds.high


def bench_lexical(reports: list[str]) -> bool:
    """ROUGE-L and BLEU-1 to 4 with intervals, against rouge-score with its aggregator and sacrebleu."""
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # it warns of reports that look tokenized
    from rouge_score import rouge_scorer, scoring
    from sacrebleu.metrics import BLEU

    drafts, references = reports[1:2001], reports[: len(reports[1:2001])]

    def plain() -> list[float]:
        scorer, aggregator = rouge_scorer.RougeScorer(["rougeL"]), scoring.BootstrapAggregator()
        scores = [scorer.score(theirs, ours) for ours, theirs in zip(drafts, references, strict=True)]
        for one in scores:
            aggregator.add_scores(one)
        aggregator.aggregate()
        orders = [BLEU(max_ngram_order=order, smooth_method="none") for order in range(1, 5)]
        means = [float(np.mean([one["rougeL"].fmeasure for one in scores]))]
        return means + [one.corpus_score(drafts, [references]).score / 100 for one in orders]

    score(drafts[:5], references[:5], ["rouge", "bleu"])  # the first call pays for imports
    seconds, found = timed(lambda: score(drafts, references, ["rouge", "bleu"]))
    plain_seconds, expected = timed(plain)
    equal = np.allclose([one["value"] for one in found["metrics"].values()], expected)
    plainly = f"rouge-score with its aggregator and sacrebleu {plain_seconds:.1f} s"
    print(f"ROUGE-L and BLEU of {len(drafts):,} reports: {plainly}, here with intervals {seconds:.1f} s")
    print(f"  {plain_seconds / seconds:.1f} times as fast; the values are {'' if equal else 'NOT '}equal")
    return equal


def bench_table(reports: list[str], n: int = 2461) -> None:
    """Seconds of four made-up systems on real reports, with intervals by subject and strata."""
    reports = [report for report in reports if report.strip()][:n]
    generator = random.Random(0)

    def drop(share: float) -> list[str]:
        return [". ".join(part for part in text.split(". ") if generator.random() > share) for text in reports]

    texts = {
        "few dropped": drop(0.25),
        "half dropped": drop(0.5),
        "shuffled": generator.sample(reports, len(reports)),
        "one report": reports[:1] * len(reports),
    }
    systems = {
        name: [Prediction(f"s{i}", *pair) for i, pair in enumerate(zip(drafts, reports, strict=True))]
        for name, drafts in texts.items()
    }
    n_subjects = max(1, len(reports) * 293 // 2461)  # as in MIMIC-CXR's test split
    studies = [
        Study(f"s{i}", f"p{generator.randrange(n_subjects)}", "test", [StudyImage(Path("none.png"), view)])
        for i, view in enumerate(generator.choices(["PA", "AP", "LATERAL"], k=len(reports)))
    ]
    every = sorted({text for one in texts.values() for text in one})
    annotation, _ = timed(lambda: [label(text) for text in every])
    print(f"The rules read {len(every):,} different reports in {annotation:.1f} s, included in the next two times")
    lexical = ["unicode", "char", "rouge_stem", "coco", "sentence_bleu", "rule_plus"]
    for families in (["rouge", "bleu", "rule"], ["rouge", "bleu", "rule", *lexical]):
        scored = partial(score_systems, systems, families, by=["view", "normal"], studies=studies)
        seconds, found = timed(scored)
        told = f"{len(found.scores['metrics'])} metrics ({', '.join(families)}) by subject, by view and normal"
        print(f"Four systems of {len(reports):,} studies, {told}: {seconds:.1f} s")


def bench_chexbert(folder: Path, chexbert: CheXbert, rounded: CheXbert, reports: list[str]) -> bool:
    """Batches of like length against one report at a time through transformers' BERT, as the package f1chexbert reads.

    That package does not run on transformers 5.
    """
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "bert")
    bert, heads = load_network(folder / "chexbert.pth")

    @torch.no_grad()
    def read(report: str) -> dict[str, int | None]:
        pieces = tokenizer(" ".join(report.split()), truncation=True, max_length=512, return_tensors="pt")
        hidden = bert(**pieces).last_hidden_state[:, 0]
        classes = [CLASSES[head(hidden).argmax(1).item()] for head in heads]
        return dict(zip(OBSERVATIONS, classes, strict=True))

    for one in (chexbert, rounded):
        one.annotate(reports[:1])  # the first call pays for lazy set-up
    single_seconds, single = timed(lambda: [read(report) for report in reports])
    seconds, batched = timed(lambda: list(annotate(chexbert, reports)))
    rounded_seconds, others = timed(lambda: list(annotate(rounded, reports)))
    equal = sum(a == b for a, b in zip(single, batched, strict=True))
    changed = sum(a[name] != b[name] for a, b in zip(batched, others, strict=True) for name in OBSERVATIONS)
    print(
        f"CheXbert on {len(reports)} reports: one at a time {single_seconds:.1f} s, in batches {seconds:.1f} s, in "
        f"bfloat16 {rounded_seconds:.1f} s"
    )
    print(f"  {single_seconds / seconds:.2f} times as fast; {equal} of {len(reports)} labeled equally")
    print(
        f"  {single_seconds / rounded_seconds:.2f} times as fast in bfloat16; {changed / 14 / len(reports):.2%} of the "
        "labels changed, of random weights"
    )
    return equal == len(reports)


def bench_cache(annotators: list[Annotator], drafts: list[str], others: list[str], references: list[str]) -> None:
    """A second system against the same references."""

    def read(texts: list[str], cache: AnnotationCache) -> None:
        for annotator in annotators:
            for part in (texts, references):
                list(annotate(annotator, part, cache))

    with TemporaryDirectory() as scratch:
        first, _ = timed(lambda: read(drafts, AnnotationCache(Path(scratch) / "annotations.sqlite")))
        second, _ = timed(lambda: read(others, AnnotationCache(Path(scratch) / "annotations.sqlite")))
        again, _ = timed(lambda: read(others, AnnotationCache(Path(scratch) / "annotations.sqlite")))
    print(
        f"CheXbert and RadGraph, {len(drafts)} drafts and references: first system {first:.1f} s, second {second:.1f} s"
    )
    print(f"  {first / second:.2f} times as fast; scored once more {again:.2f} s")


def bench_radgraph(folder: Path, radgraph: RadGraph, rounded: RadGraph, reports: list[str]) -> bool:
    """Batches against the package, which reads one report at a time."""
    with radgraph_package(folder / "bert"), redirect_stdout(StringIO()):
        from radgraph import RadGraph as Package

        package = Package(model_type="radgraph", model_cache_dir=str(folder), cuda=-1)
        package(reports[:2])
        package_seconds, expected = timed(lambda: list(package(reports).values()))
    seconds, found = timed(lambda: list(annotate(radgraph, reports)))
    rounded_seconds, others = timed(lambda: list(annotate(rounded, reports)))
    as_json = [json.loads(json.dumps(one)) for one in expected]
    equal = sum(a == b for a, b in zip(as_json, found, strict=True))
    entities, changed = _entities(found), _entities(found) ^ _entities(others)
    print(
        f"RadGraph on {len(reports)} reports: package {package_seconds:.1f} s, here {seconds:.1f} s, in bfloat16 "
        f"{rounded_seconds:.1f} s"
    )
    print(
        f"  {package_seconds / seconds:.2f} times as fast; {equal} of {len(reports)} annotations are equal, which hold"
    )
    print(f"  {len(entities):,} entities; random weights put some on the brink, where rounding decides")
    print(
        f"  {package_seconds / rounded_seconds:.2f} times as fast in bfloat16; {len(changed) / len(entities):.1%} as "
        "many entities came, went or changed their label, of random weights"
    )
    return equal >= 0.95 * len(reports)


def _entities(annotations: list[dict[str, Any]]) -> set[tuple[int, int, int, str]]:
    """Report, first word, last word and label of each entity."""
    return {
        (i, one["start_ix"], one["end_ix"], one["label"])
        for i, report in enumerate(annotations)
        for one in report["entities"].values()
    }
