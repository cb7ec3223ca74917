"""Drafts as Basic Text SR, Encapsulated PDF and FHIR: valid by outside validators, read back word for word, drafts."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import subprocess
import warnings
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, config, dcmread, uid

from generator.api import Model, find_studies, load_model
from generator.clinic.pdf import draw_pdf
from generator.clinic.pseudonyms import Pseudonyms
from generator.clinic.report import Device, Report, read_source, report_of, split_report
from generator.clinic.results import Writer, write_results
from generator.clinic.sr import read_sr
from generator.generate import BANNER, Draft
from raddraft.errors import RadDraftError
from tests.films import GONE, change, chest
from tests.test_cli import run
from tests.test_clinic_studies import STUDY, film, item
from tests.test_prompts import EVERYTHING

FORMS = ("sr", "pdf", "fhir")
PATIENT = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Zoë^^Dr.",
    "PatientBirthDate": "19430217",
    "PatientSex": "F",
    "StudyDate": "20260131",
    "StudyTime": "081500",
    "AccessionNumber": "A-77",
    "StudyID": "77",
    "ReferringPhysicianName": "Ref^Who",
    "StudyDescription": "Thorax 2 Ebenen",
}
FINDINGS = (
    "The heart is enlarged: ≥ 60 % <of> the chest & more.\nSmall left pleural effusion. " + 8 * "No edema, über all. "
)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A report of a frontal and a lateral film, made with a prior."""
    films = [
        film(tmp_path / "f.dcm", 1, ViewPosition="PA", **PATIENT),
        film(tmp_path / "l.dcm", 2, ViewPosition="LL", **PATIENT | {"SeriesInstanceUID": f"{STUDY}.2"}),
        film(tmp_path / "p.dcm", 1, "1.2.1", **PATIENT),
    ]
    frontal, lateral, prior = map(read_source, films)
    sections = {"findings": FINDINGS.strip(), "impression": "Cardiomegaly."}
    device = Device("runs/mine/model", "0123456789abcdef" * 4)
    return Report(sections, [frontal, lateral], device, BANNER, "Cough for 3 weeks.", [prior])


def pages(pdf: bytes) -> list[str]:
    """The text of each page, blanks and line ends alike."""
    import pypdf

    return [" ".join(page.extract_text().split()) for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]


def resources(bundle: dict) -> dict[str, dict]:
    return {entry["resource"]["resourceType"]: entry["resource"] for entry in bundle["entry"]}


