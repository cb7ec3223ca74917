"""Reports for chest phantoms: a small grammar that says what a picture shows, and the labels of what it says.

Each sign becomes a noun phrase; templates assert it, doubt it or deny it in the conventional words of radiology, one
assertion a sentence, so that rule-based labelers read them. Nothing that the picture does not show is written, and
nothing about the patient's sex, age or build.
"""

from __future__ import annotations

import numpy as np

from generator.corpora.phantom_cases import Sign

OBSERVATIONS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip


INDICATIONS = {
    "infection": ("Fever and cough.", "Productive cough and fever, evaluate for pneumonia.", "Leukocytosis and fever."),
    "failure": ("Shortness of breath.", "Dyspnea and leg swelling.", "Hypoxia and shortness of breath."),
    "trauma": ("Status post fall.", "Chest wall pain after trauma.", "Motor vehicle collision."),
    "pain": ("Chest pain.", "Acute chest pain and dyspnea.", "Sudden chest pain."),
    "lesion": ("Hemoptysis, evaluate for malignancy.", "Smoker with chronic cough.", "Staging of known malignancy."),
    "pleural": ("Asbestos exposure.", "Chronic dyspnea, asbestos exposure.", "Follow up of pleural disease."),
    "icu": ("Respiratory failure, check lines and tubes.", "Intubated, check tube position.", "Line placement."),
    "surgery": ("Postoperative chest radiograph.", "Status post cardiac surgery.", "Postoperative hypoxia."),
}
# What a reader denies in so many words, because the indication asks for it.
ASKED = {
    "infection": ("Pneumonia", "No evidence of pneumonia."),
    "failure": ("Lung Opacity", "No focal opacity."),
    "trauma": ("Fracture", "No displaced rib fracture."),
    "pain": ("Atelectasis", "No atelectasis."),
    "lesion": ("Lung Lesion", "No pulmonary nodule or mass."),
    "pleural": ("Pleural Other", "No pleural thickening."),
    "icu": ("Support Devices", "No support devices are seen."),
    "surgery": ("Atelectasis", "No atelectasis."),
}
NORMAL_LUNGS = ("The lungs are clear.", "Lungs are clear.", "The lungs are well expanded and clear.")
NORMAL_HEART = ("Heart size is normal.", "The heart is normal in size.", "Cardiac silhouette is normal in size.")
NORMAL_MIDDLE = (
    "The mediastinum is normal.", "Mediastinal contours are normal.", "The mediastinal contours are unremarkable.",
)  # fmt: skip
NORMAL_BONES = ("No acute osseous abnormality.", "The bony structures are intact.", "Osseous structures are intact.")
DENIED = {
    "Consolidation": "focal consolidation", "Edema": "pulmonary edema", "Pleural Effusion": "pleural effusion",
    "Pneumothorax": "pneumothorax",
}  # fmt: skip
SURE = ("There is {}.", "{} is present.", "{} is seen.")
SURE_MANY = ("There are {}.", "{} are present.", "{} are seen.")
DOUBT = ("Possible {}.", "{} cannot be excluded.", "There may be {}.")
PNEUMONIA_SURE = ("This is consistent with pneumonia.", "Findings are consistent with pneumonia.")
PNEUMONIA_DOUBT = (
    "This may represent pneumonia.",
    "This is suspicious for pneumonia.",
    "This is concerning for pneumonia.",
)
LUNG_SIGNS = ("Edema", "Consolidation", "Lung Opacity", "Pneumonia", "Atelectasis", "Lung Lesion")
PLEURAL_SIGNS = ("Pneumothorax", "Pleural Effusion", "Pleural Other")


def degree(severity: float, words: tuple[str, str, str]) -> str:
    return words[0] if severity < 0.35 else words[1] if severity < 0.7 else words[2]


