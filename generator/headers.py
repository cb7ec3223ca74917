"""Headers of reports of unknown origin: where they stand, and which sections they begin.

A header is a usual name ("Findings", "Reason for exam", "FINDINGS AND IMPRESSION") in one of the shapes that people
give it: with a colon, alone on its line, marked as in Markdown, before a dash, or capitalized before a sentence. Words
in capitals with a colon at the start of a line are a header even if their name is unusual. Names of parts of the body
are no sections of a report but divide its findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

BOTH = "findings and impression"
"""The section of a header that names both."""


def _words(text: str) -> set[str]:
    return set(text.split())


TYPOS = {
    "impression": "impresson, imprression, imoression, impressoin, imprssion, impresion, imperssion, mpression, "
    "impession",
    "findings": "findins, findindgs, findgings, findngs, findnings, finidngs",
    "indication": "idication",
    "comparison": "comparision, comparsion, comparrison, comparisions",
}
"""Section -> misspellings of its header that reports have."""

# Section -> names of its header, in lower case. These are headers without a colon, too, …
_NAMES = {
    "findings": "findings, finding, finding(s), observations",
    "impression": "impression, impressions, impression(s), conclusion, conclusions, conclusion(s), opinion",
    "indication": "indication, indications, indication(s), clinical indication, clinical indications, reason for exam, "
    "reason for the exam, reason for examination, reason for this examination, reason for study, reason for the study, "
    "reason for test, reason for visit, reason for imaging, clinical question",
    "history": "history, clinical history, patient history, medical history, past medical history, relevant history, "
    "clinical information, clinical details, clinical data, clinical background, clinical notes",
    "comparison": "comparison, comparisons, comparison(s), comparison study, comparison studies, comparison exam, "
    "comparison film, comparison films, reference exam",
    "technique": "technique, techniques, exam technique",
    "recommendations": "recommendation, recommendations, recommendation(s)",
    "addendum": "addendum, addenda",
}
# … and these are not.
_COLON_NAMES = {
    "findings": "observation, description of findings",
    "impression": "imp",
    "indication": "ndication, reason, clinical impression, chief complaint, presenting complaint, symptoms",
    "history": "hx, clinical hx, clinical info, pfi, family history, social history, surgical history",
    "comparison": "prior, priors, prior study, prior studies, prior exam, prior exams, prior imaging, previous study, "
    "previous studies, previous exam, previous exams, compared to, compared with, comparison date, date of comparison",
    "technique": "technical factors, protocol, view, views, views obtained, number of views, projection, projections",
    "examination": "exam, examination, study, procedure, type of exam, type of examination, exam type, study type, "
    "exam description, study description, examination performed, study performed",
    "recommendations": "advice, suggestion, suggestions, plan, follow up, follow-up",
    "wet read": "wetread, preliminary read, preliminary report",
    "comment": "comments",
    "signature": "dictated, signed, radiologist, reporting radiologist, attending, attending physician, resident, "
    "attending radiologist, referring physician, ordering physician, ordering provider, transcriptionist, attestation",
    "notification": "communication, critical result, critical results, critical finding, critical findings",
    "end of impression": "end of report",
    "report": "radiology report, narrative, description",
}
_OWN_NAMES = (
    *("wet read", "comment", "signature", "notification", "end of impression", "report", "discussion", "summary"),
    *("diagnosis", "interpretation"),
)

_BARE = {name: section for section, names in _NAMES.items() for name in names.split(", ")}
_SECTION_OF = {
    name: section for section, names in (*TYPOS.items(), *_COLON_NAMES.items()) for name in names.split(", ")
}
_SECTION_OF |= _BARE | dict(zip(_OWN_NAMES, _OWN_NAMES, strict=True))

_NAME = "|".join(re.escape(name).replace(r"\ ", "[ \t]+") for name in sorted(_SECTION_OF, key=len, reverse=True))
_QUALIFIER = (
    r"(?:(?:final|preliminary|provisional|revised|chest|cxr|x-ray|radiographic|radiological|radiologic|imaging|key|main|"
    r"overall|pertinent|significant|other|additional|incidental|brief)[ \t]+)*"
)
_HEAD = re.compile(
    rf"(?<![a-z0-9]){_QUALIFIER}(?:{_NAME})(?:[ \t]*(?:[/&+,]|\band\b|\bor\b|\bwith\b)[ \t]*{_QUALIFIER}(?:{_NAME}))*"
    r"(?:[ \t]*\([^()\n]{0,40}\))?(?![a-z0-9])",
    re.IGNORECASE,
)
_ONE_NAME = re.compile(rf"(?<![a-z])(?:{_NAME})(?![a-z])", re.IGNORECASE)
_SIGNED = re.compile(
    r"(?:^|(?<=[.!?]))[ \t]*(?:electronically |digitally )?(?:dictated|signed|read|reported|reviewed|interpreted|"
    r"transcribed|verified|approved|authenticated|finalized)(?: and [a-z ]+?)? by\b[ \t]*:?",
    re.IGNORECASE | re.MULTILINE,
)

# What may stand before a header at the start of its line (bullets, numbers, Markdown), what closes it, what follows it.
_NEAR = 200  # characters
_LEAD = re.compile(r"[ \t]*(?:(?:[*_#=|~>•\[<-]+|\d{1,2}[.)])[ \t]*)*")
_MARK = re.compile(r"(?P<close>[*_~#\]>]*)(?:[ \t]*(?P<mark>:-?|：|[;=]|\.(?=\s)|[-–—]+(?=\s)))?(?:\*{1,3}|__(?!_))?")
_LINE_ENDS = re.compile(r"[ \t]*(?:\n[ \t]*[-=*~_]{3,}[ \t]*)?(?=\n|\Z)")  # perhaps with a line drawn under the header
_WORD = re.compile(r"[ \t]+(\w+)")
_SENTENCE = re.compile(r"[ \t]+(?=[A-Z][a-z]|[A-Z] [a-z]|\d|[-•*][ \t])")
# Before a name in mid-line these tell that it is a part of a sentence, or of another examination.
_FOREIGN = _words("ct mri mr pet us ultrasound echo prior previous outside physical clinical")
_JOINING = _words("no of the these any all and or with in for to by on from as above following")
# After a name in capitals these tell that the sentence goes on.
_GOES_ON = _words(
    "are is was were of and or to with in on for as may could suggest suggests suggestive consistent compatible "
    "above below described noted seen include represent have has had made remain"
)

# A line that begins with a few words and a colon; in mid-line words in capitals or about a target.
_CAPTION = re.compile(
    r"^[ \t*_#>•-]*(?:\d{1,2}[.)][ \t]*)?([A-Z][\w ()/,&'’-]{1,60}?)[ \t*_]*[:：](?!\d)\**", re.MULTILINE
)
_MAIN = re.compile(r"\b(finding|impression|conclusion|indication|history|comparison|technique|addendum)s?\b")
_TARGET = "(?:Findings|Impression|Conclusion)"
_AROUND_TARGET = re.compile(rf"{_TARGET}(?: [\w'-]+){{1,4}}|(?:[A-Z][\w'-]* (?:and )?){{1,4}}{_TARGET}")
_CAPTION_IN_LINE = re.compile(rf"(?<=[a-z.;!?)\d])[ \t]+([A-Z][A-Z /&,-]{{2,40}}|{_TARGET}(?: [\w'-]+){{1,4}}):")
_VIEW = re.compile(r"\b(?:chest|thorax|portable|radiographs?|x-?rays?|cxr|frontal|lateral|pa|ap|views?)\b")
_PARTS = _words(
    "lung lungs pulmonary parenchyma airspace airspaces pleura pleurae pleural heart cardiac cardiomediastinal "
    "cardiomediastinum cardiothymic cardiovascular mediastinum mediastinal pericardium hilum hila hilar aorta "
    "aortic trachea tracheal carina airway airways bronchi vasculature vessels vascular bone bones bony osseous "
    "skeleton skeletal musculoskeletal spine vertebrae sternum rib ribs wall clavicle clavicles scapulae shoulder "
    "shoulders tissue tissues diaphragm diaphragms hemidiaphragms costophrenic abdomen stomach esophagus thyroid "
    "axilla axillae breasts neck line lines tube tubes catheter catheters device devices apparatus hardware "
    "pacemaker drains leads silhouette"
)
_BESIDE_PARTS = _words(
    "and or of the in great central soft upper lower left right bilateral chest thorax thoracic structures space "
    "spaces contour contours size fields zones volumes volume angle angles sulci fissures support medical "
    "visualized monitoring other arch"
)
_INNER = _PARTS | _words(
    "other miscellaneous additional incidental left right bilateral effusion effusions pneumothorax edema lobe "
    "lobes consolidation opacity opacities infiltrate infiltrates atelectasis pneumonia nodule nodules mass masses "
    "calcification fracture fractures limitation limitations quality support volumes picc ett ng et icd rul rml rll "
    "lul lll lingula apices apex bases thymus situs hernia postoperative"
)

Place = Literal["line", "stop", "contrast", "mid", "sentence"]
Case = Literal["mixed", "upper", "lower"]


class Header(NamedTuple):
    """A header of a report."""

    start: int
    """Where it begins, with the marks before it."""
    end: int
    """Where the text under it begins."""
    section: str
    """The section that it begins; of unusual headers their own name."""
    kind: Literal["section", "top", "part", "inner"] = "section"
    """section: begins a section wherever it stands. top: REPORT or a view, which stands over the findings or over all.
    part: names nothing but parts of the body. inner: divides findings or an impression, and begins a section of its own
    elsewhere."""
    capitals: bool = True
    """Whether it is in capitals."""


def find_headers(text: str) -> list[Header]:
    """Headers of a report in their order, none within another. Lines of `text` end in newlines."""
    found = [*_usual(text), *_captions(text)]
    found += [Header(match.start(), match.end(), "signature") for match in _SIGNED.finditer(text)]
    headers: list[Header] = []
    for header in sorted(found, key=lambda header: header.start):  # on ties usual names first
        if not headers or header.start >= headers[-1].end:
            headers.append(header)
    return headers


def _usual(text: str) -> Iterator[Header]:
    """Headers of usual names, in all their shapes."""
    capitals, small = (any(map(test, text)) for test in (str.isupper, str.islower))
    case: Case = "mixed" if capitals and small else "upper" if capitals else "lower"
    for match in _HEAD.finditer(text):
        near = text[max(0, match.start() - _NEAR) : match.start()]
        before = near[near.rfind("\n") + 1 :]  # on the same line
        line_start = match.start() - len(before)
        place: Place = "line"
        if _LEAD.fullmatch(before):
            before = ""
        else:
            before = before.rstrip(" \t*_#[<|")
            place = "stop" if _ends_sentence(before) else _place_in_sentence(before.split()[-1], match[0])
        start = line_start + len(before)
        names = [" ".join(name.lower().split()) for name in _ONE_NAME.findall(match[0])]
        end = _end(text, match, place, all(name in _BARE for name in names), case)
        if end is None:
            continue
        sections = [_SECTION_OF[name] for name in names]
        if sections[0] == "report":
            yield Header(start, end, "examination", "top")
            continue
        both = {"findings", "impression"} <= {*sections}
        first = next((name for name in ("impression", "findings") if name in sections), sections[0])
        yield Header(start, end, BOTH if both else first)


def _end(text: str, match: re.Match[str], place: Place, bare: bool, case: Case) -> int | None:
    """Where the text under a usual name begins; None if the name is no header here.

    `place`: it begins its line, comes after a full stop, stands in mid-line (contrast: set off by its capitals), or is
    part of a sentence. `bare`: it may do without a colon. `case`: the letters of the whole report.
    """
    closing = _MARK.match(text, match.end())
    assert closing is not None, "every part of the pattern may be empty"
    mark, line_end = closing["mark"] or "", _LINE_ENDS.match(text, closing.end())
    capital = match[0][0].isupper() or case == "lower"
    near = text[max(0, match.start() - _NEAR) : match.start()].rstrip(" \t\n*_#>-")
    fresh = place == "stop" or (place == "line" and _ends_sentence(near))
    if mark.startswith((":", "：")):  # Findings: the lungs
        found = place == "line" or (place == "stop" and (bare or capital)) or (place != "sentence" and bare and capital)
    elif not bare or not capital or place == "sentence":
        found = False
    elif closing["close"] and text[match.start() - 1 : match.start()] in ("*", "_", "["):  # **Findings** The lungs
        found = True
    elif mark:  # FINDINGS - The lungs
        found = fresh or (place in ("line", "contrast") and mark != ".")
    elif line_end:  # in one case it may be the last word of a sentence
        found = place == "line" and (case != "upper" or fresh)
    elif match[0].isupper():  # FINDINGS THE LUNGS
        follows = _WORD.match(text, closing.end())
        word = follows[1] if follows else "are"
        set_off = case == "mixed" and (place in ("line", "contrast") or word[0].isupper())
        found = word.lower() not in _GOES_ON and (fresh or set_off)
    else:  # Findings The lungs
        found = case == "mixed" and place in ("line", "stop") and _SENTENCE.match(text, closing.end()) is not None
    if not found:
        return None
    return line_end.end() if line_end else closing.end()


def _place_in_sentence(before: str, head: str) -> Place:
    """Of a usual name after the word `before`."""
    small = before.islower() and head[0].isupper()  # "No prior FINDINGS:" and "prior findings:" differ
    if before.lower() in _JOINING or (before.lower() in _FOREIGN and not small):
        return "sentence"
    return "contrast" if head.isupper() and not before.isupper() else "mid"


def _ends_sentence(text: str) -> bool:
    """Whether a text is blank or ends in a full stop or the like."""
    return not text or text[-1] in ".!?;:)]|"


def _captions(text: str) -> Iterator[Header]:
    """Words with a colon that are no usual name."""
    for match in (*_CAPTION.finditer(text), *_CAPTION_IN_LINE.finditer(text)):
        head, lower, in_line = match[1], match[1].lower(), match.re is _CAPTION_IN_LINE
        words = {*re.findall("[a-z]+", lower)}
        capitals = head.isupper()
        main = [] if words & _FOREIGN else [_SECTION_OF[name] for name in _MAIN.findall(lower)]
        if words & _PARTS and words <= _PARTS | _BESIDE_PARTS:
            yield Header(*match.span(), lower, "part", capitals)
        elif main and (_AROUND_TARGET.fullmatch(head) or (capitals and not in_line)):
            yield Header(*match.span(), BOTH if {"findings", "impression"} <= {*main} else main[0])
        elif capitals and _VIEW.search(lower):
            yield Header(*match.span(), "examination", "top")
        elif capitals and not in_line:
            yield Header(*match.span(), lower.strip(), "inner" if words & _INNER else "section")
