"""Rule-based labels of a chest X-ray report: the 14 CheXpert observations, without weights.

    >>> labels = label("Small left effusion. Heart size is normal. No pneumothorax.")
    >>> {name: value for name, value in labels.items() if value is not None}
    {'Cardiomegaly': 0, 'Pneumothorax': 0, 'Pleural Effusion': 1}

One pass over each sentence finds mentions and cues. A cue negates or casts doubt on the mentions after it up to
the next stop word, or on those before it (the idea of NegEx); over a report positive outweighs uncertain, which
outweighs negative. Labels follow the conventions of the CheXpert labeler (Irvin et al., AAAI 2019, arXiv
1901.07031, github.com/stanfordmlgroup/chexpert-labeler):

- What counts is the word, not what follows from it: consolidation, edema or pneumonia alone is no Lung Opacity,
  "nodular opacity" is Lung Lesion and Lung Opacity, and "lungs are clear" mentions nothing.
- No Finding is 1 when no observation but Support Devices is positive or uncertain, and no other abnormality
  (`OTHER`: emphysema, granuloma, scoliosis …) is either. So it is 1 for a blank text, and never 0.
- "Likely", "consistent with" and a plain "X or Y" are positive; "may represent", "suspected" and "versus" uncertain.
  Vascular congestion is uncertain Edema. A heart or mediastinum that is stable, and no more is said, is uncertain;
  one at the upper limits of normal is normal.

They differ on purpose where its patterns read against the sense. "Probable X" is positive, like "likely X", and so
is "X and/or Y" (uncertain there); "no new X" is negative (uncertain there); "history of X" and "evaluate for X" are
no mention, nor is a heart of which nothing is said (positive there); fibrosis is Pleural Other only if it is pleural;
a calcified nodule is a Lung Lesion; heart failure adds no uncertain Cardiomegaly; Support Devices also take stents,
shunts and sternal wires; and an enlarged or normal cardiomediastinal silhouette is the heart's as well.

Text is English, findings and impression only (an indication names what is looked for, not what is seen). Words
that a corpus has masked (`XXXX`) are ordinary unknown words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache, lru_cache

VERSION = "2"
"""Changes whenever a rule changes; part of every score's signature."""

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""The order of CheXbert's heads."""

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1
_DROPPED = None  # inside "evaluate for …", "history of …": says nothing about this study

# The tables hold regular expressions over lower-case text with single blanks and no hyphens. Each is matched from
# the start of a word to the end of one; where several match, the first table wins, and in a table the first phrase.

_SEEN = r"(?:seen|identified|present|visuali[sz]ed|appreciated|demonstrated|evident|noted|detected|observed|apparent)"

# Phrases that hold a mention or a cue and are neither.
NEUTRAL = (
    r"(?:pericardial|knee|joint|hip|elbow) effusions?|(?:tissue|subcutaneous|peripheral|leg) edema|mass effect"
    r"|vertebra\w*(?: body)? collapse|no (?:prior|previous|comparison)\w*|not only"
    r"|normal (?:interstitial|lung) markings|(?:interstitial|lung) markings (?:are|appear|remain) (?:normal|within)"
    r"|(?:(?:ha[sd]|have|is|are) )?(?:nearly|almost|partially|not)(?: \w+)? (?:resolved|cleared)"
    rf"|(?:not|never)(?: \w+)? {_SEEN} on (?:(?:the|x{{4}}) )?(?:prior|previous|earlier)"
    # a "with" that does not end the reach of a cue
    r"|(?:consistent|compatible|keeping|associat\w+|combined|compared?|comparison) with"
)

