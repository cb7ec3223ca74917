"""Reports for phantoms: a small grammar that says what an image shows, and the labels of what it says.

Each sign becomes a noun phrase; templates assert it, doubt it or deny it in the conventional words of radiology, one
assertion a sentence, so that rule-based labelers read them. Nothing that the image does not show is written, and
nothing about the patient's sex, age or build.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from generator.corpora.phantom.cases import OPPOSITE, TABLES, Sign

OBSERVATIONS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
LUNG_SIGNS = ("Edema", "Consolidation", "Lung Opacity", "Pneumonia", "Atelectasis", "Lung Lesion")
PLEURAL_SIGNS = ("Pneumothorax", "Pleural Effusion", "Pleural Other")


def write_report(
    signs: list[Sign], view: str, indication: str, prior: bool, rng: Generator
) -> tuple[dict[str, str], dict[str, int | None]]:
    """Sections (indication, technique, comparison, findings, impression) and the 14 labels of the findings.

    Args:
        signs: what the image shows; their `truth` must be filled in.
        view: PA or AP.
        indication: a scenario, whose indication is given.
        prior: whether an earlier study of the subject exists.
        rng: chooses the words.
    """
    labels: dict[str, int | None] = dict.fromkeys(OBSERVATIONS)
    for sign in signs:
        labels[sign.name] = 1 if sign.certain or labels[sign.name] == 1 else -1
    sections = {
        "indication": _pick(TABLES["scenarios"][indication]["indications"], rng),
        "technique": "Portable AP view of the chest." if view == "AP" else "PA view of the chest.",
        "comparison": _pick(("Prior chest radiograph.", "Previous chest radiograph."), rng) if prior else "None.",
        "findings": " ".join(_findings(signs, labels, indication, rng)),
        "impression": _impression(signs, rng),
    }
    if not any(value in (1, -1) for name, value in labels.items() if name != "Support Devices"):
        labels["No Finding"] = 1
    return sections, labels


def _findings(signs: list[Sign], labels: dict[str, int | None], indication: str, rng: Generator) -> list[str]:
    """Sentences organ by organ; denials are written into `labels`."""
    present = {sign.name for sign in signs}

    def assertions(*names: str) -> list[str]:
        return [_sentence(sign, rng) for name in names for sign in signs if sign.name == name]

    denied = [name for name in TABLES["denied"] if name not in present]
    lungs = assertions(*LUNG_SIGNS) or [_pick("normal lungs", rng)]
    pleura = assertions(*PLEURAL_SIGNS)
    if rng.random() < 0.5:  # all denials in one sentence, or those of the lungs and those of the pleura apart
        pleura += _deny(denied, rng)
    else:
        lungs += _deny([name for name in denied if name in LUNG_SIGNS], rng)
        pleura += _deny([name for name in denied if name in PLEURAL_SIGNS], rng)
    heart = assertions("Cardiomegaly") or [_pick("normal heart", rng)]
    heart += assertions("Enlarged Cardiomediastinum") or [_pick("normal mediastinum", rng)]
    bones = assertions("Fracture")
    devices: list[str] = []
    for name in (*denied, "Cardiomegaly", "Enlarged Cardiomediastinum"):
        labels[name] = 0 if labels[name] is None else labels[name]
    asked, sentence = TABLES["scenarios"][indication]["asked"]
    if asked not in present and not (asked == "Pneumonia" and present & {"Consolidation", "Lung Opacity"}):
        labels[asked] = 0
        organ = lungs if asked in LUNG_SIGNS else pleura if asked in PLEURAL_SIGNS else bones
        (devices if asked == "Support Devices" else organ).append(sentence)
    bones = bones or [_pick("normal bones", rng)]
    devices = [_device(sign, rng) for sign in signs if sign.name == "Support Devices"] + devices
    organs = [*lungs, *pleura, *heart] if rng.random() < 0.7 else [*heart, *lungs, *pleura]
    return [*devices, *organs, *bones] if rng.random() < 0.4 else [*organs, *bones, *devices]


def _sentence(sign: Sign, rng: Generator) -> str:
    if sign.name == "Pneumonia":
        return _pick("pneumonia" if sign.certain else "pneumonia, doubt", rng)
    phrase, many = _phrase(sign)
    if sign.name == "Cardiomegaly" and sign.certain and rng.random() < 0.5:
        text = f"The heart is {_degree(sign, 'mildly', 'moderately', 'severely')} enlarged."
    elif sign.name == "Enlarged Cardiomediastinum" and sign.certain and rng.random() < 0.5:
        text = "The mediastinum is widened."
    elif sign.name == "Pleural Effusion" and not sign.certain and sign.side != "both":
        text = f"Blunting of the {sign.side} costophrenic angle may represent a small pleural effusion."
    else:
        text = _pick(("sure, plural" if many else "sure") if sign.certain else "doubt", rng).format(phrase)
    if sign.stable and sign.certain:
        text = text[:-1] + ", unchanged."
    if sign.truth.get("tension"):
        text += f" The midline structures are shifted to the {OPPOSITE[sign.side]}."
    return _capitalize(text)


def _phrase(sign: Sign) -> tuple[str, bool]:
    """Noun phrase of a sign, and whether it is plural."""
    keys = (f"{sign.name}, {sign.side}", f"{sign.name}, {sign.place}", sign.name)
    key = next(key for key in keys if key in TABLES["phrases"])
    words = sign.truth | {
        "side": sign.side,
        "place": sign.place,
        "size": _degree(sign, "small", "moderate", "large"),
        "grade": _degree(sign, "mild", "moderate", "severe"),
        "dense": "dense " if sign.severity > 0.6 else "",
        "mass": "mass" if sign.truth.get("diameter_cm", 0) >= 3 else "nodule",
        "apical": "apical " if sign.severity < 0.35 else "",
        "displaced": "displaced " if sign.certain else "",
    }
    return TABLES["phrases"][key].format(**words), key in TABLES["plural"]


def _device(sign: Sign, rng: Generator) -> str:
    side, tip = sign.side, sign.truth.get("tip", "")
    ends = _pick(("terminates", "ends"), rng)
    texts = {
        "endotracheal tube": f"Endotracheal tube {ends} {tip} above the carina.",
        "nasogastric tube": f"{_pick(('Nasogastric', 'Enteric'), rng)} tube {ends} in the stomach.",
        "jugular line": f"{side} internal jugular central line {ends} in the {tip}.",
        "subclavian line": f"{side} subclavian central line {ends} in the {tip}.",
        "picc": f"{side} PICC {ends} in the {tip}.",
        "pacemaker": f"{side} chest wall pacemaker has a lead in the {tip}.",
        "dual chamber pacemaker": f"{side} chest wall pacemaker has leads in the {tip}.",
        "sternotomy": _pick(("Median sternotomy wires are intact.", "Intact median sternotomy wires are noted."), rng),
        "chest tube": _pick((f"{side} chest tube is in place.", f"A {side} chest tube is present."), rng),
    }
    return _capitalize(texts[sign.place])


def _deny(names: list[str], rng: Generator) -> list[str]:
    """One sentence that denies all of them."""
    if not names:
        return []
    *others, last = [TABLES["denied"][name] for name in names]
    listed = f"{', '.join(others)}{',' if len(others) > 1 else ''} or {last}" if others else last
    return [_pick("deny", rng).format(listed)]


def _impression(signs: list[Sign], rng: Generator) -> str:
    """The findings other than devices, in short."""
    texts = []
    for sign in (sign for sign in signs if sign.name != "Support Devices"):
        if sign.name == "Pneumonia":
            texts.append("Findings consistent with pneumonia." if sign.certain else "Possible pneumonia.")
        else:
            phrase = _phrase(sign)[0].removeprefix("a ")
            texts.append(_capitalize(f"{phrase}." if sign.certain else f"Possible {phrase}."))
    if texts:
        return " ".join(texts)
    return _pick("normal impression", rng)


def _degree(sign: Sign, mild: str, moderate: str, severe: str) -> str:
    return mild if sign.severity < 0.35 else moderate if sign.severity < 0.7 else severe


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(options: str | Sequence[str], rng: Generator) -> str:
    """One of the options, or of those that the tables hold under this name."""
    options = TABLES[options] if isinstance(options, str) else options
    return options[int(rng.integers(len(options)))]