def test_a_basic_text_sr_says_all_and_is_read_back(report, tmp_path) -> None:
    (path,) = write_results(report, tmp_path, "s1", ["sr"])
    dataset = dcmread(path)
    stated = [dataset.get(name) for name in ("CompletionFlag", "VerificationFlag", "PreliminaryFlag", "Modality")]
    assert stated == ["PARTIAL", "UNVERIFIED", "PRELIMINARY", "SR"]
    assert dataset.SOPClassUID == uid.BasicTextSRStorage
    assert dataset.ConceptNameCodeSequence[0].CodeMeaning == "Diagnostic Imaging Report"
    for name, value in (PATIENT | {"StudyInstanceUID": STUDY, "PatientID": "P1"}).items():
        if name != "SpecificCharacterSet":
            assert str(dataset[name].value) == value
    read = read_sr(dataset)
    assert (read.banner, read.sections, read.indication) == (BANNER, report.sections, "Cough for 3 weeks.")
    assert (read.digest, read.complete) == (report.device.digest, False)
    assert dataset.ContentSequence[0].TextValue == BANNER, "the first text of all"
    headings = [
        item.ConceptNameCodeSequence[0].CodeMeaning for item in dataset.ContentSequence if item.ValueType == "CONTAINER"
    ]
    assert headings == ["Indications for Procedure", "Findings", "Impressions"]
    del dataset.ContentSequence[-1].ContentSequence[0].TextValue
    with pytest.raises(RadDraftError, match="This report by RadDraft is damaged: a part lacks its heading or its text"):
        read_sr(dataset)
    (evidence,), (other,) = dataset.CurrentRequestedProcedureEvidenceSequence, dataset.PertinentOtherEvidenceSequence
    series = [one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in evidence.ReferencedSeriesSequence]
    assert (evidence.StudyInstanceUID, series) == (STUDY, [f"{STUDY}.1.1", f"{STUDY}.1.2"])
    assert other.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.1.1.1"
    inferred = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in dataset.ContentSequence[-1].ContentSequence[0].ContentSequence
    ]
    assert inferred == [*series, "1.2.1.1.1"]
    (equipment,) = dataset.ContributingEquipmentSequence
    assert equipment.ManufacturerModelName == "runs/mine/model"
    assert equipment.DeviceSerialNumber == report.device.digest
    observer = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.get("TextValue")
        or item.get("UID")
        or item.ConceptCodeSequence
        for item in dataset.ContentSequence
        if item.RelationshipType == "HAS OBS CONTEXT"
    }
    assert observer.pop("Observer Type")[0].CodeMeaning == "Device"
    assert observer["Device Observer Name"] == "runs/mine/model"
    assert observer["Device Observer UID"] == report.device.uid
    assert observer["Device Observer Serial Number"] == report.device.digest


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is not there: it comes with Debian's dicom3tools")
def test_dciodvfy_finds_no_error(report, tmp_path) -> None:
    bare = change(film(tmp_path / "bare.dcm", 3, "1.2.2"), PatientName=GONE, PatientID=GONE)
    reports = [report, replace(report, sources=[read_source(bare)], sections={"findings": "x" * 5000}, priors=[])]
    for name, one in zip(("whole", "bare"), reports, strict=True):
        for path in write_results(one, tmp_path, name, ["sr", "pdf"]):
            done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
            assert "Error" not in done.stdout + done.stderr, done.stdout + done.stderr


def test_what_is_no_report_of_ours_is_refused(report) -> None:
    for other in (Dataset(), dcmread(report.sources[0].path)):
        with pytest.raises(RadDraftError, match="no report by RadDraft"):
            read_sr(other)


def test_an_encapsulated_pdf_holds_the_text_and_the_films(report, tmp_path) -> None:
    import pypdf

    (path,) = write_results(report, tmp_path, "s1", ["pdf"])
    dataset = dcmread(path)
    pdf = dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
    whole = pages(pdf)
    assert all(page.startswith(BANNER) for page in whole)
    for text in (*report.sections.values(), report.indication, "Müller Zoë Dr.", "P1", "19430217", "20260131", "A-77"):
        assert " ".join(text.split()) in " ".join(whole)
    pictures = [image.image for page in pypdf.PdfReader(io.BytesIO(pdf)).pages for image in page.images]
    assert [np.asarray(picture.convert("L")).tolist() for picture in pictures] == [
        np.roll(chest(), number).tolist() for number in (1, 2)
    ]
    assert (dataset.SOPClassUID, dataset.VerificationFlag) == (uid.EncapsulatedPDFStorage, "UNVERIFIED")
    assert "DRAFT" in dataset.DocumentTitle
    assert "DRAFT" in dataset.SeriesDescription
    assert len(dataset.SourceInstanceSequence) == 3


def test_a_long_report_goes_on_over_pages_under_the_banner(report) -> None:
    whole = pages(draw_pdf(replace(report, sections={"findings": 60 * FINDINGS.strip()})))
    assert len(whole) > 3
    assert all(page.startswith(BANNER) and f"Page {number} of" in page for number, page in enumerate(whole, 1))


@pytest.mark.parametrize("letter", ["漢", "ש", "ل"])
def test_what_the_font_of_the_pdf_cannot_set_is_named(report, letter) -> None:
    with pytest.raises(RadDraftError, match=rf"cannot set '{letter}' \(U\+.*leave pdf out"):
        draw_pdf(replace(report, sections={"findings": letter}))