# Words that state the abnormality by themselves.
FINDINGS = {
    "Pleural Other": r"pleur\w+ (?:parenchymal |based |and |or )?(?:thicken\w+|scar\w*|plaques?|fibrosis|calcifi\w+)"
    r"|pleuro ?parenchymal (?:\w+ )?(?:scar\w*|thicken\w+)|fibrothorax|apical cap\w*|fissural thicken\w+",
    "Lung Lesion": r"mass(?:es|like)?|nodules?|nodular(?= (?:\w+ )?(?:opaci|densit))|tumou?rs?|neoplas\w+|carcinomas?"
    r"|malignan\w+|(?:lung|bronchogenic) cancer|(?:lung|pulmonary|parenchymal|cavit\w+) lesions?",
    "Pneumonia": r"(?:broncho)?pneumonias?|pneumonic|infecti\w+",
    "Pneumothorax": r"(?:(?:hydro|hemo) ?)?pneumothora\w+",
    "Pleural Effusion": r"effusions?|pleural (?:\w+ )?fluid|(?:hydro|ha?emo)thorax",
    "Edema": r"o?edema\w*|(?:heart|congestive) failure|chf|(?:volume|fluid) overload",
    "Consolidation": r"consolidat\w+",
    "Atelectasis": r"atelecta\w+|collapsed?",
    "Cardiomegaly": r"cardiomegaly|cardiac enlargement",
    "Enlarged Cardiomediastinum": r"mediastinal (?:widening|enlargement)",
    "Fracture": r"fractur\w+",
    "Lung Opacity": r"opaci\w+|opaque|haziness|air ?space (?:diseases?|process\w*)|infiltrat\w+|scar(?:s|red|ring)?"
    r"|reticul\w+|(?:increased|hazy|patchy|streaky) densit\w+|peribronchial (?:thickening|cuffing)"
    r"|interstitial (?:lung )?(?:\w+ )?(?:markings?|patterns?|prominence|thickening|diseases?|changes?)",
    "Support Devices": r"pace ?makers?|pacers?|leads(?! to)|electrodes?|a?icd|defibrillators?|stimulators?"
    r"|picc|catheters?"
    r"|(?:central|venous|subclavian|jugular|arterial|ij|femoral) lines?|lines and tubes|tubes?|tracheostomy|cannulas?"
    r"|valves?(?! calcif)|hardware|devices?|drains?|shunts?|stents?|screws?|(?<!end )plates?(?! like)"
    r"|(?:media|infusa)?ports?|prosthe\w+|arthroplast\w+|(?:sternal|sternotomy) wires?",
}
# Uncertain even where no doubt is expressed.
HINTS = {"Edema": r"(?:vascular|venous|pulmonary) congestion|vascular (?:prominence|indistinctness)"}
# Abnormalities that are none of the 13 but deny No Finding.
OTHER = (
    r"emphysem\w+|copd|chronic obstructive|hyper ?(?:inflat|expan|aerat)\w+|asthma\w*|bronchi(?:tis|ectasis|olitis)"
    r"|bull(?:a|ae|ous)|(?:granuloma|tubercul)\w*(?: infections?)?|calcifi\w+|metasta\w+|(?:lymph)?adenopathy|fibro\w+"
    r"|volume loss|elevat\w+|eventration|blunt\w+|hernias?|pneumo(?:mediastinum|peritoneum|nitis)|aspiration"
    r"|contusions?|ha?ematomas?|ha?emorrhag\w+|lesions?|atheroscler\w+|tortuo\w+|ectas\w+|aneurysm\w*|hypertension"
    r"|\w*scolio\w+|kypho\w+|degenerat\w+|spondyl\w+|osteo\w+|arthr\w+|deformit\w+|wedging|compression|thicken\w+"
)

# Organs: a mention only together with a word about their size.
STRUCTURES = {
    "cardiomediastinum": r"cardio ?(?:pericardial )?mediastin\w+(?: silhouettes?| contours?)?",
    "heart": r"heart(?! (?:failure|rate|valve|surgery|borders?|disease))(?: size)?|cardiac(?= and (?:\w+ )?mediastin)"
    r"|(?:cardiac|cardio ?pericardial|pericardial) (?:silhouettes?|size|shadow|contours?)(?: size)?",
    "mediastinum": r"mediastinum|mediastinal(?= and cardiac)"
    r"|mediastinal (?:silhouettes?|contours?|structures?|size|width|shadow|borders?)",
}
_MEASURED_BY = {
    "cardiomediastinum": ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
}
SIZES = {
    "borderline": r"borderline(?! enlarg)"
    r"|(?:(?:upper|top) )?(?:limits? )?(?:of )?normal (?:to|or) (?:(?:mildly|slightly) )?enlarged",
    "normal": r"(?:upper|top)(?: limits?| range)?(?: of)?(?: the)? normal|normal\w*|unremarkable"
    r"|not (?:\w+ ){0,2}(?:enlarged|widened|prominent|dilated)",
    "enlarged": r"(?:borderline )?enlarg(?:ed|ement|ing)|large|wid(?:ened|ening)|promine\w+",
    # a table of its own also so that the "no" of "no change" negates nothing
    "stable": r"stable|unchanged|similar"
    r"|(?:no|not|without)(?: (?:significant\w*|relevant|interval|definite|x{4})){0,2} (?:change|(?:in|de)crease)[ds]?",
}

