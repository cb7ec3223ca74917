"""What to know of texts before their scores are believed: how much of them the metrics can read, how many are blank,
equal or cut; and what is no list of texts at all.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from metrics.text import Once, rouge_tokens, unicode_words

# Words of English reports that are no words of other languages in the Latin alphabet, and words that are (German
# "was", Romanian "are", French "fracture"), which tell nothing. Of IU X-ray's 3,337 findings none has less than a fifth
# of its telling words among the first, of its 3,820 impressions 0.2 %.
_ENGLISH = (
    "the and with within without there has have been not its from this that these which were but than may could would "
    "should seen noted again otherwise since shows show showed after through both heart lung lungs chest size sized "
    "limits right left upper lower middle small mild mildly clear unremarkable unchanged enlarged enlargement "
    "increased decreased disease evidence findings finding changes change airspace pulmonary cardiopulmonary effusion "
    "effusions opacity opacities infiltrates cardiomegaly emphysema scarring atelectatic abnormality abnormalities "
    "abnormal spine bony bone ribs vascularity vasculature patchy likely exam view views identified visualized appear "
    "appears appearance tip line lines catheter mass prior peripheral fever cough days year old female woman basilar "
    "bibasilar copd hilar adenopathy opacification opacifications significant represents suggesting consistent wall "
    "rib film films process processes cardiothoracic cxr study thickening widening"
)
_SHARED = (
    "are base for large normal was stable present negative similar focal lobe bilateral pleural mediastinal edema "
    "pneumothorax consolidation atelectasis pneumonia thoracic consolidations infiltrate volume volumes zone zones "
    "bases patient tube nodule nodules fracture fractures interval acute air lobes due male over had man moderate "
    "cardiac degenerative active lobar tuberculosis interstitial bronchiolitis minimal bacterial viral infection "
    "infiltration fibrosis hernia hiatal lesion support device devices possible covid"
)
ENGLISH, SHARED = frozenset(_ENGLISH.split()), frozenset(_SHARED.split())
LEAST_ENGLISH = 0.1
"""Share of a report's telling words that are English, below which it is taken for a report in another language."""
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts, by the names of their characters, that put no blanks between words."""

# Shares above which a metric is warned of.
MOST_WORDS, MOST_UNSPACED, MOST_FOREIGN, MOST_ALIKE = 0.02, 0.02, 0.1, 0.5

READ_ENGLISH = (
    "rule",
    "chexbert",
    "radgraph",
    "bertscore",
    "radcliq",
    "rexrank",
    "meteor",
    "modern_radgraph_xl",
    "cxr_bert",
    "cxrfescore",
    "ratescore",
)
SPLIT_AT_BLANKS = ("bleu", "coco", "nltk", "meteor", "rexrank_bleu")
OTHER_TOKENS = ("_unicode", "_char")


class _Reading(NamedTuple):
    """How a text can be read."""

    words: int
    broken: int
    """Words that ROUGE-L's tokenizer loses or breaks."""
    letters: int
    unspaced: int
    """Letters of scripts without blanks between words."""
    foreign: bool
    """Whether hardly a word is English."""


def _read(text: str) -> _Reading:
    told = list(itertools.chain.from_iterable(map(_kinds, text.split())))
    english, other = told.count("English"), told.count("other")
    foreign = english < LEAST_ENGLISH * (english + other)
    if text.isascii():
        return _Reading(len(told), 0, 0, 0, foreign)
    words = unicode_words(text)
    broken = sum(rouge_tokens(word) != [word] for word in words)
    letters = [letter for word in words for letter in word]
    return _Reading(len(words), broken, len(letters), sum(map(_is_unspaced, letters)), foreign)


@lru_cache(maxsize=1 << 16)  # reports are made of the same words
def _kinds(text: str) -> list[str]:
    """Whether each word tells that a text is "English" or in some "other" language, or nothing (""); also as short as
    mm, II or PA, which stand in all languages, tells nothing."""
    return [
        ""
        if word in SHARED or not word.strip("x0123456789") or (len(word) < 3 and word.isascii())
        else "English"
        if word in ENGLISH
        else "other"
        for word in unicode_words(text)
    ]


@lru_cache(maxsize=1 << 16)
def _is_unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(UNSPACED)


def unreadable(texts: Sequence[str], once: Once | None = None) -> dict[str, float]:
    """Shares, in [0, 1], of what metrics cannot read.

    Returns:
        words: of all words, those that the tokenizer of `rouge_l` loses or breaks (it keeps the letters a to z);
        unspaced: of all letters, those of scripts without blanks between words, where BLEU takes a clause for a word;
        reports: of all reports with words, those in which hardly a word is English, as all that reads findings expects.
    """
    found = [one for one in (once or Once()).each(_read, texts) if one.words]
    words, letters = sum(one.words for one in found), sum(one.letters for one in found)
    return {
        "words": sum(one.broken for one in found) / max(words, 1),
        "unspaced": sum(one.unspaced for one in found) / max(letters, 1),
        "reports": sum(one.foreign for one in found) / max(len(found), 1),
    }


