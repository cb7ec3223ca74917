"""A chest phantom: the solids of a healthy body, and how a radiograph of it comes about.

The lung along a ray is the chest cavity less what heart, mediastinum and diaphragm take of it; disease fills it,
thickens its border or lets air in beside it. The exposure adds scatter, noise and blur; a grey scale makes the film.
Units and axes as in `phantom_solids`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from generator.corpora.phantom_solids import SIGN, Array, Beam, Curves, Ellipsoid, Stack, attenuation_of, curve, mirror

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

    @property
    def weight(self) -> float:
        return self.bmi * (self.height / 100) ** 2


@dataclass
class Film:
    """How a picture was taken."""

    view: str
    """PA or AP."""
    supine: bool
    inspiration: float
    """Downward excursion of the diaphragm beyond the usual, cm."""


@dataclass
class Patch:
    """A region where part of the lung's air is replaced by fluid."""

    centre: tuple[float, float, float]
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
    """The solids of one patient in one film; the signs of disease change them."""

    patient: Patient
    film: Film
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
        return (left - right) / (2 * self.cavity.width(12) * float(self.beam.magnification(0)))


def build(patient: Patient, view: str, size: int, rng: np.random.Generator) -> Body:
    """A healthy body of this patient, and how it is placed in the beam."""
    supine = view == "AP" and rng.random() < 0.6
    film = Film(view, supine, float(rng.normal(-1.3 if view == "AP" else 0.2, 0.6)) - 0.06 * (patient.bmi - 24))
    female, old = patient.sex == "F", float(np.clip((patient.age - 45) / 40, 0, 1))
    fat = max(0.0, (patient.bmi - 19) * 0.17)
    scale = patient.height / 176  # of the whole body against the detector
    field_of_view = (rng.uniform(36, 40) + 0.15 * max(0, patient.bmi - 27)) * scale**0.6
    beam = Beam(
        source=180 if view == "PA" else 105,
        detector=-13 - fat if view == "PA" else 14 + fat,
        turn=float(rng.normal(0, 0.02 if view == "PA" else 0.04)),
        roll=float(rng.normal(0, 0.015 if view == "PA" else 0.03)),
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
        patient, film, beam, Stack(torso, 2.6), Stack(cavity, 2.0),
        heart=_heart(rng.uniform(0.86, 0.98) + 0.004 * (patient.bmi - 24), old, 0.5 * film.inspiration),
        domes=_domes(film.inspiration, width),
        middle=middle,
        vessels={side: _vessels(hilum[side], SIGN[side], rng) for side in SIGN},
        bones=_ribs(density, width, rng) | _girdle(view, density, width) | _calcified_aorta(old),
        airways=_airways(),
        soft=_soft_parts(patient, film, fat, old, rng),
        bone_density=density,
    )  # fmt: skip


def _heart(size: float, old: float, sink: float) -> list[Ellipsoid]:
    """Ventricles, right atrium, outflow with the left atrial appendage."""
    return [
        Ellipsoid((2.8 * size, 10.3 + sink, -1.4), (7.1 * size, 5.5 * size, 7.2), 0.55, 1.4),
        Ellipsoid((-1.2 * size, 9.0 + sink, -2.0), (2.8 * size, 6.2 * size, 6.6), 0.0, 1.3),
        Ellipsoid((1.4 * size, 4.0, -2.0), (3.2 * size, 5.4, 6.2), -0.35, 1.3),
        Ellipsoid((0.9 + 0.6 * old, -2.2 - 0.5 * old, 1.0), (2.2 + 0.4 * old, 2.3, 5.0), 0.3, 1.2),
    ]


def _domes(inspiration: float, width: float) -> dict[str, Ellipsoid]:
    return {
        "right": Ellipsoid((-6.9 * width, 21.6 + inspiration, -1), (9.0 * width, 9.4, 11.0)),
        "left": Ellipsoid((6.9 * width, 22.9 + inspiration, -1), (8.8 * width, 9.4, 11.0)),
    }


def _ribs(density: float, width: float, rng: np.random.Generator) -> dict[str, Curves]:
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


def _girdle(view: str, density: float, width: float) -> dict[str, Curves]:
    """Clavicles, scapulae, upper arms."""
    into = 0.0 if view == "PA" else 1.6  # the shoulders are rolled forward for a PA film
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
    """Trachea and main bronchi: air in soft tissue."""
    trachea = curve([(0, -22, 2), (0.1, -8, 2.5), (0.3, -0.3, 3.5)])
    right = curve([(0.2, -0.6, 3.5), (-2.0, 1.4, 3), (-3.6, 3.2, 2)])
    left = curve([(0.4, -0.6, 3.5), (2.6, 1.3, 3), (4.6, 2.4, 2)])
    return [
        Curves(points[None], np.array([[radius]]), -SOFT)
        for points, radius in ((trachea, 0.9), (right, 0.65), (left, 0.6))
    ]


