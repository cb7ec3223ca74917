"""How well one frozen tower's patches outline structures: a small head trained on stored patch grids.

    raddraft segment --tower rad-dino --studies studies.jsonl --structures lungs
    raddraft segment --tower random:runs/demo/tower --studies runs/demo/phantom/studies.jsonl --structures lungs
    raddraft segment --tower rad-dino --studies ribs/studies.jsonl --structures ribs --head upernet --layers 3 6 9 12

Trained on train, its epoch chosen on val, measured on test. Many towers: `raddraft compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from encoder.config import EncoderConfig
from encoder.probe_config import SegmentConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError

FLAT = ("head", "encoder")


def main(
    studies: Path,
    head: SegmentConfig,
    encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 - read only
    layers: tuple[int, ...] | None = None,
    out: Path = Path("segment.json"),
    sources: list[str] | None = None,
    seen: Path | None = None,
    known_as: str = "",
    leaks: Literal["refuse", "tell"] = "refuse",
) -> None:
    """Print Dice and IoU on test, with 95 % intervals by subject, and write all of it as JSON.

    Args:
        studies: Manifest of the studies.
        head: Segmentation head
        encoder: Encoder
        layers: Hidden states by index, concatenated, for upernet; by default the tower's final output.
        out: JSON file to write.
        sources: Take only studies of these sources; by default all.
        seen: List of SHA-256 digests of the tower's pre-training images, one per line; a warning is printed if test
            images are among them.
        known_as: Short name of the tower that a folder or features:FILE holds, so that numbers on films that it was
            trained on are marked.
        leaks: What to do about test films that are train films, by their file or their look: refuse, or tell.
    """
    from encoder.config import FeatureConfig
    from encoder.features import open_store
    from encoder.leaks import look_for_leaks
    from encoder.segment import masked_paths, segment
    from encoder.targets import of_sources
    from raddraft.files import write_json
    from raddraft.studies import read_studies
    from raddraft.text import format_table, show

    known = of_sources(read_studies(studies), sources)
    paths = masked_paths(known, head.structures)
    tower = encoder.load()
    if tower.shape[:2] == (1, 1):
        raise RadDraftError(f"{encoder.tower} has no patches to segment from")
    store = open_store(tower, paths, FeatureConfig("tokens", layers), encoder)
    told = look_for_leaks(known, paths, encoder, known_as, seen, leaks == "refuse")
    result, _ = segment(store, known, tower.processor, head, str(tower.device))
    mark = told.seen.mark
    rows = [[name, show(row["dice"]) + mark, show(row["iou"]) + mark] for name, row in result.scores.items()]
    print(format_table([["", "dice", "iou"], *(rows if len(head.structures) > 1 else rows[:1])]))
    counts = ", ".join(f"{split} {count}" for split, count in result.n_images.items())
    print(f"images: {counts}; {result.seconds:.1f} s\nbrackets: 95 % interval, subjects resampled")
    for reason, count in result.left_out.items():
        print(f"note: left out: {count} images {reason}")
    for sentence in [*told.warnings, *result.errors]:
        print(f"warning: {sentence}")
    write_json(out, {"tower": encoder.tower} | told.to_dict() | result.to_dict())
    print(f"numbers: {out}")


if __name__ == "__main__":
    run("segment")