def write_report(
    signs: list[Sign], view: str, indication: str, prior: bool, rng: np.random.Generator
) -> tuple[dict[str, str], dict[str, int | None]]:
    """Sections (indication, technique, comparison, findings, impression) and the 14 labels of the findings.

    Args:
        signs: what the picture shows; their `truth` must be filled in.
        indication: a key of INDICATIONS.
        prior: whether an earlier study of the subject exists.
    """
    labels: dict[str, int | None] = dict.fromkeys(OBSERVATIONS)
    for sign in signs:
        labels[sign.name] = 1 if sign.certain or labels[sign.name] == 1 else -1
    sections = {
        "indication": _pick(INDICATIONS[indication], rng),
        "technique": "Portable AP view of the chest." if view == "AP" else "PA view of the chest.",
        "comparison": _pick(("Prior chest radiograph.", "Previous chest radiograph."), rng) if prior else "None.",
        "findings": " ".join(_findings(signs, labels, indication, rng)),
        "impression": _impression(signs, rng),
    }
    if not any(value in (1, -1) for name, value in labels.items() if name != "Support Devices"):
        labels["No Finding"] = 1
    return sections, labels


def _findings(signs: list[Sign], labels: dict[str, int | None], indication: str, rng: np.random.Generator) -> list[str]:
    """Sentences organ by organ; denials are written into `labels`."""
    by_name = {name: [sign for sign in signs if sign.name == name] for name in OBSERVATIONS}
    denied = [name for name in DENIED if not by_name[name]]
    lungs = [_sentence(sign, rng) for name in LUNG_SIGNS for sign in by_name[name]]
    if not lungs:
        lungs = [_pick(NORMAL_LUNGS, rng)]
    pleura = [_sentence(sign, rng) for name in PLEURAL_SIGNS for sign in by_name[name]]
    if rng.random() < 0.5:  # all denials in one sentence, or those of the lungs and those of the pleura apart
        pleura = [*pleura, *_deny(denied, rng)]
    else:
        lungs = [*lungs, *_deny([name for name in denied if name in LUNG_SIGNS], rng)]
        pleura = [*pleura, *_deny([name for name in denied if name in PLEURAL_SIGNS], rng)]
    heart = [_sentence(sign, rng) for sign in by_name["Cardiomegaly"]] or [_pick(NORMAL_HEART, rng)]
    middle = [_sentence(sign, rng) for sign in by_name["Enlarged Cardiomediastinum"]] or [_pick(NORMAL_MIDDLE, rng)]
    bones = [_sentence(sign, rng) for sign in by_name["Fracture"]]
    for name in (*denied, "Cardiomegaly", "Enlarged Cardiomediastinum"):
        labels[name] = 0 if labels[name] is None else labels[name]
    asked, sentence = ASKED[indication]
    extra = (
        []
        if by_name[asked] or (asked == "Pneumonia" and len(by_name["Consolidation"] + by_name["Lung Opacity"]))
        else [sentence]
    )
    if extra:
        labels[asked] = 0
    if asked in LUNG_SIGNS:
        lungs += extra
    elif asked in PLEURAL_SIGNS:
        pleura += extra
    elif asked == "Fracture":
        bones += extra
    if not bones:
        bones = [_pick(NORMAL_BONES, rng)]
    devices = [_device(sign, rng) for sign in by_name["Support Devices"]]
    devices += extra if asked == "Support Devices" else []
    organs = [lungs, pleura, heart + middle] if rng.random() < 0.7 else [heart + middle, lungs, pleura]
    parts = [devices, *organs, bones] if rng.random() < 0.4 else [*organs, bones, devices]
    return [sentence for part in parts for sentence in part]


def _sentence(sign: Sign, rng: np.random.Generator) -> str:
    if sign.name == "Pneumonia":
        return _pick(PNEUMONIA_SURE if sign.certain else PNEUMONIA_DOUBT, rng)
    phrase, many = _phrase(sign)
    if sign.name == "Cardiomegaly" and sign.certain and rng.random() < 0.5:
        text = f"The heart is {degree(sign.severity, ('mildly', 'moderately', 'severely'))} enlarged."
    elif sign.name == "Enlarged Cardiomediastinum" and sign.certain and rng.random() < 0.5:
        text = "The mediastinum is widened."
    elif sign.name == "Pleural Effusion" and not sign.certain and sign.side != "both":
        text = f"Blunting of the {sign.side} costophrenic angle may represent a small pleural effusion."
    else:
        text = _pick((SURE_MANY if many else SURE) if sign.certain else DOUBT, rng).format(phrase)
    if sign.stable and sign.certain:
        text = text[:-1] + ", unchanged."
    if sign.truth.get("tension"):
        text += f" The midline structures are shifted to the {'left' if sign.side == 'right' else 'right'}."
    return text[0].upper() + text[1:]


