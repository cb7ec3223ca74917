"""What there is to score by: every family of metrics, what it measures, whose it is, what it needs and what it costs.

print(format_metrics())
"""

from __future__ import annotations

from dataclasses import dataclass

from metrics.scoring import FAMILIES
from metrics.weights import MissingWeights, locate


@dataclass(frozen=True)
class Entry:
    """A family of metrics."""

    definition: str
    implementation: str
    reported: str
    """Who reports it so; how it differs from others."""
    license: str
    """Of the code that it is, or is made after; that of weights stands in `metrics.weights.WEIGHTS`."""
    weights: tuple[str, ...] = ()
    """Keys of `metrics.weights.WEIGHTS`."""
    radiologists: str = ""
    """How well it follows radiologists: what its authors say, or Kendall's tau-b with the mean rating and the number of
    errors that three radiologists gave 200 drafts (`python -m benchmarks.radpref`). Blank where that is not known."""
    seconds: float | None = None
    """CPU time on one core of an AMD EPYC for 1,000 pairs of IU X-ray's reports, once loaded; None if not measured."""

    @property
    def cost(self) -> str:
        """`seconds`, in words."""
        return "not measured" if self.seconds is None else f"{self.seconds:g} s"


_CHEXBERT, _RADGRAPH = ("chexbert", "chexbert-tokenizer"), ("radgraph", "radgraph-tokenizer")
_XL, _OWN = ("radgraph-xl", "radgraph-tokenizer"), "MIT, as RadDraft"

