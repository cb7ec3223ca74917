"""Look once at every film and report of a collection, and list what is odd before anything is spent.

    raddraft check my-dicoms --out check
    raddraft check studies.jsonl --out check

Films that cannot be read or were read with a warning, look inverted, turned, like laterals among frontals or like no
chest, are tiny or huge, have burned-in borders, or copy others, also of another split; blank and equal reports;
sections that hold another one's header; subjects in two splits. Counts are printed; findings.csv has a row for each
finding, sheet.png shows some of the odd films. What a film looks like is guessed by simple statistics, and can be
wrong. Nothing is changed.
"""

from __future__ import annotations

from pathlib import Path

from raddraft.cli import run
from raddraft.ranges import Count, Whole
from raddraft.studies import GrayMapping

POSITIONAL = ("source",)


def main(
    source: Path,
    out: Path = Path("check"),
    smallest: Whole = 200,
    largest: Count = 5000,
    gray_mapping: GrayMapping = "window",
    processes: Count | None = None,
) -> None:
    """Print counts, and write findings.csv and sheet.png.

    Args:
        source: A folder of films, with or without reports beside them, or a manifest.
        out: Folder to write to.
        smallest: A film whose shorter side has fewer pixels is tiny.
        largest: A film whose longer side has more pixels is huge.
        gray_mapping: How gray values of image files become 8 bits: window, minmax or percentile.
        processes: Number of worker processes. By default one per core.
    """
    from generator.check import check

    checked = check(source, smallest, largest, gray_mapping, processes)
    print(checked.summary())
    print(f"written: {', '.join(map(str, checked.write(out)))}")


if __name__ == "__main__":
    run("check")
