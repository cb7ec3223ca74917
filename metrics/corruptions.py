"""Change an English report in one clinically different way: to ask what a metric sees.

    >>> corrupt("The heart is normal. Small left effusion.", "swapped_side")
    'The heart is normal. Small right effusion.'
    >>> corrupt("The heart is normal. Small left effusion.", "removed_finding")
    'The heart is normal.'
    >>> corrupt("The heart is normal.", "swapped_side") is None
    True

Six kinds do harm, two are controls that leave what is said as it is. A change is made only where the rule-based labeler
(`metrics.rules`) confirms that it does what its name says, and None is returned where a report offers no place for it:
a side is swapped only where something abnormal has one, a finding is removed only if it is not stated twice.
What is written is made by rules and can be stilted; it is for measuring metrics and for nothing else.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from metrics.rules import NEGATIVE, POSITIVE, label
from raddraft.errors import RadDraftError
from raddraft.text import suggest

EDITS = ("swapped_side", "removed_finding", "changed_severity", "added_negation", "removed_negation")
"""Kinds that change what the report says."""
OTHER = "another_patient"
CONTROLS = ("shuffled_sentences", "paraphrase")
"""Kinds that leave what the report says."""
KINDS = (*EDITS, OTHER, *CONTROLS)

_TRIES = 100
"""Reports of other patients that are looked at."""

_GAP = re.compile(r"(?<=[.!?])(?<!\bvs\.)(?<!\bdr\.)(?<!\bapprox\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+", re.IGNORECASE)
# A sentence that takes up the one before it stays with it.
_REFERS_BACK = re.compile(
    r"(?:this|these|that|those|its?|they|which|such|otherwise|however|also|addition\w+|again|other\w*|remain\w*"
    r"|the (?:same|former|latter|remain\w*|rest|other)|as (?:above|noted|described))\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"(?:^|\s)\(?\d+[.)](?=\s)")

_SIDES = {"left": "right", "lll": "rll", "lul": "rul"}
_SIDES |= {right: left for left, right in _SIDES.items()}
# "left in place" is no side, and "right and left" names both, in either order.
_SIDE = re.compile(
    r"(?P<both>\b(?:left|right)(?:[- ]sided)?(?:,? and(?:/or)?|,? or|/| ?&) ?(?:the )?(?:left|right)\b)"
    r"|\b(?:left|right)(?=(?:[- ]?(?:sided|ward|wards|most))?\b)"
    r"(?! (?:in (?:place|situ)|alone|away|now)\b)|\b(?:lll|rll|lul|rul)\b",
    re.IGNORECASE,
)

# Each degree, and those it is changed to.
_LOW, _HIGH = ("mild", "minimal", "slight"), ("severe", "marked")
_DEGREES = dict.fromkeys(_LOW, ("severe",)) | dict.fromkeys(_HIGH, ("mild",)) | {"moderate": ("mild", "severe")}
_SIZES = {"small": ("large",), "tiny": ("large",), "trace": ("large",), "large": ("small",), "massive": ("small",)}
_DEGREE = re.compile(
    r"\b(?:(?P<range>(?:mild|minimal|moderate)(?:ly)?(?: to | or |-to-|-)(?:moderate|severe|marked)(?P<ly_range>ly)?)"
    r"|(?P<degree>mild|minimal|slight|moderate|severe|marked)(?P<ly>ly)?"
    r"|(?P<size>small|tiny|trace|large|massive)(?![- ](?:of|bore|calib\w+|bowel)))\b"
    # of what has changed, or how the patient stood
    r"(?! (?:improv|rotated|limit|obscur|change|different|better|worse|less|more|smaller|larger|decrease)\w*)",
    re.IGNORECASE,
)

_SEEN = r"(?:seen|identified|present|visuali[sz]ed|demonstrated|evident|noted|detected|observed|appreciated|visible)"
_STATE = r"(?:enlarged|widened|prominent|dilated|elevated|increased|abnormal|collapsed)"
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|may|might|could|appears?|remains?|shows?|demonstrates?|reveals?|suggests?"
    r"|represents?|measures?|persists?|project\w*|overl\w+|contains?|consistent|compatible)\b",
    re.IGNORECASE,
)
_HOW = r"(?:(?:\w+ly|again|also|now|still|moderate|mild) )"
_DENIED = re.compile(r"\b(?:no|not|without|none|never|cannot|absent|negative)\b", re.IGNORECASE)
# Articles, degrees and the like before a noun that is denied; of "small to moderate" nothing is taken.
_TAKEN = (
    r"(?:(?:an?|the|some|several|multiple|scattered|mild|minimal|slight|moderate|severe|marked|small|tiny|trace|large"
    r"|borderline|stable|unchanged|persistent|probable|possible|again|also|now|mildly|slightly|moderately|severely"
    r"|markedly)(?! (?:to|or|and|sized)\b) )*"
)
# What can be said instead, for one sentence: (pattern, replacement). The labeler has the last word.
_NEGATE = (
    (rf"\b(there (?:is|are|has been|have been)) {_TAKEN}(?!no\b|not\b)", r"\1 no "),
    (rf"\b(is|are|was|were) {_HOW}*({_SEEN}|{_STATE})\b", r"\1 not \2"),
    (rf"\bremains {_HOW}*({_STATE})\b", r"is not \1"),
    (rf"\bremain {_HOW}*({_STATE})\b", r"are not \1"),
    (rf"\bappears {_HOW}*({_STATE})\b", r"does not appear \1"),
    (rf"\bappear {_HOW}*({_STATE})\b", r"do not appear \1"),
    (rf"^((?:the )?(?:heart|cardiac|mediasti\w+|cardiomediasti\w+)(?: \w+){{0,2}}?) {_HOW}*({_STATE})\b", r"\1 not \2"),
    (rf"^{_TAKEN}(?=\w)(?!heart size|appear|interval|improv|incr|decr|worsen|resol|develop)", "no "),
)
_EVIDENCE = r"(?:(?:radiographic |convincing |definite |definitive |focal )*(?:evidence|signs?) (?:of|for) (?:an? )?)?"
_PRESENT = (
    (rf"\b(there (?:is|are|has been)) no (?!longer|change|more){_EVIDENCE}", r"\1 "),
    (rf"^no (?!longer|change|more|other){_EVIDENCE}", ""),
    (rf"\bwithout {_EVIDENCE}", "with "),
    (rf"\b(with|shows?|demonstrates?|reveals?) no {_EVIDENCE}", r"\1 "),
    (rf"\b(is|are|was|were) not ((?:\w+ly )?(?:{_SEEN}|{_STATE}))\b", r"\1 \2"),
    (r"\b(is|are) absent\b", r"\1 present"),
    (r"\bnegative for\b", "positive for"),
)

_SAME = {
    r"(is|are|was|were) (?:seen|identified|noted|visualized|demonstrated)(?! (?:to|that|as|by|with))": r"\1 present",
    r"(is|are|was|were) present": r"\1 seen",
    r"no (?:radiographic )?evidence (?:of|for) an?": "no",
    r"no (?:radiographic )?evidence (?:of|for)": "no",
    r"without (?:radiographic )?evidence (?:of|for)": "without",
    r"within normal limits(?! of)": "normal",
    r"(heart|cardiac silhouette|mediastinum) is normal in size": r"\1 is of normal size",
    r"heart size is normal": "heart is normal in size",
    r"bilaterally": "on both sides",
    r"demonstrate(s?)": r"show\1",
    r"an unremarkable": "a normal",
    r"unremarkable": "normal",
    r"osseous (structures|abnormalit\w+)": r"bony \1",
}


def corrupt(text: str, kind: str, seed: int = 0, others: Sequence[str] = ()) -> str | None:
    """Corrupt one report.

    Args:
        text: findings or impression, in English.
        kind: one of `KINDS`. swapped_side: left and right of the whole report, where an abnormality has a side.
            removed_finding: one sentence with a positive finding. changed_severity: one word for a degree or size of an
            abnormality, to another degree. added_negation, removed_negation: a positive finding is denied, a denied one
            asserted. another_patient: one of `others` with other positive findings. shuffled_sentences: the same
            sentences in another order. paraphrase: other words of the same meaning.
        seed: of the choice among several places; the same text, kind and seed give the same result.
        others: reports of other patients.

    Returns:
        The corrupted report, which differs from the text; None where the kind does not apply to it.

    Raises:
        RadDraftError: an unknown kind.
    """
    if kind not in KINDS:
        raise RadDraftError(f"Unknown corruption {kind!r}. Choices: {', '.join(KINDS)}.{suggest(kind, KINDS)}")
    chance = random.Random(f"{seed} {kind} {text}")
    if kind == OTHER:
        found = (others[chance.randrange(len(others))] for _ in range(_TRIES if others else 0))
        return next((other for other in found if positives(other) != positives(text)), None)
    changed = _WAYS[kind](text, chance)
    return changed.upper() if changed and text.isupper() else changed


def positives(text: str) -> frozenset[str]:
    """Observations that the rule-based labeler finds positive in a text; No Finding is one."""
    return frozenset(name for name, value in label(text).items() if value == POSITIVE)


def _findings(text: str) -> frozenset[str]:
    return positives(text) - {"No Finding"}


def _abnormal(sentence: str) -> bool:
    """Whether a sentence states an observation or another abnormality, perhaps with doubt."""
    labels = label(sentence)
    return labels["No Finding"] is None or labels["Support Devices"] == POSITIVE


def _sentences(text: str) -> list[str]:
    """Sentences with the white space after them: joined, they are the text."""
    ends = [0, *(gap.end() for gap in _GAP.finditer(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends) if start < end]


def _passages(text: str) -> list[str]:
    """Sentences, together with those that refer back to them."""
    passages: list[str] = []
    for sentence in _sentences(text):
        if passages and _REFERS_BACK.match(sentence):
            passages[-1] += sentence
        else:
            passages.append(sentence)
    return passages


def _as_written(word: str, example: str) -> str:
    """A word in the case of another one."""
    if example.isupper() and len(example) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if example[:1].isupper() else word


def _swap_side(text: str, _: random.Random) -> str | None:
    def swap(found: re.Match[str]) -> str:
        return found[0] if found["both"] else _as_written(_SIDES[found[0].lower()], found[0])

    places = [found for sentence in _sentences(text) if _abnormal(sentence) for found in _SIDE.finditer(sentence)]
    return _SIDE.sub(swap, text) if any(not found["both"] for found in places) else None


def _remove_finding(text: str, chance: random.Random) -> str | None:
    passages, found = _passages(text), _findings(text)
    rests = ["".join(passages[:i] + passages[i + 1 :]).strip() for i in range(len(passages)) if _findings(passages[i])]
    return _pick((rest for rest in rests if rest and _findings(rest) < found), chance)


def _change_severity(text: str, chance: random.Random) -> str | None:
    changed = [
        before + sentence[: found.start()] + _as_written(degree, found[0]) + sentence[found.end() :] + after
        for before, sentence, after in _in_place(text)
        if _abnormal(sentence) and not _DENIED.search(sentence)
        for found in _DEGREE.finditer(sentence)
        for degree in _other_degrees(found)
    ]
    return _pick(changed, chance)


def _other_degrees(found: re.Match[str]) -> list[str]:
    if found["size"]:
        return [*_SIZES[found["size"].lower()]]
    if found["range"]:
        word = "severe" if found["range"].lower().startswith(("mild", "minimal")) else "mild"
        return [word + (found["ly_range"] or "")]
    return [word + (found["ly"] or "") for word in _DEGREES[found["degree"].lower()]]


def _add_negation(text: str, chance: random.Random) -> str | None:
    found = _findings(text)

    def denied(changed: str) -> bool:
        after = label(changed)
        return _findings(changed) < found and all(after[name] == NEGATIVE for name in found - _findings(changed))

    places = (place for place in _in_place(text) if _findings(place[1]) and not _DENIED.search(place[1]))
    return _pick(filter(denied, _rewrite(places, _NEGATE)), chance)


def _remove_negation(text: str, chance: random.Random) -> str | None:
    found, before = _findings(text), label(text)

    def asserted(changed: str) -> bool:
        return _findings(changed) > found and all(before[name] == NEGATIVE for name in _findings(changed) - found)

    places = (place for place in _in_place(text) if _DENIED.search(place[1]))
    return _pick(filter(asserted, _rewrite(places, _PRESENT, listed=True)), chance)


def _in_place(text: str) -> Iterator[tuple[str, str, str]]:
    """Each sentence, with what stands before and after it."""
    sentences = _sentences(text)
    for i, sentence in enumerate(sentences):
        yield "".join(sentences[:i]), sentence, "".join(sentences[i + 1 :])


def _rewrite(
    places: Iterable[tuple[str, str, str]], rules: Sequence[tuple[str, str]], listed: bool = False
) -> Iterator[str]:
    """The text with one sentence rewritten, by each rule that applies. `listed`: "X or Y" becomes "X and Y"."""
    for before, sentence, after in places:
        for pattern, replacement in rules:
            if pattern.startswith("^") and _VERB.search(sentence) and replacement:
                continue  # "No …" makes sense before a noun only
            found = re.search(pattern, sentence, re.IGNORECASE)
            if not found:
                continue
            head, tail = sentence[: found.start()], sentence[found.end() :]
            if pattern.startswith("^"):
                tail = tail if not replacement or tail[:2].isupper() else tail[:1].lower() + tail[1:]
            new = head + found.expand(replacement) + (re.sub(r",? or\b", " and", tail) if listed else tail)
            yield before + _as_written(new, sentence[:1]) + after


def _shuffle(text: str, chance: random.Random) -> str | None:
    passages = _passages(text)
    stripped = [passage.strip() for passage in passages]
    if len(set(stripped)) < 2 or _NUMBERED.search(text) or not all(part.endswith(".") for part in stripped[:-1]):
        return None
    if not stripped[-1].endswith((".", "!", "?")):
        stripped[-1] += "."
    order = list(stripped)
    while order == stripped:
        chance.shuffle(order)
    return " ".join(order)


def _paraphrase(text: str, _: random.Random) -> str | None:
    def same(found: re.Match[str]) -> str:
        for pattern, replacement in _SAME.items():
            if whole := re.fullmatch(pattern, found[0], re.IGNORECASE):
                return _as_written(whole.expand(replacement), found[0][:1])
        return found[0]

    changed = _ANY_SAME.sub(same, text)
    return changed if changed != text and label(changed) == label(text) else None


_ANY_SAME = re.compile(rf"\b(?:{'|'.join(_SAME)})\b", re.IGNORECASE)


def _pick(choices: Iterable[str], chance: random.Random) -> str | None:
    found = list(dict.fromkeys(choices))
    return chance.choice(found) if found else None


_WAYS: dict[str, Callable[[str, random.Random], str | None]] = {
    "swapped_side": _swap_side,
    "removed_finding": _remove_finding,
    "changed_severity": _change_severity,
    "added_negation": _add_negation,
    "removed_negation": _remove_negation,
    "shuffled_sentences": _shuffle,
    "paraphrase": _paraphrase,
}
