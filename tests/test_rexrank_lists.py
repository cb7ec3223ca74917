"""ReXrank's lists and submissions: from a list to a manifest, to drafts, to a file that its own script reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import raddraft.cli
from generator.corpora import common
from generator.corpora.rexrank import convert
from metrics.read import read_predictions
from raddraft.errors import RadDraftError
from raddraft.rexrank import check_target, write_submission
from raddraft.studies import read_studies
from tests.conftest import make_study


def entry(*paths: str, **fields: object) -> dict:
    """An entry of the published lists, with made-up text."""
    sections = {"section_findings": "The heart is enlarged.", "section_impression": "Cardiomegaly."}
    context = "Indication: Cough.Comparison: None."
    return {"image_path": [*paths], "key_image_path": paths[0], "context": context} | sections | fields


MIMIC = "/p10/p10000032/s50414267/a.jpg", "/p10/p10000032/s50414267/b.jpg"
LIST = {
    # MIMIC-CXR: paths that begin with /, the key image second, NaN where there is no impression, no comparison
    "50414267": entry(
        *MIMIC,
        key_image_path=MIMIC[1],
        frontal_lateral=["left lateral", "antero-posterior"],
        context="<context>Age:60-70.Gender:F.Indication: ___-year-old. Fever.</context>",
        section_impression=float("nan"),
        split="test",
        subject_id=10000032,
    ),
    # CheXpert Plus: AP or PA in a list of its own, decimals in the age, no split
    "patient64620_study1": entry(
        "valid/patient64620/study1/view1_frontal.png",
        frontal_lateral=["Frontal"],
        ap_pa=["PA"],
        context="Age:72.0.Gender:U.Indication:nan Comparison: None.",
    ),
    # IU X-ray: three views of two images
    "CXR8_IM-0002": entry(
        "CXR8_IM-0002/0.png", "CXR8_IM-0002/1.png", frontal_lateral=["Frontal", "Lateral", "Lateral"]
    ),
    # not on disk
    "CXR9_IM-0003": entry("CXR9_IM-0003/0.png", frontal_lateral=["Frontal"], split="val"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in the layout of ReXrank's tutorial, whose images are readable."""
    folder = tmp_path / "rexrank"
    (folder / "files").mkdir(parents=True)
    for number, path in enumerate(path.lstrip("/") for one in LIST.values() for path in one["image_path"]):
        if "CXR9" not in path:
            (folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            make_study(folder / "files", number, "test").images[0].path.rename(folder / "files" / path)
    (folder / "ReXRank_test.json").write_text(json.dumps(LIST))
    return folder


def test_every_kind_of_list_becomes_studies(root) -> None:
    conversion = convert(root)
    mimic, chexpert, iu = (study for study in read_studies(root / "studies.jsonl", check_images=True))
    assert [study.study_id for study in (mimic, chexpert, iu)] == [*LIST][:3]
    assert [study.subject_id for study in (mimic, chexpert, iu)] == ["10000032", "patient64620", "CXR8_IM-0002"]
    assert [study.extra.get("unknown_patient") for study in (mimic, chexpert, iu)] == [None, None, True]
    assert [(image.path.name, image.view) for image in mimic.images] == [("b.jpg", "AP"), ("a.jpg", "LATERAL")]
    assert [image.view for image in chexpert.images] == ["PA"]
    assert [image.view for image in iu.images] == ["FRONTAL", None]
    assert mimic.sections == {"findings": "The heart is enlarged.", "indication": "___-year-old. Fever."}
    assert iu.sections["indication"] == "Cough."
    assert iu.sections["comparison"] == "None."
    assert "indication" not in chexpert.sections
    assert [study.patient for study in (mimic, chexpert)] == [{"sex": "F", "age": 65}, {"sex": None, "age": 72}]
    told = str(conversion)
    assert "Studies that a submission will lack: 1 (CXR9_IM-0003)" in told
    assert "views than images, of which only the key image's view is known: 1 (CXR8_IM-0002)" in told


@pytest.mark.parametrize(
    ("text", "age"),
    [("60-70", 65), (">=90", 90), ("20-Oct", 15), ("64.0", 64), ("None", None), ("about sixty", None)],
)
def test_ages_as_the_lists_write_them(root, text, age) -> None:
    changed = {"50414267": LIST["50414267"] | {"context": f"Age:{text}.Gender:M.Indication: Fever."}}
    (root / "ReXRank_test.json").write_text(json.dumps(changed))
    (study,) = convert(root).studies
    assert study.patient == {"sex": "M", "age": age}
    assert study.sections["indication"] == "Fever."


@pytest.mark.parametrize(
    ("context", "age", "indication"),
    [
        ("Age:64.0.Indication: Cough.", 64, "Cough."),
        ("Age:60-70.Comparison: None.", 65, None),
        ("Age:64.Gender:M.History: Cough.", None, "Age:64.Gender:M.History: Cough."),
    ],
)
def test_contexts_that_lack_a_part_or_have_another_form(root, context, age, indication) -> None:
    (root / "ReXRank_test.json").write_text(json.dumps({"50414267": LIST["50414267"] | {"context": context}}))
    conversion = convert(root)
    (study,) = conversion.studies
    assert (study.patient["age"], study.sections.get("indication")) == (age, indication)
    assert ("Contexts of another form, kept whole as the indication: 1" in conversion.notes) == (age is None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected ReXrank's form"),
        ('{"a": ', "not valid JSON"),
        ('{"a": {"image_path": "x.png"}}', "ReXRank_test.json, a: image_path must be a non-empty list of paths"),
        ('{"a": {"image_path": ["x.png"], "split": "dev"}}', "a: unknown split 'dev'"),
    ],
)
def test_what_is_no_list_is_refused(root, text, message) -> None:
    (root / "ReXRank_test.json").write_text(text)
    with pytest.raises(common.CorpusError, match=message):
        convert(root)


