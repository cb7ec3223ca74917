"""Which signs of disease occur together in a phantom, on which side and how severe.

A subject comes for a reason (the indication), and each reason brings its own signs; some stay until the next study.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from numpy.random import Generator

ZONES = {"upper lobe": -4.5, "mid lung": 3.0, "lower lobe": 10.0}
"""Name in the report -> y of its middle."""
OPPOSITE = {"left": "right", "right": "left"}

TABLES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
"""Scenarios and the words of reports."""
CENTRAL_LINES = {"jugular line", "subclavian line", "picc"}
PACEMAKERS = {"pacemaker", "dual chamber pacemaker"}
LASTING = {"Cardiomegaly", "Enlarged Cardiomediastinum", "Lung Lesion", "Pleural Other", "sternotomy", *PACEMAKERS}
"""Still there, unchanged, in the subject's next study."""
USUAL_SIDE = {"jugular line": ("right", 0.85), "pacemaker": ("left", 0.9), "dual chamber pacemaker": ("left", 0.9)}
IN_LUNG = ("Consolidation", "Lung Opacity", "Lung Lesion")


@dataclass
class Sign:
    """One thing that an image shows (Pneumonia: what the reader makes of an opacity)."""

    name: str
    """One of the 14 observations of CheXpert."""
    severity: float = 0.5
    """0 hardly seen, 1 as large as it gets."""
    side: str = ""
    """left, right, both, or empty where there is no side."""
    place: str = ""
    """Lung zone, or kind of device, fracture, atelectasis, pleural thickening."""
    stable: bool = False
    """The subject's previous study showed it as well."""
    truth: dict[str, Any] = field(default_factory=dict)
    """Measures and places, filled in when the sign is drawn."""

    @property
    def certain(self) -> bool:
        """Faint signs are reported with doubt; what is drawn for a device is always sure."""
        return self.name == "Support Devices" or self.severity >= 0.12

    @property
    def sides(self) -> list[str]:
        """The sides that the sign is on."""
        return ["right", "left"] if self.side == "both" else [self.side]


def plan(rng: Generator, before: list[Sign]) -> tuple[str, list[Sign]]:
    """Choose the indication and the signs of a subject's study, given the signs of the study before it."""
    scenarios = TABLES["scenarios"]
    scenario = str(rng.choice(list(scenarios), p=[one["share"] for one in scenarios.values()]))
    signs = [replace(sign, stable=True, truth={}) for sign in before if {sign.name, sign.place} & LASTING]
    if scenario == "normal":
        chances = {str(rng.choice(sorted(CENTRAL_LINES | PACEMAKERS))): 0.15}
        scenario = str(rng.choice([name for name in scenarios if name != "normal"]))
    else:
        chances = scenarios[scenario]["signs"]
    for name, chance in chances.items():
        taken = {word for sign in signs for word in (sign.name, sign.place)}
        rivals = next((group for group in (CENTRAL_LINES, PACEMAKERS) if name in group), {name})
        if rng.random() < chance and not taken & rivals:
            signs.append(_sign(name, rng))
    del signs[5:]  # a report has room for so much
    _reconcile(signs, rng)
    shadows = [sign for sign in signs if sign.name in ("Consolidation", "Lung Opacity") and sign.certain]
    if scenario == "infection" and shadows:  # a consolidation with fever is called pneumonia, a haze is suspected of it
        sure = any(sign.name == "Consolidation" and sign.severity > 0.2 for sign in shadows)
        signs.append(Sign("Pneumonia", 1.0 if sure else 0.0, shadows[0].side, shadows[0].place))
    return scenario, signs


def _sign(name: str, rng: Generator) -> Sign:
    """A sign (or kind of device) of random side, place and severity."""
    side, severity, place = str(rng.choice(["left", "right"])), float(rng.uniform(0, 1)), ""
    if name in IN_LUNG:
        place = str(rng.choice(list(ZONES), p=[0.4, 0.4, 0.2] if name == "Lung Lesion" else [0.3, 0.2, 0.5]))
        side = "both" if name == "Lung Lesion" and rng.random() < 0.2 else side
    elif name == "Atelectasis":
        place = "lobar" if severity > 0.45 and rng.random() < 0.45 else "linear"
        side = "both" if place == "linear" and rng.random() < 0.4 else side
    elif name == "Pleural Effusion":
        side = "both" if severity < 0.6 and rng.random() < 0.35 else side
    elif name == "Pleural Other":
        place = str(rng.choice(["apical", "lateral", "calcified"]))
    elif name == "Fracture":
        place = str(rng.choice(["ribs", "clavicle"], p=[0.65, 0.35]))
    elif name in ("Cardiomegaly", "Enlarged Cardiomediastinum", "Edema"):
        side = ""
    elif name in ("endotracheal tube", "nasogastric tube", "sternotomy"):
        return Sign("Support Devices", 1.0, "", name)
    elif name != "Pneumothorax":
        usual, chance = USUAL_SIDE.get(name, ("right", 0.5))
        return Sign("Support Devices", 1.0, usual if rng.random() < chance else OPPOSITE[usual], name)
    return Sign(name, severity, side, place)


def _reconcile(signs: list[Sign], rng: Generator) -> None:
    """Make the signs of one image agree: no two things in one place, a drain where there is air or much fluid."""
    by_name = {sign.name: sign for sign in signs if sign.name != "Support Devices"}
    air, fluid = by_name.get("Pneumothorax"), by_name.get("Pleural Effusion")
    if air and "Fracture" in by_name:
        air.side = by_name["Fracture"].side
    if air and fluid:  # both on one side would need a level between them, which is not drawn
        fluid.side = OPPOSITE[air.side]
    drained = air or fluid
    if drained and drained.side != "both" and drained.severity > 0.25 and rng.random() < (0.45 if air else 0.15):
        signs.append(Sign("Support Devices", 1.0, drained.side, "chest tube"))
    if "Atelectasis" in by_name and by_name["Atelectasis"].side != "both":
        if fluid and fluid.side != "both":
            by_name["Atelectasis"].side = fluid.side
        elif air:
            by_name["Atelectasis"].side = OPPOSITE[air.side]
    if air and "Pleural Other" in by_name:
        _move(by_name["Pleural Other"], OPPOSITE[air.side], by_name["Pleural Other"].place)
    taken = {(air.side, zone) for zone in ZONES} if air else set()
    if fluid and fluid.severity > 0.3:  # hidden under the fluid
        taken |= {(side, "lower lobe") for side in fluid.sides}
        taken |= {(side, "mid lung") for side in fluid.sides if fluid.severity > 0.6}
    if "Atelectasis" in by_name and by_name["Atelectasis"].place == "lobar":
        taken.add((by_name["Atelectasis"].side, "lower lobe"))
    for sign in [by_name[name] for name in IN_LUNG if name in by_name and by_name[name].side != "both"]:
        free = [(side, zone) for side in OPPOSITE for zone in ZONES if (side, zone) not in taken]
        if (sign.side, sign.place) in taken:
            _move(sign, *free[int(rng.integers(len(free)))])
        taken.add((sign.side, sign.place))


def _move(sign: Sign, side: str, place: str) -> None:
    """Put a sign elsewhere; what was somewhere else before is not unchanged."""
    sign.stable = sign.stable and (sign.side, sign.place) == (side, place)
    sign.side, sign.place = side, place
