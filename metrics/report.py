"""The page of `raddraft score`: scores of the systems, then drafts beside their images and references.

One HTML file that loads nothing, so that it can be opened, mailed or archived as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

from metrics.caveats import tell_texts
from metrics.reads import MORE_IS_BETTER, READ_METRICS
from metrics.summary import tell_statistics
from raddraft.errors import RadDraftError
from raddraft.pages import render_template

Scores = Mapping[str, Mapping[str, Any]]
Differences = Mapping[str, Mapping[str, Mapping[str, float]]]

NO_FINDING = "No Finding"
LABEL_WORDS = {1: "positive", 0: "negative", -1: "uncertain", None: "not mentioned"}

# Label and short explanation of each metric, in the order of the page.
METRICS = {
    **READ_METRICS,
    "rouge_l": ("ROUGE-L", "longest common sequence of words"),
    "bleu_1": ("BLEU-1", "shared words"),
    **{f"bleu_{n}": (f"BLEU-{n}", f"shared runs of up to {n} words") for n in (2, 3, 4)},
    **{
        f"{model}_{kind}{suffix}": (f"{name} {label}{', lower case' if suffix else ''}", explanation)
        for model, name, suffixes in (
            ("radgraph", "RadGraph", ("", "_lower")),
            ("radgraph_xl", "RadGraph-XL", ("", "_lower")),
            ("modern_radgraph_xl", "Modern RadGraph-XL", ("",)),
        )
        for suffix in suffixes
        for kind, label, explanation in (
            ("e", "E", "clinical entities"),
            ("er", "ER", "entities, and whether they have a relation"),
            ("bar_er", "bar-ER", "entities with their relations"),
        )
    },
    **{
        f"{labeler}_{average}_f1_{count}{suffix}": (
            f"{average.title()}-F1-{count}{'+' if suffix else ''}, {name}",
            f"{count} observations, {how}{', uncertain as positive' if suffix else ''}",
        )
        for suffix in ("", "_plus")
        for labeler, name in (("chexbert", "CheXbert"), ("rule", "rules"))
        for count in (14, 5)
        for average, how in (("macro", "averaged"), ("micro", "pooled"))
    },
    **{
        name: (f"{metric}, {unit}", explanation)
        for suffix, unit in (("unicode", "words of any alphabet"), ("char", "characters"))
        for name, metric, explanation in (
            (f"rouge_l_{suffix}", "ROUGE-L", "longest common sequence"),
            *((f"bleu_{n}_{suffix}", f"BLEU-{n}", f"shared runs of up to {n}") for n in range(1, 5)),
        )
    },
    "rouge_l_stem": ("ROUGE-L, stems", "longest common sequence of word stems"),
    "coco_bleu_1": ("BLEU-1, COCO", "shared words, as in image captioning"),
    **{f"coco_bleu_{n}": (f"BLEU-{n}, COCO", f"shared runs of up to {n} words") for n in (2, 3, 4)},
    "coco_rouge_l": ("ROUGE-L, COCO", "longest common sequence, recall weighs more"),
    "coco_cider": ("CIDEr, COCO", "shared runs, rare ones weigh more; may exceed 1"),
    "nltk_sentence_bleu_4": ("Sentence BLEU-4, NLTK", "mean over reports"),
    "meteor": ("METEOR", "words, their stems and synonyms, in order"),
    "bertscore_f1": ("BERTScore F1", "likeness of words in context; rescaled, may be negative"),
    "cxr_bert_cosine": ("CXR-BERT cosine", "likeness of whole reports"),
    "cxrfescore": ("CXRFEScore", "likeness of the facts in them"),
    "ratescore": ("RaTEScore", "likeness of the entities in them, and whether they are denied"),
    "radcliq_v1": ("RadCliQ-v1 ↓", "predicted errors; lower is better, no bounds"),
    "rexrank_bleu_2": ("BLEU-2, ReXrank", "shared runs of up to 2 words, mean over reports"),
    "rexrank_radgraph": ("RadGraph, ReXrank", "entities and relations, mean of both F1s"),
    "rexrank_semb": ("SembScore, ReXrank", "likeness of CheXbert's embeddings"),
    "rexrank_radcliq_v0": ("RadCliQ-v0 ↓, ReXrank", "predicted number of errors; lower is better"),
    "rexrank_inverse_radcliq_v1": ("1/RadCliQ-v1, ReXrank", "inverse of predicted errors; no bounds"),
}
LOWER_IS_BETTER = {"radcliq_v1", "rexrank_radcliq_v0", *READ_METRICS} - {*MORE_IS_BETTER}
# The bar charts; only metrics that lie in [0, 1].
F1_PLOTTED = ("chexbert_macro_f1_14", "rule_macro_f1_14", "rule_micro_f1_14")
OTHER_TOKENS = ("rouge_l_unicode", "bleu_4_unicode", "rouge_l_char", "bleu_4_char")
PLOTTED = ("rouge_l", "bleu_4", *OTHER_TOKENS, "coco_bleu_4", "radgraph_er", *F1_PLOTTED)
SIGNIFICANT = 0.05


@dataclass
class Case:
    """One study to show."""

    study_id: str
    image: bytes | None
    """JPEG file, at most about 512 pixels a side; None if there is no image."""
    view: str | None
    reference: str
    drafts: dict[str, str]
    """System -> draft; the first is the system under test."""
    reference_labels: Mapping[str, int | None]
    """Observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned; by the rule-based labeler."""
    draft_labels: Mapping[str, int | None]
    """The same of the first system's draft."""
    scores: dict[str, float]
    """Per-report scores of the first system's draft."""
    group: str = ""
    """Heading of the card, such as "Worst by rouge_l"; may be empty."""