# Cues: "…_before" precedes the mentions it is about, "…_after" follows them.
_SETTING = r"in the \w+ clinical (?:setting|context)"
CUES = {
    "uncertain_after": r"(?:can ?not|could not|can't|not)(?: be)?(?: \w+)? (?:excluded|ruled out)|\?"
    r"|(?:is|are|also|remains?) (?:\w+ )?(?:possible|suspected|question(?:ed|able))|is a possibility"
    r"|(?:possible|suspected|questionable|less likely)(?= ?,|$)|(?:may|might|could)(?: also)? be present"
    rf"|not (?:well|clearly|fully|adequately|optimally) {_SEEN}|{_SETTING}(?=$)",
    "negative_after": rf"(?:not|no longer)(?: \w+)? {_SEEN}|absent|none|no(?=$)|unlikely"
    r"|(?:been|was|were|is|are) removed|(?:ha[sd]|have|is|are)(?: \w+)? (?:resolved|cleared|excluded|ruled out)"
    r"|with (?:interval |complete )*resolution(?! of)",
    "uncertain_before": r"(?:can ?not|could not|can't|difficult to|not) (?:\w+ )?(?:exclude|rule out)|may(?:be)?|might"
    r"|could|possibl[ey]|possibility|presum\w+|question\w*|equivocal|suspect\w*|suspici(?:ous|on) (?:for|of)"
    r"|concern(?:s|ing)? (?:for|of)|worrisome for|suggest\w*|favor\w*|less likely|consider(?!ing)\w*|differential"
    rf"|correlat\w+(?: \w+){{0,2}} (?:for|as to)|{_SETTING}",
    "dropped_before": r"(?:evaluat\w+|assess\w*|looking|screen\w*)(?: \w+)? (?:for|of)|(?:to )?(?:rule out|r o|exclude)"
    r"|(?:history|h o|risk) (?:of|for)|sensitive (?:for|in|to)|if(?: there is)?",
    "negative_before": r"no|not|without|negative for|resolved|nor|neither|rather than"
    r"|(?:free|clear|absence|lack|disappearance|resolution|clearing|removal|drainage) (?:of|from)",
    "versus": r"versus",
    "stop": r"but|however|although|though|except|with|there (?:is|are|has)|there(?= may)|and (?:the|there|a|an)|which"
    r"|is (?:again )?(?:seen|noted|present)"
    # "no pneumothorax, small effusion": these words assert what they describe
    r"|(?<=, )(?:small|tiny|trace|mild|minimal|slight|persistent)",
}
_FIXED = {"normal": NEGATIVE, "borderline": UNCERTAIN, "stable": UNCERTAIN}  # whatever the cues say
_BEFORE = {"negative_before": NEGATIVE, "dropped_before": _DROPPED}
_AFTER = {"uncertain_after": UNCERTAIN, "negative_after": NEGATIVE}

_VERSUS = re.compile(r"\bvs\b\.?")
_BLANKS = str.maketrans("-_/\\()", "      ")
_SENTENCE_END = re.compile(r"(?<=[.;!?])\s+|(?<=[.;])(?=[a-z]{2})|\n\s*\n")
# Between a size and the organ it describes ("enlargement of the heart"), and what parts an organ from its predicate.
_ATTRIBUTE = re.compile(
    r" (?:(?:in|of|the|overall|upper|superior|size|size and|x{4}|and stable|stable|and unchanged) )*"
)
_PARTED = (
    re.compile(r"\b(?:with|without|by|for|due|obscur\w*)\b"),
    re.compile(r"\b(?:is|are|appears?|remains?)\b[^,]*,"),
)
_AND = re.compile(r" and (?:the )?")
# "no edema, left tube is in place" asserts the tube, "no edema, mass or effusion is seen" nothing
_ASSERTION = re.compile(rf"(?:(?!\b(?:or|nor)\b)[^,])*\b(?:is|are|remains?) (?!(?:\w+ )?{_SEEN})")
_OR_AHEAD = re.compile(r"\b(?:or|versus)\b")


class _Said:
    """A finding, or a word of SIZES."""

    def __init__(self, token: re.Match[str], kind: str, value: int | None) -> None:
        self.token = token
        self.kind = kind.removeprefix("hint_")
        self.value = _FIXED.get(kind, UNCERTAIN if kind != self.kind and value == POSITIVE else value)

    def doubt_or_deny(self, value: int) -> None:
        if self.value is not _DROPPED and self.kind not in _FIXED:
            self.value = value


def label(text: str) -> dict[str, int | None]:
    """Label the findings and impression of one report.

    Returns:
        Every one of `OBSERVATIONS` -> 1 positive, 0 negative, -1 uncertain, None not mentioned (No Finding: 1 or
        None). Case does not matter, nor does the amount of white space, but a blank line ends a sentence.
    """
    seen: dict[str, set[int]] = defaultdict(set)
    for sentence in _SENTENCE_END.split(_VERSUS.sub("versus", text.lower())):
        for observation, value in _read(" ".join(sentence.translate(_BLANKS).split()).rstrip(" .;!")):
            seen[observation].add(value)
    strongest = (POSITIVE, UNCERTAIN, NEGATIVE)
    labels = {name: next((value for value in strongest if value in seen[name]), None) for name in OBSERVATIONS}
    abnormal = any(values - {NEGATIVE} for name, values in seen.items() if name != "Support Devices")
    labels["No Finding"] = None if abnormal else POSITIVE
    return labels


