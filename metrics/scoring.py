"""Score drafts against reports: every metric with its interval and the signature that says how it was made.

    from metrics import score

    score(predictions, references)                                    # all of DEFAULT that can run
    score(predictions, references, ["rouge_l", "radgraph", "coco"])   # metrics and families by name

A name has one definition: other conventions (uncertain as positive, lower case, another model) have other names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from metrics import extras
from metrics.annotate import annotate
from metrics.caveats import caveats, describe
from metrics.labels import Labels, Uncertain, f1_measures
from metrics.models import Models
from metrics.report import LOWER_IS_BETTER
from metrics.rexrank import rexrank, rexrank_bleu, single_blanks
from metrics.rules import OBSERVATIONS, VERSION, label
from metrics.summary import Intervals, summarize
from metrics.text import Once, Unit, bleu, check_texts, rouge_l
from raddraft.errors import CannotRun, RadDraftError
from raddraft.stats import Measure, check_resamples, mean_measure
from raddraft.text import suggest

if TYPE_CHECKING:
    from metrics.radgraph import RadGraph

Texts = Sequence[str]


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together."""

    names: tuple[str, ...]
    compute: Callable[[Texts, Texts, Models, Once], dict[str, Measure]]
    """(predictions, references, models, what was read out of texts before) -> name -> measure."""


def read_labels(labeler: str, texts: Texts, models: Models, once: Once) -> list[Labels]:
    """Labels of each text by the labeler "rule" or "chexbert"; equal ones are one object. Raises MissingWeights."""
    found = once.each(label, texts) if labeler == "rule" else annotate(models.chexbert_model, texts, models.cache)
    distinct: dict[tuple[tuple[str, int | None], ...], Labels] = {}
    return [distinct.setdefault(tuple(labels.items()), labels) for labels in found]


def _f1(labeler: str, uncertain: Uncertain, predictions: Texts, references: Texts, models: Models, once: Once):
    ours, theirs = (read_labels(labeler, texts, models, once) for texts in (predictions, references))
    signature = f"raddraft rules {VERSION}" if labeler == "rule" else models.chexbert_model.signature
    return f1_measures(ours, theirs, OBSERVATIONS, labeler, signature, uncertain)


def _bleu(predictions: Texts, references: Texts, _: Models, once: Once) -> dict[str, Measure]:
    return {f"bleu_{order}": one for order, one in bleu(predictions, references, once=once).items()}


def _other_tokens(unit: Unit, predictions: Texts, references: Texts, _: Models, once: Once) -> dict[str, Measure]:
    """ROUGE-L and BLEU on other tokens than usual."""
    scores = {f"rouge_l_{unit}": rouge_l(predictions, references, once, unit)}
    found = bleu(predictions, references, once=once, unit=unit)
    return scores | {f"bleu_{order}_{unit}": one for order, one in found.items()}


def _graphs(annotator: RadGraph, predictions: Texts, references: Texts, models: Models) -> Iterator[tuple[Any, Any]]:
    """Annotations of each prediction and its reference."""
    return zip(*(annotate(annotator, texts, models.cache) for texts in (predictions, references)), strict=True)


def _radgraph(
    model: str, lower: bool, predictions: Texts, references: Texts, models: Models, _: Once
) -> dict[str, Measure]:
    from metrics.radgraph import radgraph_f1

    annotator: RadGraph = getattr(models, f"{model}_model")
    graphs = _graphs(annotator, predictions, references, models)
    scores = np.array([radgraph_f1(ours, theirs, lower) for ours, theirs in graphs])
    case = "lower" if lower else "as written"
    return {
        f"{model}_{kind}{'_lower' if lower else ''}": mean_measure(
            scores[:, column], f"{annotator.signature}|{reward}|case:{case}|no entities:0|mean over reports"
        )
        for column, (kind, reward) in enumerate((("e", "simple"), ("er", "partial"), ("bar_er", "complete")))
    }


def _bertscore(predictions: Texts, references: Texts, models: Models, _: Once) -> dict[str, Measure]:
    return extras.bertscore(predictions, references, models.bertscore_folder, models.device)


def _radcliq_parts(predictions: Texts, references: Texts, models: Models) -> tuple[Measure, np.ndarray]:
    """RadGraph's mean F1 of entities and relations, and CheXbert's cosines [n]."""
    annotator, chexbert = models.radgraph_model, models.chexbert_model
    combined = [extras.radgraph_combined(*pair) for pair in _graphs(annotator, predictions, references, models)]
    signature = f"{annotator.signature}|mean of entity and relation F1"
    return mean_measure(combined, signature), extras.cosine_similarities(chexbert, predictions, references)


def _radcliq(predictions: Texts, references: Texts, models: Models, once: Once) -> dict[str, Measure]:
    bertscore = _bertscore(predictions, references, models, once)["bertscore_f1"]
    radgraph, cosines = _radcliq_parts(predictions, references, models)
    return extras.radcliq_v1(radgraph, bertscore, cosines, predictions, references)