def compare_labels(reference: Mapping[str, int | None], draft: Mapping[str, int | None]) -> list[tuple[str, str]]:
    """Compare two reports by their labels: (observation, state), errors first.

    States: `missed` (positive in the reference, negative or not mentioned in the draft), `invented` (the reverse),
    `uncertain` (uncertain in at least one), `positive` and `negative` (the same in both). Other observations are not
    listed. `No Finding` sums up the others: a difference in it is listed only if it is the only one.
    """
    found: dict[str, list[str]] = {state: [] for state in ("missed", "invented", "uncertain", "positive", "negative")}
    for observation in dict.fromkeys([*reference, *draft]):
        pair = (reference.get(observation), draft.get(observation))
        if -1 in pair:
            found["uncertain"].append(observation)
        elif pair == (1, 1):
            found["positive"].append(observation)
        elif pair == (0, 0):
            found["negative"].append(observation)
        elif 1 in pair:
            found["missed" if pair[0] == 1 else "invented"].append(observation)
    differing = [found[state] for state in ("missed", "invented", "uncertain")]
    if sum(map(len, differing)) > 1:
        for names in differing:
            if NO_FINDING in names:
                names.remove(NO_FINDING)
    return [(observation, state) for state, names in found.items() for observation in names]


def render_report(
    title: str,
    systems: Scores,
    cases: Sequence[Case],
    observations: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> str:
    """Return the page as self-contained HTML; every text is escaped.

    Args:
        title: heading of the page; says so if the data are synthetic.
        systems: name -> scores as in scores.json, see `metrics.scoring.summarize`; the first is the system under test,
            the only one whose "differences" and "strata" are shown.
        cases: the studies to show, those of a group under its name.
        observations: labeler -> observation -> {"precision", "recall", "f1", "support"} of the first system, with
            uncertain as negative.

    Raises:
        RadDraftError: `systems` is empty.
    """
    if not systems:
        raise RadDraftError("systems is empty: the page needs at least the system under test")
    first = next(iter(systems))
    rows = _table_rows(systems, systems[first].get("differences", {}))
    return render_template(
        Path(__file__).with_name("report.html.j2"),
        title=title,
        systems=systems,
        first=first,
        reads="read_accepted" in systems[first]["metrics"],
        rows=rows,
        panels=[_panel(row) for row in rows if row["name"] in PLOTTED],
        warnings=systems[first].get("warnings", []),
        statistics=tell_statistics(systems),
        texts=tell_texts(systems),
        skipped=_by_text({name: system.get("skipped", {}) for name, system in systems.items()}),
        signatures=_by_text({name: _signatures(system) for name, system in systems.items()}),
        strata={by: (parts, _table_rows(parts, {})) for by, parts in systems[first].get("strata", {}).items()},
        observations={name: _by_support(table) for name, table in (observations or {}).items()},
        groups=_card_groups(cases),
        words=LABEL_WORDS,
        no_finding=NO_FINDING,
        label=lambda name: METRICS.get(name, (name, ""))[0],
        number=_number,
        p_text=_p_text,
    )


def _table_rows(columns: Scores, differences: Differences) -> list[dict[str, Any]]:
    """Each metric of all columns (systems, or strata), in the order of METRICS."""
    rank = {name: position for position, name in enumerate(METRICS)}
    names = dict.fromkeys(name for column in columns.values() for name in column["metrics"])
    return [
        _table_row(name, columns, differences) for name in sorted(names, key=lambda name: rank.get(name, len(rank)))
    ]


def _table_row(metric: str, columns: Scores, differences: Differences) -> dict[str, Any]:
    """One metric of all columns, and which of them the first one differs from."""
    scores = {name: column["metrics"].get(metric) for name, column in columns.items()}
    values = [score["value"] for score in scores.values() if score]
    lower = metric in LOWER_IS_BETTER
    found = {name: differences[name][metric] for name in columns if metric in differences.get(name, {})}
    verdict: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for name, difference in found.items():
        better = (difference["value"] < 0) if lower else (difference["value"] > 0)
        p = difference.get("p_holm", difference["p"])
        verdict["unclear" if p >= SIGNIFICANT else "better" if better else "worse"].append(name)
    label, explanation = METRICS.get(metric, (metric, ""))
    return {
        **{"name": metric, "label": label, "explanation": explanation, "scores": scores, "differences": found},
        **verdict,
        "best": min(values) if lower else max(values),
        "best_of_all": bool(found) and len(verdict["better"]) == len(found),
    }


def _panel(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a plot from 0 to `top`, with about four ticks."""
    highest = max(max(score["high"], score["value"]) for score in row["scores"].values() if score)
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if highest / step <= 5), 0.25)
    count = max(1, ceil(highest / step))
    return row | {"top": count * step, "ticks": [step * number for number in range(count + 1)]}


def _by_text(texts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """{system: {metric: text}} -> {metric: {text: systems}}, so that what all systems share is printed once."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for system, by_metric in texts.items():
        for metric, text in by_metric.items():
            grouped.setdefault(metric, {}).setdefault(text, []).append(system)
    return grouped


def _signatures(system: Mapping[str, Any]) -> dict[str, str]:
    return {metric: score["signature"] for metric, score in system["metrics"].items()}


def _by_support(table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    return sorted(table.items(), key=lambda item: -item[1]["support"])


def _card_groups(cases: Sequence[Case]) -> dict[str, list[dict[str, Any]]]:
    """Heading -> cards, in the order in which the groups first appear."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        words, _, metric = case.group.rpartition(" ")
        heading = f"{words} {METRICS[metric][0]}" if metric in METRICS else case.group
        found: dict[str, list[str]] = {}
        for observation, state in compare_labels(case.reference_labels, case.draft_labels):
            found.setdefault(state, []).append(observation)
        image = base64.b64encode(case.image).decode("ascii") if case.image else None
        differs = "missed" in found or "invented" in found
        groups.setdefault(heading, []).append({"case": case, "image": image, "found": found, "differs": differs})
    return groups


def _number(value: float, sign: Literal["", "+"] = "") -> str:
    """Three decimals with a true minus; what rounds to zero has no sign."""
    return f"{value:{sign}z.3f}".replace("-", "−").replace("+0.000", "0.000")


def _p_text(p: float) -> str:
    """p as in journals: "p .012"; never rounded across the threshold of the verdict."""
    if p < 0.0005:
        return "p < .001"
    if p < SIGNIFICANT <= round(p, 3):
        return "p < .05"
    return "p 1" if round(p, 3) == 1 else f"p {p:.3f}".replace("0.", ".", 1)
