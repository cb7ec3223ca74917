"""The solids of a healthy body: chest cavity, heart, diaphragm, vessels, bones. Units and axes as in `solids`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from generator.corpora.phantom.solids import SIGN, Array, Beam, Curves, Ellipsoid, Stack, curve, mirror

SOFT, LUNG, VESSEL, METAL = 0.21, 0.055, 0.28, 1.6
"""Attenuation of soft tissue and of aerated lung; what a vessel (enhanced) and a device add."""
CAVITY = np.array(  # y, half width, half depth of the inner chest wall
    [(-11.5, 4.0, 0.6), (-10.9, 5.4, 2.0), (-10, 6.9, 3.2), (-8.5, 8.6, 4.6), (-6.5, 10.1, 5.8), (-4, 11.4, 6.8),
     (-1, 12.5, 7.5), (2, 13.2, 8.0), (5, 13.7, 8.3), (9, 14.1, 8.4), (13, 14.3, 8.4), (16, 14.3, 8.2), (20, 13.8, 7.6)]
)  # fmt: skip
TORSO = np.array(
    [(-26, 6.3, 6.3), (-15, 6.2, 6.0), (-13, 8.0, 6.6), (-11.5, 12.0, 7.6), (-10, 18.0, 8.6), (-8, 21.0, 9.5),
     (-4, 22.5, 10.5), (0, 21.0, 10.8), (3, 17.5, 10.9), (6, 16.2, 11.1), (12, 15.7, 11.7), (18, 15.6, 13.0),
     (32, 15.8, 13.2)]
)  # fmt: skip
MIDDLE = np.array(  # y, distance from the midline of the right and of the left border of the mediastinum
    [(-13, 5.0, 5.0), (-11.4, 3.4, 3.6), (-10, 2.4, 2.7), (-8, 2.1, 2.2), (-5, 2.3, 2.3), (-2, 2.6, 2.3),
     (0, 2.6, 2.1), (4, 1.9, 1.9), (8, 1.5, 1.9), (14, 1.6, 2.0), (22, 2.2, 2.2)]
)  # fmt: skip
RIB_PITCH = 2.45
RIB_WIDTH = np.array([6.9, 10.1, 11.9, 13.0, 13.7, 14.2, 14.5, 14.7, 14.7, 14.5, 13.8, 12.4])
RIB_DROP = np.array([4.4, 6.2, 7.8, 9.0, 9.8, 10.4, 10.6, 10.6, 10.0, 8.0, 4.0, 3.0])
HILUM = {"right": np.array([-3.4, 2.4, 0.5]), "left": np.array([3.6, 1.4, 0.5])}


@dataclass
class Patient:
    """What stays the same in all studies of a subject."""

    sex: str
    age: int
    height: float
    """cm"""
    bmi: float


@dataclass
class Patch:
    """A region where part of the lung's air is replaced by fluid."""

    center: tuple[float, float, float]
    radii: tuple[float, float]
    density: float
    """Part of the air replaced in the middle, 0 to 1."""
    grain: float
    """0 even, 1 broken into flecks."""
    limits: tuple[float, float] = (-99.0, 99.0)
    """y of a fissure above and below, where the edge is sharp."""
    sharp: float = 1.0
    """Above 1: flat inside, steep at the border."""


