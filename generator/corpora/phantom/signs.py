"""Signs of disease in a chest phantom: how each changes the body.

Every drawing function changes the solids and returns what it drew (sizes in cm of the standard body, places as
fractions of the image's sides).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from generator.corpora.phantom.body import METAL, SOFT, Body, Patch
from generator.corpora.phantom.cases import ZONES, Sign
from generator.corpora.phantom.solids import SIGN, Array, Curves, Ellipsoid, curve, mirror

Truth = dict[str, Any]
Drawing = Callable[[Body, Sign, Generator], Truth]

DRAW: dict[str, Drawing] = {}
"""Name of an observation, or kind of device -> what draws it."""


def draw(body: Body, signs: list[Sign], rng: Generator) -> Truth:
    """Change the body as the signs say, fill in their `truth`, and return the record of the whole image."""
    limit = 0.475 if body.view == "PA" else 0.51
    if body.cardiothoracic_ratio() > limit and not any(sign.name == "Cardiomegaly" for sign in signs):
        _grow_heart(body, limit)
    for sign in sorted(signs, key=lambda sign: sign.name != "Pleural Effusion"):  # the lung floats on the fluid
        kind = sign.place if sign.name == "Support Devices" else sign.name
        if kind in DRAW:  # Pneumonia is a reading of another sign
            sign.truth = DRAW[kind](body, sign, rng)
    drawn = [
        {"name": sign.name, "side": sign.side, "place": sign.place, "severity": round(sign.severity, 3)} | sign.truth
        for sign in signs
    ]
    ratio = round(body.cardiothoracic_ratio(), 3)
    return {"cardiothoracic_ratio": ratio, "supine": body.supine, "signs": drawn}


def _draws(*names: str) -> Callable[[Drawing], Drawing]:
    def register(drawing: Drawing) -> Drawing:
        DRAW.update(dict.fromkeys(names, drawing))
        return drawing

    return register


def _spot(body: Body, side: str, part: float, y: float) -> tuple[float, float, float]:
    """A point of the lung, `part` of the way from the midline to the chest wall."""
    return (SIGN[side] * part * body.cavity.width(y), y, 0.0)


def _grow_heart(body: Body, ratio: float) -> None:
    """Scale ventricles, atrium and outflow until the cardiothoracic ratio is as asked for."""
    for _ in range(6):
        factor = ratio / body.cardiothoracic_ratio()
        body.heart[:3] = [
            replace(part, center=(part.center[0] * factor, *part.center[1:]),
                    radii=(part.radii[0] * factor, part.radii[1] * factor**0.6, part.radii[2]))
            for part in body.heart[:3]
        ]  # fmt: skip


def _shift_dome(body: Body, side: str, down: float) -> None:
    dome = body.domes[side]
    body.domes[side] = replace(dome, center=(dome.center[0], dome.center[1] + down, dome.center[2]))


@_draws("Cardiomegaly")
def _cardiomegaly(body: Body, sign: Sign, rng: Generator) -> Truth:
    _grow_heart(body, (0.52 if body.view == "PA" else 0.55) + 0.15 * sign.severity)
    return {"ratio": round(body.cardiothoracic_ratio(), 3)}


@_draws("Enlarged Cardiomediastinum")
def _wide_mediastinum(body: Body, sign: Sign, rng: Generator) -> Truth:
    extra = 0.6 + 2.0 * sign.severity
    right = rng.uniform(0.35, 0.65)
    bulge = np.exp(-(((body.middle[:, :1] + 3.5) / 5) ** 2))
    body.middle = body.middle + bulge * np.array([[0, 2 * right * extra, 2 * (1 - right) * extra]])
    return {"width_cm": round(float(np.interp(-4, body.middle[:, 0], body.middle[:, 1] + body.middle[:, 2])), 1)}


@_draws("Lung Opacity")
def _opacity(body: Body, sign: Sign, rng: Generator) -> Truth:
    radius = 2.4 + 1.8 * sign.severity + rng.uniform(0, 0.6)
    center = _spot(body, sign.side, rng.uniform(0.5, 0.68), ZONES[sign.place] + rng.uniform(-1.2, 1.2))
    patchy = float(rng.choice([0.15, 0.9])) > 0.5
    density = (0.28 + 0.3 * sign.severity) * (1.25 if patchy else 1)
    body.patches.append(Patch(center, (radius * 1.15, radius), density, 0.9 if patchy else 0.15))
    texture = "patchy" if patchy else "hazy"
    return {"at": body.beam.place(center), "diameter_cm": round(2 * radius, 1), "texture": texture}


@_draws("Consolidation")
def _consolidation(body: Body, sign: Sign, rng: Generator) -> Truth:
    radius = 2.8 + 2.4 * sign.severity
    y = ZONES[sign.place] + rng.uniform(-0.8, 0.8)
    limits = {"upper lobe": (-99.0, 1.8), "mid lung": (0.5, 99.0), "lower lobe": (4.0, 99.0)}[sign.place]
    center = _spot(body, sign.side, rng.uniform(0.48, 0.62), y)
    body.patches.append(Patch(center, (radius * 1.1, radius), 0.7 + 0.25 * sign.severity, 0.25, limits, 1.8))
    start = np.array([SIGN[sign.side] * 3.5, 2.0, 0.5])
    ends = [np.array(center) + np.array([dx, dy, 0]) * radius * 0.6 for dx, dy in ((1, -0.4), (0.6, 0.5), (-0.2, 0.8))]
    branches = np.stack([start + (end - start) * np.linspace(0.35, 1, 24)[:, None] for end in ends])
    body.airways.append(Curves(branches, np.full((3, 24), 0.22), -SOFT))  # air bronchograms
    return {"at": body.beam.place(center), "diameter_cm": round(2 * radius, 1)}


@_draws("Lung Lesion")
def _lesion(body: Body, sign: Sign, rng: Generator) -> Truth:
    if sign.side == "both":
        spots = [
            (str(rng.choice(list(SIGN))), float(rng.uniform(-7, 10)), float(rng.uniform(0.5, 1.3))) for _ in range(7)
        ]
        spots[0], spots[1] = ("left", *spots[0][1:]), ("right", *spots[1][1:])
    else:
        diameter = round((1.2 + 3.8 * sign.severity) * 2) / 2
        y = {"upper lobe": -4.5, "mid lung": 2.5, "lower lobe": 8.0}[sign.place] + float(rng.uniform(-1.5, 1.5))
        spots = [(sign.side, y, diameter / 2)]
    places = []
    for side, y, radius in spots:
        center = _spot(body, side, rng.uniform(0.5, 0.78), y)
        for part in range(4):  # lobulated: one large ball with three smaller ones on its rim
            angle, size = rng.uniform(0, 2 * np.pi), radius * (0.92 if part == 0 else rng.uniform(0.4, 0.6))
            away = 0 if part == 0 else radius - size
            place = (center[0] + away * np.cos(angle), center[1] + away * np.sin(angle), 0.0)
            ball = Ellipsoid(place, (size * rng.uniform(0.9, 1.1), size, size))
            body.soft.append((ball, 0.18 if part == 0 else 0.09))
        places.append(body.beam.place(center))
    return {"at": places, "diameter_cm": round(2 * max(radius for _, _, radius in spots), 1), "count": len(spots)}


@_draws("Edema")
def _edema(body: Body, sign: Sign, rng: Generator) -> Truth:
    """Perihilar haze, wide vessels above as well as below, septal lines at the bases."""
    density = 0.22 + 0.42 * sign.severity
    for side, sign_x in SIGN.items():
        body.patches.append(Patch((sign_x * 5.5, 3.5, 0), (6.0, 8.5), density, 0.55))
        body.patches.append(Patch((sign_x * 8, 9.0, 0), (5.5, 5.0), density * 0.5, 0.5))
        wide = 1.1 + 0.25 * sign.severity
        body.vessels[side] = [
            replace(bundle, radius=bundle.radius * np.where(bundle.points[..., 1] < 2, wide * 1.25, wide))
            for bundle in body.vessels[side]
        ]
        y = np.sort(rng.uniform(8, 14, 7))
        x = body.cavity.width(y)[:, None] - 0.3 - np.linspace(0, 1, 8) * rng.uniform(1.2, 2.0, (7, 1))
        lines = np.stack([x, np.broadcast_to(y[:, None], x.shape), np.zeros_like(x)], -1)
        body.vessels[side].append(Curves(mirror(lines, side), np.full((7, 8), 0.12), 0.4 + 0.6 * sign.severity))
    return {"density": round(density, 2)}


@_draws("Atelectasis")
def _atelectasis(body: Body, sign: Sign, rng: Generator) -> Truth:
    """Collapse of a lower lobe behind the heart, or bands at the bases; the diaphragm rises either way."""
    places = []
    rise = 0.6 + 1.8 * sign.severity
    for side in sign.sides:
        dome, sign_x = body.domes[side], SIGN[side]
        _shift_dome(body, side, -rise)
        if sign.place == "lobar":
            center = (sign_x * 4.6, 11.0 - rise, 0.0)
            body.patches.append(Patch(center, (3.6 + sign.severity, 5.5), 0.95, 0.0, sharp=2.0))
            body.shift += sign_x * (0.6 + 0.8 * sign.severity)
            places.append(body.beam.place(center))
            continue
        top = min(dome.center[1] - dome.radii[1] - rise, body.fluid.get(side, 99.0) - 1)
        for i in range(1 + int(sign.severity > 0.3) + int(sign.severity > 0.65)):
            y = top - 0.7 - 1.3 * i - rng.uniform(0, 0.5)
            inner, outer = rng.uniform(4.0, 6.0), rng.uniform(10, 12.5)
            band = curve([(inner, y - rng.uniform(-0.3, 0.5), -2), (8, y, -2), (outer, y + rng.uniform(0, 1.2), -2)])
            thick = np.full((1, 24), 0.22 + 0.2 * sign.severity)
            body.vessels[side].append(Curves(mirror(band, side)[None], thick, 0.5))
            places.append(body.beam.place(mirror(band, side)[12]))
    return {"at": places}


@_draws("Pneumothorax")
def _pneumothorax(body: Body, sign: Sign, rng: Generator) -> Truth:
    across, down = 1 - (0.05 + 0.45 * sign.severity), 1 - (0.07 + 0.3 * sign.severity)
    body.collapse[sign.side] = (across, down)
    tension = sign.severity > 0.75
    if tension:
        body.shift -= SIGN[sign.side] * 2.6
        _shift_dome(body, sign.side, 1.8)
    return {
        "gap_cm": round(float((1 - across) * body.cavity.width(0)), 1),
        "apical_gap_cm": round((1 - down) * 26, 1),
        "tension": tension,
        "at": body.beam.place(_spot(body, sign.side, 0.8, -7)),
    }


@_draws("Pleural Effusion")
def _effusion(body: Body, sign: Sign, rng: Generator) -> Truth:
    places = []
    for side in sign.sides:
        level = 14.6 - 15.5 * sign.severity**1.2 + (rng.uniform(-0.8, 0.8) if sign.side == "both" else 0)
        body.fluid[side] = level
        if sign.severity > 0.75:
            body.shift -= SIGN[side] * 5 * (sign.severity - 0.7)
        places.append(body.beam.place(_spot(body, side, 0.85, min(level + 2, 14))))
    return {"at": places, "surface_cm": {side: round(body.fluid[side], 1) for side in sign.sides}}


@_draws("Pleural Other")
def _pleural(body: Body, sign: Sign, rng: Generator) -> Truth:
    thick = 0.8 + 1.4 * sign.severity
    apical = sign.place == "apical"
    above, below = (-99.0, -7.0) if apical else (-2.0 + rng.uniform(-1, 1), 13.0)
    body.peels.append((sign.side, above, below, thick))
    if sign.place == "calcified":
        for _ in range(4 + int(6 * sign.severity)):
            y = rng.uniform(0, 12) + np.linspace(-1, 1, 12) * rng.uniform(0.4, 1.3)
            x = body.cavity.width(y) * rng.uniform(0.72, 0.97) + rng.normal(0, 0.1, 12)
            points = mirror(np.stack([x, y, np.full(12, rng.choice([-4.0, 3.0]))], -1), sign.side)
            body.devices.append(Curves(points[None], rng.uniform(0.12, 0.3, (1, 12)), 0.9))
    return {"thickness_cm": round(thick, 1), "at": body.beam.place(_spot(body, sign.side, 0.95, -9 if apical else 6))}


@_draws("Fracture")
def _fracture(body: Body, sign: Sign, rng: Generator) -> Truth:
    """Cut bones, leave a gap, displace the outer piece; a hematoma lifts the pleura off broken ribs."""
    ribs = sign.place == "ribs"
    step = (0.9 if ribs else 1.1) + 1.0 * sign.severity
    name = f"{sign.place} {sign.side}"
    points, radius = body.bones[name].points.copy(), body.bones[name].radius.copy()
    first, count = (int(rng.integers(3, 5)), 3 + int(2.4 * sign.severity)) if ribs else (0, 1)
    for i in range(first, first + count):
        cut = int(rng.integers(14, 18))
        radius[i, cut] = 0
        radius[i, cut - 4 : cut] *= 1.4
        radius[i, cut + 1 : cut + 5] *= 1.4
        points[i, cut:] += np.array([-0.5 * SIGN[sign.side], step, 0])
    body.bones[name] = replace(body.bones[name], points=points, radius=radius)
    middle = points[first + count // 2, 16]
    if ribs:
        hematoma = Ellipsoid((middle[0] * 0.98, middle[1], 0), (0.8 + 0.8 * sign.severity, 3.0, 2.5))
        body.soft.append((hematoma, SOFT * 0.7))
    return {"step_cm": round(step, 1), "count": count, "at": body.beam.place(middle)}


def _tube(body: Body, knots: Any, radius: float, wall: float, hollow: bool = False) -> Array:
    points = curve(knots, 60)
    body.devices.append(Curves(points[None], np.full((1, 60), radius), wall, 0.0 if hollow else None, 0.7))
    return points


@_draws("endotracheal tube")
def _endotracheal(body: Body, sign: Sign, rng: Generator) -> Truth:
    above = int(rng.integers(2, 7))
    x = body.shift * 0.7 + 0.1
    points = _tube(body, [(x, -26, 0), (x, -12, 2), (x + 0.2, -0.6 - above, 3)], 0.5, 0.45, True)
    _tube(body, points[::4] + np.array([0.35, 0, 0]), 0.1, METAL)
    return {"tip": f"{above} cm", "at": body.beam.place(points[-1])}


@_draws("nasogastric tube")
def _nasogastric(body: Body, sign: Sign, rng: Generator) -> Truth:
    x = body.shift * 0.7
    knots = [(x + 0.4, -26, 2), (x - 0.3, -6, 4), (x + 0.8, 5, 4), (1.4, 12, 3), (4, 16.5, 0), (7, 18, -2)]
    return {"at": body.beam.place(_tube(body, knots, 0.2, 0.9)[-1])}


@_draws("jugular line", "subclavian line", "picc")
def _central_line(body: Body, sign: Sign, rng: Generator) -> Truth:
    """Three ways to the superior vena cava."""
    side = SIGN[sign.side]
    depth, tip = [(0.5, "mid SVC"), (3.0, "lower SVC"), (7.5, "right atrium")][int(rng.integers(3))]
    ways: dict[str, list[tuple[float, float, float]]] = {
        "jugular line": [(4.6, -18, -2), (3.8, -11, -3)],
        "subclavian line": [(12, -8.6, -6), (8, -8.8, -5), (4.5, -7.6, -4)],
        "picc": [(20.5, 4, 0), (17, -4, -1), (12, -7.0, -3), (7, -7.8, -4), (4, -7.0, -4)],
    }
    start = [(side * x, y, z) for x, y, z in ways[sign.place]] + ([(0.8, -5.8, -3.5)] if side > 0 else [])
    end = [(-2.0 + body.shift, -3.5, -3), (-2.2 + body.shift, depth - 1.5, -2), (-2.2 + body.shift, depth, -2)]
    radius, wall = (0.12, METAL * 1.4) if sign.place == "picc" else (0.17, METAL)
    return {"tip": tip, "at": body.beam.place(_tube(body, start + end, radius, wall)[-1])}


@_draws("pacemaker", "dual chamber pacemaker")
def _pacemaker(body: Body, sign: Sign, rng: Generator) -> Truth:
    side = SIGN[sign.side]
    box = (side * 9.8, -3.8, -11.0)
    body.soft.append((Ellipsoid(box, (2.5, 2.0, 0.5), side * 0.3, 4.0), METAL))
    path = [(side * 8.2, -5.5, -10), (side * 6, -7.6, -7), (side * 3, -6.4, -5), (-2.0, -3.5, -3), (-2.2, 3, -2)]
    x = body.heart[0].edge(body.beam, 1) * 0.62
    _tube(body, [*path, (0.5, 10.0, -5), (x, 12.0, -6)], 0.11, METAL)
    two = sign.place == "dual chamber pacemaker"
    if two:
        _tube(body, [*path, (-2.6, 6.2, -3), (-1.6, 5.6, -5)], 0.11, METAL)
    return {"tip": "right atrium and right ventricle" if two else "right ventricle", "at": body.beam.place(box)}


@_draws("sternotomy")
def _sternotomy(body: Body, sign: Sign, rng: Generator) -> Truth:
    turn = np.linspace(0, 2 * np.pi, 40)
    for y in np.linspace(-6.5, 7.5, 6):
        loop = np.stack([0.9 * np.cos(turn), y + 0.45 * np.sin(turn) + rng.normal(0, 0.1), np.full(40, -10.0)], -1)
        body.devices.append(Curves(loop[None], np.full((1, 40), 0.11), METAL * 1.8))
    return {"at": body.beam.place((0, 0.5, -10))}


@_draws("chest tube")
def _chest_tube(body: Body, sign: Sign, rng: Generator) -> Truth:
    side, wall = SIGN[sign.side], body.cavity.width(9)
    knots = [
        (side * (wall + 4), 11, 0),
        (side * (wall - 0.5), 7.5, 0),
        (side * wall * 0.72, 0, 3),
        (side * 6.5, -7.5, 2),
    ]
    points = _tube(body, knots, 0.45, 0.6, True)
    _tube(body, points[::4], 0.12, METAL * 1.4)
    return {"at": body.beam.place(points[-1])}