@cache
def _tokens() -> re.Pattern[str]:
    """All tables as one alternation, each table a named group ("_" for a blank)."""
    tables = {"comma": ",", "neutral": NEUTRAL, **{name: CUES[name] for name in _AFTER}, **SIZES}
    tables |= {name: phrases for name, phrases in CUES.items() if name not in _AFTER}
    tables |= {f"hint {name}": phrases for name, phrases in HINTS.items()}
    tables |= FINDINGS | STRUCTURES | {"other": OTHER}
    groups = (f"(?P<{name.replace(' ', '_')}>{phrases})" for name, phrases in tables.items())
    return re.compile(r"(?:\b|(?=[,?]))(?:" + "|".join(groups) + r")(?!\w)")


@lru_cache(maxsize=1 << 16)  # reports are made of the same sentences
def _read(sentence: str) -> tuple[tuple[str, int], ...]:
    """(observation or "other", value) of every mention in a sentence of single-spaced lower-case words."""
    said: list[_Said] = []
    organs: list[re.Match[str]] = []
    state: int | None = POSITIVE
    clause = reach = 0  # index in `said` of the first word of this clause, and of the first that a cue reaches back to
    previous = ""
    for token in _tokens().finditer(sentence):
        kind = token.lastgroup or ""
        if kind == "comma":
            # "effusion, and edema are absent" is one list, "opacity, effusion is absent" is not
            reach = clause if sentence.startswith((" and ", " or "), token.end()) else len(said)
            if _ends_at_comma(sentence, token.start(), state):
                state = POSITIVE
        elif kind == "stop":
            state = POSITIVE
            clause = reach = len(said)
        elif kind == "uncertain_before":
            # "no opacity to suggest edema" stays negative, "no edema, possible effusion" does not
            if state == POSITIVE or (state == NEGATIVE and previous == "comma"):
                state = UNCERTAIN
        elif kind == "versus":
            if state == POSITIVE:
                state = UNCERTAIN
                for word in said[-1:]:
                    word.doubt_or_deny(UNCERTAIN)
        elif kind in _BEFORE:
            state = _BEFORE[kind]
        elif kind in _AFTER:
            for word in said[reach:]:
                word.doubt_or_deny(_AFTER[kind])
        elif kind in STRUCTURES:
            organs.append(token)
        elif kind != "neutral":
            if kind == "stable" and previous == "comma":
                state = POSITIVE
            said.append(_Said(token, kind, state))
        previous = kind
    found = [(word.kind.replace("_", " "), word.value) for word in said if word.kind not in SIZES]
    found += _measure(sentence, organs, [word for word in said if word.kind in SIZES])
    return tuple((name, value) for name, value in found if value is not None)


def _ends_at_comma(sentence: str, comma: int, state: int | None) -> bool:
    """Whether what a cue says stops at this comma; it goes on through a list."""
    if state == NEGATIVE:
        return bool(_ASSERTION.match(sentence, comma + 1))
    before = sentence[:comma]
    return not (
        before.endswith(("setting", "context")) or "differential" in before or _OR_AHEAD.search(sentence, comma)
    )


def _measure(sentence: str, organs: list[re.Match[str]], sizes: list[_Said]) -> list[tuple[str, int | None]]:
    """What the sentence says about the size of the heart and the mediastinum."""
    found: list[tuple[str, int | None]] = []
    shared: list[_Said] = []  # "normal heart size and mediastinal contours": said once, for both
    shared_end = 0
    for organ in organs:
        near = [size for size in sizes if _ATTRIBUTE.fullmatch(sentence, size.token.end(), organ.start())]
        if not near and shared and _AND.fullmatch(sentence, shared_end, organ.start()):
            near = shared
        shared, shared_end = near, organ.end()
        if not near:  # a predicate: "the heart is enlarged"
            parted = [match.end() for part in _PARTED if (match := part.search(sentence, organ.end()))]
            end = min(parted, default=len(sentence))
            after = [size for size in sizes if organ.end() <= size.token.start() < end]
            near = [size for size in after if "," not in sentence[after[0].token.end() : size.token.start()]]
        if not near:
            continue
        # "stable and normal" is normal
        size = next((size for size in near if size.kind != "stable"), near[0])
        names = _MEASURED_BY[organ.lastgroup or ""]
        found += [(name, size.value) for name in (names[:1] if size.kind == "stable" else names)]
    return found