@dataclass
class Body:
    """The solids of one patient in one image; the signs of disease change them."""

    view: str
    """PA or AP."""
    supine: bool
    beam: Beam
    torso: Stack
    cavity: Stack
    heart: list[Ellipsoid]
    domes: dict[str, Ellipsoid]
    middle: Array
    """As MIDDLE."""
    vessels: dict[str, list[Curves]]
    bones: dict[str, Curves]
    """"ribs left", "clavicle right" and so on."""
    airways: list[Curves]
    soft: list[tuple[Ellipsoid, float]]
    """Solids with the attenuation they add to what surrounds them."""
    bone_density: float
    shift: float = 0.0
    """Displacement of the mediastinum along x."""
    patches: list[Patch] = field(default_factory=list)
    fluid: dict[str, float] = field(default_factory=dict)
    """Side -> y of the surface of free pleural fluid."""
    collapse: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Side -> shrinkage of the lung along x and y by free pleural air, 1 none."""
    peels: list[tuple[str, float, float, float]] = field(default_factory=list)
    """Pleural thickening: side, y above, y below, thickness."""
    devices: list[Curves] = field(default_factory=list)

    def cardiothoracic_ratio(self) -> float:
        """Greatest transverse diameter of the heart by that of the inner chest, both as projected."""
        right = min(part.edge(self.beam, -1) for part in self.heart)
        left = max(part.edge(self.beam, 1) for part in self.heart)
        return float((left - right) / (2 * self.cavity.width(12) * float(self.beam.magnification(0))))


def build(patient: Patient, view: str, size: int, rng: Generator) -> Body:
    """A healthy body of this patient, and how it is placed in the beam."""
    pa = view == "PA"
    supine = not pa and rng.random() < 0.6
    inspiration = float(rng.normal(0.2 if pa else -1.3, 0.6)) - 0.06 * (patient.bmi - 24)  # of the diaphragm, cm
    female, old = patient.sex == "F", float(np.clip((patient.age - 45) / 40, 0, 1))
    fat = max(0.0, (patient.bmi - 19) * 0.17)
    scale = patient.height / 176  # of the whole body against the detector
    field_of_view = (rng.uniform(36, 40) + 0.15 * max(0, patient.bmi - 27)) * scale**0.6
    beam = Beam(
        source=180 if pa else 105,
        detector=-13 - fat if pa else 14 + fat,
        turn=float(rng.normal(0, 0.02 if pa else 0.04)),
        roll=float(rng.normal(0, 0.015 if pa else 0.03)),
        pixel=float(field_of_view / scale / size),
        size=size,
        shift=(float(rng.normal(0, 0.5)), 4.5 + float(rng.normal(0, 0.7))),
    )
    width = (0.93 if female else 1.0) * rng.normal(1, 0.03)
    cavity = CAVITY * np.array([1, width, width * (1.06 if old > 0.5 else 1)])
    torso = TORSO * np.array([1, width, 1])
    torso[:, 1:] += np.array([fat * 0.8, fat]) * np.clip((torso[:, :1] + 14) / 10, 0.25, 1)
    grid = np.arange(-13, 22, 0.5)
    borders = [np.interp(grid, MIDDLE[:, 0], MIDDLE[:, i]) + 0.1 * fat + rng.normal(0, 0.15) for i in (1, 2)]
    middle = np.stack([grid, *ndimage.gaussian_filter1d(borders, 2, axis=1)], -1)
    density = (0.9 if female else 1.0) * (1 - 0.4 * old)
    hilum = {side: HILUM[side] + rng.normal(0, 0.25, 3) for side in SIGN}
    return Body(
        view, supine, beam, Stack(torso, 2.6), Stack(cavity, 2.0),
        heart=_heart(rng.uniform(0.86, 0.98) + 0.004 * (patient.bmi - 24), old, 0.5 * inspiration),
        domes={"right": Ellipsoid((-6.9 * width, 21.6 + inspiration, -1), (9.0 * width, 9.4, 11.0)),
               "left": Ellipsoid((6.9 * width, 22.9 + inspiration, -1), (8.8 * width, 9.4, 11.0))},
        middle=middle,
        vessels={side: _vessels(hilum[side], SIGN[side], rng) for side in SIGN},
        bones=_ribs(density, width, rng) | _girdle(pa, density, width) | _calcified_aorta(old),
        airways=_airways(),
        soft=[*_arms_and_breasts(pa, supine, female, fat, old), _stomach_gas(inspiration, rng)],
        bone_density=density,
    )  # fmt: skip


def _heart(size: float, old: float, sink: float) -> list[Ellipsoid]:
    """Ventricles, right atrium, outflow with the left atrial appendage, aorta."""
    return [
        Ellipsoid((2.8 * size, 10.3 + sink, -1.4), (7.1 * size, 5.5 * size, 7.2), 0.55, 1.4),
        Ellipsoid((-1.2 * size, 9.0 + sink, -2.0), (2.8 * size, 6.2 * size, 6.6), 0.0, 1.3),
        Ellipsoid((1.4 * size, 4.0, -2.0), (3.2 * size, 5.4, 6.2), -0.35, 1.3),
        Ellipsoid((0.9 + 0.6 * old, -2.2 - 0.5 * old, 1.0), (2.2 + 0.4 * old, 2.3, 5.0), 0.3, 1.2),
    ]


def _ribs(density: float, width: float, rng: Generator) -> dict[str, Curves]:
    """Twelve arcs on each side, from the spine round the chest to the end of the bone in front."""
    angle = 0.18 + np.radians(140) * np.linspace(0, 1, 40) * np.array([1] * 9 + [0.85, 0.62, 0.45])[:, None]
    along = (angle - 0.18) / np.radians(140)
    number = np.arange(1, 13)[:, None]
    ribs = {}
    for side in SIGN:
        x = RIB_WIDTH[:, None] * width * np.sin(angle)
        y = RIB_PITCH * (number - 5) - 0.4 + RIB_DROP[:, None] * along**1.3 + rng.normal(0, 0.08, (12, 1))
        y = y - 0.8 * np.sin(np.clip(along * 5, 0, np.pi))  # the ribs rise before they fall
        depth = np.interp(y, CAVITY[:, 0], CAVITY[:, 2]) + 0.4
        points = mirror(np.stack([x, y, depth * np.cos(angle)], -1), side)
        radius = np.repeat([[0.45], [0.55], [0.62]], [1, 1, 10], 0) * np.ones(40)
        ribs[f"ribs {side}"] = Curves(points, radius, 0.3 * density, 0.055 * density, 0.78)
    return ribs


def _girdle(pa: bool, density: float, width: float) -> dict[str, Curves]:
    """Clavicles, scapulae, upper arms."""
    into = 0.0 if pa else 1.6  # the shoulders are rolled forward for a PA film
    parts = {
        "clavicle": (0.62, 0.8, [(2.2, -6.0, -7), (6, -6.6, -8), (10, -8.1, -6.5), (14, -8.9, -4), (16.6, -8.4, -3)]),
        "lateral scapula": (0.5, 0.3, [(16.4 - into, -4.6, 8), (15.2 - into, 0.5, 9), (13.6 - into, 6.2, 9.5)]),
        "medial scapula": (0.25, 0.2, [(9.8 - into, -8.5, 9), (11.2 - into, -2, 10), (13.6 - into, 6.2, 9.5)]),
        "scapular spine": (0.45, 0.3, [(10.5 - into, -4.6, 10), (14 - into, -7.2, 10), (18.3 - into, -8.9, 7)]),
        "humerus": (1.25, 0.3, [(18.4, -6.0, 1), (19.6, 0, 1), (21.5, 9, 1)]),
        "humeral head": (2.0, 0.08, [(18.0, -7.2, 1), (18.4, -6.3, 1), (18.6, -5.4, 1)]),
    }
    bones = {}
    for name, (radius, wall, knots) in parts.items():
        for side in SIGN:
            points = mirror(curve(knots, 40), side) * np.array([width, 1, 1])
            radii = np.full((1, 40), radius)
            bones[f"{name} {side}"] = Curves(points[None], radii, wall * density, 0.09 * density, 0.75)
    return bones


def _calcified_aorta(old: float) -> dict[str, Curves]:
    """A thin shell in the wall of the aortic knob, in the aged."""
    if old < 0.55:
        return {}
    turn = np.linspace(-1.2, 1.3, 40)
    points = np.stack([0.7 + 0.6 * old + 2.5 * np.cos(turn), -2.5 + 2.0 * np.sin(turn), np.ones(40)], -1)
    return {"aortic wall": Curves(points[None], np.full((1, 40), 0.13), 0.8 * old)}


def _airways() -> list[Curves]:
    """Trachea, right and left main bronchus: air in soft tissue."""
    tubes = [(0.9, [(0, -22, 2), (0.1, -8, 2.5), (0.3, -0.3, 3.5)]),
             (0.65, [(0.2, -0.6, 3.5), (-2.0, 1.4, 3), (-3.6, 3.2, 2)]),
             (0.6, [(0.4, -0.6, 3.5), (2.6, 1.3, 3), (4.6, 2.4, 2)])]  # fmt: skip
    return [Curves(curve(knots)[None], np.array([[radius]]), -SOFT) for radius, knots in tubes]


def _arms_and_breasts(
    pa: bool, supine: bool, female: bool, fat: float, old: float
) -> Iterator[tuple[Ellipsoid, float]]:
    for sign in SIGN.values():
        if not pa:  # the arms hang at the side
            yield Ellipsoid((sign * (20.5 + fat / 2), 8, 0), (3.4 + fat / 2, 14, 3.4), -sign * 0.12), SOFT
        if female:
            size = 5.0 + 0.5 * fat + 0.4 * old
            sag = (0.8 + 1.6 * old + 0.4 * fat) * (0.4 if supine else 1)
            center = (sign * (8.8 + (1.8 if supine else 0.3)), 7.0 + sag, -9.0 - fat)
            yield Ellipsoid(center, (size * 1.2, size * 1.2, 1.8 + 0.45 * fat), sign * 0.2, 1, True), SOFT


def _stomach_gas(inspiration: float, rng: Generator) -> tuple[Ellipsoid, float]:
    radii = (float(rng.uniform(1.2, 2.8)), float(rng.uniform(0.6, 1.5)), float(rng.uniform(0.4, 1.8)))
    top = 22.9 + inspiration - 9.4  # of the left dome
    return Ellipsoid((float(rng.uniform(4.5, 8.5)), top + 1.0 + radii[1], -2), radii), -SOFT


def _vessels(hilum: Array, side: float, rng: Generator) -> list[Curves]:
    """Hilum and pulmonary vessels: each generation thinner, shorter and more numerous, from the hilum outwards."""
    flip = np.array([side, 1, 1])
    trunk = [(-1.0, -1.2, 0), (0.3, 0.0, 0), (1.2, 2.2, 0.3), (1.9, 5.0, 0.8)]  # the descending branch
    bundles = [Curves((hilum + curve(trunk) * flip)[None], np.linspace(0.75, 0.2, 24)[None], 0.13)]
    start = hilum + flip * np.array([[0.4, -0.8, 0]] * 3 + [[1.2, 0.8, 0]] * 2 + [[1.9, 2.8, 0.2]] * 4)
    angle = np.radians([-78, -55, -35, -12, 10, 28, 45, 62, 80]) + rng.normal(0, 0.1, 9)
    reach = np.array([7, 8, 9, 9, 9.5, 10, 10, 9, 8]) * rng.uniform(0.85, 1.1, 9)
    radius = np.array([0.27, 0.27, 0.27, 0.28, 0.32, 0.38, 0.4, 0.4, 0.36])
    tilt = rng.normal(0, 0.5, 9)
    along = np.linspace(0, 1, 14)
    for _ in range(4):
        turned = angle[:, None] + rng.normal(0, 0.25, len(angle))[:, None] * along
        rise = np.broadcast_to(np.sin(tilt)[:, None], turned.shape)
        step = np.stack([side * np.cos(turned), np.sin(turned), rise], -1)
        points = start[:, None] + step * (reach[:, None] * along)[..., None]
        thickness = radius[:, None] * (1 - 0.55 * along)
        bundles.append(Curves(points, thickness, VESSEL))
        children = np.array([4, 7, 10])  # where along the vessel it branches
        parent, where = np.repeat(np.arange(len(angle)), 3), np.tile(children, len(angle))
        start = points[parent, where]
        fork = np.tile([1, -1, 1], len(angle)) * rng.uniform(0.35, 0.8, len(parent)) * rng.choice([1, -1], len(parent))
        angle, tilt = angle[parent] + fork, tilt[parent] + rng.normal(0, 0.5, len(parent))
        reach = reach[parent] * rng.uniform(0.4, 0.65, len(parent))
        radius = thickness[parent, where] * rng.uniform(0.6, 0.85, len(parent))
    return bundles
