"""What this project and other DICOM readers make of odd films, as the tables of docs/dicom.md.

    python -m benchmarks.dicom_cases
    python -m benchmarks.dicom_cases --work /tmp/dicom-cases

The films are tiny and synthetic (dicom_films.py, dicom_list.py); what PS3.3 makes of each is computed from the picture
that went in. The peers are radreader, GDCM and SimpleITK from PyPI, in an environment of their own, and Debian's DCMTK,
unpacked without being installed. One that cannot be had is named, and its column stays empty.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.dicom_films import Film, reframe
from benchmarks.dicom_list import GROUPS
from raddraft.images import ImageError, ImageWarning, load_gray

PYTHON_PEERS = {"radreader": "radreader", "gdcm": "GDCM", "simpleitk": "SimpleITK"}
PINS = [
    "radreader==0.1.0", "python-gdcm==3.2.6", "SimpleITK==2.5.7", "pydicom==3.0.2", "numpy==2.4.6",
    "pylibjpeg==2.1.0", "pylibjpeg-libjpeg==2.5.0",
]  # fmt: skip
DCMTK = "dcmtk=3.6.7-9~deb12u4"  # of Debian 12
READERS = ("RadDraft", "radreader", "DCMTK", "GDCM", "SimpleITK")
DRAWS = {"RadDraft", "radreader", "DCMTK"}
"""Readers that give a picture. The others give values, to be windowed by who asked for them."""
SECONDS = 120.0
WORKER = Path(__file__).with_name("dicom_readers.py")


@dataclass
class Answer:
    """What a reader said of one file."""

    pixels: np.ndarray | None = None
    """[H, W]: a picture on the scale of 0..255, or values; None: refused."""
    error: str = ""
    warnings: list[str] = field(default_factory=list)


def main(work: Path | None = None) -> int:
    """Print the tables; the exit status is 1 if this project differs from PS3.3 without a reason given in the list.

    Args:
        work: Folder for the peers and the films, kept for the next run; by default a temporary one.
    """
    with TemporaryDirectory() as scratch:
        folder = (work or Path(scratch)).resolve()
        (folder / "films").mkdir(parents=True, exist_ok=True)
        missing: dict[str, str] = {}
        python = _try(_install_python_peers, folder, missing, *PYTHON_PEERS.values())
        dcmtk = _try(_install_dcmtk, folder, missing, "DCMTK")
        rows = [(group, case) for group, cases in GROUPS.items() for case in cases]
        films: dict[tuple[str, str, str], tuple[Film, Path]] = {}
        for group, case in rows:
            for variant, make in case.films.items():
                film, path = make(), folder / "films" / f"{len(films)}.dcm"
                if _write(film, path, python):
                    films[group, case.name, variant] = film, path
        answers = _read_all(films, python, dcmtk)
        print(f"Versions: {_versions(python, dcmtk)}.")
        for name, reason in missing.items():
            print(f"{name} is missing: {reason}.")
        return _print_tables(films, answers)


# The peers


def _try(install: Callable[[Path], Path], folder: Path, missing: dict[str, str], *names: str) -> Path | None:
    try:
        return install(folder)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        missing.update(dict.fromkeys(names, said[-1] if said else type(error).__name__))
        return None


def _install_python_peers(folder: Path) -> Path:
    """The Python of an environment with the peers from PyPI."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "venv" / "installed").exists():
        _call([sys.executable, "-m", "venv", folder / "venv"])
        _call([python, "-m", "pip", "install", "--quiet", *PINS])
        (folder / "venv" / "installed").touch()
    return python


def _install_dcmtk(folder: Path) -> Path:
    """The folder in which Debian's packages lie unpacked: they are not installed, so that it takes no root."""
    root = folder / "dcmtk"
    if not (root / "usr" / "bin" / "dcmj2pnm").exists():
        lists, cache = folder / "apt" / "lists", folder / "apt" / "cache"
        for one in (lists / "partial", cache / "archives" / "partial"):
            one.mkdir(parents=True, exist_ok=True)
        options = {"Dir::State::lists": lists, "Dir::Cache": cache, "Debug::NoLocking": 1, "APT::Sandbox::User": "root"}
        apt = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in options.items())]
        _call([*apt, "update"])
        _call([*apt, "install", "--yes", "--reinstall", "--download-only", "--no-install-recommends", DCMTK])
        for package in sorted((cache / "archives").glob("*.deb")):
            _call(["dpkg-deb", "--extract", package, root])
    return root


def _call(command: Sequence[str | Path], **more: object) -> subprocess.CompletedProcess[str]:
    options = {"check": True, "capture_output": True, "text": True, "errors": "replace", **more}
    return subprocess.run([str(one) for one in command], **options)  # type: ignore[call-overload, no-any-return]