def _phrase(sign: Sign) -> tuple[str, bool]:
    """Noun phrase of a sign, and whether it is plural."""
    side, both = sign.side, sign.side == "both"
    size = degree(sign.severity, ("small", "moderate", "large"))
    grade = degree(sign.severity, ("mild", "moderate", "severe"))
    where = f"in the {side} {sign.place}"
    if sign.name == "Cardiomegaly":
        return f"{grade} cardiomegaly", False
    if sign.name == "Enlarged Cardiomediastinum":
        return "widening of the mediastinum", False
    if sign.name == "Edema":
        return f"{grade} pulmonary edema", False
    if sign.name == "Consolidation":
        return f"{'dense ' if sign.severity > 0.6 else ''}consolidation {where}", False
    if sign.name == "Lung Opacity":
        return f"a {sign.truth['texture']} opacity {where}", False
    if sign.name == "Lung Lesion":
        if both:
            return "multiple pulmonary nodules in both lungs", True
        centimetres = sign.truth["diameter_cm"]
        return f"a {centimetres:g} cm {'mass' if centimetres >= 3 else 'nodule'} {where}", False
    if sign.name == "Atelectasis":
        if sign.place == "lobar":
            return f"{side} lower lobe atelectasis with volume loss", False
        return (
            f"{grade} bibasilar atelectasis" if both else f"{grade} linear atelectasis at the {side} lung base"
        ), False
    if sign.name == "Pneumothorax":
        return f"a {size} {side} {'apical ' if sign.severity < 0.35 else ''}pneumothorax", False
    if sign.name == "Pleural Effusion":
        return (f"{size} bilateral pleural effusions" if both else f"a {size} {side} pleural effusion"), both
    if sign.name == "Pleural Other":
        if sign.place == "apical":
            return f"{side} apical pleural thickening", False
        return (
            f"{'calcified ' if sign.place == 'calcified' else ''}pleural thickening along the {side} chest wall",
            False,
        )
    displaced = "displaced " if sign.certain else ""
    if sign.place == "clavicle":
        return f"a {displaced}fracture of the {side} clavicle", False
    return f"{displaced}fractures of the {side} lateral ribs", True


def _device(sign: Sign, rng: np.random.Generator) -> str:
    side, tip = sign.side, sign.truth.get("tip", "")
    ends = _pick(("terminates", "ends"), rng)
    texts = {
        "endotracheal tube": f"Endotracheal tube {ends} {tip} above the carina.",
        "nasogastric tube": _pick(
            ("Nasogastric tube {} in the stomach.", "Enteric tube {} in the stomach."), rng
        ).format(ends),
        "jugular line": f"{side} internal jugular central line {ends} in the {tip}.",
        "subclavian line": f"{side} subclavian central line {ends} in the {tip}.",
        "picc": f"{side} PICC {ends} in the {tip}.",
        "pacemaker": f"{side} chest wall pacemaker has a lead in the {tip}.",
        "dual chamber pacemaker": f"{side} chest wall pacemaker has leads in the {tip}.",
        "sternotomy": _pick(("Median sternotomy wires are intact.", "Intact median sternotomy wires are noted."), rng),
        "chest tube": _pick((f"{side} chest tube is in place.", f"A {side} chest tube is present."), rng),
    }
    text = texts[sign.place]
    return text[0].upper() + text[1:]


def _deny(names: list[str], rng: np.random.Generator) -> list[str]:
    """One sentence that denies all of them."""
    if not names:
        return []
    things = [DENIED[name] for name in names]
    listed = (
        things[0] if len(things) == 1 else f"{', '.join(things[:-1])}{',' if len(things) > 2 else ''} or {things[-1]}"
    )
    return [_pick(("No {}.", "There is no {}.", "No evidence of {}."), rng).format(listed)]


def _impression(signs: list[Sign], rng: np.random.Generator) -> str:
    """The findings other than devices, in short."""
    texts = []
    for sign in (sign for sign in signs if sign.name != "Support Devices"):
        if sign.name == "Pneumonia":
            text = "Findings consistent with pneumonia." if sign.certain else "Possible pneumonia."
        else:
            phrase = _phrase(sign)[0]
            text = f"{phrase.removeprefix('a ')}." if sign.certain else f"Possible {phrase.removeprefix('a ')}."
        texts.append(text[0].upper() + text[1:])
    if texts:
        return " ".join(texts)
    return _pick(("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality."), rng)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
