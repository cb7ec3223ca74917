"""Report text -> sections: findings, impression, indication, comparison …

`parse_sections` follows the rules that the authors of MIMIC-CXR published for their reports (MIT-LCP/mimic-cxr,
`txt/section_parser.py`), so that a set built here holds the same findings as everybody else's. `parse_plain` is the
tolerant reading for reports from elsewhere. Both return the text as it stands; `clean_sections` tidies it.
"""

from __future__ import annotations

import html
import re

from generator.headers import BOTH, TYPOS, find_headers

# A header of MIMIC-CXR: at the start of a line, one space in, capitals up to a colon.
_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE = "\n \n"
_ENTITY = re.compile(r"&(\w+|#\d+|#x[\da-f]+);", re.IGNORECASE)
_TOP = "under the view"  # until it is clear whether these are the findings
# Sections of a plain report that come before the findings, and those that come after the impression.
_FRONT = {"preamble", "indication", "history", "comparison", "technique", "examination"}
_BACK = {"recommendations", "addendum", "comment", "signature", "notification", "end of impression"}

# Header of MIMIC-CXR, lower-case -> section. What merely contains the name of a main section is found by it below.
_ALIASES = {
    alias: name
    for name, aliases in (
        *TYPOS.items(),
        ("impression", "conclusion, ndication"),  # the last stands over an impression in the one report that has it
        ("findings", "finding"),
        ("indication", "reason for examination, reason for exam, clinical indication"),
        ("comparison", "reference exam"),
        ("history", "clinical information, pfi"),
        ("examination", "exam, type of examination"),
        ("recommendations", "recommendation(s), recommendation"),
        ("wet read", "wetread"),
    )
    for alias in aliases.split(", ")
}
_MAIN = ("impression", "findings", "history", "comparison", "addendum")
# A header that names the view ("PORTABLE CHEST:") stands over the findings.
_VIEW = re.compile(
    "chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|one view|"
    "frontal view|pa view|ap view|lateral view|bone window|frontal upright|frontal semi-upright|ribs"
)

# Reports of MIMIC-CXR that the rules misread. The authors leave them out of their table of sections, and say where
# the text lies that the labelers read: in another section …
_MISPLACED = {
    study_id: name
    for name, study_ids in {
        "recommendations": "s50913680 s59768032 s59067458 s59087630 s58157373 s56482935 s58375018",
        "examination": "s59363654 s53356173 s50743547 s59215320 s55157853",
        "technique": "s59279892 s53202765 s50808053",
        "indication": "s57936451 s50058765 s51966317 s55124749 s54365831 s54654948",
        "note": "s56451190",
        "history": "s51491012",
    }.items()
    for study_id in study_ids.split()
}
# … or between two characters of the report.
# fmt: off
_RANGES = {
    "s50525523": (201, 349), "s57564132": (233, 554), "s59982525": (313, 717), "s53488209": (149, 475),
    "s54875119": (234, 988), "s50196495": (59, 399), "s56579911": (59, 218), "s52648681": (292, 631),
    "s59889364": (172, 453), "s53514462": (73, 377), "s59505494": (59, 450), "s53182247": (59, 412),
    "s51410602": (47, 320), "s56412866": (522, 822), "s54986978": (59, 306), "s59003148": (262, 505),
    "s57150433": (61, 394), "s56760320": (219, 457), "s59562049": (158, 348), "s52674888": (145, 296),
    "s55258338": (192, 568), "s59330497": (140, 655), "s52119491": (179, 454),
    # These reports describe no image.
    "s58235663": (0, 0), "s50798377": (0, 0), "s54168089": (0, 0), "s53071062": (0, 0),
    "s56724958": (0, 0), "s54231141": (0, 0), "s53607029": (0, 0), "s52035334": (0, 0),
}
# fmt: on


def parse_sections(text: str) -> dict[str, str]:
    """Split a report in the form of MIMIC-CXR.

    Text before the first header is `preamble`; a report without header is `full report`. Of several sections of one
    name the last counts, empty findings and impressions aside. A report with neither has its last section cut at the
    first blank line, and what follows is `last_paragraph`.

    Returns:
        Lower-case section name -> its text, stripped at both ends, lines kept; possibly empty.
    """
    headers = list(_HEADER.finditer(text))
    if not headers:
        sections = [("full report", text)]
    else:
        ends = [match.start() for match in headers[1:]] + [len(text)]
        sections = [("preamble", text[: headers[0].start(1)])]
        sections += [(_name(match[1]), text[match.end() : end]) for match, end in zip(headers, ends, strict=True)]
    sections = [(name, body) for name, body in sections if name not in ("findings", "impression") or body.strip()]
    if not {"findings", "impression"} & {name for name, _ in sections}:
        name, body = sections[-1]
        if _BLANK_LINE in body:
            first, _, rest = body.partition(_BLANK_LINE)
            sections[-1:] = [(name, first), ("last_paragraph", rest)]
    return {name: body.strip() for name, body in sections}