def test_a_fhir_bundle_is_valid_and_preliminary(report, tmp_path) -> None:
    from fhir.resources.R4B import get_fhir_model_class

    (path,) = write_results(report, tmp_path, "s1", ["fhir"])
    bundle = json.loads(path.read_text(encoding="utf-8"))
    get_fhir_model_class("Bundle").model_validate(bundle)
    entries = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    for resource in entries.values():
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    found = resources(bundle)
    assert {*found} == {"Patient", "Device", "ImagingStudy", "Observation", "DiagnosticReport"}
    references = re.findall(r'"reference": "([^"]+)"', path.read_text(encoding="utf-8"))
    assert {*references} <= {*entries}
    diagnostic = found["DiagnosticReport"]
    texts = [entries[one["reference"]] for one in diagnostic["result"]]
    assert [one["valueString"] for one in texts] == [*report.sections.values()]
    for one in (diagnostic, *texts):
        assert one["status"] == "preliminary"
        assert one["meta"]["security"][0]["code"] == "AIAST"
        assert BANNER in json.dumps(one)
    assert diagnostic["conclusion"] == f"{BANNER} Cardiomegaly."
    assert b64decode(diagnostic["presentedForm"][0]["data"]).decode() == report.text
    assert "&lt;of&gt; the chest &amp; more.<br" in diagnostic["text"]["div"]
    assert found["Device"]["deviceName"][0]["name"] == "runs/mine/model"
    assert found["ImagingStudy"]["identifier"][0]["value"] == f"urn:oid:{STUDY}"
    assert [one["instance"][0]["uid"] for one in found["ImagingStudy"]["series"]] == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    patient = found["Patient"]
    assert patient["name"] == [{"family": "Müller", "given": ["Zoë"]}]
    assert (patient["gender"], patient["birthDate"], patient["identifier"]) == (
        "female",
        "1943-02-17",
        [{"value": "P1"}],
    )


def test_the_same_report_has_one_uid_and_a_revision_another(report, tmp_path) -> None:
    paths = write_results(report, tmp_path / "out", "s1", FORMS)
    before = [path.read_bytes() for path in paths]
    assert write_results(report, tmp_path / "out", "s1", FORMS) == paths
    assert [path.read_bytes() for path in paths] == before, "what is there is kept"
    revised = replace(report, sections={"findings": "Clear."}, complete=True)
    write_results(revised, tmp_path / "out", "s1", FORMS)
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))
    read = dcmread(paths[0])
    assert (read_sr(read).sections, read.CompletionFlag, read.VerificationFlag) == (
        {"findings": "Clear."},
        "COMPLETE",
        "UNVERIFIED",
    )
    other = replace(report, device=Device("other", "f" * 64))
    assert len({one.uid(form) for one in (report, revised, other) for form in FORMS}) == 9
    assert report.series_uid("sr") == revised.series_uid("sr") != other.series_uid("sr")


def test_odd_headers_make_documents_all_the_same(report, tmp_path) -> None:
    path = report.sources[0].path
    change(path, PatientName=GONE, PatientID=GONE, PatientBirthDate="", PatientSex=GONE, StudyDate=GONE, StudyTime=GONE)
    odd = replace(report, sources=[read_source(path)], indication="")
    sr, pdf, fhir = write_results(odd, tmp_path / "odd", "s1", FORMS)
    assert dcmread(sr).PatientName == ""
    assert "birthDate" not in resources(json.loads(fhir.read_text()))["Patient"]
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    with config.disable_value_validation():
        change(path, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name, PatientBirthDate="17.02.1943")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of pydicom's would quote the value
        odd = replace(report, sources=[read_source(path)])
        fhir, pdf, sr = write_results(odd, tmp_path / "odd", "s2", FORMS[::-1])
    assert dcmread(sr).PatientName == name
    assert "Patient: Yamada Tarou" in pages(dcmread(pdf).EncapsulatedDocument)[0]
    assert resources(json.loads(fhir.read_text()))["Patient"]["name"][0]["family"] == "Yamada"