def _soft_parts(
    patient: Patient, film: Film, fat: float, old: float, rng: np.random.Generator
) -> list[tuple[Ellipsoid, float]]:
    """Arms at the side (AP), breasts, gas in the stomach."""
    parts = []
    for sign in SIGN.values():
        if film.view == "AP":
            parts.append((Ellipsoid((sign * (20.5 + fat / 2), 8, 0), (3.4 + fat / 2, 14, 3.4), -sign * 0.12), SOFT))
        if patient.sex == "F":
            size = 5.0 + 0.5 * fat + 0.4 * old
            sag = (0.8 + 1.6 * old + 0.4 * fat) * (0.4 if film.supine else 1)
            centre = (sign * (8.8 + (1.8 if film.supine else 0.3)), 7.0 + sag, -9.0 - fat)
            parts.append((Ellipsoid(centre, (size * 1.2, size * 1.2, 1.8 + 0.45 * fat), sign * 0.2, 1, True), SOFT))
    gas = (float(rng.uniform(1.2, 2.8)), float(rng.uniform(0.6, 1.5)), float(rng.uniform(0.4, 1.8)))
    top = 22.9 + film.inspiration - 9.4
    parts.append((Ellipsoid((float(rng.uniform(4.5, 8.5)), top + 1.0 + gas[1], -2), gas), -SOFT))
    return parts


def _vessels(hilum: Array, side: float, rng: np.random.Generator) -> list[Curves]:
    """Hilum and pulmonary vessels: each generation thinner, shorter and more numerous, from the hilum outwards."""
    trunk = [(-1.0, -1.2, 0), (0.3, 0.0, 0), (1.2, 2.2, 0.3), (1.9, 5.0, 0.8)]  # the descending branch
    points = hilum + curve(trunk) * np.array([side, 1, 1])
    bundles = [Curves(points[None], np.linspace(0.75, 0.2, 24)[None], 0.13)]
    start = hilum + np.array([side, 1, 1]) * np.array(
        [[0.4, -0.8, 0]] * 3 + [[1.2, 0.8, 0]] * 2 + [[1.9, 2.8, 0.2]] * 4
    )
    angle = np.radians([-78, -55, -35, -12, 10, 28, 45, 62, 80]) + rng.normal(0, 0.1, 9)
    reach = np.array([7, 8, 9, 9, 9.5, 10, 10, 9, 8]) * rng.uniform(0.85, 1.1, 9)
    radius = np.array([0.27, 0.27, 0.27, 0.28, 0.32, 0.38, 0.4, 0.4, 0.36])
    tilt = rng.normal(0, 0.5, 9)
    along = np.linspace(0, 1, 14)
    for _ in range(4):
        bend = rng.normal(0, 0.25, len(angle))[:, None] * along
        turned = angle[:, None] + bend
        step = np.stack(
            [side * np.cos(turned), np.sin(turned), np.broadcast_to(np.sin(tilt)[:, None], turned.shape)], -1
        )
        points = start[:, None] + step * (reach[:, None] * along)[..., None]
        thickness = radius[:, None] * (1 - 0.55 * along)
        bundles.append(Curves(points, thickness, VESSEL))
        children = np.array([4, 7, 10])
        parent = np.repeat(np.arange(len(angle)), len(children))
        where = np.tile(children, len(angle))
        start = points[parent, where]
        fork = np.tile([1, -1, 1], len(angle)) * rng.uniform(0.35, 0.8, len(parent)) * rng.choice([1, -1], len(parent))
        angle, tilt = angle[parent] + fork, tilt[parent] + rng.normal(0, 0.5, len(parent))
        reach = reach[parent] * rng.uniform(0.4, 0.65, len(parent))
        radius = thickness[parent, where] * rng.uniform(0.6, 0.85, len(parent))
    return bundles


