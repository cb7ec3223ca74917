"""Report text -> sections. The reports are made up; their form is that of MIMIC-CXR."""

import pytest

from generator.sections import clean_sections, clean_text, parse_mimic, parse_plain, parse_sections

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old man with cough  // infiltrate?
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  ___
 
 FINDINGS: 
 
 The heart is mildly enlarged.  There is a small
 left effusion.
 
 Old rib fractures: unchanged.
 
 IMPRESSION: 
 
 1. Small left effusion.
 2. Mild cardiomegaly.
"""  # noqa: W291, W293 (blanks of the original form)


def report(*lines: str) -> str:
    """Lines as they stand in MIMIC-CXR: one space in."""
    return "".join(f" {line}\n" for line in ("FINAL REPORT", *lines))


def test_a_full_report_gives_its_sections_with_lines_kept():
    sections = parse_sections(REPORT)
    assert list(sections) == [
        *("preamble", "examination", "indication", "technique", "comparison", "findings", "impression")
    ]
    assert sections["findings"].startswith("The heart is mildly enlarged.  There is a small\n left effusion.\n \n Old")
    assert sections["indication"] == "___ year old man with cough  // infiltrate?"


def test_cleaning_joins_lines_and_keeps_paragraphs():
    cleaned = clean_sections(parse_sections(REPORT))
    assert cleaned["findings"] == (
        "The heart is mildly enlarged. There is a small left effusion.\nOld rib fractures: unchanged."
    )
    assert cleaned["impression"] == "1. Small left effusion. 2. Mild cardiomegaly."
    assert clean_text(" a\t b \n\n \n c\n") == "a b\nc"
    assert clean_sections({"findings": " \n ", "impression": "x"}) == {"impression": "x"}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("CONCLUSION", "impression"),
        ("IMPRESSON", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("PFI", "history"),
        ("COMPARISON FILM", "comparison"),
        ("RECOMMENDATION(S)", "recommendations"),
        ("PA AND LATERAL VIEWS OF THE CHEST", "findings"),
        ("FRONTAL UPRIGHT", "findings"),
        ("RIB SERIES", "rib series"),
        ("WET READ", "wet read"),
    ],
)
def test_headers_are_named(header, name):
    assert parse_sections(report("", f"{header}: some text", "goes on"))[name] == "some text\n goes on"


def test_headers_need_their_form():
    text = "FINDINGS: on the first line\nIMPRESSION: flush left\n Heart: small letters\n NOTE no colon\n HEART:normal\n"
    assert parse_sections(text) == {"full report": text.strip()}


def test_a_header_right_below_a_bare_header_is_text():
    # The line break after "FINDINGS:" belongs to that header, so the next line does not begin with one.
    sections = parse_sections(report("FINDINGS:", "DEVICES: a tube", "LUNGS: clear"))
    assert sections["findings"] == "DEVICES: a tube"
    assert sections["lungs"] == "clear"


def test_the_last_section_of_a_name_counts_unless_empty():
    sections = parse_sections(
        report("FINDINGS: first", "", "IMPRESSION: one", "", "CHEST, TWO VIEWS: second", "", "FINDINGS:  ", "")
    )
    assert sections["findings"] == "second"
    assert sections["impression"] == "one"


def test_without_findings_and_impression_the_last_section_is_cut_at_its_blank_line():
    sections = parse_sections(report("INDICATION: cough", "", "COMPARISON: none.", "", "Lungs are clear.", "", "Done."))
    assert sections["indication"] == "cough"
    assert sections["comparison"] == "none."
    assert clean_text(sections["last_paragraph"]) == "Lungs are clear.\nDone."
    assert parse_sections("One.\n \nTwo.\n \nThree.") == {"full report": "One.", "last_paragraph": "Two.\n \nThree."}


def test_empty_text_has_an_empty_report():
    assert parse_sections("") == {"full report": ""}


def test_studies_that_the_authors_except():
    text = report("FINDINGS: nothing of note", "", "INDICATION: the real conclusion", "")
    assert parse_mimic(text, "s50414267") == parse_sections(text)
    misplaced = parse_mimic(text, "s57936451")  # conclusion stands under INDICATION
    assert misplaced == {"preamble": "FINAL REPORT", "last_paragraph": "the real conclusion"}
    long = "".join(chr(97 + i % 26) for i in range(1000))
    assert parse_mimic(long, "s51410602") == {"last_paragraph": long[47:320]}
    assert clean_sections(parse_mimic(text, "s58235663")) == {}


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("Lungs are clear.\nHeart: normal.", {"findings": "Lungs are clear.\nHeart: normal."}),
        ("Findings:\r\nClear.\r\n\r\nImpression: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("CHEST X-RAY\nClinical history: cough\nFINDINGS:\nHeart: normal.\n", None),
        ("PORTABLE CHEST: Tube in place.", {"findings": "Tube in place."}),
        ("", {"findings": ""}),
    ],
)
def test_plain_reports(text, sections):
    expected = {"preamble": "CHEST X-RAY", "history": "cough", "findings": "Heart: normal."}
    assert parse_plain(text) == (sections or expected)