BOTH = {"findings": "Clear.", "impression": "Normal."}


@pytest.mark.parametrize(
    ("text", "targets", "sections"),
    [
        ("Clear.", ["findings"], {"findings": "Clear."}),
        ("Clear.", ["impression"], {"impression": "Clear."}),
        ("Clear.", ["note"], {"findings": "Clear."}),
        ("Findings: Clear.\nImpression: Normal.", ["findings", "impression"], BOTH),
        ("**Findings**\nClear.\n\n**Impression**\nNormal.", ["findings"], BOTH),
        ("IMPRESSION: Normal.\nFINDINGS: Clear.", ["findings"], BOTH),
        ("Sure. Findings: Clear.", ["findings"], {"findings": "Sure. Findings: Clear."}),
        ("Comparison: None.\nFindings: Clear.", ["findings"], {"findings": "Comparison: None.\nFindings: Clear."}),
        ("Findings:", ["findings"], {"findings": "Findings:"}),
    ],
)
def test_a_draft_is_split_word_for_word(text, targets, sections) -> None:
    assert split_report(text, targets) == sections


def test_films_without_numbers_and_blank_drafts_are_refused(model_folder, tmp_path) -> None:
    path = change(film(tmp_path / "x.dcm", 1), SeriesInstanceUID=GONE)
    out = ("--to", "sr", "--out", tmp_path / "out")
    status, said = run("draft", model_folder, path, *out)
    assert (status, said) == (
        1,
        f"raddraft draft: {path}: no SeriesInstanceUID; documents for the archive need DICOM files that belong to a "
        "study",
    )
    (tmp_path / "x.png").touch()
    assert "no StudyInstanceUID" in run("draft", model_folder, tmp_path / "x.png", *out)[1]
    assert "--to sr needs a folder" in run("draft", model_folder, film(path, 1), "--to", "sr")[1]
    assert not (tmp_path / "out").exists()
    writer = Writer(find_studies(path), tmp_path / "out", FORMS)
    (name,) = (study.study_id for study in find_studies(path))
    model = load_model(model_folder, "cpu")
    assert writer.write(Draft([" "], study_id=name), model) == (
        f"not written: Study {name!r}: the draft is blank, so there is no report to write"
    )
    assert "cannot set" in str(writer.write(Draft(["漢"], study_id=name), model))
    assert [one.name for one in (tmp_path / "out").iterdir()] == [f"{name}.sr.dcm"]


def test_a_report_refers_to_the_images_that_the_model_read(model_folder, tmp_path) -> None:
    reason = {"RequestAttributesSequence": [item(ReasonForTheRequestedProcedure="Cough.")]}
    film(tmp_path / "f.dcm", 1, ViewPosition="PA", StudyDate="20260131", **reason)
    film(tmp_path / "l.dcm", 2, ViewPosition="LL", StudyDate="20260131")
    film(tmp_path / "p.dcm", 1, "1.2.1", StudyDate="20250131")
    now, earlier = find_studies(tmp_path)
    model, draft = load_model(model_folder, "cpu"), Draft(["Clear."], study_id=now.study_id)
    report = report_of(draft, now, model)
    assert ([one.path.name for one in report.sources], report.priors) == (["f.dcm"], [])
    assert (report.indication, report.device) == ("Cough.", Device(str(model_folder), model.digest))
    reads_all = Model(replace(model.drafter, prompt=EVERYTHING), "m")
    report = report_of(draft, replace(now, sections={"indication": "Fever."}), reads_all, earlier)
    assert [one.path.name for one in (*report.sources, *report.priors)] == ["f.dcm", "l.dcm", "p.dcm"]
    assert report.indication == "Fever."


# ---- nothing that tells who a patient is leaves the documents