def _environment(root: Path) -> dict[str, str]:
    """What DCMTK needs to run from where it was unpacked."""
    libraries = ":".join(map(str, root.glob("usr/lib/*-linux-gnu")))
    dictionary = next(root.glob("usr/share/*/dicom.dic"), None)  # of a package that may be installed already
    return {"LD_LIBRARY_PATH": libraries} | ({"DCMDICTPATH": str(dictionary)} if dictionary else {})


def _versions(python: Path | None, dcmtk: Path | None) -> str:
    from importlib.metadata import version

    found = [f"RadDraft {version('raddraft')} (pydicom {version('pydicom')})"]
    if python is not None:
        stated = json.loads(_call([python, WORKER, "versions"]).stdout)
        found += [f"{PYTHON_PEERS[name]} {one}" for name, one in stated.items()]
    if dcmtk is not None:
        found.append(f"DCMTK {DCMTK.partition('=')[2]}")
    return ", ".join(found)


def _write(film: Film, path: Path, python: Path | None) -> bool:
    """Write a film; False where the peer that would encode it is missing."""
    if film.encode is not None and python is None:
        return False
    film.write(path)
    if film.encode is not None:
        _call([str(python), WORKER, "encode", film.encode, path])
    if film.reframe is not None:
        reframe(path, film.reframe)
    return True


# Reading


def _read_all(
    films: dict[tuple[str, str, str], tuple[Film, Path]], python: Path | None, dcmtk: Path | None
) -> dict[tuple[Path, str], Answer]:
    """(file, reader) -> its answer."""
    answers = {}
    paths = [path for _, path in films.values()]
    for film, path in films.values():
        answers[path, "RadDraft"] = read_here(path)
        if dcmtk is not None:
            answers[path, "DCMTK"] = _read_dcmtk(film, path, dcmtk)
    for peer, name in PYTHON_PEERS.items() if python is not None else ():
        answers.update({(path, name): answer for path, answer in _read_peer(peer, paths, str(python)).items()})
    return answers


def read_here(path: Path) -> Answer:
    """What this project says of a file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        try:
            pixels, error = load_gray(path) * 255, ""
        except ImageError as refusal:
            pixels, error = None, str(refusal)
    said = [str(one.message) for one in caught if issubclass(one.category, ImageWarning)]
    return Answer(pixels, error, said)


def _read_dcmtk(film: Film, path: Path, root: Path) -> Answer:
    """The file's own VOI LUT or window is asked for, the first of it; DCMTK applies none unasked."""
    flags = ["--no-overlays"]
    if film.dataset.get("VOILUTSequence"):
        flags += ["+Wl", "1"]
    elif film.dataset.get("WindowCenter") is not None and film.dataset.get("WindowWidth") is not None:
        flags += ["+Wi", "1"]
    tool = root / "usr" / "bin" / ("dcml2pnm" if film.encode and film.encode.endswith("4.80") else "dcmj2pnm")
    out = path.with_suffix(".pnm")
    out.unlink(missing_ok=True)
    try:
        done = _call([tool, *flags, path, out], check=False, timeout=SECONDS, env=_environment(root))
    except subprocess.TimeoutExpired:
        return Answer(error=f"no answer in {SECONDS:g} s")
    said = {
        kind: [line[3:] for line in done.stderr.splitlines() if line.startswith(kind)] for kind in ("F:", "E:", "W:")
    }
    if done.returncode or not out.exists() or not out.stat().st_size:
        errors = said["E:"] + said["F:"]
        return Answer(error=errors[0] if errors else f"ends with status {done.returncode}")
    with Image.open(out) as image:
        return Answer(np.asarray(image.convert("L"), np.float64), warnings=said["W:"] + said["E:"])


def _read_peer(peer: str, paths: Sequence[Path], python: str) -> dict[Path, Answer]:
    """Read all files in one process, and go on after the file at which it ended, if it did."""
    answers: dict[Path, Answer] = {}
    for path in paths:
        path.with_suffix(f".{peer}.json").unlink(missing_ok=True)
    while left := [path for path in paths if path not in answers]:
        try:
            status = _call([python, WORKER, peer, *left], check=False, timeout=SECONDS).returncode
            ended = f"the process ends with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"no answer in {SECONDS:g} s"
        for path in left:
            result = path.with_suffix(f".{peer}.json")
            if not result.exists():
                answers[path] = Answer(error=ended)
                break
            answer = json.loads(result.read_text(encoding="utf-8"))
            pixels = None if answer["error"] else np.load(path.with_suffix(f".{peer}.npy")).astype(np.float64)
            if pixels is not None and peer == "radreader":
                pixels = pixels * 255
            answers[path] = Answer(pixels, answer["error"] or "", answer["warnings"])
    return answers


# Judging


