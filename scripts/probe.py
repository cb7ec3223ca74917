"""How much of a finding, or of a patient's data, can be read off the features of one frozen tower.

    raddraft probe --tower rad-dino --studies studies.jsonl --targets Cardiomegaly Edema
    raddraft probe --tower pixels --studies runs/demo/phantom/studies.jsonl --kind multiclass --targets patient.sex
    raddraft probe --features features/0f3c… --studies studies.jsonl --kind regression --targets patient.age
    raddraft probe --tower rad-dino --studies studies.jsonl --kind binary --targets Pneumonia --blocks 2 \\
        --probe.solver adamw --probe.weight-decays 0.01 --probe.epochs 10

Fitted on train, chosen on val, measured on test. Many towers on many tasks: `raddraft compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from encoder.config import EncoderConfig
from encoder.probe_config import ProbeConfig, TargetSpec
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Positive, Whole

FLAT = ("target", "encoder")
RENAMED = {"probe.learning_rate": "probe.lr", "probe.neighbours": "probe.neighbors"}  # codespell:ignore


def main(
    studies: Path,
    target: TargetSpec,
    encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 - read only
    probe: ProbeConfig = ProbeConfig(),  # noqa: B008 - read only
    out: Path = Path("probe.json"),
    sources: list[str] | None = None,
    fractions: list[Positive] | None = None,
    layers: tuple[int, ...] | None = None,
    average: bool = False,
    blocks: Whole = 0,
    seen: Path | None = None,
    known_as: str = "",
    leaks: Literal["refuse", "tell"] = "refuse",
) -> None:
    """Print a table of the measures on test, with 95 % intervals by subject, and write all of it as JSON.

    Args:
        studies: Manifest of the studies.
        target: Target
        encoder: Encoder; without --tower, --features names one folder of stored features, as `raddraft features` prints
        probe: Probe
        out: JSON file to write.
        sources: Take only studies of these sources; by default all.
        fractions: Also a learning curve: fractions of the train subjects, e.g. 0.1 0.3 1; three random draws of each.
        layers: Hidden states by index, side by side; by default the tower's final output.
        average: Average the layers.
        blocks: Number of the tower's last blocks to fine-tune together with the probe, in place of stored features.
        seen: List of SHA-256 digests of the tower's pre-training images, one per line; a warning is printed if test
            images are among them.
        known_as: Short name of the tower that a folder or features:FILE holds, so that numbers on films that it was
            trained on are marked.
        leaks: What to do about test films that are train films, by their file or their look: refuse, or tell.
    """
    from encoder.config import FeatureConfig
    from encoder.features import open_features, open_store
    from encoder.finetune import finetune
    from encoder.leaks import look_for_leaks
    from encoder.probe import average_curve, format_probe, learning_curve, run_probe
    from encoder.targets import make_target, of_sources
    from raddraft.files import write_json
    from raddraft.studies import read_studies

    if blocks and (not encoder.tower or fractions or encoder.precision != "float32"):
        raise RadDraftError("--blocks needs a --tower, in float32, and cannot be combined with --fractions")
    if not encoder.tower and (encoder.image_size or encoder.gray_mapping != "window"):
        raise RadDraftError("--image-size and --gray-mapping need a --tower: stored features are read as they are")
    known = of_sources(read_studies(studies), sources)
    labels = make_target(known, target)
    store = None
    if not blocks:
        kept = FeatureConfig("tokens" if probe.pooling == "attention" else "pooled", layers, average)
        opened = open_store(encoder, labels.paths, kept) if encoder.tower else None
        store = opened or open_features(encoder.features, labels.paths, kept)
    told = look_for_leaks(known, labels.paths, encoder, known_as, seen, leaks == "refuse")
    curve = {}
    if store is None:
        result = finetune(encoder.load(), blocks, labels, probe, encoder.gray_mapping)
    else:
        result = run_probe(store, labels, probe)
        points = learning_curve(store, labels, fractions, probe) if fractions else []
        curve = {name: average_curve(points, name) for name in result.measures["macro"] if points}
    print(format_probe(result, curve, told.seen.mark))
    for sentence in told.warnings:
        print(f"warning: {sentence}")
    about = {"tower": encoder.tower or str(encoder.features), "targets": target.targets, "blocks": blocks}
    write_json(out, about | told.to_dict() | {"curve": curve} | result.to_dict())
    print(f"numbers: {out}")


if __name__ == "__main__":
    run("probe")
