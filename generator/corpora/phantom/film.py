"""How a radiograph of a phantom comes about: attenuation along each ray, exposure, the gray scale of a film.

The lung along a ray is the chest cavity less what heart, mediastinum and diaphragm take of it; disease fills it,
thickens its border or lets air in beside it. The exposure adds scatter, noise and blur.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from generator.corpora.phantom.body import HILUM, LUNG, RIB_PITCH, SOFT, Body
from generator.corpora.phantom.solids import SIGN, Array, Beam, Curves, attenuation_of

Mask = NDArray[np.bool_]


def render(body: Body, rng: Generator) -> tuple[Array, Mask]:
    """Expose the film: gray values 0 to 255 (fractions kept), lung fields (without heart and mediastinum)."""
    attenuation, lung, torso = _attenuation(body, rng)
    signal = _detect(attenuation, body.beam, rng)
    return _tone(signal, torso > 1, lung > 2, body.beam, rng), lung > 1.5


def _attenuation(body: Body, rng: Generator) -> tuple[Array, Array, Array]:
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
    tubes = [_moved(tube, body.shift) for tube in body.airways] + [*body.bones.values(), *body.devices]
    attenuation = (
        SOFT * tissue
        - (SOFT - LUNG) * lung * (1 - filled)
        - SOFT * air
        + SOFT * line
        + vessels
        + sum(gas)
        + _spine(body.bone_density, x, y)
        + attenuation_of(tubes, beam)
    )
    return np.clip(attenuation, 0, None), lung_field, tissue


def _cavity(body: Body, x: Array, y: Array, shifted: Array) -> tuple[Array, Array, Array]:
    """Half depth of the pleural cavity; free air (cm along the ray); the visceral pleura seen edge-on."""
    cavity = body.cavity.half_depth(x, y)
    air, line = np.zeros_like(x), np.zeros_like(x)
    for side, (sx, sy) in body.collapse.items():
        own = shifted * SIGN[side] > 0
        root = _root(body, side)
        lung = body.cavity.half_depth(root[0] + (x - root[0]) / sx, root[1] + (y - root[1]) / sy) * (sx + 1) / 2
        lung = np.minimum(lung, cavity)
        air = np.where(own, 2 * (cavity - lung), air)
        line = np.where(own, np.exp(-(((lung - 1.2) / 0.8) ** 2)) * (cavity > 2.5) * 0.5, line)
    return cavity, air, line


def _root(body: Body, side: str) -> Array:
    """The point that a collapsing lung shrinks towards."""
    return HILUM[side] * np.array([1, 0, 1]) + np.array([body.shift, 15, 0])


def _filled(body: Body, x: Array, y: Array, cavity: Array, rng: Generator) -> Array:
    """Part of the lung's thickness along each ray that disease has filled, 0 to 1."""
    beam = body.beam
    texture = 0.5 + 0.5 * np.clip(_noise(rng, beam.size, 1.6 / beam.pixel) * 1.2, -1, 1)
    empty = 1 + 0.012 * _noise(rng, beam.size, 0.5 / beam.pixel) - 0.012
    for patch in body.patches:
        dx, dy = (x - patch.center[0]) / patch.radii[0], (y - patch.center[1]) / patch.radii[1]
        wobble = 1 + (0.3 + 0.7 * patch.grain) * (texture - 0.5)
        shape = np.exp(-(((dx**2 + dy**2) * wobble) ** patch.sharp))
        edges = np.clip((y - patch.limits[0]) / 0.4, 0, 1) * np.clip((patch.limits[1] - y) / 0.4, 0, 1)
        own = np.clip(np.sign(patch.center[0]) * x / 0.5, 0, 1)
        empty = empty * (1 - patch.density * shape * edges * own * (1 - patch.grain * (1 - texture)))
    for side, level in body.fluid.items():
        rise = 4.5 * np.exp(np.minimum(x * SIGN[side] - body.cavity.width(12), 0) / 2.2)  # meniscus at the chest wall
        depth = np.clip(y - level + rise, 0, None) / (3.5 if body.supine else 2.0)
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
        root = _root(body, side)
        points = root + (points - root) * np.array([*body.collapse[side], 1])
    return replace(bundle, points=points)


def _moved(bundle: Curves, shift: float) -> Curves:
    """The trachea bends with the mediastinum, more so further down."""
    share = np.clip((bundle.points[..., 1:2] + 14) / 12, 0, 1)
    return replace(bundle, points=bundle.points + shift * share * np.array([1, 0, 0]))


def _spine(density: float, x: Array, y: Array) -> Array:
    """Vertebral bodies with discs between them, pedicles, spinous processes."""
    phase = (y / RIB_PITCH) % 1 - 0.5
    across = x / (1.55 + 0.025 * np.clip(y + 14, 0, None))
    box = np.exp(-np.square(np.square(np.square(across))) - np.square(np.square(phase / 0.42)) ** 2)
    pedicles = np.exp(-np.square((np.abs(across) - 0.62) / 0.16) - np.square((phase + 0.12) / 0.16))
    process = np.exp(-np.square(across / 0.16) - np.square((phase - 0.25) / 0.22))
    return np.asarray(density * (0.26 * box + 0.16 * pedicles + 0.16 * process))


def _noise(rng: Generator, size: int, grain: float) -> Array:
    """Smooth noise [size, size] of unit variance with blobs of about `grain` pixels."""
    cells = max(4, int(size / grain) + 2)
    white = rng.standard_normal((cells, cells))
    coarse = ndimage.zoom(white, size / cells + 1e-6, order=3, grid_mode=True, mode="grid-mirror")[:size, :size]
    return np.asarray(coarse / coarse.std())


def _detect(attenuation: Array, beam: Beam, rng: Generator) -> Array:
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


def _tone(signal: Array, torso: Mask, lung: Mask, beam: Beam, rng: Generator) -> Array:
    """Local contrast and the gray scale of a film: lungs dark, direct exposure black, dense parts held back."""
    broad = ndimage.gaussian_filter(signal, 2.5 / beam.pixel)
    signal = signal + rng.uniform(0.3, 0.6) * np.clip(signal - broad, -0.35, 0.25)
    dark, bright = np.percentile(signal[lung], 8), np.percentile(signal[torso], 93)
    level = np.clip((signal - dark) / (bright - dark), 0, 1.6)
    shoulder = rng.uniform(0.68, 0.82)
    low, high = rng.uniform(45, 75), rng.uniform(214, 226)
    toe = np.interp(signal, np.array([0, 0.45, 1]) * dark, np.array([3, 14, low]))
    return np.asarray(np.clip(np.where(signal < dark, toe, low + (high - low) * level**shoulder), 0, 255))