def test_of_several_lists_one_must_be_named(root) -> None:
    table = root / "ReXRank_test.json"
    (root / "ReXRank_valid.json").write_text(table.read_text())
    with pytest.raises(FileNotFoundError, match=r"several lists: ReXRank_test\.json, ReXRank_valid\.json\. .*--table"):
        convert(root)
    assert len(convert(root, table=table).studies) == 3


def run(action: str, *arguments: object) -> int | str | None:
    """Exit status of a command, or its message."""
    with pytest.raises(SystemExit) as stop:
        raddraft.cli.run(action, [*map(str, arguments)])
    return stop.value.code


def read_as_rexrank(submission: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Study -> report, draft, as ReXrank's scripts get them: evaluation_script.md (ReXrank 8152f99) writes two tables,
    run_eval.py (CXR-Report-Metric 9c9ecad) reads these and keeps the studies of both."""
    pandas = pytest.importorskip("pandas")
    entries = json.loads(submission.read_text())
    sections = {
        name: [value if pandas.notna(value) else None for value in (one["section_findings"], one["section_impression"])]
        for name, one in entries.items()
    }
    reports = {name: "Findings: {} Impression: {}".format(*both) for name, both in sections.items()}
    tables = []
    for name, texts in (("gt", reports), ("pred", {name: one["model_prediction"] for name, one in entries.items()})):
        pandas.DataFrame([*texts.items()], columns=["study_id", "report"]).to_csv(folder / name, index=False)
        rows = pandas.read_csv(folder / name, dtype={"study_id": str}).set_index("study_id")["report"]
        assert not rows.isna().any(), "its code stops at a draft that is NaN"
        tables.append(rows.to_dict())
    return {name: (report, tables[1][name]) for name, report in tables[0].items() if name in tables[1]}


def test_a_submission_passes_its_reader_and_resumes(root, model_folder, tmp_path, capsys) -> None:
    studies = convert(root).out
    out = tmp_path / "out" / "submission.json"
    command = ["--model", model_folder, "--studies", studies, "--out", out, "--device", "cpu", "--workers", 0]
    (root / "files" / "CXR8_IM-0002" / "0.png").write_bytes(b"broken")
    assert run("generate", *command, "--format", "rexrank") == 1, "a study without draft"
    told = capsys.readouterr().out
    assert f"The submission to ReXrank is {out}: 2 of the manifest's 3 studies" in told
    assert "Studies without a draft, which ReXrank leaves out in silence: 1 (CXR8_IM-0002)" in told
    drafts = {row["study_id"]: row for row in map(json.loads, out.with_suffix(".jsonl").read_text().splitlines())}
    assert read_as_rexrank(out, tmp_path) == {
        "50414267": ("Findings: The heart is enlarged. Impression: None", drafts["50414267"]["prediction"]),
        "patient64620_study1": (
            "Findings: The heart is enlarged. Impression: Cardiomegaly.",
            drafts["patient64620_study1"]["prediction"],
        ),
    }
    fields = json.loads(out.read_text())["patient64620_study1"]
    assert fields == LIST["patient64620_study1"] | {"model_prediction": drafts["patient64620_study1"]["prediction"]}
    make_study(root / "files" / "CXR8_IM-0002", 0, "test")  # the image is mended, and the same command goes on
    assert run("generate", *command, "--format", "rexrank") == 0
    assert "3 of the manifest's 3 studies" in capsys.readouterr().out
    assert [*read_as_rexrank(out, tmp_path)] == [*LIST][:3]


def test_neither_the_list_nor_the_manifest_is_overwritten(root, tmp_path) -> None:
    table = root / "ReXRank_test.json"
    manifest = convert(root).out
    before = table.read_bytes(), manifest.read_bytes()
    command = ["generate", "--model", tmp_path / "none", "--studies", manifest, "--format", "rexrank", "--out"]
    assert "study '50414267' has no model_prediction" in str(run(*command, table))
    assert "study '50414267' has no model_prediction" in str(run(*command, table.with_suffix(".jsonl")))
    for out in (manifest, manifest.with_suffix(".json")):
        assert f"this would replace the manifest {manifest}" in str(run(*command, out))
    assert f"this would replace the manifest {manifest}" in str(run(*command[:5], "--out", manifest))
    assert (table.read_bytes(), manifest.read_bytes()) == before
    (tmp_path / "empty.json").write_text("{}\n")
    check_target(tmp_path / "empty.json")  # no study had a draft


def test_blank_drafts_at_which_its_code_stops_are_named(tmp_path) -> None:
    path = tmp_path / "submission.json"
    told = write_submission(path, {"a": entry("a.png"), "b": entry("b.png")}, {"a": "The lungs are clear.", "b": ""})
    assert told == [
        f"The submission to ReXrank is {path}: 2 of the manifest's 2 studies",
        "Studies with a blank draft, at which ReXrank's code stops: 1 (b)",
    ]
    assert json.loads(path.read_text())["b"]["model_prediction"] == ""
    with pytest.raises(AssertionError, match="its code stops"):
        read_as_rexrank(path, tmp_path)


def test_score_names_what_a_submission_lacks(root, tmp_path, capsys) -> None:
    drafts = {name: one | {"model_prediction": "The heart is enlarged."} for name, one in [*LIST.items()][:3]}
    submission = tmp_path / "submission.json"
    submission.write_text(json.dumps(drafts))
    found, notes = read_predictions(submission, root / "ReXRank_test.json")
    assert found[0].reference == "Findings: The heart is enlarged. Impression: None"
    assert [row.subject_id for row in found] == ["10000032", "patient64620", None]
    assert notes == [
        f"{root / 'ReXRank_test.json'}: 1 references without a prediction in {submission} are left out (CXR9_IM-0003)"
    ]
    assert read_predictions(submission) == (found, [])
    assert run("score", submission, "--references", root / "ReXRank_test.json", "--metrics", "rexrank_bleu") == 0
    assert "are left out (CXR9_IM-0003)" in capsys.readouterr().out


def test_score_names_the_studies_of_the_manifest_without_a_draft(root, tmp_path, capsys) -> None:
    convert(root)
    row = {"study_id": "50414267", "prediction": "The heart is enlarged.", "reference": "Cardiomegaly."}
    (tmp_path / "drafts.jsonl").write_text(json.dumps(row) + "\n")
    manifest = root / "studies.jsonl"
    assert run("score", tmp_path / "drafts.jsonl", "--studies", manifest, "--metrics", "rouge_l") == 0
    told = f"Studies of {manifest} that are not scored: 2 (CXR8_IM-0002, patient64620_study1)"
    assert told in capsys.readouterr().out


def test_a_list_is_no_submission_and_other_studies_have_none(root, studies_file, model_folder, tmp_path) -> None:
    with pytest.raises(RadDraftError, match=r"50414267: no model_prediction: a list of ReXrank holds references"):
        read_predictions(root / "ReXRank_test.json")
    command = ["--model", model_folder, "--studies", studies_file, "--out", tmp_path / "x.json", "--format", "rexrank"]
    assert "Study 's32' has no entry of a list of ReXrank" in str(run("generate", *command))
    assert not (tmp_path / "x.jsonl").exists()