# docs/scoring.md has the same table; a test compares them.
CATALOG = {
    "rouge": Entry(
        "ROUGE-L F-measure, no stemmer, mean over reports",
        "equal to rouge-score to 1e-9",
        "MAIRA, LLaVA-Rad, RAD-DINO. `evaluate`'s default is a bootstrap median, COCO's has another β",
        "Apache-2.0",
        radiologists="τ .441 with ratings, .417 with errors",
        seconds=0.03,
    ),
    "bleu": Entry(
        "corpus BLEU, 13a tokens, case kept, not smoothed",
        "equal to sacrebleu / 100 to 1e-9",
        "as `evaluate`'s bleu. R2Gen's tables and RadEval's `bleu` are `coco_bleu_4`",
        "Apache-2.0",
        radiologists="BLEU-1 τ .398, .364; BLEU-4 τ .374, .354",
        seconds=0.09,
    ),
    "radgraph": Entry(
        "F1 of entities; of entities with whether they have a relation; of entities with their relations. Mean over "
        "reports; 0 where either side has no entity",
        "model v1 and code of the package radgraph 0.1.18, in batches; case as written",
        "RG_ER of MAIRA, LLaVA-Rad, RAD-DINO is `radgraph_er`",
        "MIT",
        _RADGRAPH,
        radiologists="better than older metrics, its authors say (Yu et al. 2023; another F1 of the same graphs)",
    ),
    "chexbert": Entry(
        "F1 over 14 observations, or over Cardiomegaly, Edema, Consolidation, Atelectasis and Pleural Effusion; not "
        "mentioned and uncertain are negative; an F1 of nothing is 0",
        "the authors' checkpoint on plain transformers",
        "MAIRA, LLaVA-Rad, RAD-DINO. f1chexbert and RadEval count uncertain as positive: `_plus`",
        _OWN,
        _CHEXBERT,
    ),
    "rule": Entry(
        "the same by this project's rule-based labeler, which needs no weights",
        "`metrics/rules.py`",
        "nobody else: not comparable with CheXbert's",
        _OWN,
        radiologists="micro F1-14 τ .608, .455; macro F1-14 τ .521, .331",
        seconds=0.12,
    ),
    "chexbert_plus": Entry(
        "as `chexbert`, uncertain is positive",
        "as `chexbert`",
        'the "+" rows of papers; f1chexbert, RadEval',
        _OWN,
        _CHEXBERT,
    ),
    "rule_plus": Entry(
        "as `rule`, uncertain is positive",
        "as `rule`",
        "nobody else",
        _OWN,
        radiologists="micro F1-14 τ .633, .485",
        seconds=0.12,
    ),
    "radgraph_lower": Entry(
        "as `radgraph`, ignoring case", "as `radgraph`", "the package's unreleased source", "MIT", _RADGRAPH
    ),
    "radgraph_xl": Entry(
        "as `radgraph`, by the model RadGraph-XL", "as `radgraph`", "the package's own default", "MIT", _XL
    ),
    "radgraph_xl_lower": Entry("as `radgraph_xl`, ignoring case", "as `radgraph`", "", "MIT", _XL),
    "unicode": Entry(
        "ROUGE-L on lower-case words of letters, marks and digits of any alphabet; BLEU on sacrebleu's `intl` tokens",
        "ROUGE-L equal to `rouge_l` on plain English, BLEU to sacrebleu / 100 to 1e-9",
        "for other languages",
        "Apache-2.0",
        radiologists="ROUGE-L τ .441, .417; BLEU-4 τ .372, .350",
        seconds=0.13,
    ),
    "char": Entry(
        "the same on the characters of these words; BLEU on sacrebleu's `char`",
        "as `unicode`",
        "for scripts without blanks between words",
        "Apache-2.0",
        radiologists="ROUGE-L τ .342, .316; BLEU-4 τ .355, .328",
        seconds=0.52,
    ),
    "rouge_stem": Entry(
        "`rouge_l` on Porter's stems of words of four letters and more",
        "equal to rouge-score with `use_stemmer=True` to 1e-9",
        "RadEval's `rougeL`",
        "Apache-2.0",
        radiologists="τ .444, .419",
        seconds=0.06,
    ),
    "coco": Entry(
        "COCO's caption scores on the text as it stands, split at blanks",
        "equal to pycocoevalcap to 1e-12",
        "R2Gen and its successors; RadEval's `bleu` is `coco_bleu_4`",
        _OWN,
        radiologists="BLEU-4 τ .332, .307; ROUGE-L τ .386, .374; CIDEr τ .317, .283",
        seconds=0.35,
    ),
    "sentence_bleu": Entry(
        "BLEU-4 of each report, smoothed (method 1)",
        "nltk",
        "per-report columns of several toolkits; not corpus BLEU",
        "Apache-2.0",
        radiologists="τ .350, .326",
        seconds=0.19,
    ),
    "meteor": Entry(
        "METEOR with WordNet, which `python -m nltk.downloader wordnet` gets",
        "nltk",
        "not COCO's METEOR 1.5, which is a Java program",
        "Apache-2.0",
        radiologists="τ .366, .360",
    ),
    "bertscore": Entry(
        "BERTScore F1 of distilroberta-base, layer 5, rescaled, no idf",
        "equal to bert-score to 1e-4",
        "RadCliQ's part, ReXrank; bert-score itself goes wrong on transformers 5",
        "MIT",
        ("bertscore",),
    ),
    "radcliq": Entry(
        "errors as predicted from RadGraph, BERTScore, CheXbert's embedding and BLEU; lower is better",
        "the authors' coefficients",
        "Yu et al. 2023; ReXrank and some tables print its inverse",
        "MIT",
        (*_RADGRAPH, "bertscore", *_CHEXBERT),
        radiologists="better than older metrics, its authors say (Yu et al. 2023)",
    ),
    "rexrank_bleu": Entry(
        "BLEU-2 of each report, smoothed (method 1): lower case, full stops by themselves, split at blanks",
        "as fast-bleu 0.0.90 to 1e-9",
        "ReXrank",
        "MIT",
    ),
    "rexrank": Entry(
        "RadGraph's mean F1 of entities and relations; the cosine of CheXbert's embeddings; RadCliQ-v0, predicted "
        "errors, lower is better; the inverse of the mean RadCliQ-v1, more is better",
        "the authors' coefficients; RadGraph by the package's code, not by DyGIE++",
        "ReXrank, with BERTScore and `rexrank_bleu`; 1/RadCliQ-v1 orders its board",
        "MIT",
        (*_RADGRAPH, "bertscore", *_CHEXBERT),
    ),
    "modern_radgraph_xl": Entry(
        "as `radgraph`, by RadGraph-XL on a ModernBERT, `modern-radgraph-xl` of the package radgraph 0.1.18; its "
        "tokenizer is the one that its config.json names",
        "as `radgraph`",
        "the README of that package",
        "MIT",
        ("modern-radgraph-xl",),
    ),
    "cxr_bert": Entry(
        "cosine of the projected [CLS] embeddings of the two reports by CXR-BERT-specialized",
        "equal to hi-ml-multimodal 0.2.2 to 1e-6",
        "CXRMate and its successors",
        "MIT",
        ("cxr-bert",),
    ),
    "cxrfescore": Entry(
        "how well each fact of a report is matched by the other's, by cosines of their embeddings; facts by a T5. "
        "Needs nltk's Punkt, which `python -m nltk.downloader punkt_tab` gets",
        "equal to cxrfescore 0.2.4 to 1e-6",
        "Messina et al. 2024",
        "MIT",
        ("cxrfe", "cxrfe-facts"),
    ),
    "ratescore": Entry(
        "likeness of the entities of two reports, weighed by their types, less where one is denied; 0.5 where a side "
        "has no entity",
        "equal to RaTEScore 0.6.0 to 1e-9 on the same sentences; sentences end at full stops, medspaCy finds others in "
        "2 % of texts",
        "Zhao et al. 2024; ReXrank",
        "MIT",
        ("ratescore-ner", "ratescore-synonyms"),
        radiologists="better than older metrics, its authors say (Zhao et al. 2024)",
    ),
}


def format_metrics() -> str:
    """Every family as text: metrics, what they measure, how they follow radiologists, license, weights, cost."""
    return "\n\n".join(_format_family(family, entry) for family, entry in CATALOG.items())


def _format_family(family: str, entry: Entry) -> str:
    rows = [
        ["metrics", ", ".join(FAMILIES[family].names)],
        ["what", entry.definition.replace("`", "")],
        ["how", f"{entry.implementation.replace('`', '')}; code: {entry.license}"],
        ["reported by", entry.reported.replace("`", "")],
        ["radiologists", entry.radiologists],
        ["weights", ", ".join(f"{name} ({_state(name)})" for name in entry.weights) or "none"],
        ["1,000 reports", entry.cost],
    ]
    return "\n".join([family, *(f"  {name:13}  {text}" for name, text in rows if text)])


def _state(name: str) -> str:
    try:
        locate(name)
    except MissingWeights:
        return "missing"
    return "here"