def render(body: Body, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Expose the film: grey values 0 to 255 (fractions kept), lung fields (without heart and mediastinum)."""
    attenuation, lung, torso = _attenuation(body, rng)
    signal = _detect(attenuation, body.beam, rng)
    return _tone(signal, torso > 1, lung > 2, body, rng), lung > 1.5


def _attenuation(body: Body, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Attenuation, lung along the ray (cm, as if free of disease), soft tissue along the ray (cm)."""
    beam = body.beam
    scale = float(beam.magnification(0))
    x, y = beam.x / scale - np.sin(beam.turn), beam.y / scale
    torso = 2 * body.torso.half_depth(x, y)
    tissue = torso + sum(2 * part.half_depth(beam) * mu / SOFT for part, mu in body.soft if mu > 0)
    shifted = x - body.shift * np.clip((15 - y) / 6, 0, 1)  # the diaphragm holds the lower end
    cavity, air, line = _cavity(body, x, y, shifted)
    heart = np.max([part.within(cavity, beam) for part in body.heart], axis=0)
    dome = sum(part.within(cavity, beam) for part in body.domes.values())
    border = [np.interp(y, body.middle[:, 0], body.middle[:, i]) for i in (1, 2)]
    soft_edge = np.interp(y, [-2, 6], [0.5, 1.6])
    clear = np.clip((np.where(shifted < 0, -shifted - border[0], shifted - border[1])) / soft_edge + 0.5, 0, 1)
    lung_field = np.clip(2 * cavity - heart - dome, 0, None) * clear
    air = np.minimum(air, lung_field)
    lung = lung_field - air
    filled = _filled(body, shifted, y, cavity, rng)
    vessels = attenuation_of([_squeezed(bundle, body, side) for side in SIGN for bundle in body.vessels[side]], beam)
    vessels = vessels * np.clip(lung / 2.5, 0, 1) * (1 - filled)
    gas = [2 * part.half_depth(beam) * mu for part, mu in body.soft if mu < 0]
    attenuation = (
        SOFT * tissue
        - (SOFT - LUNG) * lung * (1 - filled)
        - SOFT * air
        + SOFT * line
        + vessels
        + sum(gas)
        + _spine(body, x, y)
        + attenuation_of(
            [_moved(tube, body.shift) for tube in body.airways] + [*body.bones.values(), *body.devices], beam
        )
    )
    return np.clip(attenuation, 0, None), lung_field, tissue


def _cavity(body: Body, x: Array, y: Array, shifted: Array) -> tuple[Array, Array, Array]:
    """Half depth of the pleural cavity; free air (cm along the ray); the visceral pleura seen edge-on."""
    cavity = body.cavity.half_depth(x, y)
    air, line = np.zeros_like(x), np.zeros_like(x)
    for side, (sx, sy) in body.collapse.items():
        own = shifted * SIGN[side] > 0
        root = HILUM[side] * np.array([1, 0, 1]) + np.array([body.shift, 15, 0])
        lung = body.cavity.half_depth(root[0] + (x - root[0]) / sx, root[1] + (y - root[1]) / sy) * (sx + 1) / 2
        lung = np.minimum(lung, cavity)
        air = np.where(own, 2 * (cavity - lung), air)
        line = np.where(own, np.exp(-(((lung - 1.2) / 0.8) ** 2)) * (cavity > 2.5) * 0.5, line)
    return cavity, air, line


def _filled(body: Body, x: Array, y: Array, cavity: Array, rng: np.random.Generator) -> Array:
    """Part of the lung's thickness along each ray that disease has filled, 0 to 1."""
    beam = body.beam
    texture = 0.5 + 0.5 * np.clip(_noise(rng, beam.size, 1.6 / beam.pixel) * 1.2, -1, 1)
    empty = 1 + 0.012 * _noise(rng, beam.size, 0.5 / beam.pixel) - 0.012
    for patch in body.patches:
        dx, dy = (x - patch.centre[0]) / patch.radii[0], (y - patch.centre[1]) / patch.radii[1]
        wobble = 1 + (0.3 + 0.7 * patch.grain) * (texture - 0.5)
        shape = np.exp(-(((dx**2 + dy**2) * wobble) ** patch.sharp))
        edges = np.clip((y - patch.limits[0]) / 0.4, 0, 1) * np.clip((patch.limits[1] - y) / 0.4, 0, 1)
        own = np.clip(np.sign(patch.centre[0]) * x / 0.5, 0, 1)
        empty = empty * (1 - patch.density * shape * edges * own * (1 - patch.grain * (1 - texture)))
    for side, level in body.fluid.items():
        wall = body.cavity.width(12)
        rise = 4.5 * np.exp(np.minimum(x * SIGN[side] - wall, 0) / 2.2)  # the meniscus climbs along the chest wall
        depth = np.clip(y - level + rise, 0, None) / (2.0 if not body.film.supine else 3.5)
        empty = empty * np.where(x * SIGN[side] > 0, np.exp(-2 * depth**1.5), 1)
    for side, above, below, thick in body.peels:
        reach = 8.4 * np.sqrt(1 - (1 - thick / 14) ** 2) * (0.85 + 0.3 * texture)  # half depth where the peel ends
        rim = np.clip((reach - cavity) / 0.5, 0, 1) * (cavity > 0.05)
        part = np.clip((y - above) / 0.8, 0, 1) * np.clip((below - y) / 0.8, 0, 1) * (x * SIGN[side] > 0)
        empty = empty * (1 - 0.9 * rim * part)
    return 1 - np.clip(empty, 0, 1)


def _squeezed(bundle: Curves, body: Body, side: str) -> Curves:
    """Vessels follow the lung: drawn in by pneumothorax, along with a displaced mediastinum."""
    points = bundle.points + np.array([body.shift, 0, 0])
    if side in body.collapse:
        sx, sy = body.collapse[side]
        root = HILUM[side] * np.array([1, 0, 1]) + np.array([body.shift, 15, 0])
        points = root + (points - root) * np.array([sx, sy, 1])
    return Curves(points, bundle.radius, bundle.wall, bundle.core)


def _moved(bundle: Curves, shift: float) -> Curves:
    """The trachea bends with the mediastinum, more so further down."""
    share = np.clip((bundle.points[..., 1] + 14) / 12, 0, 1)
    points = bundle.points + np.stack([shift * share, 0 * share, 0 * share], -1)
    return Curves(points, bundle.radius, bundle.wall, bundle.core)


def _spine(body: Body, x: Array, y: Array) -> Array:
    """Vertebral bodies with discs between them, pedicles, spinous processes."""
    phase = (y / RIB_PITCH) % 1 - 0.5
    across = x / (1.55 + 0.025 * np.clip(y + 14, 0, None))
    box = np.exp(-np.square(np.square(np.square(across))) - np.square(np.square(phase / 0.42)) ** 2)
    pedicles = np.exp(-np.square((np.abs(across) - 0.62) / 0.16) - np.square((phase + 0.12) / 0.16))
    process = np.exp(-np.square(across / 0.16) - np.square((phase - 0.25) / 0.22))
    return np.asarray(body.bone_density * (0.26 * box + 0.16 * pedicles + 0.16 * process))


def _noise(rng: np.random.Generator, size: int, grain: float) -> Array:
    """Smooth noise [size, size] of unit variance with blobs of about `grain` pixels."""
    cells = max(4, int(size / grain) + 2)
    coarse = ndimage.zoom(
        rng.standard_normal((cells, cells)), size / cells + 1e-6, order=3, grid_mode=True, mode="grid-mirror"
    )
    coarse = coarse[:size, :size]
    return np.asarray(coarse / coarse.std())


def _detect(attenuation: Array, beam: Beam, rng: np.random.Generator) -> Array:
    """Primary beam plus scatter, quantum noise, detector blur -> minus the logarithm of the exposure."""
    primary = np.exp(-attenuation)
    small = ndimage.zoom(primary, 0.25, order=1)
    scatter = ndimage.gaussian_filter(small, 3.0 / beam.pixel / 4)
    scatter = ndimage.zoom(scatter, np.array(primary.shape) / np.array(scatter.shape), order=1)
    exposure = np.minimum(primary + 0.12 * np.minimum(scatter, 0.2) + 0.002, 1.2)
    dose = 1 / (rng.uniform(0.006, 0.014) ** 2 * np.median(exposure))  # automatic exposure control
    exposure = exposure + rng.standard_normal(exposure.shape) * np.sqrt(exposure / dose)
    exposure = ndimage.gaussian_filter(np.clip(exposure, 1e-4, None), rng.uniform(0.35, 0.6))
    return np.asarray(-np.log(exposure))


def _tone(
    signal: Array, torso: NDArray[np.bool_], lung: NDArray[np.bool_], body: Body, rng: np.random.Generator
) -> Array:
    """Local contrast and the grey scale of a film: lungs dark, direct exposure black, dense parts held back."""
    broad = ndimage.gaussian_filter(signal, 2.5 / body.beam.pixel)
    signal = signal + rng.uniform(0.3, 0.6) * np.clip(signal - broad, -0.35, 0.25)
    dark = np.percentile(signal[lung], 8)
    bright = np.percentile(signal[torso], 93)
    level = np.clip((signal - dark) / (bright - dark), 0, 1.6)
    shoulder = rng.uniform(0.68, 0.82)
    low, high = rng.uniform(45, 75), rng.uniform(214, 226)
    picture = np.where(
        signal < dark,
        np.interp(signal, np.array([0, 0.45, 1]) * dark, np.array([3, 14, low])),
        low + (high - low) * level**shoulder,
    )
    return np.asarray(np.clip(picture, 0, 255))
