"""Report text -> sections. The reports are made up; their form is that of MIMIC-CXR."""

import time

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


CLEAR, NORMAL = "The lungs are clear.", "No acute disease."
SHAPES = {
    "in mid-line, no stop before": "INDICATION: cough FINDINGS: {f} IMPRESSION: {i}",
    "in mid-line, title case": "Indication: cough Findings: {f} Impression: {i}",
    "in mid-line, small letters": "Indication: cough. findings: {f} impression: {i}",
    "in mid-line, no blank": "INDICATION: cough.FINDINGS:{f}IMPRESSION:{i}",
    "in mid-line, a cell of a table": "Indication: cough | Findings: {f} | Impression: {i}",
    "after another word for a film": "INDICATION: cough COMPARISON: No prior FINDINGS: {f} IMPRESSION: {i}",
    "alone on its line, capitals": "INDICATION\ncough\n\nFINDINGS\n{f}\n\nIMPRESSION\n{i}",
    "alone on its line, title case": "Indication\ncough\nFindings\n{f}\nImpression\n{i}",
    "alone on its line, with a colon": "Indication:\ncough\n\nFindings:\n\n{f}\n\nImpression:\n\n{i}",
    "underlined": "Indication\n----------\ncough\nFindings\n========\n{f}\nImpression\n----\n{i}",
    "no colon, capitals": "INDICATION cough\nFINDINGS {f}\nIMPRESSION {i}",
    "no colon, one line": "INDICATION cough. FINDINGS {f} IMPRESSION {i}",
    "no colon, set off by capitals": "INDICATION cough FINDINGS {f} IMPRESSION {i}",
    "no colon, title case": "Clinical history Cough\nFindings {f}\nImpression {i}",
    "dashes": "INDICATION - cough\nFINDINGS - {f}\nIMPRESSION – {i}",
    "colon and dash": "INDICATION:- cough\nFINDINGS:- {f}\nIMPRESSION:- {i}",
    "blank before the colon": "Indication : cough\nFindings : {f}\nImpression : {i}",
    "wide colon": "Indication：cough\nFindings：{f}\nImpression：{i}",
    "Windows and old Macs": "Indication: cough\r\nFindings: {f}\rImpression: {i}",
    "bold": "**Indication** cough\n\n**Findings** {f}\n\n**Impression** {i}",
    "bold with colons": "**Indication:** cough **Findings:** {f} **Impression:** {i}",
    "bold, colon outside": "**Indication**: cough\n**Findings**: {f}\n**Impression**: {i}",
    "underscores": "__Indication:__ cough\n__Findings:__ {f}\n__Impression:__ {i}",
    "italic": "*Indication*: cough\n*Findings*: {f}\n*Impression*: {i}",
    "Markdown headings": "# Indication\ncough\n## Findings\n{f}\n### Impression\n{i}",
    "Markdown headings with colons": "## INDICATION:\ncough\n## FINDINGS:\n{f}\n## IMPRESSION:\n{i}",
    "bullets": "- **Indication**: cough\n- **Findings**: {f}\n- **Impression**: {i}",
    "numbers": "1. INDICATION: cough\n2. FINDINGS: {f}\n3. IMPRESSION: {i}",
    "brackets": "[INDICATION] cough\n[FINDINGS] {f}\n[IMPRESSION] {i}",
    "other names": "Reason for exam: cough\nObservations: {f}\nConclusion: {i}",
    "qualified": "Clinical indication: cough\nChest findings: {f}\nFinal impression: {i}",
    "in brackets": "INDICATION (ED): cough\nFINDINGS (CHEST): {f}\nIMPRESSION (PRELIMINARY): {i}",
    "misspelled": "NDICATION: cough\nFINDNGS: {f}\nIMPRESSON: {i}",
    "more in the name": "INDICATION: cough\nFINDINGS ON CHEST FILM: {f}\nIMPRESSION AND RECOMMENDATIONS: {i}",
    "signed": "Indication: cough\nFindings: {f}\nImpression: {i}\nElectronically signed by Dr. A on 1/1/2020",
    "dictated": "Indication: cough\nFindings: {f}\nImpression: {i}\nDictated by: Dr. A",
    "followed by advice": "Indication: cough\nFindings: {f}\nImpression: {i} Recommendation: CT.",
    "followed by a note in capitals": "Indication: cough\nFindings: {f}\nImpression: {i}\nCRITICAL RESULT: told.",
    "twice, the same": "Indication: cough\nFindings: {f}\nImpression: {i}\nFindings: {f}\nImpression: {i}",
    "technique and comparison": "Technique: PA. Indication: cough. Comparison: none. Findings: {f} Impression: {i}",
    "impression first": "Impression: {i}\nIndication: cough\nFindings: {f}",
    "small letters only": "indication: cough findings: {f} impression: {i}",
    "capitals only": "INDICATION: COUGH. FINDINGS: {f} IMPRESSION: {i}",
    "capitals only, no colon": "INDICATION COUGH. FINDINGS {f} IMPRESSION {i}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_reports_in_the_shapes_that_people_have(shape):
    change = {"small": str.lower, "capit": str.upper}.get(
        shape[:5] if shape.endswith("only") or "only," in shape else ""
    )
    findings, impression = (change(text) if change else text for text in (CLEAR, NORMAL))
    sections = clean_sections(parse_plain(SHAPES[shape].format(f=findings, i=impression)))
    assert (sections["findings"], sections["impression"]) == (findings, impression)
    context = sections.get("indication") or sections.get("history") or ""
    assert context.strip(".|").strip().lower() == "cough"


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        # Parts of the body divide the findings, whatever stands over them.
        ("FINDINGS:\nLUNGS: Clear.\nHEART: Normal.\nIMPRESSION: x", {"findings": "LUNGS: Clear. HEART: Normal."}),
        ("FINDINGS: LUNGS: Clear. BONES: Intact. IMPRESSION: x", {"findings": "LUNGS: Clear. BONES: Intact."}),
        (
            "Findings:\nLINES AND TUBES: No.\nPleura/Lungs: Clear.\nMEDIASTINUM: Normal.\nOTHER: No.\nImpression: x",
            {"findings": "LINES AND TUBES: No. Pleura/Lungs: Clear. MEDIASTINUM: Normal. OTHER: No."},
        ),
        (
            "**FINDINGS**\nSUPPORT DEVICES: ETT.\nUPPER ABDOMEN: Gas.\nSOFT TISSUES: Normal.\n**IMPRESSION**\nx",
            {"findings": "SUPPORT DEVICES: ETT. UPPER ABDOMEN: Gas. SOFT TISSUES: Normal."},
        ),
        (
            "FINDINGS:\nFRONTAL VIEW: Clear.\nLATERAL VIEW: Effusion.\nIMPRESSION: x",
            {"findings": "FRONTAL VIEW: Clear. LATERAL VIEW: Effusion."},
        ),
        (
            "INDICATION: cough\nLUNGS: Clear.\nHEART: Normal.\nIMPRESSION: x",
            {"indication": "cough", "findings": "LUNGS: Clear. HEART: Normal."},
        ),
        (
            "Comparison: none. LUNGS: Clear. HEART: Normal. Impression: x",
            {"comparison": "none.", "findings": "LUNGS: Clear. HEART: Normal."},
        ),
        ("IMPRESSION: x\nLUNGS: Clear.\nHEART: Normal.", {"findings": "LUNGS: Clear. HEART: Normal."}),
        ("FINDINGS: Clear.\nIMPRESSION:\nx", {"findings": "Clear."}),
        ("HISTORY:\nHeart failure: yes\nFINDINGS: Clear.\nIMPRESSION: x", {"history": "Heart failure: yes"}),
        # Who names both.
        ("Indication: cough\nFindings/Impression: x", {"indication": "cough", "findings": None}),
        ("FINDINGS AND IMPRESSION:\nx", {"findings": None}),
        ("**Findings & Impression**\nx", {"findings": None}),
        ("Indication: cough. Impression/Findings: x", {"indication": "cough.", "findings": None}),
        ("FINDINGS AND IMPRESSION: Clear.\nIMPRESSION: x", {"findings": "Clear."}),
        # A section twice.
        ("FINDINGS: Clear.\nIMPRESSION: x\nFINDINGS: Old scar.", {"findings": "Clear.\nOld scar."}),
        ("Findings:\nImpression: x\nFindings: Clear.", {"findings": "Clear."}),
        ("FINDINGS: Clear.\nIMPRESSION: x\nADDENDUM: Effusion.", {"findings": "Clear.", "addendum": "Effusion."}),
        # A view or REPORT over the findings, or a title.
        ("Clinical details: cough. Report: Clear. Conclusion: x", {"history": "cough.", "findings": "Clear."}),
        ("CHEST, 2 VIEWS: Clear.\nIMPRESSION: x", {"findings": "Clear."}),
        ("CHEST RADIOGRAPH: 1/1/2020\nINDICATION: cough\nIMPRESSION: x", {"findings": None, "indication": "cough"}),
        ("CHEST RADIOGRAPH: today\nFINDINGS: Clear.\nIMPRESSION: x", {"findings": "Clear."}),
        # What is no header.
        (
            "FINDINGS: There are no other findings: none. Comparison is made with CT.\nIMPRESSION: x",
            {"findings": "There are no other findings: none. Comparison is made with CT."},
        ),
        (
            "HISTORY: cough. CT FINDINGS: nodule.\nFINDINGS: Clear.\nIMPRESSION: x",
            {"history": "cough. CT FINDINGS: nodule.", "findings": "Clear."},
        ),
        (
            "FINDINGS: THERE ARE NO ACUTE\nFINDINGS. NO CHANGE IN COMPARISON TO THE PRIOR.\nIMPRESSION: x",
            {"findings": "THERE ARE NO ACUTE FINDINGS. NO CHANGE IN COMPARISON TO THE PRIOR."},
        ),
        ("INDICATION:___ year old\nFINDINGS: Clear.\nIMPRESSION: x", {"indication": "___ year old"}),
    ],
)
def test_no_section_of_a_plain_report_holds_the_text_of_another(text, sections):
    found = clean_sections(parse_plain(text))
    assert found["impression"] == "x"
    assert {name: found.get(name) for name in sections} == sections


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("Findings are consistent with edema. History of cough.", None),
        ("Lungs are clear.\nHEART: normal.", None),
        ("Lungs: clear.\nHeart: normal.", None),
        ("Clear.\nElectronically signed by Dr. A", {"findings": "Clear.", "signature": "Dr. A"}),
        ("HISTORY: cough.\n\nThe lungs are clear.", {"history": "cough.", "last_paragraph": "The lungs are clear."}),
        ("IMPRESSION:\nLUNGS: clear.\nHEART: normal.", {"impression": "LUNGS: clear.\nHEART: normal."}),
    ],
)
def test_plain_reports_without_findings_or_without_headers(text, sections):
    assert parse_plain(text) == (sections or {"findings": text})


def test_the_one_report_of_mimic_with_a_letter_missing_is_read_as_its_authors_read_it():
    text = report("", "NDICATION: Normal.", "")
    assert parse_sections(text)["impression"] == "Normal."
    assert parse_plain("NDICATION: cough") == {"indication": "cough"}


@pytest.mark.parametrize(
    "text", ["FINDINGS " * 20_000, " \n" * 50_000, "*_#- " * 30_000, "LUNGS AND " * 20_000, "a. " * 60_000]
)
def test_long_and_odd_texts_are_read_in_a_moment(text):
    start = time.perf_counter()
    parse_plain(text)
    assert time.perf_counter() - start < 5


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