def _rexrank(predictions: Texts, references: Texts, models: Models, once: Once) -> dict[str, Measure]:
    bertscore = _bertscore(single_blanks(predictions), single_blanks(references), models, once)["bertscore_f1"]
    radgraph, cosines = _radcliq_parts(predictions, references, models)
    return rexrank(radgraph, bertscore, cosines, rexrank_bleu(predictions, references, once)["rexrank_bleu_2"])


def _cxr_bert(predictions: Texts, references: Texts, models: Models, _: Once) -> dict[str, Measure]:
    from metrics.embeddings import cxr_bert_cosine

    return cxr_bert_cosine(predictions, references, models.cxr_bert_model)


def _cxrfescore(predictions: Texts, references: Texts, models: Models, _: Once) -> dict[str, Measure]:
    from metrics.embeddings import cxrfescore

    return cxrfescore(predictions, references, models.cxrfe_model, models.fact_extractor)


def _ratescore(predictions: Texts, references: Texts, models: Models, _: Once) -> dict[str, Measure]:
    from metrics.ratescore import ratescore

    return ratescore(predictions, references, models.ratescore_model)


def _f1_names(labeler: str, suffix: str = "") -> tuple[str, ...]:
    return tuple(f"{labeler}_{average}_f1_{count}{suffix}" for count in (14, 5) for average in ("macro", "micro"))


def _token_names(unit: Unit) -> tuple[str, ...]:
    return (f"rouge_l_{unit}", *(f"bleu_{order}_{unit}" for order in range(1, 5)))


def _graph_names(model: str, suffix: str = "") -> tuple[str, ...]:
    return tuple(f"{model}_{kind}{suffix}" for kind in ("e", "er", "bar_er"))


FAMILIES: dict[str, Family] = {
    "rouge": Family(("rouge_l",), lambda ours, theirs, _, once: {"rouge_l": rouge_l(ours, theirs, once)}),
    "bleu": Family(tuple(f"bleu_{order}" for order in range(1, 5)), _bleu),
    "radgraph": Family(_graph_names("radgraph"), partial(_radgraph, "radgraph", False)),
    "chexbert": Family(_f1_names("chexbert"), partial(_f1, "chexbert", "negative")),
    "rule": Family(_f1_names("rule"), partial(_f1, "rule", "negative")),
    "chexbert_plus": Family(_f1_names("chexbert", "_plus"), partial(_f1, "chexbert", "positive")),
    "rule_plus": Family(_f1_names("rule", "_plus"), partial(_f1, "rule", "positive")),
    "radgraph_lower": Family(_graph_names("radgraph", "_lower"), partial(_radgraph, "radgraph", True)),
    "radgraph_xl": Family(_graph_names("radgraph_xl"), partial(_radgraph, "radgraph_xl", False)),
    "radgraph_xl_lower": Family(_graph_names("radgraph_xl", "_lower"), partial(_radgraph, "radgraph_xl", True)),
    "unicode": Family(_token_names("unicode"), partial(_other_tokens, "unicode")),
    "char": Family(_token_names("char"), partial(_other_tokens, "char")),
    "rouge_stem": Family(
        ("rouge_l_stem",), lambda ours, theirs, _, once: {"rouge_l_stem": rouge_l(ours, theirs, once, "stem")}
    ),
    "coco": Family(extras.COCO, lambda ours, theirs, _, once: extras.coco(ours, theirs, once)),
    "sentence_bleu": Family(
        ("nltk_sentence_bleu_4",), lambda ours, theirs, _, once: extras.sentence_bleu(ours, theirs, once=once)
    ),
    "meteor": Family(("meteor",), lambda ours, theirs, *_: extras.meteor(ours, theirs)),
    "bertscore": Family(("bertscore_f1",), _bertscore),
    "radcliq": Family(("radcliq_v1",), _radcliq),
    "rexrank_bleu": Family(("rexrank_bleu_2",), lambda ours, theirs, _, once: rexrank_bleu(ours, theirs, once)),
    "rexrank": Family(
        ("rexrank_radgraph", "rexrank_semb", "rexrank_radcliq_v0", "rexrank_inverse_radcliq_v1"), _rexrank
    ),
    "modern_radgraph_xl": Family(_graph_names("modern_radgraph_xl"), partial(_radgraph, "modern_radgraph_xl", False)),
    "cxr_bert": Family(("cxr_bert_cosine",), _cxr_bert),
    "cxrfescore": Family(("cxrfescore",), _cxrfescore),
    "ratescore": Family(("ratescore",), _ratescore),
}
DEFAULT = ("rouge", "bleu", "radgraph", "chexbert", "rule")
METRICS = tuple(name for family in FAMILIES.values() for name in family.names)


