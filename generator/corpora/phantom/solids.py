"""Solids that phantoms are made of, and in closed form the thickness of each along the rays of an X-ray beam.

Lengths are centimeters of a standard body. x points to the patient's left (to the right of the image), y to the feet
with the carina at 0, z to the back. Attenuation coefficients are per cm, near 60 keV, rounded. The beam diverges from a
point, so a solid is magnified by its own depth: the heart looks larger in an AP film, where it is far from the
detector. Soft solids are spans along z; bones, vessels and devices are bundles of tubes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.interpolate import CubicSpline

Array = NDArray[np.floating[Any]]

SIGN = {"right": -1.0, "left": 1.0}  # direction of x


@dataclass
class Beam:
    """Source, detector and pixel grid. PA has the detector in front (negative z), AP behind."""

    source: float
    """Distance from source to detector."""
    detector: float
    """z of the detector."""
    turn: float
    """Rotation of the patient about the long axis, radians."""
    roll: float
    """Rotation of the image in its plane, radians."""
    pixel: float
    size: int
    shift: tuple[float, float]
    """Point of the body in the center of the image."""
    x: Array = field(init=False)
    y: Array = field(init=False)

    def __post_init__(self) -> None:
        rows, columns = np.mgrid[: self.size, : self.size].astype(np.float32) - (self.size - 1) / 2
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        self.x = ((cos * columns - sin * rows) * self.pixel + self.shift[0]).astype(np.float32)
        self.y = ((sin * columns + cos * rows) * self.pixel + self.shift[1]).astype(np.float32)

    def magnification(self, z: Any) -> Any:
        """How much larger than life the detector shows what is at depth z (cm)."""
        return self.source / (self.source - np.abs(z - self.detector))

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """Points [..., 3] of the body -> x, y on the detector and the magnification there, each [...]."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        x = cos * points[..., 0] + sin * points[..., 2]
        z = cos * points[..., 2] - sin * points[..., 0]
        scale = self.magnification(z)
        return x * scale, points[..., 1] * scale, scale

    def to_pixel(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Detector coordinates -> column, row."""
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        x, y = (x - self.shift[0]) / self.pixel, (y - self.shift[1]) / self.pixel
        middle = (self.size - 1) / 2
        return cos * x + sin * y + middle, cos * y - sin * x + middle

    def place(self, point: Any) -> list[float]:
        """A point of the body as [x, y] in fractions of the image's sides, for the record."""
        x, y, _ = self.project(np.asarray(point, dtype=float))
        return [round(float((value + 0.5) / self.size), 3) for value in self.to_pixel(x, y)]


@dataclass
class Ellipsoid:
    """An ellipsoid; `power` above 1 makes it boxier."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle: float = 0.0
    """Tilt in the plane of the image, radians."""
    power: float = 1.0
    fade: bool = False
    """Thin towards the top, as a breast is."""

    def half_depth(self, beam: Beam) -> Array:
        """Half the length of each ray in it, in cm: [H, W], 0 outside."""
        x, y, scale = beam.project(np.array(self.center))
        dx, dy = (beam.x - x) / scale, (beam.y - y) / scale
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        radius = ((cos * dx + sin * dy) / self.radii[0]) ** 2 + ((cos * dy - sin * dx) / self.radii[1]) ** 2
        depth = self.radii[2] * np.sqrt(np.clip(1 - radius**self.power, 0, None))
        return np.asarray(depth * np.clip(0.5 + 0.6 * dy / self.radii[1], 0, 1) ** 2 if self.fade else depth)

    def within(self, depth: Array, beam: Beam) -> Array:
        """Length of the ray inside both this solid and the span from -depth to depth."""
        half = self.half_depth(beam)
        return np.clip(np.minimum(self.center[2] + half, depth) - np.maximum(self.center[2] - half, -depth), 0, None)

    def edge(self, beam: Beam, side: float) -> float:
        """x of the outermost point on that side (-1 or 1), on the detector."""
        reach = np.hypot(self.radii[0] * np.cos(self.angle), self.radii[1] * np.sin(self.angle))
        x, _, scale = beam.project(np.array(self.center))
        return float(x + side * reach * scale)


@dataclass
class Stack:
    """Superellipses of varying width and depth, one upon the other along y."""

    knots: Array
    """[n, 3]: y, half width, half depth."""
    power: float

    def half_depth(self, x: Array, y: Array) -> Array:
        """Half its depth at x, y, in cm; 0 outside."""
        width, depth = (np.interp(y, self.knots[:, 0], self.knots[:, i], left=1e-3, right=1e-3) for i in (1, 2))
        return depth * np.clip(1 - np.abs(x / width) ** self.power, 0, None) ** (1 / self.power)

    def width(self, y: Any) -> Any:
        """Half width at y, which may be an array."""
        return np.interp(y, self.knots[:, 0], self.knots[:, 1])


@dataclass
class Curves:
    """A bundle of round tubes: points [n, p, 3], radius [n, p] (0: a gap), attenuation of the wall and of the core."""

    points: Array
    radius: Array
    wall: float
    core: float | None = None
    """None: solid."""
    hollow: float = 0.72
    """Radius of the core as a fraction of the tube's."""


@lru_cache(maxsize=512)
def _disc(radius: float, wall: float, core: float, hollow: float, size: int) -> Array:
    """Spectrum of a disc of attenuation: summing discs along a curve gives the chord through a round tube."""
    axis = fft.fftfreq(size, 1 / size).astype(np.float32)
    distance = np.hypot(axis[:, None], axis[None, :])

    def disc(r: float) -> Array:
        soft = np.clip(r - distance + 0.5, 0, 1)
        return np.asarray(soft * (np.pi * r * r / max(soft.sum(), 1e-9)))

    kernel = wall * disc(radius) - ((wall - core) * disc(radius * hollow) if core != wall else 0)
    return np.asarray(fft.rfft2(kernel.astype(np.float32)))


def attenuation_of(bundles: list[Curves], beam: Beam) -> Array:
    """Attenuation [size, size] of all tubes together."""
    pad = beam.size // 8
    size = fft.next_fast_len(beam.size + 2 * pad, real=True)
    kinds: dict[tuple[float, float, float, float], int] = {}
    where, amount = [], []
    for bundle in bundles:
        x, y, scale = beam.project(bundle.points)
        column, row = (value + pad for value in beam.to_pixel(x, y))
        radius = np.broadcast_to(bundle.radius, scale.shape)[:, 1:]
        length = np.linalg.norm(np.diff(bundle.points, axis=1), axis=-1) * scale[:, 1:] * (radius > 0) / beam.pixel
        radius = np.exp(np.round(np.log(np.clip(radius * scale[:, 1:] / beam.pixel, 0.2, None)) * 4) / 4)
        core = bundle.wall if bundle.core is None else bundle.core
        radii, kind = np.unique(radius.reshape(-1), return_inverse=True)  # few radii, few transforms
        ids = [kinds.setdefault((round(float(r), 4), bundle.wall, core, bundle.hollow), len(kinds)) for r in radii]
        pieces = max(1, int(np.ceil(np.percentile(length, 90) / 0.7)))
        t = (np.arange(pieces) + 0.5) / pieces
        columns, rows = ((v[:, :-1, None] + np.diff(v)[..., None] * t).reshape(-1) for v in (column, row))
        inside = (columns >= 0) & (rows >= 0) & (columns < size - 1) & (rows < size - 1)
        columns, rows = columns[inside], rows[inside]
        weight = np.repeat(length.reshape(-1) / pieces, pieces)[inside]
        left, top = columns.astype(int), rows.astype(int)
        right, bottom = columns - left, rows - top
        first = (np.repeat(np.array(ids)[kind], pieces)[inside] * size + top) * size + left
        where += [first, first + 1, first + size, first + size + 1]
        amount += [weight * (1 - right) * (1 - bottom), weight * right * (1 - bottom),
                   weight * (1 - right) * bottom, weight * right * bottom]  # fmt: skip
    layers = np.bincount(np.concatenate(where), np.concatenate(amount), len(kinds) * size * size)
    spectra = fft.rfft2(layers.reshape(-1, size, size).astype(np.float32))
    total = sum(spectrum * _disc(*kind, size) for spectrum, kind in zip(spectra, kinds, strict=True))
    image = fft.irfft2(total, (size, size))[pad : pad + beam.size, pad : pad + beam.size]
    return np.asarray(image * beam.pixel)


@lru_cache
def _spline(knots: int, points: int) -> Array:
    return np.asarray(CubicSpline(np.linspace(0, 1, knots), np.eye(knots))(np.linspace(0, 1, points)))


def curve(knots: Any, points: int = 24) -> Array:
    """A smooth curve [points, 3] through knots [n, 3]."""
    return np.asarray(_spline(len(knots), points) @ np.asarray(knots, dtype=float))


def mirror(points: Array, side: str) -> Array:
    """Points drawn for the left side, on the side asked for."""
    return points * np.array([SIGN[side], 1, 1])