PLANTED = {
    "PatientName": "Plantedname^Testperson",
    "PatientID": "PLANTED4711",
    "PatientBirthDate": "19430217",
    "StudyDate": "20310504",
    "StudyTime": "071319",
    "AccessionNumber": "ACCPLANT99",
    "StudyID": "STUDPLANT5",
    "ReferringPhysicianName": "Plantedname^Doctor",
    "StudyDescription": "Thorax of Plantedname",
    "SeriesDescription": "Plantedname PA",
    "ProtocolName": "Plantedname knee",
    "ViewPosition": "Plantedname",
    "SeriesNumber": "99999999",
    "OtherPatientIDs": "PLANTED4712",
    "InstitutionName": "Plantedname Hospital",
}
TOLD = re.compile(
    rb"planted|testperson|19430217|1943-02-17|20310504|2031-05-04|071319|ACCPLANT|STUDPLANT|4711", re.IGNORECASE
)


def test_what_tells_who_a_patient_is_stays_in_the_documents(
    model_folder, tower_folder, tmp_path, capsys, caplog, monkeypatch
) -> None:
    root, out, scratch = tmp_path / "films", tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))  # where an unexpected error would leave its traceback
    caplog.set_level(logging.INFO)
    root.mkdir()
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        film(root / "1.dcm", 1, **PLANTED | {"ProtocolName": "Plantedname"})
        film(root / "2.dcm", 2, **PLANTED | {"ProtocolName": "", "PresentationIntentType": "FOR PROCESSING"})
        film(
            root / "3.dcm",
            1,
            "1.2.1",
            **PLANTED | {"StudyDate": "17-FEB-1943 Plantedname", "PatientBirthDate": "Plantedname"},
        )
        film(root / "4.dcm", 1, "1.2.2", **PLANTED | {"BodyPartExamined": GONE})
        film(root / "5.dcm", 1, "1.2.3", **PLANTED)
        film(root / "6.dcm", 1, "1.2.4", **PLANTED | {"PatientName": "Plantedname漢".encode(), "Rows": 0})
    for path in root.iterdir():  # a number that is none
        path.write_bytes(path.read_bytes().replace(b"99999999", b"PLANTED1"))
    (root / "5.dcm").write_bytes((root / "5.dcm").read_bytes()[:-3000])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draft = ("draft", model_folder, root, "--decode.max_new_tokens", 12)
        assert run(*draft, "--to", *FORMS, "--out", out)[0] == 1  # two films cannot be read
        assert run(*draft, "--to", *FORMS, "--out", out)[0] == 1
        manifest = tmp_path / "studies.jsonl"
        assert run("prepare", "folder", "--root", root, "--out", manifest) == (0, "")
        assert run("check", root, "--out", tmp_path / "check", "--processes", 1)[0] == 0
        store = ("--studies", manifest, "--features", tmp_path / "features", "--workers", 0)
        assert run("features", "--tower", tower_folder, *store)[0] == 1
    shown = capsys.readouterr()
    messages = [str(one.message) for one in caught] + [record.getMessage() for record in caplog.records]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents]
    documents = [path for path in kept if path.name.endswith((".sr.dcm", ".pdf.dcm", ".fhir.json"))]
    assert {path.name for path in documents} == {
        f"{Pseudonyms().study(study)}.{kind}"
        for study in (STUDY, "1.2.1")
        for kind in ("sr.dcm", "pdf.dcm", "fhir.json")
    }
    written = [shown.out, shown.err, *messages, *(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))]
    found = {TOLD.search(text.encode(errors="replace")) and text for text in written}
    found |= {str(path) for path in kept if path not in documents and TOLD.search(path.read_bytes())}
    assert found - {None} == set()
    assert len(kept) > len(documents) + 5
    for path in documents:
        assert TOLD.search(path.read_bytes()), "they belong to the patient's record"
        assert re.search(rb"DRAFT", path.read_bytes())