def choose(metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Names of metrics from names of metrics and families, or one name; None for those of DEFAULT, "all" for all.

    Raises:
        RadDraftError: no metric, or an unknown one.
    """
    choices = f"Choices: {', '.join(METRICS)}; families: {', '.join(FAMILIES)}; all"
    wanted: dict[str, None] = {}
    given = DEFAULT if metrics is None else [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise RadDraftError(f"metrics must be names, got {metrics!r}. {choices}")
    for name in given:
        if name not in METRICS and name not in FAMILIES and name != "all":
            raise RadDraftError(f"Unknown metric {name!r}. {choices}.{suggest(name, (*METRICS, *FAMILIES))}")
        names = METRICS if name == "all" else FAMILIES[name].names if name in FAMILIES else (name,)
        wanted |= dict.fromkeys(names)
    if not wanted:
        raise RadDraftError(f"No metric to score by. {choices}")
    return tuple(wanted)


def measure(
    predictions: Texts,
    references: Texts,
    metrics: Sequence[str] | None = None,
    models: Models | None = None,
    once: Once | None = None,
) -> tuple[dict[str, Measure], dict[str, str]]:
    """Per-study statistics of the metrics asked for, and why others were skipped.

    Args:
        predictions, references: one text a report, in the same order.
        metrics: as for `choose`. What None or "all" brings in is skipped if it cannot run.
        models: where the learned metrics find their weights.
        once: tokens and labels of texts that were scored before, shared by systems.

    Raises:
        RadDraftError: as `check_texts`, no or an unknown metric, or one asked for by name cannot run.

    Warns where the texts, by `metrics.caveats`, cannot be read by these metrics, or most are blank or equal.
    """
    predictions, references = check_texts(predictions, references)
    once = once or Once()
    measures, skipped = compute(predictions, references, metrics, models, once)
    for sentence in caveats(describe(predictions, references, once=once), measures):
        warnings.warn(sentence, stacklevel=2)
    return measures, skipped


def compute(
    predictions: Texts, references: Texts, metrics: Sequence[str] | None, models: Models | None, once: Once | None
) -> tuple[dict[str, Measure], dict[str, str]]:
    """`measure` of lists of texts, without warnings."""
    wanted, by_name = choose(metrics), metrics is not None and "all" not in metrics
    models, once = models or Models(), once or Once()
    found: dict[str, Measure] = {}
    skipped: dict[str, str] = {}
    for family in FAMILIES.values():
        names = [name for name in family.names if name in wanted]
        if not names:
            continue
        try:
            found |= family.compute(predictions, references, models, once)
        except CannotRun as error:
            if by_name:
                raise
            skipped |= dict.fromkeys(names, str(error))
    return {name: found[name] for name in wanted if name in found}, skipped


def per_report(
    predictions: Texts, references: Texts, metrics: Sequence[str], models: Models, once: Once
) -> dict[str, np.ndarray]:
    """Metric -> its value for each report by itself [n]; of what is better when lower, the negative value.

    An F1 of labels is 1 where neither text names an observation. Raises as `measure`.
    """
    measures, _ = compute(predictions, references, metrics, models, once)
    found = {}
    for name, one in measures.items():
        values = one.reduce(one.statistics.astype(np.float64, copy=False))
        if "_f1_" in name:  # of labels: nothing to find, and nothing found
            values = np.where(one.statistics.any(1), values, 1.0)
        found[name] = -values if name in LOWER_IS_BETTER else values
    return found


def score(
    predictions: Texts,
    references: Texts,
    metrics: Sequence[str] | None = None,
    models: Models | None = None,
    resamples: int = 500,
    seed: int = 0,
    subjects: Sequence[str] | None = None,
    intervals: Intervals = "jackknife",
) -> dict[str, Any]:
    """Score drafts against reports.

    >>> scores = score(["The heart is enlarged."], ["The heart is mildly enlarged."], ["rouge_l"])
    >>> round(scores["metrics"]["rouge_l"]["value"], 3)
    0.889

    Args:
        predictions, references, metrics, models: as for `measure`.
        resamples: bootstrap resamples for medians, biases and percentile intervals.
        seed: of the resamples.
        subjects: of the reports, if some are of the same patient: such reports are alike, and tell less.
        intervals: the 95 % intervals of docs/statistics.md, or percentiles as papers print them.

    Returns:
        {"n", "metrics": {name: {"value", "low", "high", "median", "signature"}}, "skipped": {name: reason}, "drafts",
        "references", "unreadable", "warnings"}, the last four as by `metrics.caveats`. A metric whose interval may not
        hold has "doubts", e.g. ["too few positives"]. With subjects also "subjects", "studies_per_subject", and for
        each metric "effective_n", as many independent studies as would tell it as closely.

    Raises:
        RadDraftError: as `measure`, resamples or a seed out of range, or another number of subjects.

    Warns as `measure`.
    """
    check_resamples(resamples, seed)
    predictions, references = check_texts(predictions, references)
    once = Once()
    measures, skipped = compute(predictions, references, metrics, models, once)
    found = describe(predictions, references, once=once)
    told = caveats(found, measures)
    for sentence in told:
        warnings.warn(sentence, stacklevel=2)
    scores = summarize({"": measures}, resamples, seed, {"": skipped}, subjects, intervals)
    return scores | found | {"warnings": told}
