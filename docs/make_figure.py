"""Draw docs/images/example.png: a synthetic film, its draft and its reference report, observations colored.

    raddraft demo                       # once, some minutes
    python docs/make_figure.py runs/demo

The film is a phantom of the demo's test split, computed at 512 px and drafted by the demo's model. Observations are
those of the rule-based labeler, sentence by sentence; it does not compare sides or severities.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
from PIL import Image, ImageDraw, ImageFont

import raddraft
from generator.corpora.phantom import convert
from metrics.rules import label

OUT = Path(__file__).parent / "images" / "example.png"
STUDY = "s50000027"
SIDE = 512
INK, MUTED, LINE, PAPER = "#1c1e20", "#5d6368", "#d6d8d8", "#ffffff"
COLORS = {"correct": ("#14703a", "#e6f4ea"), "missed": ("#a63f00", "#fdeee4"), "invented": ("#0a5c99", "#e6f1fa")}
LEGEND = {
    "correct": "✓ Correct: observed in both",
    "missed": "− Missed: in the reference only",
    "invented": "+ Invented: in the draft only",
}
WIDTH, MARGIN, COLUMN = 1500, 32, 428


def main(run: Path, study_id: str = STUDY, out: Path = OUT) -> None:
    """Draft one synthetic study with the model of a demo run and draw it."""
    number = int(study_id[1:]) - 50_000_000
    with TemporaryDirectory() as folder:
        study = convert(Path(folder), count=number, size=SIDE).studies[-1]
        draft = str(raddraft.load_model(run / "model").draft(study))
        film = raddraft.read_image(study.main_image.path).convert("RGB")
    draw(film, draft, study.sections["findings"], study_id).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB, split {study.split}\n{draft}\n{study.sections['findings']}")


def draw(film: Image.Image, draft: str, reference: str, study_id: str) -> Image.Image:
    """The figure: the film, and beside it draft and reference with marked sentences."""
    marked = {
        "Draft": mark(draft, positives(reference), "invented"),
        "Reference": mark(reference, positives(draft), "missed"),
    }
    canvas = Image.new("RGB", (WIDTH, SIDE + 2 * MARGIN + 44), PAPER)
    pen = ImageDraw.Draw(canvas)
    canvas.paste(film.resize((SIDE, SIDE)), (MARGIN, MARGIN))
    pen.text((MARGIN, MARGIN + SIDE + 14), f"Synthetic phantom {study_id}. No patient.", MUTED, font(17))
    for i, (title, sentences) in enumerate(marked.items()):
        left = MARGIN + SIDE + 40 + i * (COLUMN + 44)
        pen.text((left, MARGIN - 4), title, INK, font(26, bold=True))
        pen.text((left, MARGIN + 28), SUBTITLES[title], MUTED, font(16))
        pen.line((left, MARGIN + 58, left + COLUMN, MARGIN + 58), LINE, 2)
        write(pen, sentences, left, MARGIN + 74)
    x = MARGIN + SIDE + 40
    for kind, text in LEGEND.items():
        ink, tint = COLORS[kind]
        width = pen.textlength(text, font(16, bold=True))
        y = MARGIN + SIDE + 12
        pen.rounded_rectangle((x, y, x + width + 20, y + 28), 5, tint)
        pen.text((x + 10, y + 5), text, ink, font(16, bold=True))
        x += width + 34
    return canvas.quantize(128, dither=Image.Dither.NONE)


SUBTITLES = {
    "Draft": "by the demo's tiny model; for a radiologist to check",
    "Reference": "the phantom's own report",
}


def positives(text: str) -> set[str]:
    """Observations that a text states as present."""
    return {name for name, value in label(text).items() if value == 1} - {"No Finding"}


def mark(text: str, others: set[str], kind: str) -> list[tuple[str, str | None]]:
    """(sentence, correct, `kind` or None) for every sentence; None states nothing as present."""
    marked: list[tuple[str, str | None]] = []
    for sentence in re.split(r"(?<=[.])\s+", text.strip()):
        found = positives(sentence)
        marked.append((sentence, None if not found else "correct" if found <= others else kind))
    return marked


def write(pen: ImageDraw.ImageDraw, sentences: list[tuple[str, str | None]], left: int, top: int) -> None:
    """Wrapped text, marked sentences on a tint of their color."""
    x, y, height = float(left), top, 37
    for sentence, kind in sentences:
        ink, tint = COLORS[kind] if kind else (INK, PAPER)
        face = font(21, bold=kind is not None)
        sign = {"correct": "✓ ", "missed": "− ", "invented": "+ "}.get(kind or "", "")
        blank = pen.textlength(" ", face)
        for word in f"{sign}{sentence}".replace(" ", "\u00a0", bool(sign)).split(" "):
            width = pen.textlength(word, face)
            if x + width > left + COLUMN:
                x, y = float(left), y + height
            pen.rectangle((x - blank / 2, y - 2, x + width + blank / 2, y + height - 8), tint)
            pen.text((x, y), word, ink, face)
            x += width + blank
        x += blank if kind else 0  # two marked sentences in a row stay apart


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"), *sys.argv[2:3])