def parse_mimic(text: str, study_id: str) -> dict[str, str]:
    """Split the report of one study of MIMIC-CXR, e.g. s50414267.

    As `parse_sections`, but for the 54 studies for which the authors list exceptions: those get neither findings nor
    impression (the authors' table lacks them), and the text that the authors single out becomes `last_paragraph`.
    """
    if study_id not in _MISPLACED and study_id not in _RANGES:
        return parse_sections(text)
    if study_id in _RANGES:
        start, end = _RANGES[study_id]
        return {"last_paragraph": text[start:end].strip()}
    sections = parse_sections(text)
    conclusion = sections.pop(_MISPLACED[study_id], "")
    others = {name: body for name, body in sections.items() if name not in ("findings", "impression")}
    return others | {"last_paragraph": conclusion}


def parse_plain(text: str) -> dict[str, str]:
    """Split a report of unknown origin; without any header all of it is `findings`.

    What a header is, is in `generator.headers`. Names of parts of the body ("LUNGS:") divide the findings and stay in
    them; in a report without a header FINDINGS they begin them. A header that names the view ("PORTABLE CHEST:"), or
    REPORT, begins them in such a report, or is its title. One that names findings and impression begins the impression,
    as in MIMIC-CXR, but the findings if there is another impression. Sections of one name are joined.

    Text before the first header is `preamble`. In a report with neither findings nor impression, what follows the first
    blank line of the last section is `last_paragraph`.

    >>> parse_plain("Findings: Lungs are clear. Impression: Normal.")
    {'findings': 'Lungs are clear.', 'impression': 'Normal.'}
    """
    parts = _cut(text.replace("\r\n", "\n").replace("\r", "\n"))
    filled = {name for name, body in parts if body}
    if filled <= {"preamble", *_BACK}:
        parts[0][0] = "findings"
    for part, after in zip(parts, [*parts[1:], [""]], strict=True):
        if part[0] == BOTH:
            part[0] = "findings" if "impression" in filled else "impression"
        elif part[0] == _TOP:
            part[0] = "examination" if "findings" in filled or after[0] in _FRONT else "findings"
    if not any(body for name, body in parts if name in ("findings", "impression")):
        last = [part for part in parts if part[0] not in _BACK][-1]
        last[1], *rest = re.split(r"\n[ \t]*\n", last[1], maxsplit=1)
        parts += [["last_paragraph", body] for body in rest]
    sections: dict[str, list[str]] = {}
    for name, body in parts:
        if body and body not in sections.setdefault(name, []):
            sections[name].append(body)
    return {name: "\n\n".join(bodies) for name, bodies in sections.items() if bodies} or {"findings": ""}


def _cut(text: str) -> list[list[str]]:
    """Name and text of each section of a plain report, the preamble first; a name may still be BOTH or _TOP."""
    headers = find_headers(text)
    headed = any(header.section in ("findings", BOTH) for header in headers)
    cuts = [("preamble", 0, 0)]  # name, where its header begins, where its text begins
    divided = -1  # where the text begins of an impression that parts of the body divide
    for header in headers:
        current, _, at = cuts[-1]
        name, start, before = header.section, header.end, text[at : header.start].rstrip()
        if header.kind != "section":
            begins = header.kind == "part" and not headed and current in _FRONT
            if current == "impression" and header.kind == "part":
                divided = divided if before else at
                begins = divided != at and not any(one in ("findings", BOTH, _TOP) for one, _, _ in cuts)
            if current in ("findings", BOTH, _TOP) or (current == "impression" and not begins):
                continue
            if header.kind == "top":
                name = _TOP
            elif current == "preamble" and before.endswith("."):
                continue
            elif begins:
                name, start = "findings", header.start
            elif not header.capitals:
                continue
        cuts.append((name, header.start, start))
    ends = [header_start for _, header_start, _ in cuts[1:]] + [len(text)]
    return [[name, text[start:end].strip()] for (name, _, start), end in zip(cuts, ends, strict=True)]


def clean_text(text: str) -> str:
    """One line per paragraph (paragraphs are parted by blank lines), single spaces between words."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def clean_sections(sections: dict[str, str]) -> dict[str, str]:
    """Every section through `clean_text`, without entities of HTML ("&lt;"); empty ones are left out."""
    cleaned = {name: clean_text(_ENTITY.sub(_unescape, body)) for name, body in sections.items()}
    return {name: body for name, body in cleaned.items() if body}


def _unescape(found: re.Match[str]) -> str:
    return html.unescape(found[0])


def _name(header: str) -> str:
    """Section that a header stands for; an unusual header is its own name."""
    header = header.lower().strip()
    if header in _ALIASES:
        return _ALIASES[header]
    for name in _MAIN:
        if name in header:
            return name
    return "findings" if _VIEW.search(header) else header