def judge(film: Film, path: Path, reader: str, answer: Answer) -> str:
    """A few words on what a reader made of a film."""
    if answer.pixels is None:
        words = " ".join(answer.error.replace(f"{path}: ", "").replace(str(path), "the file").split())
        words = words if len(words) <= 64 or reader == "RadDraft" else words[:63].rstrip() + "…"
        return f"refused: {words}".replace("|", "/")
    pixels = answer.pixels
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels @ np.array([0.299, 0.587, 0.114])
    words = _judge_picture(film, pixels) if reader in DRAWS else _judge_values(film, pixels)
    return f"{words}, warns" if answer.warnings else words


def _judge_picture(film: Film, pixels: np.ndarray) -> str:
    wanted = film.meant if film.shown is None else film.shown
    outcomes = {"right" if film.shown is not None else "as meant": wanted}
    if film.shown is not None and not np.allclose(film.meant, film.shown):
        outcomes["as meant"] = film.meant
    outcomes["inverted"] = 1 - wanted
    if film.unheeded is not None:
        outcomes["not heeded"] = film.unheeded
    for words, expected in outcomes.items():
        if _equal(pixels, expected * 255, film.tolerance, film.judged):
            return words
    if pixels.ndim != 2 or pixels.shape[0] * wanted.shape[1] != pixels.shape[1] * wanted.shape[0]:
        return f"an array {' × '.join(map(str, pixels.shape))}"
    shades = np.rint(pixels)
    shares = [f"{np.mean(shades == shade):.0%} {name}" for shade, name in ((0, "black"), (255, "white"))]
    count = len(np.unique(shades))
    return f"**other**: {count} level{'s' * (count > 1)}, {', '.join(shares)}"


def _judge_values(film: Film, pixels: np.ndarray) -> str:
    values = film.values.astype(np.float64)
    top = -1 if values.min() < 0 else 2 ** int(values.max()).bit_length() - 1
    for words, expected in {"values": values, "values, inverted": top - values}.items():
        if _equal(pixels, expected, 1e-6 * float(np.ptp(values)), None):
            return words
    if pixels.ndim != 2:
        return f"an array {' × '.join(map(str, pixels.shape))}"
    return f"**other** values, {pixels.min():g} to {pixels.max():g}"


def _equal(pixels: np.ndarray, expected: np.ndarray, tolerance: float, judged: np.ndarray | None) -> bool:
    """Whether pixels are the expected ones within the tolerance; resampled ones of the same shape may be larger."""
    if pixels.ndim != 2 or pixels.shape[0] * expected.shape[1] != pixels.shape[1] * expected.shape[0]:
        return False
    if pixels.shape != expected.shape:
        resized = Image.fromarray(expected.astype(np.float32)).resize(pixels.shape[::-1], Image.Resampling.BILINEAR)
        expected = np.asarray(resized)
    difference = np.abs(pixels - expected)
    if judged is not None and judged.shape == difference.shape:
        difference = difference[judged]
    return bool(difference.max() <= tolerance + 1e-3)


# The tables


def _print_tables(films: dict[tuple[str, str, str], tuple[Film, Path]], answers: dict[tuple[Path, str], Answer]) -> int:
    unexplained = []
    for group, cases in GROUPS.items():
        print(f'\n## {group}\n\n<div class="wide" markdown>\n')
        print("| Film | PS3.3 | " + " | ".join(READERS) + " | Why RadDraft reads it so |")
        print("|" + "---|" * (len(READERS) + 3))
        for case in cases:
            made = {one: films[group, case.name, one] for one in case.films if (group, case.name, one) in films}
            cells = [
                cell({v: (film, path, answers.get((path, r))) for v, (film, path) in made.items()}, r) for r in READERS
            ]
            plainly = cells[0] in ("right", "right, warns", "—")
            if not plainly and not case.reason:
                unexplained.append(case.name)
            print("| " + " | ".join([case.name, case.standard, *cells, "" if plainly else case.reason]) + " |")
        print("\n</div>")
    if unexplained:
        print(f"\nRadDraft differs without a reason given: {'; '.join(unexplained)}", file=sys.stderr)
    return 1 if unexplained else 0


def cell(variants: Mapping[str, tuple[Film, Path, Answer | None]], reader: str) -> str:
    """What a reader made of the variants of a film: those with the same outcome together."""
    outcomes: dict[str, list[str]] = {}
    for variant, (film, path, answer) in variants.items():
        words = "—" if answer is None else judge(film, path, reader, answer)
        outcomes.setdefault(words, []).append(variant)
    if len(outcomes) <= 1:
        return "".join(outcomes) or "—"
    return "<br>".join(f"{', '.join(names)}: {words}" for words, names in outcomes.items())


if __name__ == "__main__":
    from raddraft.cli import run

    run("dicom_cases", package="benchmarks")