def alike(texts: Sequence[str]) -> dict[str, float]:
    """Shares of texts, in [0, 1]: `blank`; `equal`, the most frequent one that is not; `repeated`, all that are not
    blank and occur more than once. White space does not count."""
    counts = Counter(hash(" ".join(text.split())) for text in texts)  # as `raddraft.splits.known_texts` counts
    blank = counts.pop(hash(""), 0)
    repeated = [count for count in counts.values() if count > 1]
    total = max(len(texts), 1)
    return {"blank": blank / total, "equal": max(repeated, default=0) / total, "repeated": sum(repeated) / total}


def describe(
    drafts: Sequence[str], references: Sequence[str], cut: Sequence[bool | None] = (), once: Once | None = None
) -> dict[str, Any]:
    """What scores.json says of the texts of one system.

    Args:
        drafts, references: one text a report.
        cut: whether each draft ended at the limit of tokens; None where that is not known.
        once: what was read out of texts before.

    Returns:
        {"drafts": as `alike`, with "cut", the share or None; "references": as `alike`;
        "unreadable": {"drafts": as `unreadable`, "references": the same}}
    """
    known = [one for one in cut if one is not None]
    return {
        "drafts": alike(drafts) | {"cut": sum(known) / len(known) if known else None},
        "references": alike(references),
        "unreadable": {"drafts": unreadable(drafts, once), "references": unreadable(references, once)},
    }


def caveats(found: Mapping[str, Any], metrics: Iterable[str]) -> list[str]:
    """Sentences on what makes the scores of a system void or wrong, from what `describe` gives and names of metrics."""
    return alike_caveats(found) + reading_caveats(found["unreadable"], metrics)


def alike_caveats(found: Mapping[str, Any], system: str = "") -> list[str]:
    """Sentences on drafts most of which are blank, equal or cut.

    Args:
        found: as by `describe`.
        system: its name, if there are several.
    """
    drafts, references, told = found["drafts"], found["references"], []
    if drafts["blank"] + drafts["equal"] > max(MOST_ALIKE, references["blank"] + references["equal"]):
        kinds = {
            kind: words for kind, words in (("blank", "blank"), ("equal", "one and the same text")) if drafts[kind]
        }
        ours, theirs = (
            " and ".join(f"{percent(part[kind])} {words}" for kind, words in kinds.items())
            for part in (drafts, references)
        )
        told.append(f"of the drafts {ours} (of the references {theirs}): such scores tell little")
    if (drafts["cut"] or 0) > MOST_ALIKE:
        told.append(f"{percent(drafts['cut'])} of the drafts are cut at the limit of tokens (decode.max_new_tokens)")
    return [f"{system}: {one}" if system else one for one in told]


def reading_caveats(shares: Mapping[str, Mapping[str, float]], metrics: Iterable[str]) -> list[str]:
    """Sentences on texts that metrics cannot read.

    Args:
        shares: what the texts are, such as drafts -> as by `unreadable`.
        metrics: names of the metrics that are computed.
    """
    names, told = list(metrics), []

    def parts(share: str, most: float, part: str = "") -> str:
        """ "50.0 % of the drafts and 10.0 % of the references", or of a part of them, if one of these is large."""
        large = any(one[share] > most for one in shares.values())
        return " and ".join(f"{percent(one[share])} of {part}the {kind}" for kind, one in shares.items() if large)

    rouge = next((name for name in names if name in ("rouge_l", "rouge_l_stem")), None)
    if rouge and (text := parts("words", MOST_WORDS, "the words of ")):
        told.append(
            f"{rouge} keeps the letters a to z only, so it loses or breaks {text}: take rouge_l_unicode, or "
            "rouge_l_char where no blanks stand between words"
        )
    split = [name for name in names if name.startswith(SPLIT_AT_BLANKS) and not name.endswith(OTHER_TOKENS)]
    if split and (text := parts("unspaced", MOST_UNSPACED, "the letters of ")):
        told.append(
            f"{split[0]} and the like take what stands between blanks for a word, but {text} are of scripts without "
            "blanks between words: take the family char"
        )
    english = list(dict.fromkeys(family for name in names for family in READ_ENGLISH if name.startswith(family)))
    if english and (text := parts("reports", MOST_FOREIGN)):
        told.append(
            f"{', '.join(english)} can read English only, and {text} hold hardly an English word: their scores are "
            "void, as are observations and strata by the rules"
        )
    return told


def tell_texts(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The rows of a table: whose texts -> shares that are blank, the most frequent one, repeated, cut; "-" if unknown.

    Args:
        systems: name -> its part of scores.json; those of before version 0.3 tell nothing of texts.
    """
    told = {f"drafts of {name}": found["drafts"] for name, found in systems.items() if "drafts" in found}
    if told:
        told["references"] = next(iter(systems.values()))["references"]
    keys = ("blank", "equal", "repeated", "cut")
    return {
        name: ["-" if shares.get(key) is None else percent(shares[key]) for key in keys]
        for name, shares in told.items()
    }


def percent(share: float) -> str:
    """0.123 as "12.3 %"."""
    return f"{100 * share:.1f} %"
