"""The rule-based labeler: made-up sentences for each trap, examples of two public labelers, hand-made labels."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.labeler import main, read_gold, read_reports
from metrics.rules import OBSERVATIONS, label

SHORT = {
    "ECM": "Enlarged Cardiomediastinum",
    "CM": "Cardiomegaly",
    "LO": "Lung Opacity",
    "LL": "Lung Lesion",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PX": "Pneumothorax",
    "PE": "Pleural Effusion",
    "PO": "Pleural Other",
    "FX": "Fracture",
    "SD": "Support Devices",
    "NF": "No Finding",
}

# Text and all that it mentions: "+" positive, "-" negative, "?" uncertain. No Finding is left out where absent.
SENTENCES = {
    "plain mentions": [
        ("There is a small left pleural effusion.", "PE+"),
        ("Bibasilar atelectasis and mild pulmonary edema.", "AT+ ED+"),
        ("Right lower lobe consolidation, consistent with pneumonia.", "CO+ PN+"),
        ("Patchy airspace disease is likely atelectasis.", "LO+ AT+"),
        ("Spiculated mass in the left apex. Healed rib fractures.", "LL+ FX+"),
        ("Nodular opacity in the left apex.", "LL+ LO+"),
        ("Left apical pleural thickening.", "PO+"),
        ("Tracheostomy tube and left PICC in place.", "SD+ NF+"),
        ("Loculated hydropneumothorax.", "PX+"),
    ],
    "the words alone count": [
        ("The lungs are clear.", "NF+"),
        ("Findings of congestive heart failure.", "ED+"),
        ("Small pericardial effusion.", "NF+"),
        ("Calcified granuloma in the left apex.", ""),
        ("Prior granulomatous infection.", ""),
        ("Calcified nodule in the left apex. Sternotomy wires and a stent.", "LL+ SD+"),
        ("Emphysema without acute disease.", ""),
        ("No emphysema.", "NF+"),
        ("Collapse of the T8 vertebra is absent; no vertebral body collapse.", "AT- NF+"),
    ],
    "negation before": [
        ("No pneumothorax.", "PX- NF+"),
        ("No focal consolidation, pneumothorax, or pleural effusion.", "CO- PX- PE- NF+"),
        ("Lungs are clear without infiltrate or edema.", "LO- ED- NF+"),
        ("The lungs are free of focal airspace disease.", "LO- NF+"),
        ("Negative for pneumonia.", "PN- NF+"),
        ("There is no evidence of fracture.", "FX- NF+"),
        ("No opacity to suggest pneumonia.", "LO- PN- NF+"),
        ("No nodule suspicious for malignancy.", "LL- NF+"),
        ("No definite effusion is seen.", "PE- NF+"),
        ("Neither effusion nor pneumothorax.", "PE- PX- NF+"),
        ("Interval resolution of the left effusion.", "PE- NF+"),
        ("Atelectasis rather than pneumonia.", "AT+ PN-"),
        ("No new consolidation.", "CO- NF+"),
        ("No XXXX focal consolidation.", "CO- NF+"),
        ("Status post removal of the left chest tube.", "SD- NF+"),
    ],
    "negation after": [
        ("A pneumothorax is not seen.", "PX- NF+"),
        ("Effusion, edema, and pneumothorax are absent.", "PE- ED- PX- NF+"),
        ("The left effusion has resolved.", "PE- NF+"),
        ("Pneumonia has been ruled out.", "PN- NF+"),
        ("Pneumonia is unlikely.", "PN- NF+"),
        ("Pleural effusion: none. Pneumothorax: no.", "PE- PX- NF+"),
        ("The effusion is no longer visualized.", "PE- NF+"),
        ("The endotracheal tube has been removed.", "SD- NF+"),
        ("Left base opacity, pneumothorax is not identified.", "LO+ PX-"),
    ],
    "where a negation ends": [
        ("No pneumothorax. Left effusion.", "PX- PE+"),
        ("Cardiomegaly without overt edema.", "CM+ ED-"),
        ("No pneumothorax, but a left effusion.", "PX- PE+"),
        ("No consolidation; however, effusion persists.", "CO- PE+"),
        ("No pneumothorax, small left effusion.", "PX- PE+"),
        ("No pneumothorax, stable left effusion.", "PX- PE+"),
        ("There is no pneumothorax and there is a left effusion.", "PX- PE+"),
        ("No pneumothorax, left chest tube is in place.", "PX- SD+ NF+"),
        ("No pneumothorax, mass or effusion is seen.", "PX- LL- PE- NF+"),
        ("No edema with small effusions.", "ED- PE+"),
        ("1. No edema 2. Atelectasis", "ED- AT+"),
        ("No edema\n\nAtelectasis", "ED- AT+"),
        ("No edema.Atelectasis.", "ED- AT+"),
    ],
    "no change is no negation": [
        ("No significant change in the left effusion.", "PE+"),
        ("Left effusion is not significantly changed.", "PE+"),
        ("Without interval change in bibasilar atelectasis.", "AT+"),
        ("Unchanged cardiomegaly.", "CM+"),
        ("The effusion has not resolved.", "PE+"),
        ("The effusion has nearly completely resolved.", "PE+"),
        ("Resolving pneumonia.", "PN+"),
        ("Left base opacity was not seen on the prior study.", "LO+"),
    ],
    "uncertainty": [
        ("This may represent pneumonia.", "PN?"),
        ("Possible small effusion.", "PE?"),
        ("Effusion is possible.", "PE?"),
        ("Left base opacity may reflect atelectasis or consolidation.", "LO+ AT? CO?"),
        ("Opacities which could be due to edema, infection, or hemorrhage.", "LO+ ED? PN?"),
        ("Opacity, differential includes infection, edema.", "LO+ PN? ED?"),
        ("Pneumonia cannot be excluded.", "PN?"),
        ("Cannot exclude pneumonia.", "PN?"),
        ("A small pneumothorax is not entirely excluded.", "PX?"),
        ("Left effusion, pneumonia not excluded.", "PE+ PN?"),
        ("Left base opacity, atelectasis vs. pneumonia.", "LO+ AT? PN?"),
        ("Opacity suspicious for pneumonia.", "LO+ PN?"),
        ("Opacity concerning for pneumonia.", "LO+ PN?"),
        ("Opacity, compatible with pneumonia in the appropriate clinical setting.", "LO+ PN?"),
        ("Suspected effusion, mild edema.", "PE? ED+"),
        ("Question edema or infection?", "ED? PN?"),
        ("Density suggestive of artifact, healed rib fracture.", "FX+"),
        ("Opacity which could reflect atelectasis or, in the proper clinical setting, pneumonia.", "LO+ AT? PN?"),
        ("No pneumothorax, possible small effusion.", "PX- PE?"),
        ("Rib fracture is not well seen.", "FX?"),
        ("Mild vascular congestion.", "ED?"),
        ("No vascular congestion.", "ED- NF+"),
        ("Probable left effusion.", "PE+"),
    ],
    "what is asked is not found": [
        ("Evaluate for pneumonia.", "NF+"),
        ("Radiograph to rule out pneumothorax.", "NF+"),
        ("History of pneumonia.", "NF+"),
        ("If pneumonia is suspected, repeat the study.", "NF+"),
        ("No prior studies. Left effusion.", "PE+"),
    ],
    "heart and mediastinum": [
        ("Heart size is normal.", "CM- NF+"),
        ("The heart is normal in size.", "CM- NF+"),
        ("Normal heart size and mediastinal contours.", "CM- ECM- NF+"),
        ("Heart size and mediastinal contours are within normal limits.", "CM- ECM- NF+"),
        ("Cardiomediastinal silhouette is unremarkable.", "CM- ECM- NF+"),
        ("The heart, XXXX and mediastinum are normal.", "CM- ECM- NF+"),
        ("Cardiac and mediastinal contours are normal.", "CM- ECM- NF+"),
        ("The heart is mildly enlarged.", "CM+"),
        ("Enlarged cardiac silhouette.", "CM+"),
        ("Enlargement of the heart.", "CM+"),
        ("The heart is not enlarged.", "CM- NF+"),
        ("No cardiac enlargement.", "CM- NF+"),
        ("No enlargement of the cardiac silhouette.", "CM- NF+"),
        ("Mildly enlarged heart with normal mediastinum.", "CM+ ECM-"),
        ("Heart size is normal, mediastinum is widened.", "CM- ECM+"),
        ("Widened upper mediastinum.", "ECM+"),
        ("No mediastinal widening.", "ECM- NF+"),
        ("Widening of the mediastinum cannot be excluded.", "ECM?"),
        ("Heart size is normal and an effusion is possible.", "CM- PE?"),
        ("Heart size is at the upper limits of normal.", "CM- NF+"),
        ("Heart size is upper limits of normal or mildly enlarged.", "CM?"),
        ("Borderline heart size.", "CM?"),
        ("Borderline enlarged heart.", "CM+"),
        ("Heart size is stable.", "CM?"),
        ("The heart is stable and normal in size.", "CM- NF+"),
        ("Stable cardiomediastinal silhouette.", "ECM?"),
        ("The heart is obscured by a large effusion.", "PE+"),
        ("The heart and lungs have XXXX in the interval.", "NF+"),
        ("Heart size is normal. Enlarged pulmonary arteries.", "CM- NF+"),
    ],
    "words that are no device here": [
        ("Plate-like atelectasis at the left base.", "AT+"),
        ("Linear or plate-like scarring at the bases.", "LO+"),
        ("Vertebral heights and end plates are normal.", "NF+"),
        ("Cervical plate and screws.", "SD+ NF+"),
        ("Elevation of the hemidiaphragm leads to crowding.", ""),
        ("Mitral valve calcification.", ""),
    ],
    "over a whole report": [
        ("No effusion on the right. Possible effusion on the left.", "PE?"),
        ("Possible effusion. No effusion on the right. Left effusion.", "PE+"),
        ("", "NF+"),
        ("  \n ", "NF+"),
    ],
}
CASES = [(text, expected, trap) for trap, cases in SENTENCES.items() for text, expected in cases]


def mentioned(text: str) -> dict[str, int]:
    return {name: value for name, value in label(text).items() if value is not None}


@pytest.mark.parametrize(("text", "expected", "trap"), CASES, ids=[text.strip() or "blank" for text, _, _ in CASES])
def test_sentence(text: str, expected: str, trap: str) -> None:
    values = {"+": 1, "-": 0, "?": -1}
    assert mentioned(text) == {SHORT[item[:-1]]: values[item[-1]] for item in expected.split()}, trap


@pytest.mark.parametrize("text", [text for text, _, _ in CASES if "\n" not in text])
def test_case_and_white_space_do_not_matter(text: str) -> None:
    expected = label(text)
    assert label(text.upper()) == expected
    assert label(text.replace(" ", "\n")) == expected
    assert label("\t" + text.replace(" ", " \t  ") + "\n\n") == expected


def test_every_observation_has_a_label() -> None:
    labels = label("No effusion. Possible pneumonia. Cardiomegaly.")
    assert tuple(labels) == OBSERVATIONS
    assert set(labels.values()) == {1, 0, -1, None}


def test_sentences_are_labeled_on_their_own() -> None:
    texts = ["No pneumothorax.", "Small left effusion.", "The heart is enlarged.", "Pneumonia cannot be excluded."]
    together = {name: value for text in texts for name, value in mentioned(text).items() if name != "No Finding"}
    assert mentioned(" ".join(texts)) == together
    assert mentioned(" ".join(reversed(texts))) == together


def test_agrees_with_the_chexpert_labeler_on_its_samples(cxr: Path) -> None:
    with open(cxr / "fixtures/chexpert_labeler/labeled_reports.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        text = row.pop("Reports")
        assert label(text) == {name: float(value) if value else None for name, value in row.items()}, text


def test_agrees_with_chexbert_on_its_samples(cxr: Path) -> None:
    reports = json.loads((cxr / "fixtures/chexbert/sample_labels.json").read_text(encoding="utf-8"))["reports"]
    assert len(reports) == 4
    for report in reports:
        assert label(report["text"]) == report["labels"], report["text"]


def test_f1_on_hand_made_labels(cxr: Path) -> None:
    """On the reports outside the test list, which rules may be written on."""
    texts, gold = read_reports(cxr / "iu/indiana_reports.csv"), read_gold(cxr / "iu/openi_gld_std14.csv")
    names = sorted(set(gold) - set((cxr / "iu/openi-testset.txt").read_text().split()))
    assert len(names) == 3080
    labels = {name: label(texts[name]) for name in names}
    for observation, least in [("Cardiomegaly", 0.9), ("Pleural Effusion", 0.9), ("Atelectasis", 0.85)]:
        found = {name for name in names if labels[name][observation] == 1}
        true = {name for name in names if gold[name][observation]}
        assert 2 * len(found & true) / (len(found) + len(true)) >= least, observation


@pytest.fixture
def iu(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three made-up reports and their labels, laid out like IU X-ray; the third is the test list."""
    columns = (
        "filename,Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,Pneumothorax,Consolidation,"
    )
    columns += "Edema,Emphysema,Fibrosis,Pleural_Thickening,Hernia,normal"
    texts = {
        "reports.csv": "uid,findings,impression\n1,Left effusion.,\n2,Possible effusion.,\n3,,No effusion.\n",
        "gold.csv": f"{columns}\nCXR1{',0' * 2},1{',0' * 12}\nCXR2{',0' * 15}\nCXR3{',0' * 14},1\n",
        "test.txt": "CXR3\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "reports.csv", tmp_path / "gold.csv", tmp_path / "test.txt"


def figures(printed: str, observation: str) -> list[list[str]]:
    return [line.split()[-4:] for line in printed.splitlines() if line.startswith(observation)]


def test_labeler_prints_both_sides_of_the_test_list(
    iu: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(*iu)
    printed = capsys.readouterr().out
    assert "Outside test.txt: 2 reports" in printed
    assert "Inside test.txt: 1 reports" in printed
    assert figures(printed, "Pleural Effusion") == [["1.000", "1.000", "1.000", "1"], ["0.000", "0.000", "0.000", "0"]]
    assert figures(printed, "No Finding")[1] == ["1.000", "1.000", "1.000", "1"]


def test_labeler_counts_doubt_as_told(iu: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(*iu, uncertain="positive")
    assert figures(capsys.readouterr().out, "Pleural Effusion")[0] == ["0.500", "1.000", "0.667", "1"]


def test_labeler_names_what_does_not_fit(iu: tuple[Path, Path, Path]) -> None:
    reports, gold, held_out = iu
    held_out.write_text("CXR3\nCXR99\n")
    with pytest.raises(ValueError, match="CXR99"):
        main(*iu)
    gold.write_text(gold.read_text().replace("CXR2,0", "CXR2,2"))
    with pytest.raises(ValueError, match="CXR2: Atelectasis is '2'"):
        main(*iu)
    reports.write_text("uid,report\n1,Left effusion.\n")
    with pytest.raises(ValueError, match="no column 'findings'"):
        main(*iu)
